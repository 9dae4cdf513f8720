//! SIGTERM and Ctrl-C: the first asks for a clean end, the second ends at once.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// Cancels the returned token at the first SIGTERM or SIGINT. At the second, or when the process still runs `patience`
/// after the first, the process exits with code 1.
///
/// # Errors
/// `Internal` when signals can't be caught.
pub(super) fn token(patience: Duration) -> Result<CancellationToken> {
    let failed = |e| Error::internal("signals can't be caught").with_source(e);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping; a second signal ends at once");
        first.cancel();
        let why = tokio::select! {
            _ = terminate.recv() => "second signal".to_owned(),
            _ = interrupt.recv() => "second signal".to_owned(),
            () = tokio::time::sleep(patience) => format!("not stopped after {} s", patience.as_secs()),
        };
        tracing::error!("{why}: ending at once");
        std::process::exit(i32::from(super::FAILED));
    });
    Ok(token)
}
