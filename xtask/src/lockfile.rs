//! One Arrow, one DataFusion, one Lance: their types meet across crates, so two versions do not fit together.

use std::collections::BTreeMap;

/// Families whose every crate may be locked at one version only.
const FAMILIES: &[&str] = &["arrow", "parquet", "datafusion", "lance"];
/// Families whose crates are released together: one major version for all of them.
const ONE_MAJOR: &[&str] = &["arrow", "parquet"];

/// Checks the text of `Cargo.lock`.
pub fn check(lock: &str) -> Vec<String> {
    let packages = parse(lock);
    let mut violations = Vec::new();
    for family in FAMILIES {
        let members = packages.iter().filter(|(name, _)| in_family(name, family));
        for (name, versions) in members.filter(|(_, versions)| versions.len() > 1) {
            violations.push(format!("Cargo.lock has {name} in versions {}: keep one", versions.join(" and ")));
        }
    }
    let mut majors: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, versions) in &packages {
        if ONE_MAJOR.iter().any(|family| in_family(name, family)) {
            for version in versions {
                majors.insert(version.split('.').next().unwrap_or(version), name);
            }
        }
    }
    if majors.len() > 1 {
        let found: Vec<String> = majors.iter().map(|(major, name)| format!("{name} {major}")).collect();
        violations.push(format!("Cargo.lock mixes Arrow majors ({}): keep one", found.join(", ")));
    }
    violations
}

fn in_family(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Package names with their locked versions.
fn parse(lock: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut packages: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut name = None;
    for line in lock.lines() {
        if let Some(value) = quoted(line, "name = ") {
            name = Some(value);
        } else if let Some(version) = quoted(line, "version = ")
            && let Some(name) = name.take()
        {
            packages.entry(name).or_default().push(version);
        }
    }
    packages
}

fn quoted<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.strip_prefix(key)?.strip_prefix('"')?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(packages: &[(&str, &str)]) -> String {
        let entry =
            |(name, version): &(&str, &str)| format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n\n");
        packages.iter().map(entry).collect()
    }

    #[test]
    fn one_version_each_passes() {
        let text = lock(&[("arrow", "58.4.1"), ("arrow-array", "58.4.1"), ("datafusion", "54.1.0"), ("rand", "0.8.8")]);
        assert_eq!(check(&text), Vec::<String>::new());
    }

    #[test]
    fn two_arrows_fail_twice_over() {
        let violations = check(&lock(&[("arrow-schema", "58.4.1"), ("arrow-schema", "59.0.0")]));
        assert_eq!(violations.len(), 2);
        assert!(violations[0].contains("58.4.1 and 59.0.0"));
    }

    #[test]
    fn two_datafusions_fail_and_other_doubles_do_not() {
        let text = lock(&[("datafusion", "54.1.0"), ("datafusion", "55.0.0"), ("rand", "0.8.8"), ("rand", "0.9.5")]);
        assert_eq!(check(&text).len(), 1);
    }

    #[test]
    fn a_mixed_arrow_major_fails() {
        assert_eq!(check(&lock(&[("arrow", "58.4.1"), ("parquet", "59.0.0")])).len(), 1);
    }
}
