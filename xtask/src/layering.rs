//! Which crate may depend on which.
//!
//! The table is the architecture: an edge it does not list fails, so does a crate it does not know. Dependencies of
//! every kind count, those of tests too: a test that needs a higher layer belongs to that layer.

use std::collections::BTreeMap;

/// A workspace member and the names of its direct dependencies.
#[derive(Clone, Debug)]
pub struct Crate {
    /// Package name.
    pub name: String,
    /// Package names, normal, build and dev dependencies alike.
    pub dependencies: Vec<String>,
}

/// Workspace crates, each with the workspace crates it may depend on.
const ALLOWED: &[(&str, &[&str])] = &[
    ("hypr-common", &[]),
    ("hypr-tensor", &["hypr-common"]),
    ("hypr-ann", &["hypr-common", "hypr-tensor"]),
    ("hypr-storage", &["hypr-common", "hypr-tensor", "hypr-ann"]),
    ("hypr-inference", &["hypr-common", "hypr-tensor"]),
    ("hypr-query", &["hypr-common", "hypr-tensor", "hypr-storage", "hypr-inference"]),
    ("hypr-server", &["hypr-common", "hypr-tensor", "hypr-storage", "hypr-inference", "hypr-query"]),
    ("hyprstream", &["hypr-common", "hypr-tensor", "hypr-storage", "hypr-inference", "hypr-query", "hypr-server"]),
    ("xtask", &[]),
];

/// Foreign crates, by name or by prefix before `*`, and the only crates that may use them.
const CONFINED: &[(&str, &[&str])] = &[
    ("lance*", &["hypr-storage"]),
    ("tonic*", &["hypr-server", "hyprstream"]),
    ("arrow-flight", &["hypr-server", "hyprstream"]),
    ("datafusion*", &["hypr-storage", "hypr-query", "hypr-server"]),
    ("object_store*", &["hypr-storage", "hypr-query"]),
    ("reqwest", &["hypr-server", "hyprstream"]),
    ("axum*", &["hypr-server"]),
    ("memmap2", &["hypr-tensor"]),
];

/// Every violation, or nothing.
pub fn check(crates: &[Crate]) -> Vec<String> {
    let mut violations = Vec::new();
    for package in crates {
        violations.extend(check_edges(package));
        violations.extend(check_confined(package));
    }
    violations.extend(find_cycle(crates));
    violations
}

fn check_edges(package: &Crate) -> Vec<String> {
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
        return vec![format!(
            "crate {} is not in the layer table: give it a row in xtask/src/layering.rs and ARCHITECTURE.md",
            package.name
        )];
    };
    let is_ours = |name: &str| ALLOWED.iter().any(|(ours, _)| *ours == name);
    let forbidden = |name: &&String| is_ours(name) && !allowed.contains(&name.as_str()) && **name != package.name;
    package
        .dependencies
        .iter()
        .filter(forbidden)
        .map(|name| format!("{} must not depend on {name}: see the layer table in xtask/src/layering.rs", package.name))
        .collect()
}

fn check_confined(package: &Crate) -> Vec<String> {
    let mut violations = Vec::new();
    for name in &package.dependencies {
        for (pattern, users) in CONFINED {
            if matches(pattern, name) && !users.contains(&package.name.as_str()) {
                violations.push(format!("{} must not depend on {name}: only {} may", package.name, users.join(", ")));
            }
        }
    }
    violations
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// The first cycle among the workspace's crates, found by depth-first search.
fn find_cycle(crates: &[Crate]) -> Option<String> {
    let edges: BTreeMap<&str, &[String]> =
        crates.iter().map(|package| (package.name.as_str(), package.dependencies.as_slice())).collect();
    let mut finished = Vec::new();
    for name in edges.keys() {
        let mut path = Vec::new();
        if let Some(cycle) = visit(name, &edges, &mut path, &mut finished) {
            return Some(format!("crates depend on one another in a circle: {}", cycle.join(" -> ")));
        }
    }
    None
}

fn visit<'a>(
    name: &'a str,
    edges: &BTreeMap<&'a str, &'a [String]>,
    path: &mut Vec<&'a str>,
    finished: &mut Vec<&'a str>,
) -> Option<Vec<&'a str>> {
    if let Some(start) = path.iter().position(|seen| *seen == name) {
        return Some(path[start..].iter().copied().chain([name]).collect());
    }
    if finished.contains(&name) {
        return None;
    }
    path.push(name);
    for dependency in edges[name].iter() {
        if edges.contains_key(dependency.as_str())
            && let Some(cycle) = visit(dependency, edges, path, finished)
        {
            return Some(cycle);
        }
    }
    path.pop();
    finished.push(name);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Crate {
        Crate { name: name.into(), dependencies: dependencies.iter().map(|name| (*name).into()).collect() }
    }

    #[test]
    fn the_designed_edges_pass() {
        let crates = [
            package("hypr-common", &["serde"]),
            package("hypr-storage", &["hypr-common", "hypr-tensor", "lance", "lance-io", "datafusion"]),
            package("hypr-server", &["hypr-query", "tonic", "arrow-flight"]),
        ];
        assert_eq!(check(&crates), Vec::<String>::new());
    }

    #[test]
    fn a_forbidden_edge_fails() {
        for (from, to) in [
            ("hypr-storage", "hypr-inference"),
            ("hypr-inference", "hypr-storage"),
            ("hypr-common", "hypr-tensor"),
            ("hypr-query", "hypr-server"),
            ("hypr-server", "hyprstream"),
        ] {
            let violations = check(&[package(from, &[to])]);
            assert_eq!(violations.len(), 1, "{from} -> {to}");
            assert!(violations[0].contains(from) && violations[0].contains(to));
        }
    }

    #[test]
    fn confined_crates_stay_where_they_belong() {
        for (from, to) in [
            ("hypr-query", "lance"),
            ("hypr-server", "lance-table"),
            ("hypr-query", "tonic"),
            ("hypr-query", "arrow-flight"),
            ("hypr-inference", "datafusion-expr"),
            ("hypr-inference", "reqwest"),
        ] {
            assert_eq!(check(&[package(from, &[to])]).len(), 1, "{from} -> {to}");
        }
    }

    #[test]
    fn an_unknown_crate_fails() {
        let violations = check(&[package("hypr-everything", &[])]);
        assert!(violations[0].contains("layer table"));
    }

    #[test]
    fn a_cycle_is_named() {
        let crates = [package("a", &["b"]), package("b", &["c"]), package("c", &["b"])];
        let cycle = find_cycle(&crates).unwrap();
        assert!(cycle.ends_with("b -> c -> b"), "{cycle}");
        assert_eq!(find_cycle(&[package("a", &["b"]), package("b", &[])]), None);
    }
}
