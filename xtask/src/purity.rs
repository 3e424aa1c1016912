//! Where code may be unsafe, and where it may touch the world.
//!
//! `unsafe` lives in hypr-tensor alone. The engine is a functional core: it opens no file, no socket and reads no
//! clock, so whoever runs it owns time and durability.

use crate::source::{SourceFile, line_of, words};

/// The one folder in which `unsafe` may stand.
const UNSAFE_HOME: &str = "crates/hypr-tensor/";
/// Sources that must stay pure; their tests, benches and examples need not.
const PURE: &[&str] = &["crates/hypr-inference/src/", "crates/hypr-common/src/"];
/// What a pure crate may not name. Time comes from `hypr_common::clock`.
const IMPURE: &[&str] = &["std::fs", "std::net", "tokio::fs", "tokio::net", "SystemTime::now", "Instant::now"];
/// The one pure file that may read the clock: it is where time is injected from.
const CLOCK: &str = "crates/hypr-common/src/clock.rs";

/// Every violation, or nothing.
pub fn check(sources: &[SourceFile]) -> Vec<String> {
    let mut violations = Vec::new();
    for file in sources {
        if !file.path.starts_with(UNSAFE_HOME)
            && let Some(offset) = words(&file.code, "unsafe").next()
        {
            let line = line_of(&file.code, offset);
            violations.push(format!("{}:{line} is unsafe: only hypr-tensor may be", file.path));
        }
        violations.extend(check_purity(file));
    }
    violations
}

fn check_purity(file: &SourceFile) -> Vec<String> {
    let is_test = file.path.ends_with("/tests.rs") || file.path.contains("/tests/");
    if is_test || file.path == CLOCK || !PURE.iter().any(|folder| file.path.starts_with(folder)) {
        return Vec::new();
    }
    let code = file.code_without_tests();
    let found = |name: &&&str| code.contains(**name);
    IMPURE.iter().filter(found).map(|name| format!("{} names {name}: this crate does no I/O", file.path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: &str) -> Vec<String> {
        check(&[SourceFile::new(path, text)])
    }

    #[test]
    fn unsafe_lives_in_one_crate() {
        let text = "fn a() {\n unsafe { b() }\n}";
        assert!(check_one("crates/hypr-tensor/src/map.rs", text).is_empty());
        assert_eq!(
            check_one("crates/hypr-query/src/a.rs", text),
            ["crates/hypr-query/src/a.rs:2 is unsafe: only hypr-tensor may be"]
        );
        assert!(check_one("crates/hypr-query/src/a.rs", "// unsafe\n#![forbid(unsafe_code)]").is_empty());
    }

    #[test]
    fn the_engine_touches_no_file_and_no_clock() {
        let file = "crates/hypr-inference/src/engine.rs";
        assert_eq!(check_one(file, "use std::fs::File;").len(), 1);
        assert_eq!(check_one(file, "let now = std::time::Instant::now();").len(), 1);
        assert!(check_one(file, "#[cfg(test)]\nmod tests {\n use std::fs;\n}").is_empty());
        assert!(check_one("crates/hypr-inference/tests/it/main.rs", "use std::fs;").is_empty());
        assert!(check_one("crates/hypr-server/src/a.rs", "use std::fs;").is_empty());
    }
}
