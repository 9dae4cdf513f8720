//! The sidecar's own web server: numbers and health.
//!
//! Invariant: it only reads what was observed; a request never touches the database, and no row of a user's table is ever
//! part of an answer. It binds to the loopback interface unless told otherwise.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::observe::{Observed, metrics};

/// The media type of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Binds the address.
///
/// # Errors
/// `Config` when it is taken or not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        Error::new(ErrorKind::Config, format!("cannot serve HTTP on {address}: {e}"))
            .with_hint("choose another address with --http, or --http off")
    })
}

/// Serves until `shutdown`.
///
/// # Errors
/// `Connection` when the listener fails.
pub async fn serve(
    listener: TcpListener,
    observed: Arc<Observed>,
    shutdown: CancellationToken,
) -> Result<()> {
    let router = Router::new()
        .route("/metrics", get(numbers))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/api/v1/pipelines", get(pipelines))
        .with_state(observed);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { shutdown.cancelled().await })
        .await
        .map_err(|e| Error::new(ErrorKind::Connection, format!("the web server failed: {e}")))
}

async fn numbers(State(observed): State<Arc<Observed>>) -> Response {
    match metrics::render(&observed) {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// 200 when every pipeline of this process can be relied on, else 503 with the reasons.
async fn ready(State(observed): State<Arc<Observed>>) -> Response {
    let obstacles = observed.obstacles();
    let status = if obstacles.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": obstacles.is_empty(), "reasons": obstacles }))).into_response()
}

/// The last look at every pipeline.
async fn pipelines(State(observed): State<Arc<Observed>>) -> Response {
    let looks = observed.looks().into_iter().map(|((database, pipeline), look)| {
        let age = look.taken.elapsed().as_secs_f64();
        match look.outcome {
            Ok(sample) => {
                json!({ "database": database, "pipeline": pipeline, "age_seconds": age, "sample": *sample })
            }
            Err(error) => {
                json!({ "database": database, "pipeline": pipeline, "age_seconds": age, "error": error })
            }
        }
    });
    Json(json!({ "pipelines": looks.collect::<Vec<_>>() })).into_response()
}
