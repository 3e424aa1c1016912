//! A server to ask: one that runs, or one started inside this process for a directory nobody serves.
//!
//! Statements therefore take one path and answer alike, whoever holds the directory.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use hypr_common::{Error, ErrorKind, Result};
use hypr_query::copy::CopyAccess;
use hypr_server::{Client, ClientOutcome, Config};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How often and how long to wait for a directory whose holder is starting or stopping.
const HOLDER_ATTEMPTS: usize = 20;
const HOLDER_PAUSE: Duration = Duration::from_millis(250);

/// An open connection; [`Connection::close`] it, so that a server in this process stops in order.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    embedded: Option<Embedded>,
}

/// A server in this process.
#[derive(Debug)]
struct Embedded {
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<()>>,
}

impl Connection {
    /// Connects to a running server.
    pub async fn server(url: &str) -> Result<Self> {
        Ok(Self { client: Client::connect(url).await?, embedded: None })
    }

    /// Opens the configured data directory, or connects to the server that holds it.
    ///
    /// # Errors
    /// `Unavailable` when something holds the directory that serves nobody.
    pub async fn directory(config: Config) -> Result<Self> {
        let mut attempt = 1;
        loop {
            let held = match Self::embedded(config.clone()).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => error,
                opened => return opened,
            };
            // The lock is the truth; what `server.json` says may be left from a server that was killed.
            if let Some((url, token)) = holder(&config.storage.data_dir) {
                let client = match token {
                    Some(token) => Client::connect_with_token(&url, &token).await,
                    None => Client::connect(&url).await,
                };
                if let Ok(client) = client {
                    return Ok(Self { client, embedded: None });
                }
            }
            if attempt == HOLDER_ATTEMPTS {
                return Err(held);
            }
            tokio::time::sleep(HOLDER_PAUSE).await;
            attempt += 1;
        }
    }

    async fn embedded(mut config: Config) -> Result<Self> {
        config.server.host = [127, 0, 0, 1].into();
        config.server.port = 0;
        // It does what this command may do, for this command and nobody else on this machine.
        let token = token()?;
        config.access_token = Some(token.clone());
        if config.copy.allowed_paths.is_empty() {
            config.copy.allowed_paths = CopyAccess::unrestricted().allowed;
        }
        let (ready, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let announce = move |address| {
            // The receiver is gone only when this whole attempt was dropped.
            let _ = ready.send(address);
        };
        let mut server = tokio::spawn(hypr_server::serve(config, announce, async {
            // A sender dropped without a word means stop, too.
            let _ = stopped.await;
        }));
        match address.await {
            Ok(address) => {
                let embedded = Embedded { stop, server };
                let client = Client::connect_with_token(&format!("http://{address}"), &token).await?;
                Ok(Self { client, embedded: Some(embedded) })
            }
            Err(_) => {
                Err(ended(&mut server).await.err().unwrap_or_else(|| Error::internal("the server stopped at once")))
            }
        }
    }

    /// Runs one statement.
    pub async fn execute(&mut self, sql: &str) -> Result<ClientOutcome> {
        self.client.execute(sql).await
    }

    /// The connection itself.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Hangs up; a server in this process makes everything durable first.
    pub async fn close(self) -> Result<()> {
        drop(self.client);
        let Some(mut embedded) = self.embedded else { return Ok(()) };
        // If the server has ended already, its result says why.
        let _ = embedded.stop.send(());
        ended(&mut embedded.server).await
    }
}

/// A secret of 128 random bits.
fn token() -> Result<String> {
    let mut bits = [0; 16];
    let random = fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bits));
    random.map_err(|error| Error::io("/dev/urandom", error))?;
    Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn ended(server: &mut JoinHandle<Result<()>>) -> Result<()> {
    server
        .await
        .unwrap_or_else(|error| Err(Error::internal("the server inside this process failed").with_source(error)))
}

/// The address that the holder of a data directory has published, and what to send there.
fn holder(dir: &Path) -> Option<(String, Option<String>)> {
    let text = fs::read(dir.join("server.json")).ok()?;
    let server: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let field = |name: &str| server.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    Some((field("url")?, field("token")))
}
