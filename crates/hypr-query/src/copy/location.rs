//! Where files are: which stores and directories a statement may use, and what a name there means.
//!
//! A statement runs with the rights of the server, so a server reads and writes only what its configuration lists.
//! Symbolic links and `..` are resolved before a name is compared with that list.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt;
use hypr_common::{Error, ErrorKind, Result};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

/// What `COPY` may use.
#[derive(Clone, Debug, Default)]
pub struct CopyAccess {
    /// Directories, and prefixes of object stores such as `s3://bucket/exports/`, with everything below them. `/` and
    /// `s3://` stand for all files and all buckets. Empty: none.
    pub allowed: Vec<String>,
    /// A directory that nothing is written to, whatever is allowed: that of the database.
    pub protected: Option<PathBuf>,
}

impl CopyAccess {
    /// Everything that the process itself may use.
    pub fn unrestricted() -> Self {
        Self { allowed: vec!["/".to_owned(), "s3://".to_owned()], protected: None }
    }
}

/// One file, or the files that a pattern names.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// As the statement spells it, for messages.
    shown: String,
}

/// One file that exists.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    pub store: Arc<dyn ObjectStore>,
    pub path: Path,
    pub bytes: u64,
    /// For messages.
    pub shown: String,
}

impl Location {
    /// Finds out what `text` names, if that is allowed.
    ///
    /// # Errors
    /// `PermissionDenied` names the configuration key, `InvalidInput` a name that is none.
    pub(crate) fn resolve(text: &str, access: &CopyAccess, write: bool) -> Result<Self> {
        match text.split_once("://") {
            Some(("s3" | "s3a", rest)) => Self::bucket(text, rest, access),
            Some(("file", rest)) => Self::file(rest, access, write),
            Some((scheme, _)) => Err(Error::unsupported(format!("{scheme}:// is not available; use a path or s3://"))),
            None => Self::file(text, access, write),
        }
    }

    fn bucket(text: &str, rest: &str, access: &CopyAccess) -> Result<Self> {
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || key.is_empty() {
            return Err(Error::invalid(format!("{text} names no object; write s3://bucket/key")));
        }
        let key = Path::parse(key).map_err(|e| Error::invalid(format!("{text}: {e}")))?;
        let plain = format!("s3://{bucket}/{key}");
        if !access.allowed.iter().any(|prefix| is_below(&plain, &prefix.replacen("s3a://", "s3://", 1))) {
            return Err(denied(text));
        }
        let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build().map_err(|e| {
            let message = format!("{text}: the object store is not configured; set the AWS_* variables of the server");
            Error::new(ErrorKind::Unavailable, message).with_source(e)
        })?;
        Ok(Self { store: Arc::new(store), path: key, shown: text.to_owned() })
    }

    fn file(text: &str, access: &CopyAccess, write: bool) -> Result<Self> {
        let absolute = std::path::absolute(text).map_err(|e| Error::io(text, e))?;
        let real = canonical(&absolute, text)?;
        let is_allowed = access
            .allowed
            .iter()
            .filter(|prefix| !prefix.contains("://"))
            .any(|prefix| FilePath::new(prefix).canonicalize().is_ok_and(|directory| real.starts_with(directory)));
        if !is_allowed {
            return Err(denied(text));
        }
        let protected = access.protected.as_ref().and_then(|directory| directory.canonicalize().ok());
        if write && protected.is_some_and(|directory| real.starts_with(directory)) {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!("{text} lies in the data directory, whose files are the database's own; write elsewhere"),
            ));
        }
        if real.is_dir() {
            return Err(Error::invalid(format!(
                "{text} is a directory; name a file, or files as in '{text}/*.parquet'"
            )));
        }
        let path = Path::from_absolute_path(&real).map_err(|e| Error::invalid(format!("{text}: {e}")))?;
        let store = LocalFileSystem::new();
        Ok(Self { store: Arc::new(store), path, shown: text.to_owned() })
    }

    /// The store and the path to write to.
    pub(crate) fn target(self) -> (Arc<dyn ObjectStore>, Path, String) {
        (self.store, self.path, self.shown)
    }

    /// The files that are there, by name.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub(crate) async fn files(&self) -> Result<Vec<SourceFile>> {
        let name = self.path.filename().unwrap_or_default().to_owned();
        if !self.shown.contains(['*', '?']) {
            let found = self.store.head(&self.path).await.map_err(|e| store_error(&self.shown, e))?;
            return Ok(vec![self.source(found.location, found.size, self.shown.clone())]);
        }
        let pattern = self.shown.rsplit('/').next().unwrap_or_default();
        let directory = self.shown.strip_suffix(pattern).unwrap_or_default();
        if directory.contains(['*', '?']) {
            return Err(Error::invalid(format!("{}: * and ? stand in the last part of a path only", self.shown)));
        }
        let parts: Vec<_> = self.path.parts().collect();
        let parent = Path::from_iter(parts[..parts.len().saturating_sub(1)].iter().cloned());
        let listed = self.store.list(Some(&parent)).try_collect::<Vec<_>>().await;
        let mut files: Vec<SourceFile> = listed
            .map_err(|e| store_error(&self.shown, e))?
            .into_iter()
            .filter(|found| found.location.parts().count() == parts.len())
            .filter_map(|found| {
                let name = found.location.filename()?.to_owned();
                matches(pattern, &name).then(|| self.source(found.location, found.size, format!("{directory}{name}")))
            })
            .collect();
        files.sort_by(|a, b| a.shown.cmp(&b.shown));
        if files.is_empty() {
            return Err(Error::not_found(format!("{}: no file is called like {pattern} ({name})", self.shown)));
        }
        Ok(files)
    }

    fn source(&self, path: Path, bytes: u64, shown: String) -> SourceFile {
        SourceFile { store: Arc::clone(&self.store), path, bytes, shown }
    }
}

fn denied(text: &str) -> Error {
    Error::new(
        ErrorKind::PermissionDenied,
        format!(
            "COPY may not use {text}: copy.allowed_paths lists nothing that holds it; add its directory or bucket to the \
             server's configuration, or move the data through the client (hyprstream import, hyprstream sql --format)"
        ),
    )
}

/// Whole components only: `s3://b/data` does not allow `s3://b/database`.
fn is_below(path: &str, prefix: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

/// `path` without links; what does not exist yet keeps its name, below a directory that does.
fn canonical(path: &FilePath, shown: &str) -> Result<PathBuf> {
    let mut rest = Vec::new();
    let mut existing = path;
    loop {
        if let Ok(real) = existing.canonicalize() {
            return Ok(rest.iter().rev().fold(real, |real, name| real.join(name)));
        }
        match (existing.file_name(), existing.parent()) {
            (Some(name), Some(parent)) => {
                rest.push(name.to_owned());
                existing = parent;
            }
            // `..` has no file name: nothing that does not exist can be left again.
            _ => return Err(Error::not_found(format!("{shown} does not exist"))),
        }
    }
}

/// `*` is any text, `?` any character.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// An error of a store, by what the caller can do about it.
pub(crate) fn store_error(shown: &str, error: object_store::Error) -> Error {
    use object_store::Error as Store;
    let (kind, what) = match &error {
        Store::NotFound { .. } => (ErrorKind::NotFound, "does not exist".to_owned()),
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => {
            (ErrorKind::PermissionDenied, "the store refuses access".to_owned())
        }
        _ => (ErrorKind::Unavailable, "the store failed; the log has the details".to_owned()),
    };
    Error::new(kind, format!("{shown}: {what}")).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(allowed: &[&str]) -> CopyAccess {
        CopyAccess { allowed: allowed.iter().map(ToString::to_string).collect(), protected: None }
    }

    #[test]
    fn nothing_outside_of_what_is_listed_can_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        for directory in [&inside, &outside] {
            std::fs::create_dir(directory).unwrap();
            std::fs::write(directory.join("x.csv"), "a\n1\n").unwrap();
        }
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let access = access(&[inside.to_str().unwrap()]);
        let resolve = |path: &str| Location::resolve(&format!("{}/{path}", inside.display()), &access, false);
        assert!(resolve("x.csv").is_ok());
        assert!(resolve("new/deep/x.csv").is_ok());
        for path in ["../out/x.csv", "link/x.csv", "link/new.csv"] {
            assert_eq!(resolve(path).unwrap_err().kind(), ErrorKind::PermissionDenied, "{path}");
        }
        assert!(resolve("missing/../../out/x.csv").is_err());
        let error = Location::resolve("/etc/passwd", &CopyAccess::default(), false).unwrap_err();
        assert!(error.message().contains("copy.allowed_paths"), "{error}");
    }

    #[test]
    fn the_data_directory_is_read_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let access = CopyAccess { protected: Some(dir.path().to_owned()), ..CopyAccess::unrestricted() };
        let path = format!("{}/wal/x.csv", dir.path().display());
        let error = Location::resolve(&path, &access, true).unwrap_err();
        assert!(error.message().contains("data directory"), "{error}");
    }

    #[test]
    fn buckets_are_allowed_by_whole_components() {
        assert!(is_below("s3://b/data/x", "s3://b/data"));
        assert!(is_below("s3://b/data/x", "s3://"));
        assert!(!is_below("s3://b/database/x", "s3://b/data"));
        let error = Location::resolve("s3://other/x.csv", &access(&["s3://mine/"]), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert_eq!(
            Location::resolve("http://h/x.csv", &access(&["/"]), false).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
    }

    #[test]
    fn patterns_match_whole_names() {
        assert!(matches("*.csv", "a.csv") && matches("a?c*", "abcd") && matches("*", ""));
        assert!(!matches("*.csv", "a.csv.gz") && !matches("a?", "a"));
        assert!(matches("*a*b", "xxaxxab"));
    }
}
