//! Sizes: files of at most 800 lines, functions of at most 70.
//!
//! What is larger stands in `xtask/tidy-exceptions.txt` with its size. An exception never grows, and one that has
//! shrunk must be lowered or removed, so the list only gets shorter. Grammar, one exception a line, `#` comments:
//! `file PATH LINES` and `fn PATH NAME LINES`.

use std::collections::BTreeMap;

use crate::source::SourceFile;

const MAX_FILE_LINES: usize = 800;
const MAX_FUNCTION_LINES: usize = 70;

/// Something with a size: a file by path, or the longest function of a name in a file.
type Key = (String, Option<String>);

/// Every size that is over its limit or off its exception.
pub fn check(sources: &[SourceFile], exceptions: &str) -> Vec<String> {
    let (exceptions, mut violations) = parse(exceptions);
    let sizes = measure(sources);
    for (key, size) in &sizes {
        violations.extend(judge(key, *size, exceptions.get(key).copied()));
    }
    for key in exceptions.keys().filter(|key| !sizes.contains_key(*key)) {
        violations.push(format!("{} is in tidy-exceptions.txt but does not exist: remove the line", describe(key)));
    }
    violations
}

fn judge(key: &Key, size: usize, exception: Option<usize>) -> Option<String> {
    let limit = if key.1.is_some() { MAX_FUNCTION_LINES } else { MAX_FILE_LINES };
    let what = describe(key);
    match exception {
        None if size > limit => Some(format!("{what} has {size} lines, more than {limit}: split it")),
        None => None,
        Some(_) if size <= limit => {
            Some(format!("{what} has {size} lines, within {limit}: remove it from tidy-exceptions.txt"))
        }
        Some(allowed) if size > allowed => {
            Some(format!("{what} grew from {allowed} to {size} lines: an exception never grows"))
        }
        Some(allowed) if size < allowed => {
            Some(format!("{what} shrank from {allowed} to {size} lines: lower it in tidy-exceptions.txt"))
        }
        Some(_) => None,
    }
}

fn describe((path, function): &Key) -> String {
    match function {
        Some(name) => format!("fn {name} in {path}"),
        None => format!("file {path}"),
    }
}

fn measure(sources: &[SourceFile]) -> BTreeMap<Key, usize> {
    let mut sizes = BTreeMap::new();
    for file in sources {
        sizes.insert((file.path.clone(), None), file.lines);
        for function in file.functions() {
            let size = sizes.entry((file.path.clone(), Some(function.name))).or_insert(0);
            *size = function.lines.max(*size);
        }
    }
    sizes
}

fn parse(text: &str) -> (BTreeMap<Key, usize>, Vec<String>) {
    let mut exceptions = BTreeMap::new();
    let mut violations = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let parsed = match words.as_slice() {
            ["file", path, size] => size.parse().ok().map(|size| (((*path).to_owned(), None), size)),
            ["fn", path, name, size] => {
                size.parse().ok().map(|size| (((*path).to_owned(), Some((*name).to_owned())), size))
            }
            _ => None,
        };
        match parsed {
            Some((key, size)) => {
                exceptions.insert(key, size);
            }
            None => violations.push(format!("tidy-exceptions.txt: cannot read `{line}`")),
        }
    }
    (exceptions, violations)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(lines: usize) -> Vec<SourceFile> {
        vec![SourceFile::new("a.rs", &"//\n".repeat(lines))]
    }

    fn function_of(lines: usize) -> Vec<SourceFile> {
        vec![SourceFile::new("a.rs", &format!("fn long() {{{}}}", "\n".repeat(lines - 1)))]
    }

    #[test]
    fn the_limits_are_inclusive() {
        assert!(check(&file_of(800), "").is_empty());
        assert!(check(&function_of(70), "").is_empty());
        assert!(check(&file_of(801), "")[0].contains("split it"));
        assert!(check(&function_of(71), "")[0].contains("fn long in a.rs"));
    }

    #[test]
    fn an_exception_holds_at_its_number_only() {
        assert!(check(&file_of(900), "file a.rs 900").is_empty());
        assert!(check(&file_of(901), "file a.rs 900")[0].contains("never grows"));
        assert!(check(&file_of(899), "file a.rs 900")[0].contains("lower it"));
        assert!(check(&file_of(700), "file a.rs 900")[0].contains("remove it"));
        assert!(check(&function_of(72), "fn a.rs long 72\n# why").is_empty());
    }

    #[test]
    fn stale_and_unreadable_lines_fail() {
        assert!(check(&[], "file gone.rs 900")[0].contains("does not exist"));
        assert!(check(&[], "file gone.rs many")[0].contains("cannot read"));
    }
}
