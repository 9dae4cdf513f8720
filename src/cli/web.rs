//! The web server of `pgtrickle run`: its flags, and how it is started.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Flags, Origin, Sourced, WebSettings, options};
use crate::error::{Error, ErrorKind, Result};
use crate::http::{self, Access, Certificate, TlsFiles};
use crate::observe::Observed;

#[derive(Args, Clone)]
#[command(next_help_heading = "Dashboard")]
pub(super) struct WebArgs {
    /// File with the secret that the dashboard asks for, as bearer token or as password; needed beyond loopback [env:
    /// PGTRICKLE_HTTP_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    http_token_file: Option<String>,
    /// User name that goes with the secret in a browser [env: PGTRICKLE_HTTP_USER] [default: pgtrickle]
    #[arg(long, value_name = "NAME")]
    http_user: Option<String>,
    /// PEM file with the certificate chain: serve HTTPS [env: PGTRICKLE_HTTP_TLS_CERT]
    #[arg(long, value_name = "FILE")]
    http_tls_cert: Option<String>,
    /// PEM file with the certificate's key [env: PGTRICKLE_HTTP_TLS_KEY]
    #[arg(long, value_name = "FILE")]
    http_tls_key: Option<String>,
    /// Names beyond localhost under which it is asked for, separated by commas [env: PGTRICKLE_HTTP_HOSTS]
    #[arg(long, value_name = "NAMES")]
    http_hosts: Option<String>,
    /// Whether queries and plans are shown: on or off [env: PGTRICKLE_HTTP_QUERIES] [default: on]
    #[arg(long, value_name = "ON|OFF")]
    http_queries: Option<String>,
    /// Serve without a secret on an address that others can reach [env: PGTRICKLE_HTTP_INSECURE]
    #[arg(long)]
    http_insecure: bool,
}

impl WebArgs {
    pub(super) fn add_to(&self, flags: &mut Flags) {
        flags.set(options::HTTP_TOKEN_FILE, self.http_token_file.clone());
        flags.set(options::HTTP_USER, self.http_user.clone());
        flags.set(options::HTTP_TLS_CERT, self.http_tls_cert.clone());
        flags.set(options::HTTP_TLS_KEY, self.http_tls_key.clone());
        flags.set(options::HTTP_HOSTS, self.http_hosts.clone());
        flags.set(options::HTTP_QUERIES, self.http_queries.clone());
        flags.set(options::HTTP_INSECURE, self.http_insecure.then(|| "true".to_owned()));
    }
}

/// Starts the web server. An address that was asked for must be had; the default one may be another sidecar's.
pub(super) async fn start(
    address: Sourced<Option<SocketAddr>>,
    settings: &WebSettings,
    observed: Arc<Observed>,
    shutdown: &CancellationToken,
) -> Result<Option<JoinHandle<()>>> {
    let Some(at) = address.value else { return Ok(None) };
    let options = options(at, settings)?;
    let listener = match http::bind(at).await {
        Ok(listener) => listener,
        Err(error) if address.origin == Origin::Default => {
            tracing::info!(reason = %error, "no dashboard and no numbers are served over HTTP");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let bound = listener.local_addr().unwrap_or(at);
    tracing::info!(address = %format!("{scheme}://{bound}"), "serving dashboard, metrics and health");
    let shutdown = shutdown.clone();
    Ok(Some(tokio::spawn(http::serve(listener, options, observed, shutdown))))
}

/// Whether [`start`] could serve with these settings.
///
/// # Errors
/// `Config`, as of `start`.
pub(super) fn check(at: SocketAddr, settings: &WebSettings) -> Result<()> {
    options(at, settings).map(drop)
}

/// Reads the files that the settings name.
fn options(at: SocketAddr, settings: &WebSettings) -> Result<http::Options> {
    let set = |value: &Option<Sourced<bool>>, otherwise| value.as_ref().map_or(otherwise, |v| v.value);
    let secret = settings.token_file.as_ref().map(token).transpose()?;
    let user = settings.user.as_ref().map_or("pgtrickle", |user| user.value.as_str());
    let tls = match (&settings.tls_cert, &settings.tls_key) {
        (None, None) => None,
        (Some(cert), Some(key)) => {
            let files = TlsFiles { certificate: cert.value.clone(), key: key.value.clone() };
            Some(Certificate::new(files)?)
        }
        _ => {
            let what = "a certificate and its key are given together";
            return Err(Error::new(ErrorKind::Config, what)
                .with_hint("set both http_tls_cert and http_tls_key, or neither"));
        }
    };
    let hosts = settings.hosts.as_ref().map_or("", |hosts| hosts.value.as_str());
    let hosts = hosts.split(',').map(|host| host.trim().to_ascii_lowercase()).filter(|h| !h.is_empty());
    let insecure = set(&settings.insecure, false);
    if secret.is_some() && tls.is_none() && !at.ip().is_loopback() {
        tracing::warn!(address = %at, "the dashboard's secret travels unencrypted: set http_tls_cert and http_tls_key");
    }
    let access = Access::new(at, secret, user, hosts.collect(), insecure)?;
    if insecure && access.is_open() && !at.ip().is_loopback() {
        tracing::warn!(address = %at, "EVERYBODY who reaches this address may see the dashboard (http_insecure)");
    }
    Ok(http::Options { access, tls, show_queries: set(&settings.queries, true) })
}

/// The secret of a file: its content without white space around it.
fn token(file: &Sourced<PathBuf>) -> Result<String> {
    let refuse = |what: String| {
        Error::new(ErrorKind::Config, format!("{}: {what}", file.origin))
            .with_hint("write at least 16 characters into it, for example with: openssl rand -hex 32")
    };
    let path: &Path = &file.value;
    let text = std::fs::read_to_string(path)
        .map_err(|e| refuse(format!("the secret can't be read from {}: {e}", path.display())))?;
    let token = text.trim();
    match token.len() {
        0..16 => Err(refuse(format!("the secret in {} is too short", path.display()))),
        _ => Ok(token.to_owned()),
    }
}
