//! A process that holds shards: waits for process 0, takes part in one run after the other.
//!
//! Invariant: it takes part in one run at a time; when that ends, for whatever reason, nothing of it is left, and it waits
//! for the next. It never ends by itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, channel};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::handshake::{self, Answer, Greeting, Purpose, Run};
use super::leader::{blocking, mesh};
use super::wire::{Answered, Question, Reader, ToLeader, ToMember, Writer, pulse};
use crate::dataflow::{Dataflow, DataflowOptions, EvaluationReply, EvaluationRequest, Mesh, Port};
use crate::error::{Error, ErrorKind, Result};
use crate::row::Row;

/// Until all others have connected, after process 0 has said that all are there.
const OPENING: Duration = Duration::from_secs(10);
/// Connections whose handshake is under way at the same time.
const STRANGERS: usize = 64;

/// Somebody who knows the secret and fits.
struct Visitor {
    stream: TcpStream,
    greeting: Greeting,
}

/// The run that this process takes part in.
struct Current {
    run: Run,
    /// Connections of processes with lower numbers.
    peers: Sender<(usize, TcpStream)>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Takes part in runs until `shutdown`. `memory_limit`: bytes that the state of this process may take.
///
/// # Errors
/// `Config` when nothing can listen at the address of this process.
pub async fn serve(settings: Settings, memory_limit: u64, shutdown: CancellationToken) -> Result<()> {
    let (process, address) = (settings.process, settings.hosts.of(settings.process).to_owned());
    let listener = TcpListener::bind(&address).await.map_err(|e| {
        Error::new(ErrorKind::Config, format!("process {process} can't listen at {address}: {e}")).with_hint(
            "line N+1 of the hosts file is the address of process N: one of this machine, with a free port",
        )
    })?;
    tracing::info!(process, address, processes = settings.hosts.count(), "waiting for process 0");
    let (sender, mut visitors) = channel(STRANGERS);
    let strangers = tokio::spawn(listen(listener, settings.clone(), sender));
    let mut current: Option<Current> = None;
    loop {
        let visitor = tokio::select! {
            () = shutdown.cancelled() => break,
            visitor = visitors.recv() => visitor,
            () = ended(&mut current) => {
                current = None;
                continue;
            }
        };
        let Some(Visitor { mut stream, greeting }) = visitor else { break };
        match greeting.purpose {
            Purpose::Control(run) => {
                if let Some(before) = current.take_if(|c| c.run.pipeline == run.pipeline) {
                    match before.run.generation <= run.generation {
                        true => before.end().await,
                        false => current = Some(before),
                    }
                }
                let refusal = current.as_ref().map(|c| {
                    format!("it takes part in a run of {} (lease {})", c.run.pipeline, c.run.generation)
                });
                let answer = refusal.clone().map_or_else(Answer::welcome, Answer::not_now);
                let answered = handshake::answer(&mut stream, answer).await;
                if answered.is_err() || refusal.is_some() {
                    continue;
                }
                let (peers, connected) = channel(settings.hosts.count());
                let stop = CancellationToken::new();
                let part =
                    take_part(settings.clone(), run.clone(), memory_limit, stream, connected, stop.clone());
                current = Some(Current { run, peers, stop, task: tokio::spawn(part) });
            }
            Purpose::Mesh { run } => {
                let mine = current.as_ref().filter(|c| c.run.id == run);
                let answer = match mine {
                    Some(_) => Answer::welcome(),
                    None => Answer::not_now("it takes part in another run"),
                };
                if handshake::answer(&mut stream, answer).await.is_ok()
                    && let Some(current) = mine
                {
                    // A run that has ended in the meantime needs no connection.
                    let _ = current.peers.try_send((greeting.from, stream));
                }
            }
        }
    }
    strangers.abort();
    if let Some(current) = current {
        current.end().await;
    }
    tracing::info!("stopped");
    Ok(())
}

impl Current {
    async fn end(self) {
        self.stop.cancel();
        if let Err(e) = self.task.await {
            tracing::error!(error = %e, "a run failed");
        }
    }
}

/// The end of the current run; for ever if there is none.
async fn ended(current: &mut Option<Current>) {
    match current {
        None => std::future::pending().await,
        Some(current) => {
            if let Err(e) = (&mut current.task).await {
                tracing::error!(error = %e, "a run failed");
            }
        }
    }
}

/// Lets in who knows the secret.
async fn listen(listener: TcpListener, settings: Settings, visitors: Sender<Visitor>) {
    let places = Arc::new(tokio::sync::Semaphore::new(STRANGERS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (mut stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of file descriptors, most often: it passes.
                tracing::warn!(error = %e, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (settings, visitors) = (settings.clone(), visitors.clone());
        tokio::spawn(async move {
            let _place = place;
            match handshake::accept(&settings, &mut stream).await {
                Ok(greeting) => drop(visitors.send(Visitor { stream, greeting }).await),
                // Process 0 tries all at once and starts again when one is missing.
                Err(e) if e.kind() == ErrorKind::Connection => {
                    tracing::debug!(from = %from, reason = %e, "a connection came to nothing");
                }
                Err(e) => tracing::warn!(from = %from, reason = %e, "a connection was refused"),
            }
        });
    }
}

/// One run, from the welcome to its end.
async fn take_part(
    settings: Settings,
    run: Run,
    memory_limit: u64,
    control: TcpStream,
    peers: Receiver<(usize, TcpStream)>,
    stop: CancellationToken,
) {
    let (read, write) = control.into_split();
    let mut reader = Reader { stream: read, patience: settings.timeout.max(OPENING) };
    let mut writer = Writer { stream: write, patience: settings.timeout };
    let opened = tokio::select! {
        opened = open(&settings, &run, memory_limit, &mut reader, peers) => opened,
        () = stop.cancelled() => return,
    };
    let (engine, requests) = match opened {
        Ok(opened) => opened,
        Err(e) => {
            // Process 0 has given up as well, or will do so.
            tracing::debug!(reason = %e, "the run did not begin");
            let _ = writer.send(&ToLeader::Failed(e.to_string())).await;
            return;
        }
    };
    let port = engine.port();
    tracing::info!(
        process = settings.process,
        pipeline = run.pipeline,
        generation = run.generation,
        workers = run.workers,
        memory_limit_mb = memory_limit >> 20,
        "taking part"
    );
    let replies = Replies::default();
    let ended = tokio::select! {
        ended = receive(&mut reader, settings.timeout, &port, &replies) => ended,
        failed = send(&mut writer, requests, &port, &replies) => failed.map(|()| End::Cut),
        () = stop.cancelled() => Ok(End::Stopped),
    };
    let ended = match ended {
        // Workers lose their connections a moment before process 0 has said that this is the end.
        Ok(End::Cut) => {
            let last = tokio::time::timeout(
                Duration::from_secs(1),
                receive(&mut reader, settings.timeout, &port, &replies),
            )
            .await;
            match last {
                Ok(Ok(end)) => Ok(end),
                _ => Err(port.ending().cause()),
            }
        }
        ended => ended,
    };
    match ended {
        Ok(_) => tracing::info!("the run has ended; waiting for process 0"),
        Err(e) => {
            tracing::warn!(reason = %e, "the run was lost; waiting for process 0");
            let _ = writer.send(&ToLeader::Failed(e.to_string())).await;
        }
    }
    port.ending().end(None);
    // Joins threads.
    let _ = tokio::task::spawn_blocking(move || drop(engine)).await;
}

/// How a run ends.
enum End {
    /// Process 0 said so.
    Told,
    /// This process was told to stop, or takes part in another run.
    Stopped,
    /// The workers have ended.
    Cut,
}

/// Connects with everybody and starts the workers.
async fn open(
    settings: &Settings,
    run: &Run,
    memory_limit: u64,
    reader: &mut Reader,
    mut connected: Receiver<(usize, TcpStream)>,
) -> Result<(Dataflow, UnboundedReceiver<EvaluationRequest>)> {
    match reader.next::<ToMember>().await? {
        ToMember::Open => {}
        _ => return Err(Error::new(ErrorKind::Cluster, "process 0 did not open the run")),
    }
    let (own, count) = (settings.process, settings.hosts.count());
    let mut peers: Vec<Option<std::net::TcpStream>> = (0..count).map(|_| None).collect();
    let lower = async {
        while let Some(missing) = (0..own).find(|p| peers[*p].is_none()) {
            let gone = || Error::new(ErrorKind::Cluster, format!("process {missing} did not connect"));
            let (from, stream) = connected.recv().await.ok_or_else(gone)?;
            peers[from] = Some(blocking(stream)?);
        }
        Ok::<_, Error>(())
    };
    let higher = async {
        let streams = (own + 1..count).map(|process| mesh(settings, process, &run.id));
        futures_util::future::try_join_all(streams).await
    };
    let both = async { tokio::try_join!(lower, higher) };
    let late = |_| Error::new(ErrorKind::Cluster, "not all processes connected in time");
    let ((), higher) = tokio::time::timeout(OPENING, both).await.map_err(late)??;
    for (process, stream) in (own + 1..).zip(higher) {
        peers[process] = Some(stream);
    }
    let options = DataflowOptions { workers: run.workers, memory_limit };
    Dataflow::start(options, Some(Mesh { process: own, peers }))
}

/// Operators that wait for an answer.
#[derive(Default)]
struct Replies(Mutex<HashMap<u64, Reply>>);

enum Reply {
    Rows(EvaluationReply<Vec<Row>>),
    Groups(EvaluationReply<Vec<Vec<Row>>>),
}

impl Replies {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Reply>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, id: u64, request: EvaluationRequest) -> Question {
        let (question, reply) = match request {
            EvaluationRequest::Rows { view, batch, rows, reply } => {
                (Question::Rows { view, batch, rows }, Reply::Rows(reply))
            }
            EvaluationRequest::Groups { view, batch, groups, reply } => {
                (Question::Groups { view, batch, groups }, Reply::Groups(reply))
            }
        };
        self.lock().insert(id, reply);
        question
    }

    fn answer(&self, id: u64, answer: Answered) -> Result<()> {
        let reply = self.lock().remove(&id);
        match (reply, answer) {
            (Some(Reply::Rows(reply)), Answered::Rows(rows)) => reply.send(rows),
            (Some(Reply::Groups(reply)), Answered::Groups(groups)) => reply.send(groups),
            _ => return Err(Error::new(ErrorKind::Cluster, "process 0 answered what nobody asked")),
        }
        Ok(())
    }
}

async fn receive(reader: &mut Reader, timeout: Duration, port: &Port, replies: &Replies) -> Result<End> {
    loop {
        let message = reader.next::<ToMember>().await.map_err(|e| e.during("process 0"))?;
        // Until all are ready process 0 has nothing to say.
        reader.patience = timeout;
        match message {
            ToMember::Here | ToMember::Open => {}
            ToMember::Answer { id, answer } => replies.answer(id, answer)?,
            ToMember::Mark(marked) => port.mark(marked),
            ToMember::End => return Ok(End::Told),
        }
    }
}

/// Sends what is to be told, until the workers end.
async fn send(
    writer: &mut Writer,
    mut requests: UnboundedReceiver<EvaluationRequest>,
    port: &Port,
    replies: &Replies,
) -> Result<()> {
    writer.send(&ToLeader::Ready).await?;
    let mut pulse = tokio::time::interval(pulse(writer.patience).min(Duration::from_millis(200)));
    let (mut told, mut next) = (None, 0);
    loop {
        tokio::select! {
            biased;
            () = port.ending().ended() => return Ok(()),
            request = requests.recv() => {
                let Some(request) = request else { return Ok(()) };
                next += 1;
                let question = replies.ask(next, request);
                writer.send(&ToLeader::Ask { id: next, question }).await?;
            }
            _ = pulse.tick() => {
                for mark in port.marks() {
                    writer.send(&ToLeader::Mark(mark)).await?;
                }
                let report = Some(port.report());
                match (report == told, &report) {
                    (false, Some(new)) => writer.send(&ToLeader::Report(new.clone())).await?,
                    _ => writer.send(&ToLeader::Here).await?,
                }
                told = report;
            }
        }
    }
}
