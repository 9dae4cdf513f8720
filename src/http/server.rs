//! Connections of the web server: bounded in number, in all and per peer, and in how long they may be silent.
//!
//! Invariant: nobody who connects and says nothing, or too little, keeps anybody else from an answer: `/healthz` decides
//! whether a supervisor ends the process.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::tls::Certificate;

/// Connections at the same time, and how many of them one peer may have (a proxy in front is one).
const MOST: usize = 512;
const MOST_OF_A_PEER: usize = 128;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of a request may take, also the first byte of the next one.
const HEAD: Duration = Duration::from_secs(10);
/// How long a request may take to be answered, its body included. Events begin at once and then go on.
const ANSWER: Duration = Duration::from_secs(30);

/// Serves until `shutdown`, then until the last answer is out.
pub(super) async fn run(
    mut listener: TcpListener,
    certificate: Option<Certificate>,
    router: Router,
    shutdown: CancellationToken,
) {
    let (peers, tasks) = (Peers::default(), TaskTracker::new());
    let certificate = certificate.map(Arc::new);
    loop {
        let (stream, peer) = tokio::select! {
            // Tries again by itself when the process has no file left.
            accepted = Listener::accept(&mut listener) => accepted,
            () = shutdown.cancelled() => break,
        };
        let Some(place) = peers.enter(peer.ip()) else {
            tracing::debug!(%peer, "a connection too many was closed");
            continue;
        };
        let (router, certificate, shutdown) = (router.clone(), certificate.clone(), shutdown.clone());
        tasks.spawn(async move {
            let _place = place;
            match certificate {
                None => connection(stream, router, shutdown).await,
                Some(certificate) => {
                    if let Some(stream) = encrypted(stream, &certificate).await {
                        connection(stream, router, shutdown).await;
                    }
                }
            }
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn encrypted(
    stream: TcpStream,
    certificate: &Certificate,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let acceptor = TlsAcceptor::from(certificate.config());
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(e)) => {
            tracing::debug!(error = %e, "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("a TLS handshake took too long");
            None
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    router: Router,
    shutdown: CancellationToken,
) {
    let service = TowerToHyperService::new(router);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "a connection of the web server ended");
    }
}

/// Gives a request up that is not answered in time: one whose body does not come, above all.
pub(super) async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

/// How many connections each peer has.
#[derive(Clone, Default)]
struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection that counts as long as this lives.
struct Place {
    peers: Peers,
    peer: IpAddr,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: there are too many.
    fn enter(&self, peer: IpAddr) -> Option<Place> {
        let peer = network(peer);
        let mut peers = self.lock();
        let own = peers.get(&peer).copied().unwrap_or_default();
        if own >= MOST_OF_A_PEER || peers.values().sum::<usize>() >= MOST {
            return None;
        }
        peers.insert(peer, own + 1);
        Some(Place { peers: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.peers.lock();
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

/// Whom an address belongs to: under IPv6 one machine has a whole network of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            if v6.is_loopback() { address } else { IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)) }
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_leaves_room_for_others_and_all_together_have_a_bound() {
        let peers = Peers::default();
        let address = |n: usize| -> IpAddr { format!("10.0.0.{n}").parse().unwrap() };
        let mut held: Vec<Place> = (0..MOST_OF_A_PEER).filter_map(|_| peers.enter(address(1))).collect();
        assert_eq!(held.len(), MOST_OF_A_PEER);
        assert!(peers.enter(address(1)).is_none());
        for other in 2..=MOST / MOST_OF_A_PEER {
            held.extend((0..MOST_OF_A_PEER).filter_map(|_| peers.enter(address(other))));
        }
        assert!(held.len() == MOST && peers.enter(address(99)).is_none());
        held.truncate(MOST - 1);
        assert!(peers.enter(address(99)).is_some());
        held.clear();
        assert!(peers.lock().is_empty());
        let both = ["2001:db8::1", "2001:db8::2"].map(|a| network(a.parse().unwrap()));
        assert_eq!(both[0], both[1]);
    }
}
