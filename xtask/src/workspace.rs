//! The workspace as the rules see it: crates with their direct dependencies, Rust sources, and pages.
//!
//! Files that git ignores are no part of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::layering::Crate;
use crate::links::Page;
use crate::source::SourceFile;

/// Everything the rules read.
pub struct Workspace {
    root: PathBuf,
    /// Members of the workspace.
    pub crates: Vec<Crate>,
    /// Every tracked or trackable `.rs` file.
    pub sources: Vec<SourceFile>,
    /// Every tracked or trackable `.md` file.
    pub pages: Vec<Page>,
}

impl Workspace {
    /// Reads the workspace that cargo runs this program for, which need not be the one it was built in.
    pub fn load() -> Result<Self> {
        let xtask = std::env::var_os("CARGO_MANIFEST_DIR").context("run it as `cargo xtask`")?;
        let root = Path::new(&xtask).parent().context("xtask lies in the workspace root")?.to_path_buf();
        let files = list_files(&root)?;
        let crates = load_crates(&root, &files)?;
        let mut sources = Vec::new();
        for path in files.iter().filter(|path| path.ends_with(".rs")) {
            let text = std::fs::read_to_string(root.join(path)).with_context(|| format!("reading {path}"))?;
            sources.push(SourceFile::new(path, &text));
        }
        let mut pages = Vec::new();
        for path in files.iter().filter(|path| path.ends_with(".md")) {
            let text = std::fs::read_to_string(root.join(path)).with_context(|| format!("reading {path}"))?;
            pages.push(Page { path: path.clone(), text });
        }
        Ok(Self { root, crates, sources, pages })
    }

    /// Whether a file or folder is there, by its path from the workspace root.
    pub fn contains(&self, path: &Path) -> bool {
        self.root.join(path).exists()
    }

    /// Reads one file by its path from the workspace root.
    pub fn read(&self, path: &str) -> Result<String> {
        std::fs::read_to_string(self.root.join(path)).with_context(|| format!("reading {path}"))
    }
}

/// Paths from the root of files that git tracks or would track; all files where there is no git.
fn list_files(root: &Path) -> Result<Vec<String>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .ok()
        .filter(|output| output.status.success());
    let Some(output) = listed else {
        let mut files = Vec::new();
        walk(root, root, &mut files)?;
        return Ok(files);
    };
    let mut files: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
    files.retain(|path| root.join(path).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

fn walk(root: &Path, dir: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, files)?;
        } else {
            files.push(path.strip_prefix(root)?.to_string_lossy().into_owned());
        }
    }
    files.sort();
    Ok(())
}

fn load_crates(root: &Path, files: &[String]) -> Result<Vec<Crate>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("running cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("parsing cargo metadata")?;
    let mut crates = Vec::new();
    for package in metadata["packages"].as_array().context("cargo metadata lists no packages")? {
        let manifest = package["manifest_path"].as_str().context("a package has no manifest path")?;
        let manifest = Path::new(manifest).strip_prefix(root).unwrap_or(Path::new(manifest));
        if files.iter().any(|file| Path::new(file) == manifest) {
            crates.push(parse_crate(package)?);
        }
    }
    Ok(crates)
}

/// One package of `cargo metadata`.
fn parse_crate(package: &Value) -> Result<Crate> {
    let name = package["name"].as_str().context("a package has no name")?;
    let dependencies = package["dependencies"].as_array().context("a package has no dependency list")?;
    let mut names = Vec::new();
    for dependency in dependencies {
        names.push(dependency["name"].as_str().context("a dependency has no name")?.to_owned());
    }
    names.sort();
    names.dedup();
    Ok(Crate { name: name.to_owned(), dependencies: names })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_dependencies_of_every_kind() {
        let package = serde_json::json!({
            "name": "hypr-query",
            "dependencies": [
                {"name": "tokio", "kind": null}, {"name": "tokio", "kind": "dev"}, {"name": "arrow", "kind": "build"}
            ]
        });
        let parsed = parse_crate(&package).unwrap();
        assert_eq!(parsed.name, "hypr-query");
        assert_eq!(parsed.dependencies, ["arrow", "tokio"]);
    }

    #[test]
    fn this_workspace_loads_with_its_own_crate() {
        let workspace = Workspace::load().unwrap();
        assert!(workspace.crates.iter().any(|package| package.name == "xtask"));
        assert!(workspace.sources.iter().any(|file| file.path == "xtask/src/workspace.rs"));
    }
}
