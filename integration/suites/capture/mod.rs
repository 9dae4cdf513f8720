//! Capture by triggers and from the WAL, and the ways between them.

mod blips;
mod bounds;
mod freshness;
mod handover;
mod swap;
mod triggers;
pub mod world;

use tokio_postgres::Client;

use crate::harness::{SOON, wait_until};

/// One text value.
pub async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).unwrap_or_default()
}

/// Waits until a query gives this text.
pub async fn becomes(client: &Client, sql: &str, expected: &str) {
    wait_until(&format!("{sql} to give {expected:?}"), SOON, || async {
        let now = text(client, sql).await;
        if now == expected { Ok(()) } else { Err(now) }
    })
    .await;
}

/// How the sources are captured: `wal`, `trigger`, or a list of both.
pub const CAPTURE: &str = "select string_agg(distinct capture, ' ' order by capture) from pgtrickle.pgt_sources where source is not null";

/// What is left of trigger capture.
pub const TRIGGERS: &str = "select (select count(*) from pg_trigger where tgname like 'pgtrickle_capture%')
    + (select count(*) from pg_class where relnamespace = 'pgtrickle_changes'::regnamespace and relkind = 'r') || ''";

/// WARNINGs: diagnosis and source.
pub const WARNINGS: &str = "select string_agg(diagnosis || ' ' || source_name, ', ' order by recovery_id) from pgtrickle.pgt_recoveries";
