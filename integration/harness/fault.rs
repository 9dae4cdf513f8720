//! Faults between the sidecar and the server: a TCP proxy that cuts, freezes and delays, and sessions that are ended.
//!
//! Invariant: bytes are never changed or reordered; a fault looks like a network, not like a broken server.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_postgres::Client;

/// What the proxy does with bytes at the moment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct State {
    /// Connections made under an older number are closed.
    generation: u64,
    /// New connections are closed at once.
    refuse: bool,
    /// No byte passes in either direction; connections stay open.
    frozen: bool,
    /// Every piece waits this long.
    delay: Duration,
    /// Port of the server behind it.
    target: u16,
}

/// A proxy on 127.0.0.1 in front of a server; it ends, with its connections, when it is dropped.
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
}

impl Proxy {
    /// A proxy in front of the server on `target`.
    pub async fn start(target: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port for the proxy");
        let port = listener.local_addr().expect("its address").port();
        let start = State { generation: 0, refuse: false, frozen: false, delay: Duration::ZERO, target };
        let (state, watched) = watch::channel(start);
        tokio::spawn(accept(listener, watched));
        Proxy { port, state }
    }

    /// Port to connect to in place of the server's.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Closes all connections; new ones are accepted.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Closes all connections and refuses new ones, until [`Proxy::heal`].
    pub fn partition(&self) {
        self.state.send_modify(|state| {
            state.generation += 1;
            state.refuse = true;
        });
    }

    /// Lets nothing pass while all connections stay open, as a firewall that forgot them.
    pub fn freeze(&self) {
        self.state.send_modify(|state| state.frozen = true);
    }

    /// Delays every piece in both directions.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Leads to another server from now on, as an address that a failover moves; all connections are closed.
    pub fn retarget(&self, target: u16) {
        self.state.send_modify(|state| {
            state.target = target;
            state.generation += 1;
        });
    }

    /// Back to normal; what was frozen arrives.
    pub fn heal(&self) {
        self.state.send_modify(|state| {
            state.refuse = false;
            state.frozen = false;
            state.delay = Duration::ZERO;
        });
    }
}

async fn accept(listener: TcpListener, mut state: watch::Receiver<State>) {
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => client,
                Err(_) => continue,
            },
            gone = state.wait_for(|_| false) => {
                // The proxy was dropped.
                drop(gone);
                return;
            }
        };
        if state.borrow().refuse {
            continue;
        }
        let state = state.clone();
        tokio::spawn(async move {
            let generation = state.borrow().generation;
            let target = state.borrow().target;
            let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // The end of one direction is the end of the connection: halves are closed together.
            tokio::select! {
                () = pump(from_client, to_server, state.clone(), generation) => {}
                () = pump(from_server, to_client, state.clone(), generation) => {}
            }
        });
    }
}

/// Moves bytes one way until the connection ends, is cut, or the proxy is gone.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    generation: u64,
) {
    let mut cut = state.clone();
    let moving = async move {
        let mut buffer = vec![0; 1 << 14];
        loop {
            let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
            let delay = state.borrow().delay;
            if delay > Duration::ZERO {
                tokio::time::sleep(delay).await;
            }
            if state.wait_for(|state| !state.frozen).await.is_err()
                || to.write_all(&buffer[..count]).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = moving => {}
        _ = cut.wait_for(|state| state.generation != generation) => {}
    }
}

/// Ends all sessions of a role in the client's database; returns how many were told to end.
pub async fn terminate_role(client: &Client, role: &str) -> i64 {
    terminate(client, "usename = $1", role).await
}

/// Ends all walsenders that stream the slot; returns how many were told to end.
pub async fn terminate_slot(client: &Client, slot: &str) -> i64 {
    terminate(client, "pid in (select active_pid from pg_replication_slots where slot_name = $1)", slot).await
}

/// Ends all sessions with an application name in the client's database; returns how many were told to end.
pub async fn terminate_application(client: &Client, name: &str) -> i64 {
    terminate(client, "application_name = $1", name).await
}

async fn terminate(client: &Client, condition: &str, value: &str) -> i64 {
    let statement = format!(
        "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and {condition}"
    );
    client.query_one(&statement, &[&value]).await.expect("sessions can be ended").get(0)
}
