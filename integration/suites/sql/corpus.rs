//! Several hundred queries as people write them, over four schemas: all right, and nearly all incremental.
//!
//! `corpus/<schema>_<n>.sql` hold the queries, each after a line `-- name: ...`; `corpus/full.txt` names those that may be
//! recomputed. `PGTRICKLE_SQL_REASONS=file` appends the reasons for recomputation with their counts to that file.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;

use super::{Case, Expect, Report, Schema, examine};
use crate::harness::{Server, for_each_major};

/// Queries that may be recomputed, one name a line; `#` begins a comment.
const FULL: &str = include_str!("corpus/full.txt");

const SHOP: Schema = Schema {
    script: &[
        "update orders set status = 'shipped', shipped_at = placed_at + interval '3 days' where status = 'paid'",
    ],
    ..Schema::new("shop", include_str!("corpus/shop_schema.sql"))
};
const SAAS: Schema = Schema::new("saas", include_str!("corpus/saas_schema.sql"));
const FINANCE: Schema = Schema::new("finance", include_str!("corpus/finance_schema.sql"));
const FIELD: Schema = Schema {
    script: &["update readings set at = at + interval '9 days' where device_id % 5 = 0"],
    ..Schema::new("field", include_str!("corpus/field_schema.sql"))
};

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_a_shop_are_right() {
    play(&SHOP, &[include_str!("corpus/shop_1.sql"), include_str!("corpus/shop_2.sql")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_a_service_are_right() {
    play(&SAAS, &[include_str!("corpus/saas_1.sql"), include_str!("corpus/saas_2.sql")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_bookkeeping_are_right() {
    play(&FINANCE, &[include_str!("corpus/finance_1.sql"), include_str!("corpus/finance_2.sql")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_organisations_and_telemetry_are_right() {
    play(&FIELD, &[include_str!("corpus/field_1.sql"), include_str!("corpus/field_2.sql")]).await;
}

async fn play(schema: &Schema, files: &[&'static str]) {
    let full: BTreeSet<&str> =
        FULL.lines().filter_map(|l| l.split('#').next()).map(str::trim).filter(|l| !l.is_empty()).collect();
    let mut cases: Vec<Case> = files.iter().flat_map(|text| blocks(text)).collect();
    for case in &mut cases {
        case.expect = if full.contains(case.name) { Expect::Any } else { Expect::Incremental };
    }
    let cases = &cases;
    for_each_major(async |server: &Server| {
        let report = examine(server, schema, cases).await;
        println!("{} on {}: {}", schema.name, server.major, report.summary());
        note(schema, &report);
        let odd = report.complaints();
        assert!(odd.is_empty(), "{}: {} complaints:\n{}", schema.name, odd.len(), odd.join("\n"));
    })
    .await;
}

/// The queries of a file.
fn blocks(text: &'static str) -> Vec<Case> {
    let block = |block: &'static str| {
        let (name, query) = block.split_once('\n').expect("a name and a query");
        let query = query.trim().trim_end_matches(';');
        Case { name: name.trim(), query, expect: Expect::Any }
    };
    text.split("-- name: ").skip(1).map(block).collect()
}

fn note(schema: &Schema, report: &Report) {
    let Some(file) = std::env::var_os("PGTRICKLE_SQL_REASONS") else { return };
    let mut reasons: Vec<_> = report.reasons().into_iter().collect();
    reasons.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    let mut text = format!("== {}: {}\n", schema.name, report.summary());
    for (reason, names) in reasons {
        let _ = writeln!(text, "{:4}  {reason}\n      {}", names.len(), names.join(" "));
    }
    for (case, outcome) in report.cases.iter().zip(&report.outcomes) {
        if let Some(wrong) = &outcome.wrong {
            let _ = writeln!(text, "WRONG {} ({}): {wrong}", case.name, outcome.mode);
        }
    }
    let mut file =
        std::fs::File::options().create(true).append(true).open(file).expect("the file of reasons");
    file.write_all(text.as_bytes()).expect("the reasons are written");
}
