//! The accept loop: HTTP/1.1 and HTTP/2 on one port, a bounded number of connections, and a drain.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::http;

/// Connections beyond the limit that are told so at the same time; still further ones are just closed.
const MAX_REFUSALS: usize = 64;
/// How long a refused connection may take to ask and to read its refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle HTTP/2 client is asked whether it is still there, and how long it may take to answer:
/// one that vanished without closing must not keep its queries running.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A client that connects and sends no complete request head is let go after this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept, such as too many open files, which a hot loop would make worse.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// HTTP/2 flow-control windows, in bytes: uploads of large record batches must not wait for round trips.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Limits of the listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections served at once.
    pub(crate) max_connections: usize,
    /// What running requests get after `shutdown`; afterwards they are cancelled.
    pub(crate) drain_timeout: Duration,
}

/// Serves `app` on `listener` until `shutdown` completes, then drains. When it returns, no request runs. Returns when the
/// drain began.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> Instant {
    let builder = Arc::new(builder());
    let draining = CancellationToken::new();
    let served = Arc::new(Semaphore::new(limits.max_connections));
    let refused = Arc::new(Semaphore::new(MAX_REFUSALS));
    let refusing = refusing_router(limits.max_connections);
    let mut connections = JoinSet::new();
    let mut next_id = 0_u64;
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let (builder, draining) = (Arc::clone(&builder), draining.clone());
        if let Ok(permit) = Arc::clone(&served).try_acquire_owned() {
            next_id += 1;
            let app = app.clone().layer(Extension(http::ConnectionId(next_id)));
            let connection = connection(stream, builder, app, draining);
            connections.spawn(async move {
                connection.await;
                drop(permit);
            });
        } else if let Ok(permit) = Arc::clone(&refused).try_acquire_owned() {
            tracing::warn!(max_connections = limits.max_connections, "a connection was refused");
            let refusal = connection(stream, builder, refusing.clone(), draining);
            connections.spawn(async move {
                // Whoever does not read the refusal in time is closed all the same.
                let _ = tokio::time::timeout(REFUSAL_TIMEOUT, refusal).await;
                drop(permit);
            });
        }
    }
    drop(listener);
    let began = Instant::now();
    draining.cancel();
    drain(connections, limits.drain_timeout).await;
    began
}

async fn drain(mut connections: JoinSet<()>, timeout: Duration) {
    let all_done = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(timeout, all_done).await.is_err() {
        tracing::warn!(connections = connections.len(), "cancelling requests that outlast the drain timeout");
        connections.shutdown().await;
    }
}

/// One connection's life. It ends when the client closes it, or after its running requests once the server drains.
async fn connection(stream: TcpStream, builder: Arc<Builder<TokioExecutor>>, app: Router, draining: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended early");
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}

fn refusing_router(max_connections: usize) -> Router {
    let message = format!(
        "the server already serves {max_connections} connections (server.max_connections); close one, or raise the limit"
    );
    Router::new().fallback(move |headers: HeaderMap| async move { http::refusal(&headers, &message) })
}
