//! What must not depend on the order in which rows came: sums of floats, and what is shown among ties.

use super::columns_of;
use crate::harness::database::TestDatabase;
use crate::harness::oracle::difference_of_text;
use crate::harness::servers::for_each_major;
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::{SOON, wait_until};
use crate::suites::oracle::prng::{Prng, seed};

async fn create(app: &tokio_postgres::Client, name: &str, query: &str) {
    let create = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
    app.execute(create, &[&name, &query]).await.unwrap_or_else(|e| panic!("{query}: {e:?}"));
}

async fn passed(app: &tokio_postgres::Client) {
    wait_until("all stream tables are active", SOON, || async {
        super::not_active(app).await.map_or(Ok(()), Err)
    })
    .await;
    let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
    assert!(passed, "the frontier did not pass in time");
}

const FLOATS: &[(&str, &str)] = &[
    (
        "float_sums",
        "select g, sum(f) as s, avg(f) as a, count(f) as n, sum(r) as sr, avg(r) as ar from f group by g",
    ),
    (
        "float_total",
        "select sum(f) as s, avg(f) as a, sum(r) as sr, avg(r) as ar, max(f) as m, min(r) as l from f",
    ),
    (
        "float_filtered",
        "select g, sum(f) filter (where id % 2 = 0) as s, avg(f) filter (where f > 0) as a from f group by g",
    ),
    ("float_distinct", "select g, sum(distinct f) as s, count(distinct f) as n from f group by g"),
    (
        "float_joined",
        "select a.g, sum(a.f + b.f) as s, avg(a.f) as v from f a join f b on b.id = a.id + 1 group by a.g",
    ),
    (
        "float_windows",
        "select id, sum(f) over (partition by g order by id) as s, avg(r) over (order by id rows 3 preceding) as a from f",
    ),
    ("float_rollup", "select g, sum(f) as s, avg(r) as a, grouping(g) as k from f group by rollup (g)"),
];

/// Eighths are summed without rounding, so PostgreSQL's own answer does not depend on its order and must be met to the bit.
/// Infinities of both signs and NaN make a sum what it stays until the last of them has gone.
#[tokio::test(flavor = "multi_thread")]
async fn floats_are_summed_exactly_while_infinities_come_and_go() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute(
            "create table f (id int primary key, g int, f float8, r float4);
             insert into f select i, i % 4, (i * 37 % 101 - 50) / 8.0, (i * 11 % 23 - 11) / 8.0 from generate_series(1, 60) i",
        )
        .await
        .unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        for (name, query) in FLOATS {
            create(&app, name, query).await;
        }
        let seed = seed() + 40;
        println!("PGTRICKLE_ORACLE_SEED={} on PostgreSQL {}", seed - 40, server.major);
        let mut rng = Prng::new(seed);
        let mut seen = std::collections::BTreeSet::new();
        for batch in 0..25 {
            // One infinity, both (which is NaN), the other, NaN, and none of them.
            const COMING: [&str; 6] = [
                "-- as loaded",
                "insert into f values (5, 1, 'Infinity', '-Infinity') on conflict (id) do update set g = 1, f = excluded.f, r = excluded.r",
                "insert into f values (9, 1, '-Infinity', 'Infinity') on conflict (id) do update set g = 1, f = excluded.f, r = excluded.r",
                "update f set f = 1.125, r = 0 where f = 'Infinity'",
                "insert into f values (13, 1, 'NaN', 'NaN') on conflict (id) do update set g = 1, f = excluded.f, r = excluded.r",
                "update f set f = 0.125, r = 0.25 where f in ('Infinity', '-Infinity', 'NaN') or r in ('Infinity', '-Infinity', 'NaN')",
            ];
            let mut changes = vec![COMING[batch % COMING.len()].to_owned()];
            for _ in 0..rng.below(5) {
                let (id, g, eighths) = (rng.between(1, 70), rng.below(4), rng.between(-4000, 4000));
                let special = rng.pick(&["'Infinity'", "'-Infinity'", "'NaN'", "'-0'", "null"]);
                changes.push(match rng.below(6) {
                    0 => format!("insert into f values ({id}, {g}, {eighths} / 8.0, {eighths} / 8.0) on conflict (id) do update set f = excluded.f, g = excluded.g"),
                    1 => format!("update f set f = {special} where id = {id}"),
                    2 => format!("update f set r = {special} where id = {id}"),
                    3 => format!("update f set f = 0.125 where g = {g} and (f in ('Infinity', '-Infinity') or f = 'NaN')"),
                    4 => "update f set r = -0.375 where r in ('Infinity', '-Infinity', 'NaN')".to_owned(),
                    _ => format!("delete from f where id = {id}; update f set g = {g} where id = {id} + 1"),
                });
            }
            app.batch_execute(&format!("begin;\n{};\ncommit", changes.join(";\n"))).await.unwrap();
            passed(&app).await;
            for (name, query) in FLOATS {
                let columns = columns_of(&app, name).await;
                let rows = difference_of_text(&app, query, name, &columns).await.unwrap();
                assert!(rows.is_empty(), "seed {seed}, batch {batch}: {name}: {rows:#?}\nafter {changes:#?}");
            }
            let shown = app.query("select s::text from float_sums", &[]).await.unwrap();
            seen.extend(shown.iter().filter_map(|row| row.get::<_, Option<String>>(0)));
        }
        for special in ["Infinity", "-Infinity", "NaN"] {
            assert!(seen.contains(special), "no sum was ever {special}: {seen:?}");
        }
        assert!(seen.len() > 10, "the sums hardly changed: {seen:?}");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// Name and query over a table TIES in which many rows are equal to others in what decides.
const TIES: &[(&str, &str)] = &[
    ("no_order", "select h, v from TIES limit 7"),
    ("top", "select h, v, n from TIES order by v limit 5"),
    ("top_of_text", "select h, v, n from TIES order by h desc offset 2 limit 6"),
    ("first_of_each", "select distinct on (v) v, h, n from TIES order by v"),
    ("first_of_any", "select distinct on (h) h, v, n from TIES"),
    ("numbers", "select h, v, n, row_number() over (partition by v order by h) as k from TIES"),
    (
        "neighbours",
        "select h, v, n, lag(n) over (order by v) as before, ntile(3) over (order by v) as t from TIES",
    ),
    ("running", "select h, v, n, sum(n) over (partition by v order by h rows 1 preceding) as s from TIES"),
    (
        "lists",
        "select v, array_agg(h) as a, string_agg(n::text, ',' order by h) as s, json_agg(n)::text as j from TIES group by v",
    ),
    ("groups", "select n, count(*) as c from TIES group by n"),
    ("kinds", "select distinct n, v from TIES"),
    (
        "lateral_top",
        "select d.v, x.h, x.n from (select distinct v from TIES) d, lateral (select h, n from TIES t where t.v = d.v order by h limit 2) x",
    ),
];

/// The same rows give the same answers, in whichever order and by whichever changes they came, and after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn ties_give_the_same_rows_whatever_the_order_of_the_writes() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        // Equal numbers with different texts, equal letters, several rows that are the same in all columns but the key.
        app.batch_execute(
            "create table wanted as select i as id, chr(97 + i % 3) as h, i % 4 as v, (array[1.0, 1.00, 2, 2.0])[1 + i % 4 * 7 % 4]::numeric as n
                 from generate_series(1, 40) i;
             create table a (id int primary key, h text, v int, n numeric);
             create table b (like a including all);
             create table c (like a including all);
             insert into a select * from wanted order by id",
        )
        .await
        .unwrap();
        let mut sidecar = Sidecar::start(&db, &["--workers", "2"]);
        sidecar.wait_ready(SOON).await;
        let name = |table: &str, name: &str| format!("{table}_{name}");
        for (what, query) in TIES {
            for table in ["a", "b", "c"] {
                create(&app, &name(table, what), &query.replace("TIES", table)).await;
            }
        }
        // Backwards and one by one; and shuffled, with rows that go again and others that become what they are late.
        let seed = seed() + 41;
        println!("PGTRICKLE_ORACLE_SEED={} on PostgreSQL {}", seed - 41, server.major);
        let mut rng = Prng::new(seed);
        for id in (1..=40).rev() {
            app.batch_execute(&format!("insert into b select * from wanted where id = {id}")).await.unwrap();
        }
        let mut ids: Vec<i32> = (1..=40).collect();
        while !ids.is_empty() {
            let id = ids.swap_remove(rng.below(ids.len()));
            let sql = format!(
                "insert into c values ({}, 'a', {}, 1.000); insert into c select id, 'zz', v, n + 1 from wanted where id = {id}",
                id + 100,
                id % 4
            );
            app.batch_execute(&sql).await.unwrap();
            if rng.chance(50) {
                app.batch_execute(&format!("delete from c where id = {}", id + 100)).await.unwrap();
            }
        }
        let mend = "update c set h = w.h, n = w.n from wanted w where w.id = c.id and c.id % 2 = 1; delete from c where id > 100;
             update c set h = w.h, n = w.n from wanted w where w.id = c.id";
        app.batch_execute(mend).await.unwrap();
        passed(&app).await;
        let stored = async |table: &str| {
            let mut answers = Vec::new();
            for (what, _) in TIES {
                let table = name(table, what);
                let columns = columns_of(&app, &table).await;
                let sql = format!("select string_agg(x::text, ' ' order by x::text) from (select {columns} from {table}) x");
                let rows: Option<String> = app.query_one(&sql, &[]).await.unwrap().get(0);
                answers.push(format!("{what}: {}", rows.expect("there are rows")));
            }
            answers
        };
        let first = stored("a").await;
        for table in ["b", "c"] {
            assert_eq!(stored(table).await, first, "{table} came otherwise");
        }
        // Somebody comes and goes: what is left is what it was.
        app.batch_execute("insert into a values (900, 'a', 0, 1), (901, 'A', 1, 1.0); update a set v = v + 1 where id < 20").await.unwrap();
        passed(&app).await;
        assert_ne!(stored("a").await, first);
        app.batch_execute("update a set v = v - 1 where id < 20; delete from a where id >= 900").await.unwrap();
        passed(&app).await;
        assert_eq!(stored("a").await, first, "after changes that were taken back");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        app.batch_execute("vacuum full b").await.unwrap();
        app.batch_execute("cluster c using c_pkey").await.unwrap();
        sidecar.start_again();
        sidecar.wait_ready(SOON).await;
        passed(&app).await;
        for table in ["a", "b", "c"] {
            assert_eq!(stored(table).await, first, "{table} after a restart");
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
