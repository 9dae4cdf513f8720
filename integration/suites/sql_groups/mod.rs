//! Aggregates, window functions, LIMIT, DISTINCT ON, grouping sets, functions that return sets, equality that only the
//! server knows: each query's stream table equals PostgreSQL's answer after every batch of random changes.

mod aggregates;
pub mod cases;
pub mod plans;
mod steady;

use super::oracle::prng::{Prng, seed};
use crate::harness::database::TestDatabase;
use crate::harness::oracle::difference;
use crate::harness::servers::{Server, for_each_major};
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::{SOON, wait_until};
use cases::{CASES, Case, ICU, ICU_CASES, SCHEMA};

/// Batches of changes, each followed by a comparison of all stream tables.
const BATCHES: usize = 8;

fn change(rng: &mut Prng) -> String {
    let (id, other) = (rng.below(60), rng.below(200));
    match rng.below(18) {
        0..=2 => format!(
            "insert into t select (sample({other})).* on conflict (id) do update set v = excluded.g, h = excluded.e"
        ),
        3 => format!("update t set g = {} where id % 7 = {}", rng.below(5), rng.below(7)),
        4 => format!("update t set h = chr(97 + {}), v = null where id % 9 = {}", rng.below(4), rng.below(9)),
        5 => format!(
            "update t set j = '{{\"k\": {}}}', na = array[{}] where id % 8 = {}",
            rng.pick(&["1", "1.0", "1.00", "2"]),
            rng.pick(&["1", "1.0", "2.00"]),
            rng.below(8)
        ),
        6 => format!("update t set v = {}, f = {} where id = {id}", rng.below(7), rng.below(5)),
        7 => format!(
            "update t set a = array[{}, {}] where id % 6 = {}",
            rng.below(4),
            rng.below(3),
            rng.below(6)
        ),
        8 => format!(
            "update t set c = '{}', b = not b where id % 10 = {}",
            rng.pick(&["AB", "ab", "X", "x "]),
            rng.below(10)
        ),
        9 => format!("delete from t where id % 11 = {}", rng.below(11)),
        10 => format!("update t set id = id + 1000 where id = {id}"),
        11 => format!(
            "insert into u values ({id}, {}, 'a', '{{\"k\": 1.0}}', '{{2}}', {}, 'ab') on conflict (id) do update set x = excluded.x, j = excluded.j",
            rng.below(50),
            rng.below(6)
        ),
        12 => format!("update u set t_id = {}, k = 'b' where id % 7 = {}", rng.below(40), rng.below(7)),
        13 => format!("delete from u where id % 9 = {}", rng.below(9)),
        14 => format!(
            "update t set d = d + {}, e = repeat('Z', {}) where id % 5 = {}",
            rng.below(4),
            rng.below(3),
            rng.below(5)
        ),
        15 => format!(
            "insert into w select {id}, {}, {} on conflict (id) do update set i = excluded.i, g = excluded.g",
            rng.below(3),
            word(rng)
        ),
        16 => format!(
            "update w set i = {} where id % 7 = {}; delete from w where id = {id}",
            word(rng),
            rng.below(7)
        ),
        _ => format!(
            "update t set n = {}, ip = '10.0.0.{}', p = row({}, 1.0) where id % 6 = {}",
            rng.pick(&["1", "1.0", "0", "null"]),
            rng.below(3),
            rng.below(2),
            rng.below(6)
        ),
    }
}

/// One that is elsewhere in the order of its bytes, of its letters without accents, or in upper case.
fn word(rng: &mut Prng) -> &'static str {
    const WORDS: [&str; 11] =
        ["'a'", "'Á'", "'b'", "'B'", "'cote'", "'côte'", "'COTÉ'", "'co op'", "'zz'", "'_'", "null"];
    WORDS[rng.below(WORDS.len())]
}

/// Makes what can be made on this server and returns its cases. What needs ICU is left out where it is not there, never
/// replaced.
async fn prepared(server: &Server, app: &tokio_postgres::Client) -> Vec<Case> {
    app.batch_execute(SCHEMA).await.unwrap();
    const PROVIDER: &str = "select collprovider = 'i' from pg_collation where oid = 'ci'::regcollation";
    let other_equality: bool = app.query_one(PROVIDER, &[]).await.unwrap().get(0);
    let usable = |(name, _): &&Case| other_equality || !name.contains("collat");
    let (mut cases, mut left_out): (Vec<&Case>, Vec<&Case>) = CASES.iter().partition(usable);
    match app.batch_execute(ICU).await {
        Ok(()) => cases.extend(ICU_CASES),
        Err(error) => {
            println!("PostgreSQL {} has no en-x-icu: {error:?}", server.major);
            left_out.extend(ICU_CASES);
            app.batch_execute("create table w (id int primary key, g int, i text)").await.unwrap();
        }
    }
    for (name, _) in left_out {
        println!("LEFT OUT on PostgreSQL {}, which lacks its collation: {name}", server.major);
    }
    cases.into_iter().copied().collect()
}

const NOT_ACTIVE: &str = "select string_agg(concat_ws(' ', name, status, refresh_mode, refresh_reason, last_error_message), E'\\n')
    from pgtrickle.pgt_status() where status <> 'ACTIVE' or refresh_mode <> 'DIFFERENTIAL'";

async fn not_active(app: &tokio_postgres::Client) -> Option<String> {
    app.query_one(NOT_ACTIVE, &[]).await.unwrap().get(0)
}

async fn play(arguments: &'static [&'static str], offset: u64) {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        let cases = prepared(server, &app).await;
        let mut sidecar = Sidecar::start(&db, arguments);
        sidecar.wait_ready(SOON).await;
        let mut refused = Vec::new();
        for (name, query) in &cases {
            let create = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
            if let Err(e) = app.execute(create, &[&format!("s_{name}"), query]).await {
                refused.push(format!(
                    "{name}: {}",
                    e.as_db_error().map_or_else(|| e.to_string(), |d| d.message().to_owned())
                ));
            }
        }
        assert!(refused.is_empty(), "on {}: {refused:#?}", server.major);
        wait_until("all stream tables are active", SOON, || async {
            not_active(&app).await.map_or(Ok(()), Err)
        })
        .await;
        let seed = seed() + offset;
        let mut rng = Prng::new(seed);
        for batch in 0..=BATCHES {
            let mut changes = vec!["-- as loaded".to_owned()];
            if batch == BATCHES {
                changes.extend(
                    ["delete from u", "truncate t", "delete from w where id > 20"].map(str::to_owned),
                );
            } else if batch > 0 {
                changes.extend((0..1 + rng.below(8)).map(|_| change(&mut rng)));
            }
            let transaction = format!("begin;\n{};\ncommit", changes.join(";\n"));
            app.batch_execute(&transaction).await.unwrap_or_else(|e| panic!("{changes:?}: {e:?}"));
            let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
            assert!(passed, "the frontier did not pass in time");
            let mut wrong = Vec::new();
            for (name, query) in &cases {
                let table = format!("s_{name}");
                match difference(&app, query, &table, &columns_of(&app, &table).await).await {
                    Ok(rows) if rows.is_empty() => {}
                    other => wrong.push(format!("{name}: {other:?}")),
                }
            }
            let inactive = not_active(&app).await;
            assert!(
                wrong.is_empty() && inactive.is_none(),
                "seed {seed}, batch {batch} on {}: {wrong:#?}\n{inactive:?}\nafter {changes:#?}",
                server.major
            );
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_windows_limits_and_sets_equal_their_queries_under_random_changes() {
    play(&[], 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_compute_the_same_groups() {
    play(&["--workers", "2"], 1).await;
}

async fn columns_of(client: &tokio_postgres::Client, table: &str) -> String {
    const SQL: &str = "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
        where attrelid = to_regclass($1) and attnum > 0 and not attisdropped and attname <> '__pgt_row_id'";
    client.query_one(SQL, &[&table]).await.unwrap().get(0)
}
