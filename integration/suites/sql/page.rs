//! `docs/sql.md`: every example of its tables is a stream table of the mode that the page tells, and right.

use super::{Case, Expect, Schema, conformance};
use crate::harness::{SOON, Server, Sidecar, TestDatabase, for_each_major};

const PAGE: &str = include_str!("../../../docs/sql.md");

const ROWS: &str = "
    insert into customers select i, 'customer ' || i, 'r' || i % 4, date '2024-01-01' + i % 6 from generate_series(1, 24) i;
    insert into orders select i, case when i % 9 <> 0 then 1 + i * 5 % 26 end, (i % 31) * 3.25,
        (array['open', 'paid', 'r1', null, '2024-01-01'])[1 + i % 5], timestamptz '2024-02-01 10:00Z' + i * interval '7 hours',
        (array['{a,b}', '{}', '{c}', null])[1 + i % 4]::text[],
        case when i % 3 <> 0 then jsonb_build_object('city', 'c' || i % 3, 'gift', i % 2 = 0) end from generate_series(1, 80) i;
    insert into items select 1 + i % 50, i / 50 + 1, 'p' || i % 7, i % 4, (i % 20) * 2.5 from generate_series(0, 120) i;
    insert into nodes select i, case when i > 2 then i / 2 end, case when i % 4 = 0 then 'customer ' else 'node ' end || i from generate_series(1, 20) i;
    insert into visits select i % 12, 'page ' || i % 4, timestamp '2024-02-01' + i % 8 * interval '1 day' from generate_series(1, 60) i;
    insert into periods select i, daterange(date '2024-01-01' + i, date '2024-01-05' + i), case when i % 3 > 0 then point(i, 1) end
        from generate_series(1, 15) i;
    insert into metrics select date '2024-01-01' + i * 2, 'm' || i % 3, i * 1.5 from generate_series(1, 60) i;
    insert into secrets select i, (array['app', 'nobody', null])[1 + i % 3] from generate_series(1, 12) i where i % 3 <> 1;
    insert into vehicles select i, 4 from generate_series(1, 8) i;
    insert into trucks select 100 + i, 6, i * 10 from generate_series(1, 8) i;";

/// The examples of all tables, named by their construct.
fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in PAGE.lines().filter(|l| l.starts_with("| ") && l.contains('`')) {
        let line = line.trim_matches('|').replace("\\|", "\u{1}");
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 3, "three cells in {line}");
        let query = cells[1].trim_matches('`').replace('\u{1}', "|");
        let expect = match cells[2].split_once(": ").unwrap_or((cells[2].trim_end_matches(':'), "")) {
            ("incremental", _) => Expect::Incremental,
            ("full", "volatile") => Expect::Volatile("volatile"),
            ("full", "TABLESAMPLE") => Expect::Volatile("TABLESAMPLE"),
            ("full", reason) => Expect::Full(reason.to_owned().leak()),
            ("refused", reason) => Expect::Refused(reason.to_owned().leak()),
            other => panic!("{} has the mode {other:?}", cells[0]),
        };
        let words: Vec<String> = cells[0]
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|w| !w.is_empty())
            .map(str::to_lowercase)
            .collect();
        let mut name = words.join("_");
        name.truncate(36);
        let name = match cases.iter().any(|case| case.name == format!("doc_{name}")) {
            true => format!("doc_{name}_{}", cases.len()),
            false => format!("doc_{name}"),
        };
        cases.push(Case { name: name.leak(), query: query.leak(), expect });
    }
    cases
}

/// The examples that this server can parse: it may be built without libxml.
async fn cases_on(server: &'static Server) -> Vec<Case> {
    let client = TestDatabase::create(server).await.as_app().await;
    let has_xml = client.batch_execute("select xmlelement(name x)").await.is_ok();
    let (kept, left_out): (Vec<Case>, Vec<Case>) =
        cases().into_iter().partition(|case| has_xml || !case.query.contains("xml"));
    left_out.iter().for_each(|case| {
        crate::harness::left_out(&format!("PostgreSQL {} is built without XML: {}", server.major, case.name))
    });
    assert!(left_out.len() < 3);
    kept
}

fn tables() -> &'static str {
    PAGE.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the page's tables")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_the_page_has_the_mode_that_it_tells() {
    assert!(cases().len() > 100, "only {} examples", cases().len());
    let schema = Schema {
        transactions: 30,
        restart: true,
        ..Schema::new("docs/sql.md", format!("{}{ROWS}", tables()).leak())
    };
    for_each_major(async |server| conformance(server, &schema, &cases_on(server).await).await).await;
}

/// What AUTO would recompute, DIFFERENTIAL refuses, for the same reason.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_page_calls_full_is_refused_as_differential() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        database.install();
        let app = database.as_app().await;
        super::run(&app, tables()).await;
        let mut sidecar = Sidecar::start(&database, &[]);
        sidecar.wait_ready(SOON).await;
        let mut refused = 0;
        for case in cases_on(server).await {
            let (Expect::Full(reason) | Expect::Volatile(reason)) = case.expect else { continue };
            let create = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
            let error = app.execute(create, &[&case.name, &case.query]).await.expect_err(case.name);
            let error = error.as_db_error().expect("an answer of the server");
            let said = error.message();
            assert_eq!(error.code().code(), "0A000", "{}: {said}", case.name);
            assert!(said.contains(reason), "{}: {said:?} does not contain {reason:?}", case.name);
            refused += 1;
        }
        assert!(refused > 8, "only {refused} were refused");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
