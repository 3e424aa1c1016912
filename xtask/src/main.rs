//! Checks of the repository that the compiler does not make: `cargo xtask tidy`.
//!
//! One rule a module; each takes data and returns the violations as sentences that say what to do, so that
//! every rule is tested without a workspace on disk. Deliberately absent: whatever rustc, clippy or
//! cargo-deny already check.

mod layering;
mod links;
mod lockfile;
mod purity;
mod ratchet;
mod source;
mod workspace;

use std::process::ExitCode;

use anyhow::{Context, Result};

use workspace::Workspace;

const USAGE: &str = "usage: cargo xtask tidy";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => match tidy() {
            Ok(violations) => report(&violations),
            Err(error) => {
                eprintln!("tidy could not run: {error:#}");
                ExitCode::FAILURE
            }
        },
        Some("--help" | "-h" | "help") => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Runs every rule and returns what each found.
fn tidy() -> Result<Vec<String>> {
    let workspace = Workspace::load().context("reading the workspace")?;
    let exceptions = workspace.read("xtask/tidy-exceptions.txt")?;
    let lock = workspace.read("Cargo.lock")?;
    let mut violations = layering::check(&workspace.crates);
    violations.extend(lockfile::check(&lock));
    violations.extend(ratchet::check(&workspace.sources, &exceptions));
    violations.extend(purity::check(&workspace.sources));
    violations.extend(links::check(&workspace.pages, |path| workspace.contains(path)));
    Ok(violations)
}

fn report(violations: &[String]) -> ExitCode {
    if violations.is_empty() {
        println!("tidy: layering, versions, sizes, purity and links hold");
        return ExitCode::SUCCESS;
    }
    for violation in violations {
        eprintln!("tidy: {violation}");
    }
    eprintln!("tidy: {} violation(s)", violations.len());
    ExitCode::FAILURE
}
