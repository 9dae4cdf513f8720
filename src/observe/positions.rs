//! How far a pipeline of this process has come in the WAL before anything is durable.
//!
//! The only numbers about the engine that do not come from the database; the engine writes them, pages read them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Positions in bytes of WAL; 0: nothing yet.
#[derive(Debug, Default)]
pub struct Positions {
    received: AtomicU64,
    decoded: AtomicU64,
}

impl Positions {
    /// Notes what has been received, and what has been decoded and handed to the dataflow.
    pub fn note(&self, received: u64, decoded: u64) {
        self.received.store(received, Ordering::Relaxed);
        self.decoded.store(decoded, Ordering::Relaxed);
    }

    /// Received and decoded, as the server writes positions.
    pub fn texts(&self) -> (Option<String>, Option<String>) {
        let text = |at: &AtomicU64| {
            let at = at.load(Ordering::Relaxed);
            (at > 0).then(|| format!("{:X}/{:X}", at >> 32, at & 0xFFFF_FFFF))
        };
        (text(&self.received), text(&self.decoded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_written_as_the_server_does() {
        let positions = Positions::default();
        assert_eq!(positions.texts(), (None, None));
        positions.note((1 << 32) + 0xA0, 255);
        assert_eq!(positions.texts(), (Some("1/A0".to_owned()), Some("0/FF".to_owned())));
    }
}
