//! Links between the repository's own pages lead somewhere.

use std::path::{Component, Path, PathBuf};

/// A Markdown page.
#[derive(Clone, Debug)]
pub struct Page {
    /// Path from the workspace root.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// Every relative link whose target `exists` denies. Anchors are not checked, nor code blocks.
pub fn check(pages: &[Page], exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut violations = Vec::new();
    for page in pages {
        let folder = Path::new(&page.path).parent().unwrap_or(Path::new(""));
        for link in links(&page.text) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !exists(&normalise(&folder.join(target))) {
                violations.push(format!("{} links to {link}, which does not exist", page.path));
            }
        }
    }
    violations
}

/// Targets of `[text](target)` outside code.
fn links(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for (start, _) in line.match_indices("](") {
            let rest = &line[start + 2..];
            if let Some(end) = rest.find(')') {
                found.push(rest[..end].trim());
            }
        }
    }
    found
}

/// The path without `.` and `..`.
fn normalise(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(text: &str) -> Vec<String> {
        let page = Page { path: "docs/a.md".into(), text: text.into() };
        check(&[page], |path| path == Path::new("README.md") || path == Path::new("docs/b.md"))
    }

    #[test]
    fn links_that_lead_somewhere_pass() {
        assert!(
            check_one("[b](b.md) and [top](../README.md#why), [web](https://example.org), [here](#there)").is_empty()
        );
    }

    #[test]
    fn dead_links_fail_and_code_is_left_alone() {
        assert_eq!(check_one("see [c](c.md)"), ["docs/a.md links to c.md, which does not exist"]);
        assert!(check_one("```\n[c](c.md)\n```").is_empty());
    }
}
