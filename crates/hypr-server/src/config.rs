//! Configuration: defaults, then a TOML file, then `HYPRSTREAM_*` variables, then the command line.
//!
//! Every setting has one dotted key, `section.name`. The file writes it as `name` under `[section]`, the
//! environment as `HYPRSTREAM_SECTION_NAME`, and the command line hands it over as it is, so all three are
//! checked alike. Each key is described in `docs/configuration.md`, and a test keeps that page complete.
//!
//! Invariant: a key nobody reads is an error that names the closest one that exists. Deliberately absent:
//! settings for what is not built yet.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use config::builder::DefaultState;
use config::{ConfigBuilder, File, FileFormat, ValueKind};
use hypr_common::{Error, Result};
use hypr_tensor::kernels::Level;
use serde::{Deserialize, Deserializer};

/// What the names of all environment variables begin with.
pub const ENV_PREFIX: &str = "HYPRSTREAM_";

/// Every key, in the order of `docs/configuration.md`.
pub const KEYS: &[&str] = &[
    "server.host",
    "server.port",
    "server.max_connections",
    "server.max_message_mb",
    "server.drain_timeout_s",
    "server.transaction_idle_s",
    "server.split_result_mb",
    "storage.data_dir",
    "storage.flush_rows",
    "storage.flush_mb",
    "storage.flush_interval_ms",
    "storage.transaction_mb",
    "storage.version_retention_s",
    "storage.column_cache_mb",
    "model.base_model",
    "model.embedding_model",
    "engine.threads",
    "engine.max_sequences",
    "engine.queue_depth",
    "engine.max_batched_tokens",
    "engine.kv_cache_mb",
    "engine.model_memory_mb",
    "engine.max_context_tokens",
    "engine.cpu_level",
    "query.memory_limit_mb",
    "query.process_memory_limit_mb",
    "query.temp_dir",
    "query.temp_limit_mb",
    "query.max_statement_kb",
    "query.ai_cache_mb",
    "query.max_result_rows",
    "query.max_result_mb",
    "query.statement_timeout_ms",
    "copy.allowed_paths",
];

/// Everything a server needs to know before it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where and how much to listen.
    pub server: ServerSection,
    /// Where tables and models live, and when rows move from memory to their files.
    pub storage: StorageSection,
    /// Models to use where a statement names none.
    pub model: ModelSection,
    /// Limits of the inference engine.
    pub engine: EngineSection,
    /// Limits of one server's queries together.
    pub query: QuerySection,
    /// What `COPY` may reach.
    pub copy: CopySection,
    /// What a client must send to be served; for a server inside a command, which serves nobody else. No key sets it.
    #[serde(skip)]
    pub access_token: Option<String>,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSection {
    /// Address to bind; loopback unless told otherwise, since there is no authentication yet.
    pub host: IpAddr,
    /// Port to bind; 0 lets the system pick a free one.
    pub port: u16,
    /// Connections served at once; further ones are told so and closed.
    pub max_connections: usize,
    /// Largest message a client may send, in MiB: one record batch of an upload, or one statement.
    pub max_message_mb: usize,
    /// Seconds that running requests get to finish after a shutdown was asked for.
    pub drain_timeout_s: u64,
    /// Seconds after which a transaction is rolled back that its client left without a statement.
    pub transaction_idle_s: u64,
    /// MiB from which on a result has several endpoints, to be read at once.
    pub split_result_mb: u64,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            host: IpAddr::from([127, 0, 0, 1]),
            port: 8080,
            max_connections: 1024,
            max_message_mb: 256,
            drain_timeout_s: 30,
            transaction_idle_s: 600,
            split_result_mb: 64,
        }
    }
}

/// `[storage]`. An unset threshold takes the store's own default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageSection {
    /// Directory of tables, log and models; made when missing.
    pub data_dir: PathBuf,
    /// Rows in memory, per table, that start a background flush.
    pub flush_rows: Option<usize>,
    /// MiB in memory, per table, that start a background flush.
    pub flush_mb: Option<usize>,
    /// Milliseconds after which rows in memory are flushed even when they are few.
    pub flush_interval_ms: Option<u64>,
    /// MiB of uncommitted rows that all open transactions may hold together.
    pub transaction_mb: Option<usize>,
    /// Seconds that superseded versions of tables stay.
    pub version_retention_s: Option<u64>,
    /// MiB of decoded columns that stay in memory for later reads; 0 keeps none.
    pub column_cache_mb: Option<usize>,
}

impl Default for StorageSection {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("hyprstream-data"),
            flush_rows: None,
            flush_mb: None,
            flush_interval_ms: None,
            transaction_mb: None,
            version_retention_s: None,
            column_cache_mb: None,
        }
    }
}

/// `[model]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// Model that generates text where the statement names none; by default the only one able to.
    pub base_model: Option<String>,
    /// Model that embeds text where the statement names none; by default the only one able to.
    pub embedding_model: Option<String>,
}

/// `[engine]`. An unset limit takes the engine's own default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSection {
    /// Threads that compute; by default one a core.
    pub threads: Option<usize>,
    /// Sequences that share one forward pass.
    pub max_sequences: Option<usize>,
    /// Requests that may wait; a further one is answered "busy".
    pub queue_depth: Option<usize>,
    /// Tokens that one forward pass computes.
    pub max_batched_tokens: Option<usize>,
    /// MiB that keys and values of all sequences and of shared prefixes may take.
    pub kv_cache_mb: Option<usize>,
    /// MiB that the weights of all loaded models may take together; by default the system decides.
    pub model_memory_mb: Option<usize>,
    /// Longest context, in tokens, whatever a model allows.
    pub max_context_tokens: Option<usize>,
    /// The instruction set that kernels use: `portable`, `avx2`, `avx512`, `amx` or `neon`; by default the best of this
    /// processor.
    pub cpu_level: Option<String>,
}

/// `[query]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuerySection {
    /// MiB that sorts, joins and aggregates of all queries may hold together before they spill to disk.
    pub memory_limit_mb: Option<usize>,
    /// MiB that the whole process may hold before queries are refused; whatever holds them.
    pub process_memory_limit_mb: Option<usize>,
    /// Where queries spill.
    pub temp_dir: Option<PathBuf>,
    /// MiB that all queries may have spilled at once.
    pub temp_limit_mb: Option<u64>,
    /// KiB of the text of one statement.
    pub max_statement_kb: Option<usize>,
    /// MiB of answers of models that are kept for later statements; 0 keeps none.
    pub ai_cache_mb: Option<usize>,
    /// Rows of one result.
    pub max_result_rows: Option<u64>,
    /// MiB of one result.
    pub max_result_mb: Option<usize>,
    /// Milliseconds that one statement may run.
    pub statement_timeout_ms: Option<u64>,
}

/// `[copy]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CopySection {
    /// Directories and prefixes of object stores that `COPY` may read and write; none by default.
    #[serde(deserialize_with = "list")]
    pub allowed_paths: Vec<String>,
}

/// A list, or a text with commas: a variable holds only text.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum List {
        Text(String),
        Items(Vec<String>),
    }
    Ok(match List::deserialize(deserializer)? {
        List::Items(items) => items,
        List::Text(text) => {
            text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
        }
    })
}

impl Config {
    /// Reads the configuration.
    ///
    /// `file` must exist when given. `environment` is all variables of the process; those of other programs
    /// are passed over. `overrides` are the command line's `(key, value)` pairs and win over everything.
    ///
    /// # Errors
    /// `NotFound` for a missing file; `InvalidInput` for a malformed file, a key that does not exist (the
    /// closest that does is named) or a value of the wrong type or range.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self> {
        let mut builder = config::Config::builder();
        if let Some(path) = file {
            builder = add_file(builder, path)?;
        }
        for (name, value) in environment {
            if let Some(key) = key_of_variable(&name)? {
                builder = set(builder, key, value)?;
            }
        }
        for (key, value) in overrides {
            builder = set(builder, known_key(key, "the command line")?, value.clone())?;
        }
        let merged = builder.build().map_err(|error| Error::invalid(format!("configuration: {error}")))?;
        let config: Self =
            merged.try_deserialize().map_err(|error| Error::invalid(format!("configuration: {error}")))?;
        config.check()
    }

    fn check(self) -> Result<Self> {
        let at_least_one = [
            ("server.max_connections", Some(self.server.max_connections)),
            ("server.max_message_mb", Some(self.server.max_message_mb)),
            ("storage.flush_rows", self.storage.flush_rows),
            ("storage.flush_mb", self.storage.flush_mb),
            ("storage.transaction_mb", self.storage.transaction_mb),
            ("engine.threads", self.engine.threads),
            ("engine.max_sequences", self.engine.max_sequences),
            ("engine.queue_depth", self.engine.queue_depth),
            ("engine.max_batched_tokens", self.engine.max_batched_tokens),
            ("engine.kv_cache_mb", self.engine.kv_cache_mb),
            ("engine.model_memory_mb", self.engine.model_memory_mb),
            ("engine.max_context_tokens", self.engine.max_context_tokens),
            ("query.memory_limit_mb", self.query.memory_limit_mb),
            ("query.process_memory_limit_mb", self.query.process_memory_limit_mb),
            ("query.max_statement_kb", self.query.max_statement_kb),
            ("query.max_result_mb", self.query.max_result_mb),
        ];
        for (key, value) in at_least_one {
            if value == Some(0) {
                return Err(Error::invalid(format!("`{key}` is 0 and must be at least 1")));
            }
        }
        if let Some(level) = &self.engine.cpu_level {
            level_of(level)?;
        }
        if self.storage.data_dir.as_os_str().is_empty() {
            return Err(Error::invalid("`storage.data_dir` is empty; name the directory that holds the data"));
        }
        Ok(self)
    }
}

/// The kernel level called `name`.
///
/// # Errors
/// `InvalidInput` for an unknown one, and for one that this processor does not have.
pub(crate) fn level_of(name: &str) -> Result<Level> {
    let level = match name.to_lowercase().as_str() {
        "portable" => Level::Portable,
        "avx2" => Level::Avx2,
        "avx512" => Level::Avx512,
        "amx" => Level::Amx,
        "neon" => Level::Neon,
        _ => {
            let message = format!("`engine.cpu_level` is `{name}`; use portable, avx2, avx512, amx or neon");
            return Err(Error::invalid(message));
        }
    };
    if level.is_supported() {
        return Ok(level);
    }
    Err(Error::invalid(format!("`engine.cpu_level` is `{name}`, which this processor does not have")))
}

/// The overrides that `--listen HOST:PORT` stands for. IPv6 addresses are written `[::1]:8080`.
///
/// # Errors
/// `InvalidInput` when `listen` is not an address and a port.
pub fn listen_overrides(listen: &str) -> Result<[(String, String); 2]> {
    let malformed = || Error::invalid(format!("`{listen}` is not HOST:PORT, such as 127.0.0.1:8080"));
    let (host, port) = listen.rsplit_once(':').ok_or_else(malformed)?;
    let host = match host {
        "localhost" => "127.0.0.1",
        host => host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host),
    };
    host.parse::<IpAddr>().map_err(|_| malformed())?;
    port.parse::<u16>().map_err(|_| malformed())?;
    Ok([("server.host".to_owned(), host.to_owned()), ("server.port".to_owned(), port.to_owned())])
}

/// The environment variable that sets `key`.
pub fn variable_of(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "_").to_uppercase())
}

fn add_file(builder: ConfigBuilder<DefaultState>, path: &Path) -> Result<ConfigBuilder<DefaultState>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::io(format_args!("cannot read the configuration file {}", path.display()), error))?;
    let described = format!("the configuration file {}", path.display());
    let parsed = config::Config::builder()
        .add_source(File::from_str(&text, FileFormat::Toml))
        .build()
        .map_err(|error| Error::invalid(format!("{described}: {error}")))?;
    for section in parsed.cache.clone().into_table().unwrap_or_default() {
        let (name, value) = section;
        match value.kind {
            ValueKind::Table(settings) => {
                for setting in settings.keys() {
                    known_key(&format!("{name}.{setting}"), &described)?;
                }
            }
            _ => return Err(unknown_key(&name, &described)),
        }
    }
    Ok(builder.add_source(File::from_str(&text, FileFormat::Toml)))
}

fn set(builder: ConfigBuilder<DefaultState>, key: &'static str, value: String) -> Result<ConfigBuilder<DefaultState>> {
    builder.set_override(key, value).map_err(|error| Error::invalid(format!("configuration: `{key}`: {error}")))
}

/// The key that a variable sets; `None` for one that belongs to someone else.
fn key_of_variable(name: &str) -> Result<Option<&'static str>> {
    let Some(rest) = name.strip_prefix(ENV_PREFIX) else { return Ok(None) };
    if let Some(key) = KEYS.iter().find(|key| variable_of(key) == name) {
        return Ok(Some(key));
    }
    let ours = KEYS.iter().filter_map(|key| key.split_once('.'));
    for (section, _) in ours {
        if let Some(setting) = rest.to_lowercase().strip_prefix(section).and_then(|rest| rest.strip_prefix('_')) {
            let closest = closest_key(&format!("{section}.{setting}"));
            let closest = variable_of(closest);
            return Err(Error::invalid(format!("unknown environment variable `{name}`; did you mean `{closest}`?")));
        }
    }
    Ok(None)
}

fn known_key(key: &str, origin: &str) -> Result<&'static str> {
    KEYS.iter().find(|known| **known == key).copied().ok_or_else(|| unknown_key(key, origin))
}

fn unknown_key(key: &str, origin: &str) -> Error {
    Error::invalid(format!("unknown key `{key}` in {origin}; did you mean `{}`?", closest_key(key)))
}

fn closest_key(key: &str) -> &'static str {
    // A right name in the wrong section is closer than a similar spelling in the right one, and a part of a
    // name (`memory` for `memory_limit_mb`) is closer than both.
    let name = key.rsplit('.').next().unwrap_or(key);
    let distance = |known: &str| {
        let known_name = known.rsplit('.').next().unwrap_or(known);
        let part = known_name.contains(name) || name.contains(known_name);
        (!part, edit_distance(name, known_name), edit_distance(key, known))
    };
    KEYS.iter().copied().min_by_key(|known| distance(known)).unwrap_or("server.port")
}

/// Levenshtein's distance, in characters.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests;
