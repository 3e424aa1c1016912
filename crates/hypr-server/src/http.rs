//! Plain HTTP beside gRPC on the one port, and what every response has in common: panics become errors.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tonic::Status;
use tower_http::catch_panic::CatchPanicLayer;

/// Which connection a request came on; in the extensions of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// Whether the server accepts work; false once it drains.
pub(crate) type Ready = Arc<AtomicBool>;

/// `GET /`, `/health` and `/v1/ready`.
pub(crate) fn routes(ready: Ready) -> Router {
    Router::new()
        .route("/", get(about))
        .route("/health", get(health))
        .route("/v1/ready", get(readiness))
        .with_state(ready)
        .layer(CatchPanicLayer::custom(http_panic))
}

/// One router for both protocols; what HTTP does not know falls through to it last.
pub(crate) fn multiplex(grpc: tonic::service::Routes, ready: Ready) -> Router {
    let grpc = grpc.prepare().into_axum_router().reset_fallback().layer(CatchPanicLayer::custom(grpc_panic));
    routes(ready).merge(grpc).fallback(not_found)
}

/// The header in which a client sends [`crate::Config::access_token`].
pub(crate) const TOKEN_HEADER: &str = "x-hyprstream-token";

/// `app` for those only who send `token`, if there is one.
pub(crate) fn guarded(app: Router, token: Option<String>) -> Router {
    let Some(token) = token else { return app };
    let token: Arc<str> = token.into();
    app.layer(axum::middleware::from_fn(move |request: axum::extract::Request, next: axum::middleware::Next| {
        let token = Arc::clone(&token);
        async move {
            match request.headers().get(TOKEN_HEADER) {
                Some(sent) if sent.as_bytes() == token.as_bytes() => next.run(request).await,
                _ if is_grpc(request.headers()) => {
                    Status::permission_denied("this server is part of a command and serves no one else").into_http()
                }
                _ => {
                    (StatusCode::FORBIDDEN, "this server is part of a command and serves no one else\n").into_response()
                }
            }
        }
    }))
}

async fn about() -> &'static str {
    concat!(
        "Hyprstream ",
        env!("CARGO_PKG_VERSION"),
        "\nArrow Flight SQL is served on this port: connect with ADBC, JDBC or `hyprstream sql`.\n",
        "GET /health and /v1/ready tell how the server is.\n"
    )
}

async fn health() -> Json<serde_json::Value> {
    Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

async fn readiness(State(ready): State<Ready>) -> (StatusCode, Json<serde_json::Value>) {
    match ready.load(Ordering::SeqCst) {
        true => (StatusCode::OK, Json(json!({ "ready": true }))),
        false => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "reason": "draining" }))),
    }
}

async fn not_found(headers: HeaderMap) -> Response<Body> {
    if is_grpc(&headers) {
        return Status::unimplemented("this server has no such gRPC method").into_http();
    }
    (StatusCode::NOT_FOUND, "not found; GET / tells what is served here\n").into_response()
}

/// A refusal in the protocol the client speaks.
pub(crate) fn refusal(headers: &HeaderMap, message: &str) -> Response<Body> {
    if is_grpc(headers) {
        return Status::unavailable(message).into_http();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("{message}\n")).into_response()
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn http_panic(panic: Box<dyn Any + Send>) -> Response<Body> {
    log_panic(&*panic);
    (StatusCode::INTERNAL_SERVER_ERROR, "the server failed to answer; its log says why\n").into_response()
}

fn grpc_panic(panic: Box<dyn Any + Send>) -> Response<Body> {
    panic_status(&*panic).into_http()
}

/// Logs a panic and makes what the client sees of it.
pub(crate) fn panic_status(panic: &(dyn Any + Send)) -> Status {
    log_panic(panic);
    Status::internal("the server failed to answer; its log says why")
}

fn log_panic(panic: &(dyn Any + Send)) {
    let message = panic
        .downcast_ref::<&str>()
        .map(|message| (*message).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "of unknown type".to_owned());
    tracing::error!(message, "a request handler panicked");
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;
    use tower::ServiceExt;

    #[tokio::test]
    async fn readiness_follows_the_flag() {
        let ready = Ready::new(AtomicBool::new(true));
        let app = routes(Arc::clone(&ready));
        let ask = || Request::get("/v1/ready").body(Body::empty()).unwrap();
        assert_eq!(app.clone().oneshot(ask()).await.unwrap().status(), StatusCode::OK);
        ready.store(false, Ordering::SeqCst);
        assert_eq!(app.oneshot(ask()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn a_server_inside_a_command_serves_only_that_command() {
        let app = guarded(routes(Ready::new(AtomicBool::new(true))), Some("secret".to_owned()));
        let ask = |token: Option<&str>, grpc: bool| {
            let mut request = Request::get("/health");
            if let Some(token) = token {
                request = request.header(TOKEN_HEADER, token);
            }
            if grpc {
                request = request.header(header::CONTENT_TYPE, "application/grpc");
            }
            request.body(Body::empty()).unwrap()
        };
        assert_eq!(app.clone().oneshot(ask(Some("secret"), false)).await.unwrap().status(), StatusCode::OK);
        for token in [None, Some("wrong"), Some("")] {
            assert_eq!(app.clone().oneshot(ask(token, false)).await.unwrap().status(), StatusCode::FORBIDDEN);
            assert_eq!(app.clone().oneshot(ask(token, true)).await.unwrap().headers()["grpc-status"], "7");
        }
    }

    #[tokio::test]
    async fn a_panic_answers_in_the_protocol_of_the_route() {
        async fn fails() {
            panic!("of a test");
        }
        let http = Router::new().route("/", get(fails)).layer(CatchPanicLayer::custom(http_panic));
        let grpc = Router::new().route("/", get(fails)).layer(CatchPanicLayer::custom(grpc_panic));
        let ask = || Request::get("/").body(Body::empty()).unwrap();
        assert_eq!(http.oneshot(ask()).await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
        let response = grpc.oneshot(ask()).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "13");
    }

    #[test]
    fn a_refusal_speaks_the_clients_protocol() {
        let mut headers = HeaderMap::new();
        assert_eq!(refusal(&headers, "full").status(), StatusCode::SERVICE_UNAVAILABLE);
        headers.insert(header::CONTENT_TYPE, "application/grpc+proto".parse().unwrap());
        assert_eq!(refusal(&headers, "full").headers()["grpc-status"], "14");
    }
}
