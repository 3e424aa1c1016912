//! One file over HTTP: streamed to disk, continued where an earlier attempt stopped, verified.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use hypr_common::{Error, ErrorKind, Result};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode, Url};
use sha2::{Digest, Sha256};

use super::cache::{Cache, chunks, hex};

/// A source that does not take the connection in this time counts as out of reach.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// So long may a source stay silent, before its first byte and between two.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Times that a broken connection is taken up again before the user is told.
const ATTEMPTS: usize = 4;
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// A file somewhere, and what it must be.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// What progress and errors call it.
    pub label: &'a str,
    pub url: Url,
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: &'a str,
}

/// Fetches files into a cache.
#[derive(Clone, Debug)]
pub struct Downloader {
    client: Client,
    cache: Cache,
}

/// How one attempt ended.
enum Attempt {
    Complete(PathBuf),
    /// The connection broke; what has arrived is kept.
    Broken(reqwest::Error),
}

impl Downloader {
    pub fn new(cache: Cache) -> Result<Self> {
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("hyprstream/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::internal("the HTTP client could not be set up").with_source(error))?;
        Ok(Self { client, cache })
    }

    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// A small text file, such as an index page.
    pub async fn text(&self, url: &Url) -> Result<String> {
        let response = self.client.get(url.clone()).send().await.map_err(|error| unreachable(url, error))?;
        refuse_errors(url, &response)?;
        response.text().await.map_err(|error| unreachable(url, error))
    }

    /// The path of a complete, verified file, from the cache if it is there.
    ///
    /// # Errors
    /// `Unavailable` when the source cannot be reached or breaks off (what has arrived is kept and continued
    /// next time), `NotFound` when it does not have the file, `Corrupted` when it serves other bytes.
    pub async fn fetch(&self, wanted: &Wanted<'_>) -> Result<PathBuf> {
        let _lock = self.cache.lock(wanted.sha256)?;
        if let Some(path) = self.cache.find(wanted.sha256)? {
            return Ok(path);
        }
        let mut attempts = 1;
        loop {
            match self.attempt(wanted).await? {
                Attempt::Complete(path) => return Ok(path),
                Attempt::Broken(error) if attempts == ATTEMPTS => return Err(unreachable(&wanted.url, error)),
                Attempt::Broken(error) => {
                    tracing::info!(url = %redacted(&wanted.url), %error, "the connection broke; continuing");
                    tokio::time::sleep(RETRY_PAUSE * attempts as u32).await;
                    attempts += 1;
                }
            }
        }
    }

    async fn attempt(&self, wanted: &Wanted<'_>) -> Result<Attempt> {
        let path = self.cache.part_path(wanted.sha256);
        let failed = |error: io::Error| Error::io(format!("write {}", path.display()), error);
        let options = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut part = Part { file: options.map_err(failed)?, bytes: 0, hash: Sha256::new() };
        part.resume(wanted.bytes).map_err(failed)?;
        if part.bytes < wanted.bytes {
            let response = match self.request(wanted, part.bytes).await {
                Ok(response) => response,
                // Nobody there: asking again at once would only delay the next source.
                Err(error) if error.is_connect() => return Err(unreachable(&wanted.url, error)),
                Err(error) => return Ok(Attempt::Broken(error)),
            };
            if continues_at(&response) != Some(part.bytes) {
                part.restart().map_err(failed)?;
                refuse_errors(&wanted.url, &response)?;
            }
            if let Some(error) = receive(response, &mut part, wanted).await? {
                return Ok(Attempt::Broken(error));
            }
        }
        self.finish(wanted, part).map(Attempt::Complete)
    }

    async fn request(&self, wanted: &Wanted<'_>, from: u64) -> reqwest::Result<Response> {
        let mut request = self.client.get(wanted.url.clone());
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        request.send().await
    }

    fn finish(&self, wanted: &Wanted<'_>, part: Part) -> Result<PathBuf> {
        let found = hex(part.hash);
        if part.bytes == wanted.bytes && found == wanted.sha256 {
            return self.cache.complete(wanted.sha256, &part.file);
        }
        self.cache.discard(wanted.sha256);
        Err(Error::corrupted(format!(
            "{} is not the file that was expected: {} bytes with sha256 {found}, not {} bytes with {}; nothing was kept",
            redacted(&wanted.url),
            part.bytes,
            wanted.bytes,
            wanted.sha256
        )))
    }
}

/// What has arrived of a file.
struct Part {
    file: File,
    bytes: u64,
    hash: Sha256,
}

impl Part {
    /// Hashes what an earlier attempt left; starts over when that is more than the file has.
    fn resume(&mut self, expected_bytes: u64) -> io::Result<()> {
        let bytes = self.file.metadata()?.len();
        if bytes > expected_bytes {
            return self.restart();
        }
        chunks(&self.file, |bytes| {
            self.hash.update(bytes);
            Ok(())
        })?;
        self.bytes = bytes;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hash = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Writes the body to `part`. A connection that breaks is returned, not raised: it can be continued.
async fn receive(mut response: Response, part: &mut Part, wanted: &Wanted<'_>) -> Result<Option<reqwest::Error>> {
    let bar = progress_bar(wanted, part.bytes);
    let broken = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                part.append(&chunk).map_err(|error| Error::io(format!("write {}", wanted.label), error))?;
                bar.set_position(part.bytes);
                if part.bytes > wanted.bytes {
                    break None;
                }
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    bar.finish_and_clear();
    Ok(broken)
}

/// The offset at which the body of a partial answer starts.
fn continues_at(response: &Response) -> Option<u64> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return None;
    }
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// Only a whole file counts: an answer of 206 gets here when it does not continue where it was asked to.
fn refuse_errors(url: &Url, response: &Response) -> Result<()> {
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(());
    }
    let kind = if status == StatusCode::NOT_FOUND { ErrorKind::NotFound } else { ErrorKind::Unavailable };
    Err(Error::new(kind, format!("{} answered {status}", redacted(url))))
}

fn unreachable(url: &Url, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let message = format!("{} cannot be read: {}", redacted(url), root_cause(&error));
    Error::new(ErrorKind::Unavailable, message).with_source(error)
}

fn root_cause(error: &dyn std::error::Error) -> &dyn std::error::Error {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause
}

/// `url` without the password that an index address may carry.
pub fn redacted(url: &Url) -> Url {
    let mut url = url.clone();
    if !url.username().is_empty() || url.password().is_some() {
        // Both fail only for addresses that cannot hold a user, and so have none.
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    url
}

/// Shown where standard error is a terminal; elsewhere one line says what happens.
fn progress_bar(wanted: &Wanted<'_>, from: u64) -> ProgressBar {
    let bar = ProgressBar::new(wanted.bytes);
    let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(wanted.label.to_owned());
    bar.set_position(from);
    if bar.is_hidden() {
        eprintln!("downloading {} ({} bytes) from {}", wanted.label, wanted.bytes - from, redacted(&wanted.url));
    }
    bar
}
