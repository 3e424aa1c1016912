//! `DIR/server.json`: who serves a data directory and where, so that the command line finds the server and a
//! second server can say who is in its way.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hypr_common::{Error, Result};
use serde::{Deserialize, Serialize};

const FILE_NAME: &str = "server.json";

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServerFile {
    pid: u32,
    url: String,
    /// What a client must send, if anything; then the file is its owner's alone to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

/// The published file; removed when dropped.
#[derive(Debug)]
pub(crate) struct Published(PathBuf);

/// Writes the file atomically: a reader finds the old one, the new one, or none.
pub(crate) fn publish(dir: &Path, address: SocketAddr, token: Option<&str>) -> Result<Published> {
    let path = dir.join(FILE_NAME);
    let content =
        ServerFile { pid: std::process::id(), url: format!("http://{address}"), token: token.map(str::to_owned) };
    let json = serde_json::to_vec(&content)
        .map_err(|error| Error::internal("server.json cannot be written").with_source(error))?;
    let draft = dir.join(format!("{FILE_NAME}.{}", content.pid));
    let what = format!("cannot write {}", path.display());
    let mode = if token.is_some() { 0o600 } else { 0o644 };
    let opened = fs::File::options().create(true).truncate(true).write(true).mode(mode).open(&draft);
    opened.and_then(|mut file| file.write_all(&json)).map_err(|error| Error::io(&what, error))?;
    fs::rename(&draft, &path).map_err(|error| Error::io(&what, error))?;
    Ok(Published(path))
}

impl Drop for Published {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the server file could not be removed");
        }
    }
}
