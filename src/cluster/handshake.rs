//! The first words of a connection: both sides prove that they know the secret, then that they fit together.
//!
//! ```text
//!  connects                         listens
//!  magic, nonce ──────────────────▶
//!                ◀────────────────── magic, nonce
//!  proof (HMAC of both nonces) ───▶
//!                ◀────────────────── verdict, proof
//!  greeting (JSON) ───────────────▶
//!                ◀────────────────── answer (JSON)
//! ```
//!
//! Invariant: who listens tells nothing but a nonce to somebody who has not proven the secret. The greeting is JSON, so that
//! versions that speak differently afterwards can still tell each other so.

use std::io::Read;
use std::sync::OnceLock;
use std::time::Duration;

use ring::rand::SecureRandom;
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Settings;
use crate::error::{Error, ErrorKind, Result};

const MAGIC: &[u8; 16] = b"pgtrickle/mesh 1";
const NONCE: usize = 32;
const PROOF: usize = 32;
/// A greeting is a few hundred bytes.
const LONGEST: usize = 1 << 14;
/// The whole handshake.
const PATIENCE: Duration = Duration::from_secs(5);
/// Shorter secrets can be guessed by whoever sees a handshake.
const SHORTEST: usize = 16;

/// What all processes of a cluster know and nobody else.
#[derive(Clone)]
pub struct Secret(hmac::Key);

impl Secret {
    /// From the content of a file; white space at its ends does not count.
    ///
    /// # Errors
    /// In words, when it is too short.
    pub fn new(text: &[u8]) -> std::result::Result<Secret, String> {
        let text = text.trim_ascii();
        match text.len() {
            0..SHORTEST => Err(format!("the secret has {} bytes; it needs at least {SHORTEST}", text.len())),
            _ => Ok(Secret(hmac::Key::new(hmac::HMAC_SHA256, text))),
        }
    }

    fn proof(&self, side: &[u8], nonces: &[u8]) -> hmac::Tag {
        hmac::sign(&self.0, &[side, nonces].concat())
    }

    fn proves(&self, side: &[u8], nonces: &[u8], proof: &[u8]) -> bool {
        hmac::verify(&self.0, &[side, nonces].concat(), proof).is_ok()
    }
}

/// Who connects, and what for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Greeting {
    version: String,
    build: String,
    hosts: String,
    pub from: usize,
    to: usize,
    pub purpose: Purpose,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// Process 0 wants to run a pipeline.
    Control(Run),
    /// Workers exchange rows in the run of this identifier.
    Mesh { run: String },
}

/// One life of a pipeline in all processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    /// Not the same twice.
    pub id: String,
    pub pipeline: String,
    /// That of the lease: a later one takes over.
    pub generation: i64,
    /// Threads of each process.
    pub workers: usize,
}

/// What the listening side says to a greeting.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Answer {
    /// `None`: welcome.
    pub refused: Option<String>,
    /// It will be the same the next time, until somebody changes something.
    pub lasting: bool,
}

impl Answer {
    pub fn welcome() -> Answer {
        Answer { refused: None, lasting: false }
    }

    pub fn not_now(why: impl Into<String>) -> Answer {
        Answer { refused: Some(why.into()), lasting: false }
    }
}

/// A hash of the running program: processes of one cluster must be the same, their messages have no other version.
///
/// # Errors
/// When the program can't be read.
pub fn build_of_this_program() -> Result<String> {
    static BUILD: OnceLock<String> = OnceLock::new();
    if let Some(build) = BUILD.get() {
        return Ok(build.clone());
    }
    let failed = |e| Error::internal("this program's own file can't be read").with_source(e);
    // On Linux this is the file that runs, also when another one has taken its name.
    let own = std::fs::File::open("/proc/self/exe");
    let mut file = own.or_else(|_| std::fs::File::open(std::env::current_exe()?)).map_err(failed)?;
    let (mut hash, mut buffer) = (digest::Context::new(&digest::SHA256), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let hash: String = hash.finish().as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(BUILD.get_or_init(|| hash).clone())
}

/// Random letters that nobody can foresee.
pub(super) fn identifier() -> Result<String> {
    Ok(nonce()?.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

fn nonce() -> Result<[u8; NONCE]> {
    let mut nonce = [0; NONCE];
    let random = ring::rand::SystemRandom::new();
    random.fill(&mut nonce).map_err(|_| Error::internal("the system gives no random numbers"))?;
    Ok(nonce)
}

/// A connection between two processes that counts as lost when it is silent for `timeout` although something was sent.
pub(super) fn tune(stream: &TcpStream, timeout: Duration) -> Result<()> {
    let failed = |e| Error::new(ErrorKind::Cluster, "a connection can't be set up").with_source(e);
    stream.set_nodelay(true).map_err(failed)?;
    let second = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new()
        .with_time((timeout / 3).max(second))
        .with_interval((timeout / 6).max(second))
        .with_retries(3);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive).map_err(failed)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(timeout)).map_err(failed)?;
    Ok(())
}

fn broken(e: std::io::Error) -> Error {
    Error::new(ErrorKind::Connection, format!("the handshake broke off: {e}"))
}

async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || Error::new(ErrorKind::Cluster, format!("no handshake within {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, work).await.map_err(|_| late())?
}

async fn write_json(stream: &mut TcpStream, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(value)
        .map_err(|e| Error::internal("a greeting can't be written").with_source(e))?;
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
    stream.write_all(&[&length[..], &text].concat()).await.map_err(broken)
}

async fn read_json<T: for<'de> Deserialize<'de>>(stream: &mut TcpStream) -> Result<T> {
    let length = stream.read_u32_le().await.map_err(broken)? as usize;
    let strange = || Error::new(ErrorKind::Cluster, "the other side speaks another language");
    if length > LONGEST {
        return Err(strange());
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await.map_err(broken)?;
    serde_json::from_slice(&text).map_err(|e| strange().with_source(e))
}

/// The side that connects. Returns the connection when the other side welcomes it.
///
/// # Errors
/// `Config` when it will refuse again; `Cluster` when trying again may help.
pub(super) async fn connect(settings: &Settings, to: usize, purpose: Purpose) -> Result<TcpStream> {
    let address = settings.hosts.of(to);
    let named = |e: Error| e.during(format!("process {to} ({address})"));
    let work = async {
        let mut stream = TcpStream::connect(address)
            .await
            .map_err(|e| Error::new(ErrorKind::Cluster, format!("no connection: {e}")))?;
        tune(&stream, settings.timeout)?;
        let own = nonce()?;
        stream.write_all(&[&MAGIC[..], &own].concat()).await.map_err(broken)?;
        let mut theirs = [0; MAGIC.len() + NONCE];
        stream.read_exact(&mut theirs).await.map_err(broken)?;
        if theirs[..MAGIC.len()] != MAGIC[..] {
            return Err(Error::new(ErrorKind::Config, "it is no process of a pgtrickle cluster"));
        }
        let nonces = [&own[..], &theirs[MAGIC.len()..]].concat();
        stream.write_all(settings.secret.proof(b"connects", &nonces).as_ref()).await.map_err(broken)?;
        let mut verdict = [0; 1];
        stream.read_exact(&mut verdict).await.map_err(broken)?;
        let other = || {
            Error::new(ErrorKind::Config, "it has another secret")
                .with_hint("give all processes the same file as --cluster-secret-file")
        };
        if verdict != [1] {
            return Err(other());
        }
        let mut proof = [0; PROOF];
        stream.read_exact(&mut proof).await.map_err(broken)?;
        if !settings.secret.proves(b"listens", &nonces, &proof) {
            return Err(other());
        }
        let greeting = Greeting {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: build_of_this_program()?,
            hosts: settings.hosts.text(),
            from: settings.process,
            to,
            purpose,
        };
        write_json(&mut stream, &greeting).await?;
        let answer: Answer = read_json(&mut stream).await?;
        match answer.refused {
            None => Ok(stream),
            Some(why) if answer.lasting => Err(Error::new(ErrorKind::Config, why).with_hint(
                "all processes need the same binary, the same hosts file, and each its own number",
            )),
            Some(why) => Err(Error::new(ErrorKind::Cluster, why)),
        }
    };
    in_time(work).await.map_err(named)
}

/// The side that listens, up to the greeting of somebody who knows the secret and fits. It is still to be answered.
pub(super) async fn accept(settings: &Settings, stream: &mut TcpStream) -> Result<Greeting> {
    let work = async {
        tune(stream, settings.timeout)?;
        let mut theirs = [0; MAGIC.len() + NONCE];
        stream.read_exact(&mut theirs).await.map_err(broken)?;
        if theirs[..MAGIC.len()] != MAGIC[..] {
            return Err(Error::new(ErrorKind::Cluster, "it is no process of a pgtrickle cluster"));
        }
        let own = nonce()?;
        stream.write_all(&[&MAGIC[..], &own].concat()).await.map_err(broken)?;
        let nonces = [&theirs[MAGIC.len()..], &own[..]].concat();
        let mut proof = [0; PROOF];
        stream.read_exact(&mut proof).await.map_err(broken)?;
        if !settings.secret.proves(b"connects", &nonces, &proof) {
            stream.write_all(&[0]).await.map_err(broken)?;
            return Err(Error::new(ErrorKind::Cluster, "it has another secret"));
        }
        let proof = settings.secret.proof(b"listens", &nonces);
        stream.write_all(&[&[1], proof.as_ref()].concat()).await.map_err(broken)?;
        let greeting: Greeting = read_json(stream).await?;
        if let Some(why) = unfit(settings, &greeting)? {
            write_json(stream, &Answer { refused: Some(why.clone()), lasting: true }).await?;
            return Err(Error::new(ErrorKind::Cluster, why));
        }
        Ok(greeting)
    };
    in_time(work).await
}

/// Answers a greeting.
pub(super) async fn answer(stream: &mut TcpStream, answer: Answer) -> Result<()> {
    in_time(write_json(stream, &answer)).await
}

/// Why the two can't work together.
fn unfit(settings: &Settings, greeting: &Greeting) -> Result<Option<String>> {
    let (version, build) = (env!("CARGO_PKG_VERSION"), build_of_this_program()?);
    let process = settings.process;
    Ok(if greeting.version != version || greeting.build != build {
        Some(format!(
            "it runs pgtrickle {version} (build {build}), process {} runs {} (build {})",
            greeting.from, greeting.version, greeting.build
        ))
    } else if greeting.hosts != settings.hosts.text() {
        Some(format!(
            "its hosts file says {:?}, that of process {} says {:?}",
            settings.hosts.text(),
            greeting.from,
            greeting.hosts
        ))
    } else if greeting.to != process {
        Some(format!("it is process {process}, not process {}", greeting.to))
    } else if greeting.from >= process {
        Some(format!("process {} does not connect to process {process}", greeting.from))
    } else {
        None
    })
}
