//! The memory of alerts, `pgtrickle.pgt_alerts`: what is open is stored and told in one transaction.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::Client;

use crate::error::{Error, Result};
use crate::postgres::sessions::error;

/// An alert to be opened, changed (the same cause and subject in another severity) or closed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    pub open: bool,
    pub cause: String,
    /// What it is about; empty where a cause is there once per pipeline.
    pub subject: String,
    pub event: String,
    /// `warning` or `critical`.
    pub severity: String,
    pub message: String,
    /// Further keys of the payload.
    pub details: Value,
    /// Seconds after which it closes by itself.
    pub expires_in: Option<u64>,
}

/// An alert that is open.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Open {
    pub cause: String,
    pub subject: String,
    pub event: String,
    pub severity: String,
}

/// Stores changes and tells whoever listens to `pg_trickle_alert`; returns the payloads of those that were news, because
/// an alert that is open already is not told again.
///
/// # Errors
/// What the server says.
pub async fn tell(client: &Client, pipeline: &str, changes: &[Change]) -> Result<Vec<Value>> {
    let changes = serde_json::to_value(changes)
        .map_err(|e| Error::internal("an alert can't be written as JSON").with_source(e))?;
    let row =
        client.query_one("select pgtrickle._alert($1, $2)", &[&pipeline, &changes]).await.map_err(error)?;
    Ok(row.get::<_, Value>(0).as_array().cloned().unwrap_or_default())
}
