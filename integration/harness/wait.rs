//! Waiting for something to become true, with a deadline and a message that helps.
//!
//! Invariant: no test sleeps a fixed time in the hope that something has happened.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

/// Deadline for what takes milliseconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(90);

const STEP: Duration = Duration::from_millis(10);

/// Asks `probe` again and again until it returns `Ok`; `Err` is the last value seen, for the message.
#[track_caller]
pub fn wait_until<T, Probe, Ask>(what: &str, deadline: Duration, mut probe: Probe) -> impl Future<Output = T>
where
    Probe: FnMut() -> Ask,
    Ask: Future<Output = Result<T, String>>,
{
    let place = std::panic::Location::caller();
    async move {
        let start = Instant::now();
        let mut last = "nothing: the first look did not end".to_owned();
        loop {
            let left = deadline.saturating_sub(start.elapsed());
            // A look that hangs must not hide what was waited for.
            match tokio::time::timeout(left.max(STEP), probe()).await {
                Ok(Ok(value)) => return value,
                Ok(Err(seen)) => last = seen,
                Err(_) => {}
            }
            if start.elapsed() >= deadline {
                panic!("waited {deadline:?} for {what} ({place}); last seen: {last}");
            }
            tokio::time::sleep(STEP).await;
        }
    }
}

/// Waits until `probe` returns `expected`.
#[track_caller]
pub fn wait_for_value<T, Probe, Ask>(
    what: &str,
    deadline: Duration,
    expected: T,
    mut probe: Probe,
) -> impl Future<Output = ()>
where
    T: PartialEq + Debug,
    Probe: FnMut() -> Ask,
    Ask: Future<Output = T>,
{
    let look = move || {
        let ask = probe();
        async { Ok::<T, String>(ask.await) }
    };
    let mut look = look;
    let expected = std::sync::Arc::new(expected);
    wait_until(what, deadline, move || {
        let ask = look();
        let expected = expected.clone();
        async move {
            let seen = ask.await?;
            if seen == *expected { Ok(()) } else { Err(format!("{seen:?}, not {expected:?}")) }
        }
    })
}
