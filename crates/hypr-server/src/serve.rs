//! The life of a server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use axum::Router;
use hypr_common::clock::SystemClock;
use hypr_common::{Error, ErrorKind, Result};
use hypr_inference::{EngineHandle, EngineOptions, EngineService};
use hypr_query::{QueryEngine, QueryOptions};
use hypr_storage::{Database, StorageOptions};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::config::{Config, level_of};
use crate::flight::{FlightOptions, HyprFlight, HyprFlightSql};
use crate::http::{self, Ready};
use crate::listener::{self, Limits};
use crate::server_file;

/// The name under which gRPC health reports on Flight SQL.
const FLIGHT_SERVICE: &str = "arrow.flight.protocol.FlightService";
/// How long a shutdown waits for the engine's thread beyond that, which ends after its current forward pass.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves `config.storage.data_dir` until `shutdown` completes.
///
/// `on_ready` is called once, with the bound address, when the server accepts work. When `serve` returns, no
/// request runs, everything acknowledged is durable, and another process may open the directory.
///
/// # Errors
/// `Unavailable` when another process holds the directory (its pid and address are named) or the address is
/// taken; the store's error when the directory cannot be opened or closed.
pub async fn serve(
    config: Config,
    on_ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let database = Database::open(&config.storage.data_dir, storage_options(&config)).await?;
    let (listener, address) = bind(&config).await?;
    let (engine, engine_thread) = start_engine(&database, &config)?;
    let queries = QueryEngine::new(database.clone(), Arc::new(engine.clone()), query_options(&config))?;
    let series = hypr_query::start_series_service(&queries, hypr_query::SERIES_TICK);
    let published = server_file::publish(database.dir(), address, config.access_token.as_deref())?;
    let ready = Ready::new(AtomicBool::new(true));
    let (app, health) = router(queries, Arc::clone(&ready), &config).await?;
    let limits = Limits {
        max_connections: config.server.max_connections,
        drain_timeout: Duration::from_secs(config.server.drain_timeout_s),
    };

    tracing::info!(%address, data_dir = %database.dir().display(), "ready");
    on_ready(address);
    let draining = async {
        shutdown.await;
        tracing::info!("draining");
        ready.store(false, Ordering::SeqCst);
        health.set_service_status(FLIGHT_SERVICE, tonic_health::ServingStatus::NotServing).await;
    };
    let drain_began = listener::serve(listener, app, limits, draining).await;

    series.stop().await;
    stop_engine(engine, engine_thread, drain_began + limits.drain_timeout).await;
    let closed = database.close().await;
    drop(published);
    tracing::info!("stopped");
    closed
}

async fn bind(config: &Config) -> Result<(TcpListener, SocketAddr)> {
    let wanted = SocketAddr::new(config.server.host, config.server.port);
    let listener = TcpListener::bind(wanted).await.map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::AddrInUse => ErrorKind::Unavailable,
            _ => ErrorKind::InvalidInput,
        };
        Error::new(kind, format!("cannot listen on {wanted}: {error}; choose another address with --listen"))
            .with_source(error)
    })?;
    let address = listener.local_addr().map_err(|error| Error::io("the bound address cannot be read", error))?;
    Ok((listener, address))
}

/// Flight SQL, gRPC health and HTTP as one router.
async fn router(queries: Arc<QueryEngine>, ready: Ready, config: &Config) -> Result<(Router, HealthReporter)> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(FLIGHT_SERVICE, tonic_health::ServingStatus::Serving).await;
    let options = FlightOptions {
        transaction_idle: Duration::from_secs(config.server.transaction_idle_s),
        split_bytes: config.server.split_result_mb.saturating_mul(1 << 20),
    };
    let flight = FlightServiceServer::new(HyprFlight::new(HyprFlightSql::new(queries, options)?))
        .max_decoding_message_size(config.server.max_message_mb.saturating_mul(1 << 20))
        .max_encoding_message_size(usize::MAX);
    let app = http::multiplex(Routes::new(flight).add_service(health_service), ready);
    Ok((http::guarded(app, config.access_token.clone()), health))
}

fn start_engine(database: &Database, config: &Config) -> Result<(EngineHandle, JoinHandle<()>)> {
    let (handle, service) = hypr_inference::engine(database.models(), engine_options(config));
    let thread = std::thread::Builder::new()
        .name("hypr-engine".to_owned())
        .spawn(move || EngineService::run(service))
        .map_err(|error| Error::io("the engine's thread cannot be started", error))?;
    Ok((handle, thread))
}

/// Clients have their answers, or have been cut off, when this is called: what still runs is the server's own. It may
/// finish until `deadline`.
async fn stop_engine(engine: EngineHandle, thread: JoinHandle<()>, deadline: Instant) {
    engine.drain();
    let mut joined = tokio::task::spawn_blocking(move || thread.join());
    let ended = match tokio::time::timeout_at(deadline, &mut joined).await {
        Ok(ended) => Ok(ended),
        Err(_) => {
            engine.shutdown();
            tokio::time::timeout(ENGINE_TIMEOUT, joined).await
        }
    };
    match ended {
        Ok(Ok(Ok(()))) => {}
        Ok(_) => tracing::error!("the engine's thread panicked"),
        Err(_) => tracing::warn!("the engine is still busy; leaving it behind"),
    }
}

/// The store's defaults, but for what is configured.
fn storage_options(config: &Config) -> StorageOptions {
    let mut options = StorageOptions::default();
    if let Some(rows) = config.storage.flush_rows {
        options.flush_rows = rows;
    }
    if let Some(mb) = config.storage.flush_mb {
        options.flush_bytes = mb.saturating_mul(1 << 20);
    }
    if let Some(mb) = config.storage.transaction_mb {
        options.transaction_limit_bytes = mb.saturating_mul(1 << 20);
    }
    if let Some(ms) = config.storage.flush_interval_ms {
        options.flush_age = Duration::from_millis(ms);
    }
    if let Some(mb) = config.storage.column_cache_mb {
        options.column_cache_bytes = mb.saturating_mul(1 << 20);
    }
    if let Some(seconds) = config.storage.version_retention_s {
        options.version_retention = Duration::from_secs(seconds);
    }
    options
}

/// The engine's defaults, but for what is configured.
fn engine_options(config: &Config) -> EngineOptions {
    let mut options = EngineOptions {
        default_generation_model: config.model.base_model.clone(),
        default_embedding_model: config.model.embedding_model.clone(),
        ..EngineOptions::default()
    };
    if let Some(threads) = config.engine.threads {
        options.threads = threads;
    }
    if let Some(sequences) = config.engine.max_sequences {
        options.max_sequences = sequences;
    }
    if let Some(depth) = config.engine.queue_depth {
        options.queue_depth = depth;
    }
    if let Some(tokens) = config.engine.max_batched_tokens {
        options.max_batched_tokens = tokens;
    }
    if let Some(mb) = config.engine.kv_cache_mb {
        options.kv_cache_bytes = mb.saturating_mul(1 << 20);
    }
    options.model_memory_bytes = config.engine.model_memory_mb.map(|mb| mb.saturating_mul(1 << 20));
    if let Some(tokens) = config.engine.max_context_tokens {
        options.max_context_tokens = tokens;
    }
    options.clock = Arc::new(SystemClock);
    options.level = config.engine.cpu_level.as_deref().and_then(|level| level_of(level).ok());
    options
}

fn query_options(config: &Config) -> QueryOptions {
    let mut options = QueryOptions::default();
    let query = &config.query;
    if let Some(mb) = query.memory_limit_mb {
        options.memory_limit_bytes = mb.saturating_mul(1 << 20);
    }
    if let Some(mb) = query.process_memory_limit_mb {
        options.limits.process_memory_bytes = Some(mb.saturating_mul(1 << 20));
    }
    options.temp_dir.clone_from(&query.temp_dir);
    if let Some(mb) = query.temp_limit_mb {
        options.temp_limit_bytes = mb.saturating_mul(1 << 20);
    }
    if let Some(kb) = query.max_statement_kb {
        options.limits.statement_bytes = kb.saturating_mul(1 << 10);
    }
    if let Some(mb) = query.ai_cache_mb {
        options.ai.cache_bytes = mb.saturating_mul(1 << 20);
    }
    options.limits.result_rows = query.max_result_rows;
    options.limits.result_bytes = query.max_result_mb.map(|mb| mb.saturating_mul(1 << 20));
    options.limits.timeout = query.statement_timeout_ms.map(Duration::from_millis);
    options.copy.allowed.clone_from(&config.copy.allowed_paths);
    options
}
