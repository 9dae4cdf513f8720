//! What processes tell each other beside the rows: messages, and how they are read and written in time.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::dataflow::{Marked, Report};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{GroupBatch, RemoteBatch, ViewId};
use crate::row::Row;

/// A longer message is a fault, not a message: the rows of one evaluation are far below.
const LONGEST: usize = 1 << 31;
/// Bytes that are written before it is looked whether they go.
const PIECE: usize = 1 << 16;

/// Of process 0.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToMember {
    /// All processes are there: connect with those of a higher number and start.
    Open,
    Answer {
        id: u64,
        answer: Answered,
    },
    Mark(Marked),
    /// A sign of life.
    Here,
    /// The run ends as it should.
    End,
}

/// To process 0.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToLeader {
    /// Connected with everybody.
    Ready,
    Ask {
        id: u64,
        question: Question,
    },
    Report(Report),
    Mark(Marked),
    Here,
    /// Why this process ends the run.
    Failed(String),
}

/// What an Evaluate operator asks (`crate::dataflow::EvaluationRequest`).
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    Rows { view: ViewId, batch: Arc<RemoteBatch>, rows: Vec<Row> },
    Groups { view: ViewId, batch: Arc<GroupBatch>, groups: Vec<Vec<Row>> },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answered {
    Rows(Vec<Row>),
    Groups(Vec<Vec<Row>>),
}

fn gone(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Cluster, format!("the control connection was lost: {why}"))
}

fn silent(patience: Duration) -> Error {
    Error::new(ErrorKind::Cluster, format!("it gave no sign of life for {} s", patience.as_secs_f32()))
}

/// Reads messages; any silence longer than `patience` is an error.
pub(super) struct Reader {
    pub stream: OwnedReadHalf,
    pub patience: Duration,
}

impl Reader {
    pub async fn next<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T> {
        let mut length = [0; 4];
        self.fill(&mut length).await?;
        let length = u32::from_le_bytes(length) as usize;
        let strange = || Error::new(ErrorKind::Cluster, "it speaks another language");
        if length > LONGEST {
            return Err(strange());
        }
        // Memory as bytes come, not as somebody promises.
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let start = bytes.len();
            bytes.resize(length.min(start + (1 << 20)), 0);
            self.fill(&mut bytes[start..]).await?;
        }
        bincode::deserialize(&bytes).map_err(|e| strange().with_source(e))
    }

    /// A message may take long, each piece of it may not.
    async fn fill(&mut self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            let read = timeout(self.patience, self.stream.read(buffer)).await;
            match read.map_err(|_| silent(self.patience))?.map_err(gone)? {
                0 => return Err(gone("it was closed")),
                count => buffer = buffer.split_at_mut(count).1,
            }
        }
        Ok(())
    }
}

/// Writes messages; a piece that does not go for longer than `patience` is an error.
pub(super) struct Writer {
    pub stream: OwnedWriteHalf,
    pub patience: Duration,
}

impl Writer {
    pub async fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let size = bincode::serialized_size(message).ok().and_then(|n| u32::try_from(n).ok());
        let size = size.filter(|n| (*n as usize) <= LONGEST);
        let size = size.ok_or_else(|| Error::internal("a message to another process is too long"))?;
        let mut bytes = Vec::with_capacity(4 + size as usize);
        bytes.extend_from_slice(&size.to_le_bytes());
        bincode::serialize_into(&mut bytes, message)
            .map_err(|e| Error::internal("a message to another process can't be written").with_source(e))?;
        for piece in bytes.chunks(PIECE) {
            let written = timeout(self.patience, self.stream.write_all(piece)).await;
            written.map_err(|_| silent(self.patience))?.map_err(gone)?;
        }
        Ok(())
    }
}

/// How often a sign of life is given.
pub(super) fn pulse(patience: Duration) -> Duration {
    (patience / 10).clamp(Duration::from_millis(50), Duration::from_millis(500))
}
