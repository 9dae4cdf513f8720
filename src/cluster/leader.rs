//! Process 0: gathers the others for a run, answers what they ask, notices when one is gone.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::Settings;
use super::handshake::{self, Purpose, Run};
use super::wire::{Answered, Question, Reader, ToLeader, ToMember, Writer, pulse};
use crate::dataflow::{EvaluationReply, EvaluationRequest, Mesh, Port};
use crate::error::{Error, ErrorKind, Result};

/// Pause between two attempts to gather.
const AGAIN: Duration = Duration::from_millis(300);
/// How often it is said who is missing.
const TELL: Duration = Duration::from_secs(10);
/// How often it is looked at what each process holds.
const FIGURES: Duration = Duration::from_secs(1);
/// Until every process has connected with every other.
const OPENING: Duration = Duration::from_secs(10);

/// All processes, connected, before the engine starts.
pub struct Led {
    controls: Vec<(usize, Reader, Writer)>,
    settings: Settings,
}

impl Led {
    /// Waits until all processes take part. `pipeline` names it among all servers' pipelines, `generation` is its lease's.
    ///
    /// # Errors
    /// `Config` when a process refuses and will refuse again.
    pub async fn gather(
        settings: &Settings,
        pipeline: &str,
        generation: i64,
        workers: usize,
    ) -> Result<(Led, Mesh)> {
        let mut told: Option<(Instant, String)> = None;
        loop {
            let id = handshake::identifier()?;
            let run = Run { id, pipeline: pipeline.to_owned(), generation, workers };
            let error = match attempt(settings, run).await {
                Ok(gathered) => return Ok(gathered),
                Err(e) if matches!(e.kind(), ErrorKind::Cluster | ErrorKind::Connection) => e,
                Err(e) => return Err(e),
            };
            let text = error.to_string();
            if told.as_ref().is_none_or(|(at, before)| *before != text || at.elapsed() > TELL) {
                tracing::warn!(reason = %text, "waiting for the other processes of the cluster");
                told = Some((Instant::now(), text));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Serves the other processes until the engine behind `port` ends; ends it when one of them goes away.
    pub fn serve(self, port: &Port) {
        let mut members = Vec::new();
        for (process, reader, writer) in self.controls {
            let (sender, messages) = unbounded_channel();
            members.push(sender.clone());
            let (port, address) = (port.clone(), self.settings.hosts.of(process).to_owned());
            tokio::spawn(async move {
                let outcome = tokio::select! {
                    outcome = receive(process, reader, &port, sender) => outcome,
                    outcome = send(writer, messages, &port) => outcome,
                };
                let cause = outcome.err().map(|e| e.during(format!("process {process} ({address})")));
                port.ending().end(cause);
            });
        }
        // A stream table that is stopped anywhere is stopped everywhere.
        let (port, pulse) = (port.clone(), pulse(self.settings.timeout).min(Duration::from_millis(100)));
        tokio::spawn(async move {
            let (mut looked, mut told) = (Instant::now(), Vec::new());
            while !port.ending().is_ended() {
                if looked.elapsed() >= FIGURES {
                    looked = Instant::now();
                    let now = port.by_process();
                    if now != told {
                        for (process, bytes, source_rows) in &now {
                            tracing::debug!(process, bytes, source_rows, "state of a process");
                        }
                        told = now;
                    }
                }
                for mark in port.marks() {
                    members.iter().for_each(|member| drop(member.send(ToMember::Mark(mark))));
                }
                tokio::select! {
                    () = tokio::time::sleep(pulse) => {}
                    () = port.ending().ended() => {}
                }
            }
        });
    }
}

async fn attempt(settings: &Settings, run: Run) -> Result<(Led, Mesh)> {
    let others = 1..settings.hosts.count();
    // All or nobody: those that were there wait again.
    let controls = others.clone().map(async |process| {
        let stream = handshake::connect(settings, process, Purpose::Control(run.clone())).await?;
        let (read, write) = stream.into_split();
        let reader = Reader { stream: read, patience: settings.timeout.max(OPENING) };
        Ok::<_, Error>((process, reader, Writer { stream: write, patience: settings.timeout }))
    });
    let mut controls = try_join_all(controls).await?;
    for (_, _, writer) in &mut controls {
        writer.send(&ToMember::Open).await?;
    }
    let streams = others.map(|process| mesh(settings, process, &run.id));
    let streams = try_join_all(streams).await?;
    let opened = controls.iter_mut().map(async |(process, reader, _)| {
        let named = |e: Error| e.during(format!("process {process} ({})", settings.hosts.of(*process)));
        match reader.next::<ToLeader>().await.map_err(named)? {
            ToLeader::Ready => Ok(()),
            ToLeader::Failed(why) => Err(named(Error::new(ErrorKind::Cluster, why))),
            _ => Err(named(Error::new(ErrorKind::Cluster, "it is not ready"))),
        }
    });
    try_join_all(opened).await?;
    controls.iter_mut().for_each(|(_, reader, _)| reader.patience = settings.timeout);
    let peers = std::iter::once(None).chain(streams.into_iter().map(Some)).collect();
    Ok((Led { controls, settings: settings.clone() }, Mesh { process: settings.process, peers }))
}

/// A connection between the workers of this process and those of another.
pub(super) async fn mesh(settings: &Settings, process: usize, run: &str) -> Result<std::net::TcpStream> {
    let purpose = Purpose::Mesh { run: run.to_owned() };
    blocking(handshake::connect(settings, process, purpose).await?)
}

/// As timely's threads want it.
pub(super) fn blocking(stream: TcpStream) -> Result<std::net::TcpStream> {
    let failed = |e| Error::new(ErrorKind::Cluster, "a connection can't be handed over").with_source(e);
    let stream = stream.into_std().map_err(failed)?;
    stream.set_nonblocking(false).map_err(failed)?;
    Ok(stream)
}

async fn receive(
    process: usize,
    mut reader: Reader,
    port: &Port,
    sender: UnboundedSender<ToMember>,
) -> Result<()> {
    loop {
        match reader.next::<ToLeader>().await? {
            ToLeader::Here | ToLeader::Ready => {}
            ToLeader::Report(report) => port.reported(process, report),
            ToLeader::Mark(marked) => port.mark(marked),
            ToLeader::Failed(why) => return Err(Error::new(ErrorKind::Cluster, why)),
            ToLeader::Ask { id, question } => port.evaluate(request(id, question, sender.clone())),
        }
    }
}

/// The question as the evaluation service knows it; its reply goes back where it came from.
fn request(id: u64, question: Question, sender: UnboundedSender<ToMember>) -> EvaluationRequest {
    // When the connection is gone, so is the run.
    match question {
        Question::Rows { view, batch, rows } => {
            let reply = EvaluationReply::to(move |rows| {
                let _ = sender.send(ToMember::Answer { id, answer: Answered::Rows(rows) });
            });
            EvaluationRequest::Rows { view, batch, rows, reply }
        }
        Question::Groups { view, batch, groups } => {
            let reply = EvaluationReply::to(move |groups| {
                let _ = sender.send(ToMember::Answer { id, answer: Answered::Groups(groups) });
            });
            EvaluationRequest::Groups { view, batch, groups, reply }
        }
    }
}

async fn send(mut writer: Writer, mut messages: UnboundedReceiver<ToMember>, port: &Port) -> Result<()> {
    let mut pulse = tokio::time::interval(pulse(writer.patience));
    loop {
        tokio::select! {
            biased;
            () = port.ending().ended() => {
                // Who does not hear it notices that the connection is closed.
                let _ = writer.send(&ToMember::End).await;
                return Ok(());
            }
            message = messages.recv() => match message {
                Some(message) => writer.send(&message).await?,
                None => return Ok(()),
            },
            _ = pulse.tick() => writer.send(&ToMember::Here).await?,
        }
    }
}
