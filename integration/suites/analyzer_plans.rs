//! Plans of queries, as text, and reasons for refusals: the same on every major.
//!
//! The files in `plans/` hold queries (`=== query`) and what is to be shown for them.

use std::collections::HashMap;

use pgtrickle::analyzer::facts::StreamTable;
use pgtrickle::analyzer::{Analysis, TreeSource, analyze};
use pgtrickle::plan::explain::explain;

use pgtrickle::error::ErrorKind;
use tokio_postgres::Client;

use super::analyzer_support::database;
use crate::harness::for_each_major;

const SCHEMA: &str = "
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
    create table part (a int primary key, b text) partition by range (a);
    create table leaf partition of part for values from (0) to (10);
    create table other_leaf (b text, gone int, a int primary key);
    alter table other_leaf drop column gone;
    alter table part attach partition other_leaf for values from (10) to (20);
    create table par (a int primary key, b text);
    create table kid (more int) inherits (par);
    create table rls (a int primary key);
    alter table rls enable row level security;
    create table st (k int primary key, total numeric not null, \"__pgt_row_id\" bigint not null default 0);
    create table st_full (k int primary key, total numeric);
    create materialized view mv as select 1 as a;
    create view paid as select id, c_id, amount, upper(note) as note from o where paid;
    create view totals as select c_id, sum(amount) as total, count(*) as n from paid group by c_id;
    create view days as select id, array(select day from o where o.c_id = c.id order by day)::text as list from c;
    create view days_again as select d.id, d.list, o.day from days d join o on o.c_id = d.id;
    create view barrier with (security_barrier) as select id from o where amount > 3;
    create function imm(int) returns int immutable strict language sql as 'select 7 / $1';
    create function vol(int) returns int volatile language sql as 'select $1';
";

/// The relations that store stream tables: one that is read through the dataflow, one by its rows.
async fn streams(client: &Client) -> HashMap<u32, StreamTable> {
    let row = client.query_one("select 'p.st'::regclass::oid, 'p.st_full'::regclass::oid", &[]).await;
    let row = row.expect("the tables");
    HashMap::from([
        (row.get(0), StreamTable { view: 7, incremental: true }),
        (row.get(1), StreamTable { view: 8, incremental: false }),
    ])
}

async fn analyzed(client: &mut Client, query: &str) -> Analysis {
    let streams = streams(client).await;
    let source = TreeSource::Text { query, columns: &[], owner: None };
    analyze(client, source, &streams).await.unwrap_or_else(|e| panic!("{query}: {e}"))
}

/// The plan's text, or code, reason and hint of the refusal.
fn shown(analysis: &Analysis) -> String {
    match &analysis.plan {
        Ok(plan) => explain(plan, &analysis.names()),
        Err(r) => {
            let hint = r.hint.as_ref().map(|h| format!("hint: {h}\n")).unwrap_or_default();
            format!("{}: {}\n{hint}", r.code, r.reason)
        }
    }
}

/// Compares every query of a file; tells all differences at once. `PGTRICKLE_PLANS=write` puts what is shown into the file
/// instead: read the difference before it is committed.
async fn compare(file: &str, cases: &'static str) {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        let (mut wrong, mut written) = (String::new(), String::new());
        for case in cases.split("=== ").filter(|c| !c.trim().is_empty()) {
            let (query, wanted) = case.split_once('\n').expect("a query and its plan");
            let text = shown(&analyzed(&mut client, query).await);
            if text.trim() != wanted.trim() {
                wrong += &format!("=== {query}\n{text}\n");
            }
            written += &format!("=== {query}\n{}\n\n", text.trim());
        }
        if std::env::var("PGTRICKLE_PLANS").is_ok_and(|v| v == "write") {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/suites/plans");
            std::fs::write(folder.join(file), format!("{}\n", written.trim_end()))
                .expect("the file of plans");
            return;
        }
        assert!(wrong.is_empty(), "other plans on {}:\n{wrong}", server.major);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_are_native_where_exact_and_else_given_to_postgresql() {
    compare("expressions.txt", include_str!("plans/expressions.txt")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_follow_their_keys_and_take_no_condition_below_that_could_fail() {
    compare("joins.txt", include_str!("plans/joins.txt")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_distinct_and_union_have_the_keys_that_can_be_proven() {
    compare("groups.txt", include_str!("plans/groups.txt")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_of_all_kinds_have_plans() {
    compare("forms.txt", include_str!("plans/forms.txt")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_maintained_is_refused_by_name() {
    const REFUSALS: &str = include_str!("plans/refusals.txt");
    let cases = REFUSALS.split("=== ").filter_map(|case| case.split_once('\n'));
    let planned: Vec<_> =
        cases.filter(|(_, shown)| !shown.starts_with("unsupported.")).map(|c| c.0).collect();
    assert!(planned.is_empty(), "these are no refusals: {planned:?}");
    compare("refusals.txt", REFUSALS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_under_a_nondeterministic_collation_is_never_compared_natively() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        let create =
            "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
        if client.batch_execute(create).await.is_err() {
            return eprintln!("PostgreSQL {} was built without ICU", server.major);
        }
        let columns = "create table n (id int primary key, t text collate ci not null)";
        client.batch_execute(columns).await.expect("the table");
        for (query, how) in [
            ("select t, count(*) from n group by t", "first_value(x.c1) OVER (PARTITION BY x.g, x.c1"),
            ("select distinct t from n", "first_value(x.c1) OVER (PARTITION BY x.g, x.c1"),
            ("select a.id from n a join n b on a.t = b.t", "(x.c1 OPERATOR(\"pg_catalog\".=) x.c2)"),
            ("select count(distinct t) from n", "Group pg1 = \"pg_catalog\".\"count\"(DISTINCT x.c1)"),
        ] {
            let text = shown(&analyzed(&mut client, query).await);
            assert!(text.contains(how), "{query}:\n{text}");
        }
        let text = shown(&analyzed(&mut client, "select id from n where t = 'a'").await);
        assert!(text.contains("Evaluate pg1 = (x.c1 OPERATOR(\"pg_catalog\".=)"), "{text}");
        let text = shown(&analyzed(&mut client, "select t collate \"C\" as t from n group by 1").await);
        assert!(text.contains("key: t"), "{text}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_relations_and_columns_are_told_with_and_without_a_plan() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        let none = HashMap::new();
        let row = client.query_one("select 'p.totals'::regclass::oid, 'p.o'::regclass::oid", &[]).await;
        let (view, o): (u32, u32) = row.map(|r| (r.get(0), r.get(1))).expect("oids");
        let analysis = analyze(&mut client, TreeSource::View(view), &none).await.expect("a view");
        let columns: Vec<_> =
            analysis.columns.iter().map(|c| (c.name.as_str(), c.type_name.as_str())).collect();
        assert_eq!(columns, [("c_id", "integer"), ("total", "numeric"), ("n", "bigint")]);
        let plan = analysis.plan.as_ref().expect("a plan");
        // id, c_id, amount and paid are 1, 2, 5 and 7; the note of the inner view is not read.
        assert_eq!((plan.sources.len(), plan.sources[0].source), (1, o));
        assert_eq!(plan.sources[0].attributes, [2, 5, 7]);
        let source = &analysis.sources[0];
        assert_eq!((source.name.as_str(), source.replica_identity), ("o", 'd'));
        assert_eq!((&source.identity, source.columns.len()), (&vec![1], 13));
        let names: Vec<_> = analysis.relations.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["o", "paid"]);

        let names = ["first".to_owned(), "second \"one\"".to_owned()];
        let query = "select id, (select max(day) from o) from c;";
        let source = TreeSource::Text { query, columns: &names, owner: None };
        let analysis = analyze(&mut client, source, &none).await.expect("a query");
        assert_eq!(analysis.plan.map(|p| p.sources.len()).map_err(|r| r.code), Ok(2));
        assert_eq!(analysis.columns.iter().map(|c| &c.name).collect::<Vec<_>>(), [&names[0], &names[1]]);
        assert_eq!(analysis.sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["c", "o"]);
        let left =
            client.query_one("select count(*) from pg_class where relname like 'pgtrickle%'", &[]).await;
        assert_eq!(left.expect("count").get::<_, i64>(0), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_query_is_the_servers_error_and_several_statements_are_not_run() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        for (query, state) in [
            ("select nothing from c", "42703"),
            ("select 1 as a; drop table p.c", "42601"),
            ("select id as a, id as a from c", "42701"),
            ("delete from c", "42601"),
        ] {
            let source = TreeSource::Text { query, columns: &[], owner: None };
            let error = analyze(&mut client, source, &HashMap::new()).await.expect_err(query);
            assert_eq!((error.kind(), error.sqlstate()), (ErrorKind::Query, Some(state)), "{query}");
        }
        analyzed(&mut client, "table c").await.plan.expect("the table is still there");
    })
    .await;
}
