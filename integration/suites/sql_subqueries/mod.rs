//! Subqueries, set operations and joins of all kinds: each query's stream table equals PostgreSQL's answer after every
//! batch of random changes: NULLs, duplicates, changed keys, tables that become empty.

pub mod cases;

use pgtrickle::analyzer::{TreeSource, analyze};
use std::collections::HashMap;

use super::oracle::prng::{Prng, seed};
use crate::harness::database::TestDatabase;
use crate::harness::oracle::difference;
use crate::harness::servers::for_each_major;
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::{SOON, wait_until};
use cases::{CASES, REFUSED, SCHEMA};

/// Batches of changes, each followed by a comparison of all stream tables.
const BATCHES: usize = 10;

fn value(rng: &mut Prng, below: usize) -> String {
    if rng.chance(18) { "null".to_owned() } else { rng.below(below).to_string() }
}

fn text(rng: &mut Prng) -> String {
    format!("'{}'", rng.pick(&["a", "b", "c", "B"]))
}

fn number(rng: &mut Prng) -> String {
    (*rng.pick(&["1", "1.0", "1.00", "2.5", "2.50", "null"])).to_owned()
}

fn change(rng: &mut Prng) -> String {
    let id = rng.below(60);
    match rng.below(24) {
        0..=2 => format!(
            "insert into a values ({id}, {}, {}, {}, {}) on conflict (id) do update set x = excluded.x, y = excluded.y",
            value(rng, 7),
            value(rng, 4),
            text(rng),
            number(rng)
        ),
        3..=6 => format!(
            "insert into b values ({id}, {}, {}, {}, {}, {}) on conflict (id) do update set a_id = excluded.a_id, x = excluded.x",
            value(rng, 60),
            value(rng, 7),
            value(rng, 5),
            text(rng),
            number(rng)
        ),
        7..=9 => format!("insert into c values ({}, {}, {})", value(rng, 8), value(rng, 4), text(rng)),
        10 => format!(
            "insert into e values ({id}, {}, {}) on conflict (id) do nothing",
            rng.below(5),
            value(rng, 4)
        ),
        11 => format!("update a set x = {} where id % 9 = {}", value(rng, 7), rng.below(9)),
        12 => {
            format!("update b set y = {}, n = {} where id % 9 = {}", value(rng, 5), number(rng), rng.below(9))
        }
        13 => format!("update c set v = {} where k = {}", value(rng, 4), rng.below(8)),
        14 => format!(
            "update a set id = id + 100 where id = {id} and not exists (select from a where id = {id} + 100)"
        ),
        15 => format!(
            "update b set a_id = {}, t = {} where id % 11 = {}",
            value(rng, 60),
            text(rng),
            rng.below(11)
        ),
        16 => format!("delete from a where id % 13 = {}", rng.below(13)),
        17 => format!("delete from b where id % 13 = {}", rng.below(13)),
        18 => format!("delete from c where ctid in (select ctid from c limit {})", rng.below(3)),
        19 => format!("delete from c where v is not distinct from {} and k > 3", value(rng, 4)),
        20 => "delete from e".to_owned(),
        21 => format!(
            "insert into f values ({id}, {}, {}) on conflict (id) do update set d = excluded.d, k = excluded.k",
            rng.pick(&["'{\"a\": 1}'", "'{\"a\": 1.00}'", "'[]'", "'2'", "null"]),
            value(rng, 3)
        ),
        22 => format!("delete from f where id % 7 = {}", rng.below(7)),
        _ => format!(
            "insert into e select 100 + g, g % 5, nullif(g % 4, 2) from generate_series(1, {}) g on conflict do nothing",
            rng.below(4)
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subqueries_set_operations_and_joins_equal_their_queries_under_random_changes() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute(SCHEMA).await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        for (name, query) in CASES {
            app.execute("select pgtrickle.create_stream_table($1, $2)", &[&format!("s_{name}"), query])
                .await
                .unwrap_or_else(|e| panic!("{name}: {e:?}"));
        }
        wait_until("all stream tables are active", SOON, || async {
            let sql = "select string_agg(concat_ws(' ', name, status, refresh_mode, refresh_reason, last_error_message), ', ')
                from pgtrickle.pgt_status() where status <> 'ACTIVE' or refresh_mode <> 'DIFFERENTIAL'";
            match app.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0) {
                None => Ok(()),
                Some(others) => Err(others),
            }
        })
        .await;
        let seed = seed();
        let mut rng = Prng::new(seed);
        for batch in 0..=BATCHES {
            if batch == BATCHES / 2 {
                assert_eq!(sidecar.terminate(SOON).await, Some(0));
                sidecar = Sidecar::start(&db, &["--workers", "2"]);
                sidecar.wait_ready(SOON).await;
            }
            let mut changes = vec!["-- as loaded".to_owned()];
            if batch == BATCHES {
                changes.extend(["truncate e", "delete from b", "delete from c"].map(str::to_owned));
            } else if batch > 0 {
                changes.extend((0..1 + rng.below(8)).map(|_| change(&mut rng)));
            }
            app.batch_execute(&format!("begin;\n{};\ncommit", changes.join(";\n"))).await.unwrap_or_else(|e| panic!("{changes:?}: {e:?}"));
            let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
            assert!(passed, "the frontier did not pass in time");
            let mut wrong = Vec::new();
            for (name, query) in CASES {
                match difference(&app, query, &format!("s_{name}"), &columns_of(&app, &format!("s_{name}")).await).await {
                    Ok(rows) if rows.is_empty() => {}
                    other => wrong.push(format!("{name}: {other:?}")),
                }
            }
            assert!(wrong.is_empty(), "seed {seed}, batch {batch} on {}: {wrong:#?}\nafter {changes:#?}", server.major);
        }
        let sql = "select string_agg(concat_ws(' ', name, status, refresh_mode, last_error_message), ', ')
            from pgtrickle.pgt_status() where status <> 'ACTIVE' or refresh_mode <> 'DIFFERENTIAL'";
        assert_eq!(app.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0), None);
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_rows_of_a_scalar_subquery_are_an_error_until_one_is_left() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute(SCHEMA).await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        let query = "select id, (select k from c where c.k = a.id and c.v = 7) as k from a";
        app.execute("select pgtrickle.create_stream_table('st', $1)", &[&query]).await.unwrap();
        let state = async |wanted: &str| {
            wait_until(&format!("the stream table is {wanted}"), SOON, || async {
                let sql = "select concat_ws(' ', status, last_error_sqlstate) from pgtrickle.stream_tables_info where pgt_name = 'st'";
                let state: String = app.query_one(sql, &[]).await.unwrap().get(0);
                if state.contains(wanted) { Ok(()) } else { Err(state) }
            })
            .await;
        };
        state("ACTIVE").await;
        // Two rows for a row that is not there are no error.
        app.batch_execute("insert into c values (999, 7), (999, 7), (1, 7)").await.unwrap();
        let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
        assert!(passed);
        assert_eq!(difference(&app, query, "st", "id, k").await.unwrap(), Vec::<String>::new());
        app.batch_execute("insert into c values (1, 7)").await.unwrap();
        state("21000").await;
        app.batch_execute("delete from c where ctid = (select ctid from c where k = 1 and v = 7 limit 1)").await.unwrap();
        state("ACTIVE").await;
        let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
        assert!(passed);
        assert_eq!(difference(&app, query, "st", "id, k").await.unwrap(), Vec::<String>::new());
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

async fn columns_of(client: &tokio_postgres::Client, table: &str) -> String {
    const SQL: &str = "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
        where attrelid = to_regclass($1) and attnum > 0 and not attisdropped and attname <> '__pgt_row_id'";
    client.query_one(SQL, &[&table]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_row_says_of_itself_and_a_few_others_stay_full_with_a_reason() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        let mut app = db.as_app().await;
        app.batch_execute(SCHEMA).await.unwrap();
        for (query, word) in REFUSED {
            let source = TreeSource::Text { query, columns: &[], owner: None };
            let analysis = analyze(&mut app, source, &HashMap::new()).await.expect(query);
            let refusal = analysis.plan.expect_err(query);
            assert!(refusal.reason.contains(word), "{query}: {}", refusal.reason);
        }
    })
    .await;
}
