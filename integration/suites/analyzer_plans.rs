//! Plans of queries, as text, and reasons for refusals: the same on every major.

use std::collections::HashMap;

use pgtrickle::analyzer::facts::StreamTable;
use pgtrickle::analyzer::{Analysis, TreeSource, analyze};
use pgtrickle::plan::explain::explain;

use super::analyzer_deparse::{Server, servers};

pub(super) const SCHEMA: &str = "
    create schema p;
    set search_path = p;
    create type mood as enum ('sad', 'ok');
    create domain qty as int check (value >= 0);
    create table c (id int primary key, name text not null, country char(2), region text collate \"POSIX\", extra jsonb);
    create table o (id bigint primary key, c_id int not null, day date not null, ts timestamptz, amount numeric(10,2) not null,
        note text, paid boolean, f float8, r real, m mood, v varchar(20), q qty, gone int, tags text[]);
    alter table o drop column gone;
    create table i (o_id bigint, line int, sku text not null, n int not null, price numeric, primary key (o_id, line));
    create table s (sku text primary key, w smallint, unique (w));
    create table nokey (a int, b int);
    create table full_id (a int not null, b int);
    alter table full_id replica identity full;
    create table g (a int primary key, b int, twice bigint generated always as (b * 2) stored);
    create unlogged table u (a int primary key);
    create table part (a int primary key) partition by range (a);
    create table leaf partition of part for values from (0) to (10);
    create table rls (a int primary key);
    alter table rls enable row level security;
    create table st (k int primary key, total numeric not null, \"__pgt_row_id\" bigint not null default 0);
    create table st_full (k int primary key, total numeric);
    create materialized view mv as select 1 as a;
    create view paid as select id, c_id, amount, upper(note) as note from o where paid;
    create view totals as select c_id, sum(amount) as total, count(*) as n from paid group by c_id;
    create view barrier with (security_barrier) as select id from o where amount > 3;
    create function imm(int) returns int immutable strict language sql as 'select 7 / $1';
    create function vol(int) returns int volatile language sql as 'select $1';
";

pub(super) async fn analyzed(server: &mut Server, query: &str) -> Analysis {
    let rows = server.client.query("select 'p.st'::regclass::oid, 'p.st_full'::regclass::oid", &[]).await;
    let row = &rows.expect("oids")[0];
    let streams = HashMap::from([
        (row.get(0), StreamTable { view: 7, incremental: true }),
        (row.get(1), StreamTable { view: 8, incremental: false }),
    ]);
    let source = TreeSource::Text { query, columns: &[] };
    analyze(&mut server.client, source, &streams).await.unwrap_or_else(|e| panic!("{query}: {e}"))
}

/// The plan's text, or code, reason and hint of the refusal.
pub(super) fn shown(analysis: &Analysis) -> String {
    match &analysis.plan {
        Ok(plan) => explain(plan, &analysis.names()),
        Err(r) => format!(
            "{}: {}\n{}",
            r.code,
            r.reason,
            r.hint.clone().map(|h| format!("hint: {h}\n")).unwrap_or_default()
        ),
    }
}

#[tokio::test]
async fn exploration() {
    let text = std::fs::read_to_string("/tmp/wt/pg-analyzer-queries.sql").expect("queries");
    let mut servers = servers(SCHEMA).await;
    for query in text.split(";\n").map(str::trim).filter(|q| !q.is_empty()) {
        let mut first: Option<String> = None;
        for server in &mut servers {
            let now = shown(&analyzed(server, query).await);
            match &first {
                None => {
                    println!("=== {query}\n{now}");
                    first = Some(now);
                }
                Some(f) if *f == now => {}
                Some(_) => println!("!!! {}:\n{now}", server.major),
            }
        }
    }
}
