//! What a service manager that started us is told (systemd's `Type=notify`).
//!
//! READY once every pipeline can be relied on (what `/readyz` answers 200 to), or was paused or detached on purpose; until
//! then more time is asked for, because reading large sources takes as long as it takes. Then a sign of life per half of
//! the watchdog's time, from the runtime that everything else runs on; STOPPING when the drain begins.
//! Invariant: without `NOTIFY_SOCKET` nothing is done; what can't be told is logged once and keeps nothing from working.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::observe::Observed;

/// How often the state is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// More time for the start, asked for at each look: enough for a few looks that come late, in microseconds.
const MORE_TIME: u32 = 30_000_000;

/// What tells; it ends at the shutdown, or with this value.
pub(super) struct Told {
    done: DropGuard,
    task: JoinHandle<()>,
}

impl Told {
    /// Waits until the last message is out.
    pub(super) async fn end(self) {
        drop(self.done);
        let _ = self.task.await;
    }
}

/// Starts telling; `None` when nobody wants to know.
pub(super) fn start(observed: Arc<Observed>, shutdown: &CancellationToken) -> Option<Told> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let done = CancellationToken::new();
    let task = tokio::spawn(tell(observed, shutdown.clone(), done.clone()));
    Some(Told { done: done.drop_guard(), task })
}

async fn tell(observed: Arc<Observed>, shutdown: CancellationToken, done: CancellationToken) {
    let mut teller = Teller::default();
    let watchdog = sd_notify::watchdog_enabled().map(|period| period / 2);
    let pause = watchdog.map_or(LOOK, |period| period.min(LOOK));
    let mut ready = false;
    let mut alive = tokio::time::Instant::now();
    loop {
        let obstacle = observed.still_starting();
        match &obstacle {
            Some(why) if !ready => {
                teller.send(&[NotifyState::ExtendTimeoutUsec(MORE_TIME)]);
                teller.status(&format!("starting: {why}"));
            }
            Some(why) => teller.status(&format!("not ready: {why}")),
            None => {
                if !std::mem::replace(&mut ready, true) {
                    teller.send(&[NotifyState::Ready]);
                }
                teller.status("serving");
            }
        }
        if watchdog.is_some_and(|period| alive.elapsed() + pause >= period) {
            alive = tokio::time::Instant::now();
            teller.send(&[NotifyState::Watchdog]);
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {
                teller.send(&[NotifyState::Stopping]);
                teller.status("stopping: finishing what is in flight");
                return;
            }
            () = done.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[derive(Default)]
struct Teller {
    status: String,
    failed: bool,
}

impl Teller {
    /// One line for `systemctl status`, when it has changed.
    fn status(&mut self, text: &str) {
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if line != self.status {
            self.send(&[NotifyState::Status(&line)]);
            self.status = line;
        }
    }

    fn send(&mut self, state: &[NotifyState]) {
        if let Err(e) = sd_notify::notify(state)
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!(error = %e, "the service manager can't be told how we are (NOTIFY_SOCKET)");
        }
    }
}
