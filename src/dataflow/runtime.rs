//! The handle by which the pipeline drives the workers.

use std::sync::{Arc, Mutex};
use std::thread::Thread;

use timely::WorkerConfig;
use timely::communication::{Config as Communication, WorkerGuards};
use timely::execute::execute_from;
use tokio::sync::mpsc::UnboundedReceiver;

use super::account::{Accounts, Marked, Report};
use super::credit::{Credit, Permit};
use super::ending::Ending;
use super::evaluate::{EvaluationRequest, RequestSender};
use super::mesh::{Links, Mesh};
use super::protocol::{Command, EpochResult, InstanceId, ViewUsage};
use super::worker::{Channels, Common, run};
use crate::error::{Error, Result};
use crate::row::Row;

/// How the engine is started.
#[derive(Debug, Clone, Copy)]
pub struct DataflowOptions {
    /// Worker threads of this process, at least 1; the same number in all processes.
    pub workers: usize,
    /// Bytes that all state of this process may take; beyond it the view with the largest state is dropped.
    pub memory_limit: u64,
}

type Commands = std::sync::mpsc::Sender<(Command, Option<Permit>)>;

/// A running engine, or one process's part of it. Dropping it ends the workers and waits for them.
pub struct Dataflow {
    commands: Option<Commands>,
    credit: Credit,
    results: UnboundedReceiver<EpochResult>,
    /// Worker 0, where it is one of this process.
    leader: Thread,
    guards: Option<WorkerGuards<()>>,
    /// Closed when the workers have returned.
    links: Option<Links>,
    port: Port,
}

/// What those who connect the processes of a cluster need of the engine.
#[derive(Clone)]
pub struct Port {
    requests: RequestSender,
    accounts: Accounts,
    ending: Ending,
}

impl Dataflow {
    /// Starts the workers. The receiver yields what the Evaluate operators ask. With a `mesh` they are some of the workers
    /// of several processes; commands are given and results come in process 0 alone.
    ///
    /// # Errors
    /// When threads can't be started.
    pub fn start(
        options: DataflowOptions,
        mesh: Option<Mesh>,
    ) -> Result<(Dataflow, UnboundedReceiver<EvaluationRequest>)> {
        let workers = options.workers.max(1);
        let (commands, command_receiver) = std::sync::mpsc::channel();
        let (result_sender, results) = tokio::sync::mpsc::unbounded_channel();
        let (requests, request_receiver) = tokio::sync::mpsc::unbounded_channel();
        let requests = RequestSender::new(requests);
        let accounts = Accounts::new(options.memory_limit);
        let ending = Ending::new(workers);
        let (thread_sender, thread_receiver) = std::sync::mpsc::channel();
        let channels = Mutex::new(Some(Channels { commands: command_receiver, results: result_sender }));
        let shared = Arc::new((channels, Mutex::new(Some(thread_sender))));
        let failed = |e: String| Error::internal(format!("the dataflow workers could not be started: {e}"));
        let first = mesh.as_ref().map_or(0, |mesh| mesh.process * workers);
        if mesh.is_some() {
            accounts.share();
        }
        let (builders, links) = match mesh {
            Some(mesh) => {
                let (builders, links) = mesh.build(workers, &ending)?;
                (builders, Some(links))
            }
            None => {
                let communication = match workers {
                    1 => Communication::Thread,
                    several => Communication::Process(several),
                };
                (communication.try_build().map_err(failed)?.0, None)
            }
        };
        let common =
            Common { requests: requests.clone(), accounts: accounts.clone(), ending: ending.clone() };
        let port = Port { requests, accounts, ending };
        let guards = execute_from(builders, Box::new(()), WorkerConfig::default(), move |worker| {
            let _working = common.ending.work();
            let (channels, thread) = &*shared;
            let leads = worker.index() == first;
            let mine = match worker.index() {
                0 => channels.lock().ok().and_then(|mut slot| slot.take()),
                _ => None,
            };
            if leads && let Some(thread) = thread.lock().ok().and_then(|mut slot| slot.take()) {
                let _ = thread.send(std::thread::current());
            }
            run(worker, mine, common.clone(), leads);
        })
        .map_err(failed)?;
        let leader = thread_receiver
            .recv()
            .map_err(|e| Error::internal("the first dataflow worker did not start").with_source(e))?;
        let (commands, credit) = (Some(commands), Credit::new());
        let flow = Dataflow { commands, credit, results, leader, guards: Some(guards), links, port };
        Ok((flow, request_receiver))
    }

    /// Sends a command; commands take effect in the order sent.
    pub fn send(&self, command: Command) -> Result<()> {
        let sent = self.commands.as_ref().and_then(|commands| commands.send((command, None)).ok());
        self.port.ending.check(sent)?;
        self.leader.unpark();
        Ok(())
    }

    /// What every view holds now, in all processes.
    pub fn usage(&self) -> Vec<ViewUsage> {
        self.port.accounts.usage()
    }

    /// What connects it with other processes.
    pub fn port(&self) -> Port {
        self.port.clone()
    }

    /// A handle for those who load rows.
    pub fn loader(&self) -> Result<Loader> {
        let commands = self.port.ending.check(self.commands.clone())?;
        Ok(Loader { commands, credit: self.credit.clone(), leader: self.leader.clone() })
    }

    #[cfg(test)]
    pub(super) fn credit(&self) -> Credit {
        self.credit.clone()
    }

    /// The next completed epoch; an error when the engine has ended. Then no epoch comes any more.
    pub async fn next(&mut self) -> Result<EpochResult> {
        // Worker 0 lets its end go when it returns, and it does so when any worker or process is lost.
        let result = self.results.recv().await;
        self.port.ending.check(result)
    }
}

impl Port {
    /// Puts a question of another process's operators to the evaluation service.
    pub fn evaluate(&self, request: EvaluationRequest) {
        // A service that has ended ends the pipeline as well.
        self.requests.send(request);
    }

    /// What this process holds.
    pub fn report(&self) -> Report {
        self.accounts.report()
    }

    /// Notes what another process holds.
    pub fn reported(&self, process: usize, report: Report) {
        self.accounts.reported(process, report);
    }

    /// Bytes of everything and rows of the sources, by process.
    pub fn by_process(&self) -> Vec<(usize, u64, u64)> {
        self.accounts.by_process()
    }

    /// Stream tables that passed a limit here since the last call.
    pub fn marks(&self) -> Vec<Marked> {
        self.accounts.untold()
    }

    /// Stops a stream table here that passed a limit in another process.
    pub fn mark(&self, marked: Marked) {
        self.accounts.mark(marked);
        self.ending.wake();
    }

    /// The end of this engine.
    pub fn ending(&self) -> &Ending {
        &self.ending
    }
}

/// Loads rows from another task; they take effect in the order sent over all handles.
#[derive(Clone)]
pub struct Loader {
    commands: Commands,
    credit: Credit,
    leader: Thread,
}

impl Loader {
    /// Sends rows of a hydration as soon as the workers have taken in enough of those before them.
    ///
    /// # Errors
    /// When the workers have ended.
    pub async fn load(&self, instance: InstanceId, rows: Vec<Row>) -> Result<()> {
        let permit = self.credit.take(&rows).await?;
        let sent = self.commands.send((Command::Load { instance, rows }, Some(permit)));
        sent.map_err(|_| Error::internal("the dataflow workers have ended"))?;
        self.leader.unpark();
        Ok(())
    }
}

impl Drop for Dataflow {
    fn drop(&mut self) {
        drop(self.commands.take());
        self.port.ending.end(None);
        if let Some(guards) = self.guards.take() {
            // A worker that panicked has ended the engine already, with that as its cause.
            for outcome in guards.join() {
                drop(outcome);
            }
        }
        drop(self.links.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataflow::credit::BUDGET;
    use crate::row::Datum;

    /// The workers stand still: nobody takes anything in until it is taken out of the channel here.
    #[tokio::test]
    async fn no_more_rows_are_on_their_way_than_may_be() {
        let (commands, receiver) = std::sync::mpsc::channel();
        let credit = Credit::new();
        let loader = Loader { commands, credit: credit.clone(), leader: std::thread::current() };
        let rows = |count| vec![Row::from_datums([Datum::Text(&[b'x'; 1000])]); count];
        let loading = tokio::spawn(async move {
            for _ in 0..100 {
                loader.load(1, rows(10)).await?;
            }
            // One chunk that is larger than everything may pass alone.
            loader.load(1, rows(1000)).await
        });
        let (mut taken, mut most) = (0, 0);
        while taken < 101 {
            // On one thread it has come as far as it can.
            tokio::task::yield_now().await;
            let waiting: Vec<_> = receiver.try_iter().collect();
            let bytes = credit.used();
            assert!(!waiting.is_empty() && bytes <= BUDGET as usize, "{} chunks of {bytes}", waiting.len());
            assert!(
                waiting.len() <= 1 || waiting.len() * 10_000 <= BUDGET as usize,
                "{} chunks",
                waiting.len()
            );
            (taken, most) = (taken + waiting.len(), most.max(bytes));
        }
        assert!(loading.await.unwrap().is_ok());
        assert_eq!((most, credit.used()), (BUDGET as usize, 0));
    }
}
