//! The end of an engine, told once to everybody who takes part in it: workers, connections to other processes, and the
//! pipeline.
//!
//! Invariant: the first cause counts. After the end no worker takes another step, so nothing that was cut short is ever
//! taken for an answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};

/// Clones mean the same end.
#[derive(Clone)]
pub struct Ending(Arc<Inner>);

struct Inner {
    ended: AtomicBool,
    state: Mutex<State>,
    idle: Condvar,
    token: CancellationToken,
}

struct State {
    /// Kind and words: everybody is told the same.
    cause: Option<(ErrorKind, String)>,
    workers: Vec<Thread>,
    /// Workers that have not returned.
    working: usize,
}

impl Ending {
    /// For an engine with so many workers in this process.
    pub(super) fn new(workers: usize) -> Ending {
        let state = State { cause: None, workers: Vec::new(), working: workers };
        Ending(Arc::new(Inner {
            ended: AtomicBool::new(false),
            state: Mutex::new(state),
            idle: Condvar::new(),
            token: CancellationToken::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the engine; `cause` is what its pipeline is told.
    pub fn end(&self, cause: Option<Error>) {
        let mut state = self.state();
        if self.0.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        state.cause = cause.map(|e| (e.kind(), e.to_string()));
        state.workers.iter().for_each(Thread::unpark);
        drop(state);
        self.0.idle.notify_all();
        self.0.token.cancel();
    }

    /// Wakes the workers, so that they look around.
    pub(super) fn wake(&self) {
        self.state().workers.iter().for_each(Thread::unpark);
    }

    pub fn is_ended(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }

    /// Returns when the engine has ended.
    pub async fn ended(&self) {
        self.0.token.cancelled().await;
    }

    /// Why it ended.
    pub fn cause(&self) -> Error {
        match &self.state().cause {
            Some((kind, context)) => Error::new(*kind, context.clone()),
            None => Error::internal("the dataflow workers have ended"),
        }
    }

    /// Notes the calling thread as a worker until the guard is dropped.
    pub(super) fn work(&self) -> Working {
        let mut state = self.state();
        state.workers.push(std::thread::current());
        drop(state);
        Working(self.clone())
    }

    /// Returns when the engine has ended and no worker runs any more.
    pub(super) fn wait_idle(&self) {
        let mut state = self.state();
        while state.working > 0 || !self.is_ended() {
            state = self.0.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The outcome of something that needs a living engine.
    pub(super) fn check<T>(&self, outcome: Option<T>) -> Result<T> {
        outcome.ok_or_else(|| self.cause())
    }
}

/// A worker that runs. One that panics ends the engine: without it no epoch completes.
pub(super) struct Working(Ending);

impl Drop for Working {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Some(Error::internal("a dataflow worker ended unexpectedly")));
        }
        let mut state = self.0.state();
        state.working = state.working.saturating_sub(1);
        drop(state);
        self.0.0.idle.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_counts_and_a_worker_that_panics_is_one() {
        let ending = Ending::new(1);
        let inside = ending.clone();
        let worker = std::thread::spawn(move || {
            let _working = inside.work();
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(worker.join().is_err());
        ending.end(Some(Error::internal("later")));
        ending.wait_idle();
        assert!(ending.is_ended());
        assert_eq!(ending.cause().context(), "a dataflow worker ended unexpectedly");
    }
}
