//! A stand-in for a connection pooler in front of a server, as far as startup packets are concerned.

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Which startup parameter it refuses, with the error of a pooler (08P01).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuses {
    Options,
    Replication,
    /// It leaves `options` out and passes on the rest.
    Nothing,
}

/// Ends when dropped.
pub struct StandIn {
    port: u16,
    _alive: watch::Sender<()>,
}

impl StandIn {
    pub async fn start(target: u16, refuses: Refuses) -> StandIn {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (alive, mut dropped) = watch::channel(());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = dropped.changed() => return,
                    accepted = listener.accept() => {
                        let Ok((client, _)) = accepted else { continue };
                        // A session that breaks off is of no interest.
                        tokio::spawn(async move { drop(serve(client, target, refuses).await) });
                    }
                }
            }
        });
        StandIn { port, _alive: alive }
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Startup packet: int32 length, int32 version 3.0, pairs of zero-terminated strings, a zero. An SSLRequest (80877103)
/// before it is answered with N.
async fn serve(mut client: TcpStream, target: u16, refuses: Refuses) -> std::io::Result<()> {
    let body = loop {
        let length = client.read_u32().await? as usize;
        let mut body = vec![0; length - 4];
        client.read_exact(&mut body).await?;
        match body.get(..4) {
            Some([4, 210, 22, _]) => client.write_all(b"N").await?,
            _ => break body,
        }
    };
    let mut pairs: Vec<&[u8]> = body[4..].split(|b| *b == 0).collect();
    while pairs.last().is_some_and(|s| s.is_empty()) {
        pairs.pop();
    }
    let has = |name: &str| pairs.chunks(2).any(|p| p[0] == name.as_bytes());
    let refused = match refuses {
        Refuses::Options => Some("options").filter(|n| has(n)),
        Refuses::Replication => Some("replication").filter(|n| has(n)),
        Refuses::Nothing => None,
    };
    if let Some(name) = refused {
        let fields = format!("SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: {name}\0\0");
        client.write_all(b"E").await?;
        client.write_u32(fields.len() as u32 + 4).await?;
        client.write_all(fields.as_bytes()).await?;
        return client.shutdown().await;
    }
    let mut passed = body[..4].to_vec();
    for pair in pairs.chunks(2) {
        if refuses == Refuses::Nothing && pair[0] == b"options" {
            continue;
        }
        for text in pair {
            passed.extend_from_slice(text);
            passed.push(0);
        }
    }
    passed.push(0);
    let mut server = TcpStream::connect(("127.0.0.1", target)).await?;
    server.write_u32(passed.len() as u32 + 4).await?;
    server.write_all(&passed).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
