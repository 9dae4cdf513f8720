//! Answers that depend on what a value looks like or under which settings it is read: each case names its rows, its query
//! and the changes after which it is compared, as text, with what PostgreSQL says under the settings of its creation.

use super::hazards::Scene;
use crate::harness::for_each_major;
use crate::harness::oracle::difference_of_text;

struct Case {
    name: &'static str,
    /// Settings of the session that creates it and that asks PostgreSQL.
    set: &'static str,
    tables: &'static str,
    query: &'static str,
    changes: &'static [&'static str],
}

const CASES: &[Case] = &[
    // A float4 counts with the value that it has, not with its text.
    Case {
        name: "avg_real",
        set: "",
        tables: "create table reals (id int primary key, g int, r real);
                 insert into reals values (1, 1, 0.1), (2, 1, 0.3), (3, 2, 0.1), (4, 3, 1e-40), (5, 3, 'infinity')",
        query: "select g, avg(r) as a, avg(distinct r) as d, sum(r) as s from reals group by g",
        changes: &["update reals set r = 0.7 where id = 2", "delete from reals where id = 5"],
    },
    Case {
        name: "having_real",
        set: "",
        tables: "create table reals_2 (id int primary key, g int, r real); insert into reals_2 values (1, 1, 0.1), (2, 2, 0.2)",
        query: "select g, avg(r * 2::real) as a from reals_2 group by rollup (g) having avg(r) > 0.1",
        changes: &["insert into reals_2 values (3, 1, 0.1), (4, 3, 0.3)"],
    },
    // A day is 23 hours long when clocks are put forward.
    Case {
        name: "range_of_days",
        set: "set timezone = 'Europe/Berlin'",
        tables: "create table moments (id int primary key, ts timestamptz);
                 insert into moments values (1, '2024-03-30 10:30Z'), (2, '2024-03-31 10:00Z')",
        query: "select id, count(*) over (order by ts range between interval '1 day' preceding and current row) as n from moments",
        changes: &["insert into moments values (3, '2024-10-26 10:30Z'), (4, '2024-10-27 11:15Z')", "delete from moments where id = 1"],
    },
    // The columns of VALUES have the type that fits all rows.
    Case {
        name: "values_typmods",
        set: "",
        tables: "create table keys (id int primary key); insert into keys values (1), (2)",
        query: "select k.id, upper(x.v) as u, x.v || '!' as w, x.n::text as n from keys k
                  join (values (1, 'ab'::varchar(2), 1.5::numeric(3,1)), (2, 'abcd'::varchar(4), 2.25::numeric(4,2))) x (k, v, n) on x.k = k.id",
        changes: &["insert into keys values (3)", "delete from keys where id = 1"],
    },
    // Of equal values with several images the first counts, also when it comes late or goes early.
    Case {
        name: "distinct_images",
        set: "",
        tables: "create table images (id int primary key, g int, i interval, n numeric);
                 insert into images values (1, 1, '1 mon', 1.0), (2, 1, '30 days', 1.00), (3, 2, '1 mon', 5)",
        query: "select g, date '2024-01-01' + max(distinct i) as d, sum(distinct n)::text as n, count(distinct i) as c from images group by g",
        changes: &["delete from images where id = 1", "delete from images where id = 3"],
    },
    // float8 constants are written as the server writes float8 values.
    Case {
        name: "float_constants",
        set: "",
        tables: "create table floats (id int primary key, f float8); insert into floats values (1, null), (2, 1e23), (3, 9.5e-7)",
        query: "select coalesce(f, 1e23) as k, count(*) as n from floats group by 1",
        changes: &["insert into floats values (4, null), (5, 1e15), (6, 123456789012345)"],
    },
    // Zero rows are none, whatever ties with those that are skipped.
    Case {
        name: "no_rows_with_ties",
        set: "",
        tables: "create table ties (id int primary key, v int); insert into ties values (1, 1), (2, 1), (3, 2), (4, 2), (5, 2);
                 create table bounds (most int); insert into bounds values (0)",
        query: "select v from ties order by v offset 3 rows fetch first (select most from bounds) rows with ties",
        changes: &["insert into ties values (6, 2)", "update bounds set most = 1", "update bounds set most = null", "update bounds set most = 0"],
    },
    // Blanks at the end: two keys of text are one of bpchar.
    Case {
        name: "coarser_blanks",
        set: "",
        tables: "create table texts (k text primary key, v int); insert into texts values ('x', 1), ('y', 2);
                 create table chars (id int primary key, c char(3)); insert into chars values (1, 'x'), (2, 'y')",
        query: "select c.id, t.v from chars c join texts t on t.k::bpchar = c.c",
        changes: &["insert into texts values ('x ', 3), ('z', 4)", "delete from texts where k = 'x'"],
    },
    Case {
        name: "coarser_key",
        set: "",
        tables: "create table padded (k text primary key); insert into padded values ('x'), ('y')",
        query: "select k::bpchar as k from padded",
        changes: &["insert into padded values ('x ')", "delete from padded where k = 'y'"],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_images_and_settings_of_postgresql() {
    for_each_major(async |server| {
        let scene = Scene::start(server, "select 1").await;
        for case in CASES {
            scene.run(case.tables).await;
            let session = scene.db.as_app().await;
            session.batch_execute(case.set).await.unwrap();
            let create = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
            session
                .execute(create, &[&case.name, &case.query])
                .await
                .unwrap_or_else(|e| panic!("{}: {e:?}", case.name));
            scene.wait_status(case.name, "ACTIVE DIFFERENTIAL").await;
            for change in std::iter::once(&"select 1").chain(case.changes) {
                scene.run(change).await;
                scene.passed().await;
                let columns = session
                    .query_one(
                        "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
                          where attrelid = $1::text::regclass and attnum > 0 and attname <> '__pgt_row_id'",
                        &[&case.name],
                    )
                    .await
                    .unwrap();
                let columns: String = columns.get(0);
                let different = difference_of_text(&session, case.query, case.name, &columns).await.unwrap();
                assert!(different.is_empty(), "{} after {change}: {different:?}", case.name);
            }
        }
    })
    .await;
}

/// One column under a collation that knows no case is no key.
#[tokio::test(flavor = "multi_thread")]
async fn a_coarser_collation_is_no_key() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table names (name text primary key); insert into names values ('A')",
        )
        .await;
        let made = scene.app.batch_execute(
            "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        );
        if made.await.is_err() {
            crate::harness::left_out("this server was built without ICU");
            return;
        }
        scene.create("ci_names", "select name collate ci as name from names").await;
        scene.check(&["ci_names"]).await;
        scene.run("insert into names values ('a'), ('b')").await;
        scene.check(&["ci_names"]).await;
        scene.run("delete from names where name = 'A'").await;
        scene.check(&["ci_names"]).await;
    })
    .await;
}
