//! The handle by which the pipeline drives the workers.

use std::sync::{Arc, Mutex};
use std::thread::Thread;

use timely::WorkerConfig;
use timely::communication::{Config as Communication, WorkerGuards};

use super::evaluate::{EvaluationRequest, RequestSender};
use super::protocol::{Command, EpochResult};
use super::worker::{Channels, run};
use crate::error::{Error, Result};

/// How the engine is started.
#[derive(Debug, Clone, Copy)]
pub struct DataflowOptions {
    /// Worker threads, at least 1.
    pub workers: usize,
}

/// A running engine. Dropping it ends the workers and waits for them.
pub struct Dataflow {
    commands: Option<std::sync::mpsc::Sender<Command>>,
    results: tokio::sync::mpsc::UnboundedReceiver<EpochResult>,
    leader: Thread,
    guards: Option<WorkerGuards<()>>,
}

impl Dataflow {
    /// Starts the workers. The receiver yields what the Evaluate operators ask.
    pub fn start(
        options: DataflowOptions,
    ) -> Result<(Dataflow, tokio::sync::mpsc::UnboundedReceiver<EvaluationRequest>)> {
        let (commands, command_receiver) = std::sync::mpsc::channel();
        let (result_sender, results) = tokio::sync::mpsc::unbounded_channel();
        let (requests, request_receiver) = tokio::sync::mpsc::unbounded_channel();
        let requests = RequestSender::new(requests);
        let (thread_sender, thread_receiver) = std::sync::mpsc::channel();
        let channels = Mutex::new(Some(Channels { commands: command_receiver, results: result_sender }));
        let shared = Arc::new((channels, thread_sender));
        let communication = if options.workers <= 1 {
            Communication::Thread
        } else {
            Communication::Process(options.workers)
        };
        let config = timely::Config { communication, worker: WorkerConfig::default() };
        let guards = timely::execute(config, move |worker| {
            let (channels, thread) = &*shared;
            let mine = match worker.index() {
                0 => channels.lock().ok().and_then(|mut slot| slot.take()),
                _ => None,
            };
            if mine.is_some() {
                let _ = thread.send(std::thread::current());
            }
            run(worker, mine, requests.clone());
        })
        .map_err(|e| Error::internal(format!("the dataflow workers could not be started: {e}")))?;
        let leader = thread_receiver
            .recv()
            .map_err(|e| Error::internal("the first dataflow worker did not start").with_source(e))?;
        Ok((Dataflow { commands: Some(commands), results, leader, guards: Some(guards) }, request_receiver))
    }

    /// Sends a command; commands take effect in the order sent.
    pub fn send(&self, command: Command) -> Result<()> {
        let gone = || Error::internal("the dataflow workers have ended");
        self.commands.as_ref().ok_or_else(gone)?.send(command).map_err(|_| gone())?;
        self.leader.unpark();
        Ok(())
    }

    /// A second handle for sending, for those who load rows.
    pub fn loader(&self) -> Result<Loader> {
        let commands =
            self.commands.clone().ok_or_else(|| Error::internal("the dataflow workers have ended"))?;
        Ok(Loader { commands, leader: self.leader.clone() })
    }

    /// The next completed epoch.
    pub async fn next(&mut self) -> Result<EpochResult> {
        self.results.recv().await.ok_or_else(|| Error::internal("a dataflow worker ended unexpectedly"))
    }
}

/// Sends commands from another task; they take effect in the order sent over all handles.
#[derive(Clone)]
pub struct Loader {
    commands: std::sync::mpsc::Sender<Command>,
    leader: Thread,
}

impl Loader {
    pub fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| Error::internal("the dataflow workers have ended"))?;
        self.leader.unpark();
        Ok(())
    }
}

impl Drop for Dataflow {
    fn drop(&mut self) {
        if let Some(commands) = self.commands.take() {
            let _ = commands.send(Command::Shutdown);
        }
        self.leader.unpark();
        if let Some(guards) = self.guards.take() {
            // A worker that panicked has already been reported by the closed result channel.
            for outcome in guards.join() {
                drop(outcome);
            }
        }
    }
}
