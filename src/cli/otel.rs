//! Spans to an OpenTelemetry collector, over OTLP/HTTP (cargo feature `otel`).
//!
//! Nothing is sent unless an endpoint is named: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_EXPORTER_OTLP_ENDPOINT`.
//! Invariant: a collector that is slow or away costs spans, never a step: they are sent by a thread of its own from a
//! bounded queue.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

use crate::error::{Error, ErrorKind, Result};
use crate::supervisor::TRACES;

/// How long one request may take, and the last one at the end of the program.
const PATIENCE: Duration = Duration::from_secs(5);

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Sends from the exporter's thread, which belongs to no runtime.
#[derive(Debug)]
struct Sender {
    runtime: tokio::runtime::Runtime,
    client: HyperClient,
}

#[async_trait::async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> std::result::Result<Response<Bytes>, HttpError> {
        self.runtime.block_on(self.client.send_bytes(request))
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The layer that passes our spans on; `None` where no endpoint is named or `OTEL_SDK_DISABLED` is true.
///
/// # Errors
/// `Config` for an endpoint that can't be used.
pub(super) fn layer<S>() -> Result<Option<impl Layer<S>>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let endpoint =
        ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"].into_iter().find_map(variable);
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let Some(endpoint) = endpoint.filter(|_| !disabled) else { return Ok(None) };
    let refuse = |why: String| {
        Error::new(ErrorKind::Config, format!("OTEL_EXPORTER_OTLP_ENDPOINT = {endpoint:?}: {why}"))
            .with_hint("name a collector of this machine or network, such as http://127.0.0.1:4318")
    };
    if !endpoint.starts_with("http://") {
        return Err(refuse("spans are sent over plain HTTP (OTLP with protobuf)".to_owned()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::internal("the exporter of spans can't be started").with_source(e))?;
    let client = HyperClient::with_default_connector(PATIENCE, None);
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Sender { runtime, client })
        .build()
        .map_err(|e| refuse(e.to_string()))?;
    let mut resource = Resource::builder();
    if variable("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("pgtrickle");
    }
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let tracer = provider.tracer("pgtrickle");
    // Logging is started once; if it were not, the second start fails anyway.
    let _ = PROVIDER.set(provider);
    let ours = Targets::new().with_target(TRACES, LevelFilter::TRACE);
    let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
    Ok(Some(layer.with_tracked_inactivity(true).with_filter(ours)))
}

/// Sends what is left.
pub(super) fn finish() {
    if let Some(provider) = PROVIDER.get()
        && let Err(e) = provider.shutdown_with_timeout(PATIENCE)
    {
        eprintln!("warning: the last spans could not be sent: {e}");
    }
}
