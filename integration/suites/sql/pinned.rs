//! Settings that an expression depends on are those of the stream table's creation: in the dataflow, in recomputation and
//! in what the catalog shows. The sidecar itself runs in UTC.

use super::{Case, Expect, Schema, conformance};
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

const EVENTS: Schema = Schema::new(
    "pinned",
    "set timezone = 'America/New_York';
     set datestyle = 'ISO, DMY';
     create type size as enum ('small', 'large');
     create table event (id int primary key, at timestamptz, day date, wall timestamp, took interval, amount numeric(10,2),
         size size, tags text[], span tstzrange, note text, moments timestamptz[]);
     insert into event select i, timestamptz '2024-03-01 00:00Z' + i * interval '5 hours 7 minutes', date '2024-03-01' + i,
         timestamp '2024-03-09 20:00' + i * interval '50 minutes', i * interval '7 hours', i * 1.25, 'small', array['a', 'b' || i],
         tstzrange('2024-03-09 00:00Z', timestamptz '2024-03-10 00:00Z' + i * interval '1 hour'), to_char(i % 28 + 1, '00') || '/04/2024',
         array[timestamptz '2024-03-10 06:30Z' + i * interval '1 hour']
         from generate_series(1, 60) i",
);

const fn incremental(name: &'static str, query: &'static str) -> Case {
    Case { name, query, expect: Expect::Incremental }
}

const CASES: &[Case] = &[
    incremental("per_day", "select at::date as day, count(*) as n from event group by at::date"),
    incremental(
        "truncated",
        "select id, date_trunc('day', at) as day, date_trunc('week', at) as week from event",
    ),
    incremental("parts", "select id, extract(hour from at) as h, date_part('dow', at) as d from event"),
    incremental(
        "shown",
        "select id, to_char(at, 'DD Mon YYYY HH24:MI TZ') as t, to_char(wall, 'Day') as d from event",
    ),
    incremental(
        "amounts",
        "select id, to_char(amount, 'FM990D00') as a, to_char(took, 'HH24:MI') as t from event",
    ),
    incremental(
        "as_text",
        "select id, at::text as a, day::text as d, took::text as i, size::text as s from event",
    ),
    incremental("glued", "select id, 'at ' || at || ' for ' || took || ' ' || size as t from event"),
    incremental(
        "summer_time",
        "select id, at + interval '1 day' as next, at - interval '1 month' as before from event",
    ),
    incremental(
        "wall_clock",
        "select id, at::timestamp as wall, at::time as t, wall::timestamptz as at, day::timestamptz as d from event",
    ),
    incremental("mixed_types", "select id from event where at <= day + 3 and at <> wall and day > at"),
    incremental(
        "zones",
        "select id, at at time zone 'Asia/Tokyo' as tokyo, wall at time zone 'UTC' as utc from event",
    ),
    incremental("age_of", "select id, age(at, timestamptz '2024-01-31 23:00Z') as a from event"),
    incremental(
        "documents",
        "select id, to_jsonb(at) as j, jsonb_build_object('at', at, 'span', span, 'tags', tags) as o from event",
    ),
    incremental(
        "rows_as_json",
        "select id, row_to_json(row(at, day)) as j, to_json(moments) as m from event",
    ),
    incremental(
        "lists",
        "select id, array_to_string(tags, '+') as t, array_to_string(moments, ', ') as m from event",
    ),
    incremental(
        "formatted",
        "select id, format('%s: %s', at, note) as f, concat(at, '/', day) as c from event",
    ),
    incremental(
        "read_back",
        "select id, to_date(note, 'DD/MM/YYYY') as d, to_timestamp(note, 'DD/MM/YYYY') as t from event where note like ' __/04/2024'",
    ),
    incremental(
        "ranges",
        "select id, span * tstzrange(at, null) as s, moments || at as m, span::text as t from event",
    ),
    incremental(
        "overlapping",
        "select a.id, b.id as other from event a join event b on (a.at, interval '2 hours') overlaps (b.at, interval '3 hours') and a.id < b.id",
    ),
    incremental(
        "searched",
        "select id, to_tsvector('days of ' || note) as v from event where to_tsvector('days ' || note) @@ plainto_tsquery('days')",
    ),
    incremental("together", "select day as moment from event union select at from event where id > 5"),
    incremental(
        "made",
        "select id, make_timestamptz(2024, 3, 10, (id % 24 + 24) % 24, 30, 0) as m from event",
    ),
    incremental(
        "joined_on_days",
        "select a.id, b.id as other from event a join event b on a.at::date = b.day",
    ),
    Case {
        name: "reads_now",
        query: "select id, note::date as d from event where note = 'today'",
        expect: Expect::Full("the cast from"),
    },
    Case { name: "is_young", query: "select id from event where at < now()", expect: Expect::Full("now") },
    Case {
        name: "whose",
        query: "select id, current_user::text as u from event",
        expect: Expect::Full("current time, date, user"),
    },
    Case { name: "age_today", query: "select id, age(at) as a from event", expect: Expect::Full("age") },
    Case {
        name: "all_sizes",
        query: "select id, enum_range(size) as s from event",
        expect: Expect::Full("enum_range"),
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_settings_are_maintained_under_those_of_the_creation() {
    for_each_major(async |server| conformance(server, &EVENTS, CASES).await).await;
}

/// Whoever asks, from wherever: the answer stays that of the creation, incrementally and recomputed.
#[tokio::test(flavor = "multi_thread")]
async fn another_session_and_a_changed_database_setting_change_nothing() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute(
            "set timezone = 'Asia/Tokyo';
             create table event (id int primary key, at timestamptz);
             insert into event values (1, '2024-01-01 20:00Z')",
        )
        .await
        .unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        let query = "select id, at::date::text as day, date_trunc('day', at) as start from event";
        for (name, mode) in [("live", "DIFFERENTIAL"), ("recomputed", "FULL")] {
            let create = "select pgtrickle.create_stream_table($1, $2, refresh_mode => $3)";
            app.execute(create, &[&name, &query, &mode]).await.unwrap();
        }
        let shown = "select query_settings ->> 'TimeZone' from pgtrickle.stream_tables_info where pgt_name = 'live'";
        assert_eq!(app.query_one(shown, &[]).await.unwrap().get::<_, String>(0), "Asia/Tokyo");
        let dba = db.as_dba().await;
        dba.batch_execute(&format!("alter database {} set timezone = 'America/Lima'", db.name)).await.unwrap();
        let other = db.as_app().await;
        other.batch_execute("insert into event values (2, '2024-01-02 14:59:59Z'), (3, '2024-01-02 15:00Z')").await.unwrap();
        assert!(other.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get::<_, bool>(0));
        other.batch_execute("select pgtrickle.refresh_stream_table('recomputed')").await.unwrap();
        for table in ["live", "recomputed"] {
            let sql = format!("select string_agg(concat_ws(' ', id, day, start at time zone 'UTC'), ', ' order by id) from {table}");
            let wanted = "1 2024-01-02 2024-01-01 15:00:00, 2 2024-01-02 2024-01-01 15:00:00, 3 2024-01-03 2024-01-02 15:00:00";
            wait_until("the rows of the creation's time zone", SOON, || async {
                let seen: Option<String> = other.query_one(&sql, &[]).await.unwrap().get(0);
                if seen.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{table}: {seen:?}")) }
            })
            .await;
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
