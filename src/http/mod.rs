//! The sidecar's own web server: dashboard, numbers and health.
//!
//! Invariant: it only reads what was observed; a request never opens a session with the database (at most it wakes the
//! one that looks anyway), and no row of a user's table is ever part of an answer. It binds to the loopback interface unless
//! told otherwise, and beyond it asks for a secret. HTML and JSON are made from the same structs.

mod access;
mod api;
mod assets;
mod chart;
mod layout;
mod manual;
mod pages;
mod server;
mod tls;
mod units;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use access::Access;
use access::Authorized;
pub use tls::{Certificate, TlsFiles};

use crate::error::{Error, ErrorKind, Result};
use crate::observe::{Observed, metrics};

/// The media type of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Pages that may be kept up to date at the same time.
const MOST_FOLLOWERS: usize = 64;

/// How to serve.
pub struct Options {
    pub access: Access,
    /// HTTPS.
    pub tls: Option<Certificate>,
    /// Whether queries and plans are part of pages and JSON.
    pub show_queries: bool,
}

/// What the handlers share.
#[derive(Clone)]
struct App {
    observed: Arc<Observed>,
    show_queries: bool,
    followers: Arc<Semaphore>,
    shutdown: CancellationToken,
}

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
pub async fn serve(
    listener: TcpListener,
    options: Options,
    observed: Arc<Observed>,
    shutdown: CancellationToken,
) {
    let followers = Arc::new(Semaphore::new(MOST_FOLLOWERS));
    let app = App { observed, show_queries: options.show_queries, followers, shutdown: shutdown.clone() };
    let router = router(app, options.access);
    server::run(listener, options.tls, router, shutdown).await;
}

fn router(app: App, access: Access) -> Router {
    Router::new()
        .route("/", get(pages::overview))
        .route("/tables", get(pages::tables))
        .route("/tables/{*name}", get(pages::table))
        .route("/graph", get(pages::graph))
        .route("/recovery", get(pages::recovery))
        .route("/manual", get(pages::manual_contents))
        .route("/manual/{name}", get(pages::manual_page))
        .route("/theme", post(pages::theme))
        .route("/static/{name}", get(assets::file))
        .route("/metrics", get(numbers))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .nest("/api/v1", api::router())
        .fallback(pages::not_found)
        .method_not_allowed_fallback(async || StatusCode::METHOD_NOT_ALLOWED)
        .with_state(app)
        .layer(from_fn_with_state(Arc::new(access), access::guard))
        .layer(from_fn(access::headers))
        .layer(from_fn(server::in_time))
}

async fn numbers(State(app): State<App>) -> Response {
    match metrics::render(&app.observed) {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// 200 when every pipeline of this process can be relied on, else 503; with the reasons for those who may know them.
async fn ready(State(app): State<App>, Extension(Authorized(may_know)): Extension<Authorized>) -> Response {
    let obstacles = app.observed.obstacles();
    let status = if obstacles.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut answer = json!({ "ready": obstacles.is_empty() });
    if may_know {
        answer["reasons"] = json!(obstacles);
    }
    (status, Json(answer)).into_response()
}
