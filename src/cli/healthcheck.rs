//! `pgtrickle healthcheck`: asks the sidecar of this machine whether it is well; for containers without a shell.
//!
//! Exit code 0: it answered 200; 1: it did not. No database is asked and no connection setting is needed. Nothing secret
//! is sent, so over HTTPS any certificate will do: a name in it is not the loopback address that is asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::Sourced;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::tls::{Mode, ShownName, Tls};

/// Longest answer that is read.
const MOST: u64 = 64 * 1024;

#[derive(Args)]
pub(super) struct HealthcheckArgs {
    /// Where the sidecar serves [env: PGTRICKLE_HTTP] [default: 127.0.0.1:9642]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) http: Option<String>,
    /// Ask over HTTPS; needed only where the configuration does not name http_tls_cert as that of pgtrickle run does
    #[arg(long)]
    https: bool,
    /// Ask /readyz: fails until every pipeline can be relied on, and while its database is away
    #[arg(long)]
    ready: bool,
    /// How long to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=300))]
    timeout: u32,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// `certificate`: the configuration says that HTTPS is served.
pub(super) async fn run(
    args: HealthcheckArgs,
    http: Sourced<Option<SocketAddr>>,
    certificate: bool,
) -> Result<ExitCode> {
    let Some(address) = http.value else {
        return Err(Error::new(ErrorKind::Config, format!("{}: the sidecar serves no HTTP", http.origin))
            .with_hint("give the address that pgtrickle run has, by --http or PGTRICKLE_HTTP"));
    };
    let address = reachable(address);
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let (scheme, tls) = match args.https || certificate {
        true => ("https", Some(Tls::new(Mode::Require).client_config(&ShownName::default())?)),
        false => ("http", None),
    };
    let patience = Duration::from_secs(u64::from(args.timeout));
    let answer = match tokio::time::timeout(patience, ask(address, path, tls)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", args.timeout)),
    };
    let url = format!("{scheme}://{address}{path}");
    if args.json {
        let (status, body) = match &answer {
            Ok((status, body)) => (Some(*status), Some(body.trim_end())),
            Err(_) => (None, None),
        };
        let healthy = status == Some(200);
        super::print_json(&json!({"url": url, "healthy": healthy, "http_status": status, "answer": body,
                                  "error": answer.as_ref().err()}));
        return Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) });
    }
    match answer {
        Ok((200, body)) => {
            super::print(&format!("{}\n", body.trim_end()));
            Ok(ExitCode::SUCCESS)
        }
        Ok((status, body)) => {
            eprintln!("unhealthy: {url} answered {status}: {}", body.trim_end());
            Ok(ExitCode::from(super::FAILED))
        }
        Err(why) => {
            eprintln!("unhealthy: {url}: {why}");
            Ok(ExitCode::from(super::FAILED))
        }
    }
}

/// Any address of the machine is served: the loopback one is asked.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
        _ => address,
    }
}

/// Status and body.
async fn ask(
    address: SocketAddr,
    path: &str,
    tls: Option<rustls::ClientConfig>,
) -> std::result::Result<(u16, String), String> {
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    let Some(tls) = tls else { return talk(stream, address, path).await };
    let name = ServerName::IpAddress(address.ip().into());
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await;
    let not_https = |e: std::io::Error| format!("HTTPS is not what it serves: {e}");
    talk(stream.map_err(not_https)?, address, path).await
}

async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
    path: &str,
) -> std::result::Result<(u16, String), String> {
    const NO_ANSWER: &str = "that is no answer of a web server; one that serves HTTPS is asked with --https";
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    stream.flush().await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    // A server may close an encrypted connection without a farewell: what came is what counts.
    let ended = stream.take(MOST).read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = match answer.split_once("\r\n\r\n") {
        Some(parts) => parts,
        None => return Err(ended.err().map_or_else(|| NO_ANSWER.to_owned(), |e| e.to_string())),
    };
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok((status.ok_or(NO_ANSWER)?, body.to_owned()))
}
