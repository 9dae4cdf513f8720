//! Subqueries inside calls of the select list, and subqueries and functions behind conditions that keep the server from
//! computing them: compared, as text, with what PostgreSQL says after each change.

use super::hazards::Scene;
use crate::harness::for_each_major;
use crate::harness::oracle::difference_of_text;
use crate::harness::wait::{SOON, wait_until};

const TABLES: &str = "
    create table p (id int primary key, a int, b int, j jsonb);
    create table q (a int, k int);
    create table days (id int primary key, ts timestamp);
    create table config (enabled bool, cutoff timestamp);
    create type pair as (l int, r int);
    create table c (id int primary key, v pair);
    insert into c values (1, row(1, 2)), (2, null);
    insert into config values (false, '2024-03-01');
    insert into p values (1, 1, 2, '[1]'), (2, 2, 1, '[2, 1]'), (3, 3, 3, null);
    insert into q values (1, 10), (2, 5), (3, 7), (3, 1);
    insert into days values (1, '2024-01-01')";

/// The results of windows and of functions that return sets come after the columns that subqueries add.
const PLACED: &[&str] = &[
    "select id, rank() over (order by (select max(k) from q where q.a = p.a)) as r from p",
    "select id, rank() over (order by (select max(k) from q)) as r from p",
    "select id, sum((select max(k) from q where q.a = p.a)) over () as s from p",
    "select id, sum(a) filter (where exists (select from q where q.a = p.b and k > 5)) over (partition by b) as s from p",
    "select id, lag(a, 1, (select max(k) from q where q.a = p.a)) over (order by id) as l from p",
    "select id, row_number() over (order by id in (select k from q), id) as n from p",
    "select id, first_value((select min(k) from q where q.a = p.a)) over (partition by (select count(*) from q where q.a = p.a) order by id) as f from p",
    "select id, rank() over (order by (select max(k) from q where q.a = p.a)) as r, sum(a) over (partition by b) as s,
            count(*) over (order by exists (select from q where q.k = p.id)) as c from p",
    "select a, sum(sum(id)) over (order by (select max(k) from q where q.a = p.a)) as s from p group by a",
    "select id, generate_series(1, (select count(*) from q where q.a = p.a)) as g from p",
    "select id, unnest(array(select k from q where q.a = p.a order by k)) as k, b from p",
    "select id, generate_series(1, (select count(*) from q where q.a = p.a)) as g, generate_series(1, a) as h, b from p",
    "select id, (select max(r) from (select rank() over (order by (select max(k) from q where q.a = i.a)) as r from p i where i.b >= o.b) x) as m from p o",
];

/// Nothing of these fails in PostgreSQL, whatever the changes below write.
const GUARDED: &[&str] = &[
    "select id, case when a <> 0 then exists (select from q where q.k > 10 / p.a) end as x from p",
    "select id, case when a <> 0 then b in (select 10 / p.a from q) end as x from p",
    "select id, case when a <> 0 then (select max(k) from q where q.k > 10 / p.a) end as x from p",
    "select id, case when a = 0 then -1 when b = 7 then (select count(*) from q where q.k > 10 / p.a) else (select min(k) from q where q.k > 10 / p.a) end as x from p",
    "select id, case when jsonb_typeof(j) = 'array' then exists (select from jsonb_array_elements(j) e where e = '1') end as x from p",
    "select id, case when jsonb_typeof(j) = 'array' then '1' in (select e from jsonb_array_elements(j) e) end as x from p",
    "select id, case when jsonb_typeof(j) = 'array' then array(select e::text from jsonb_array_elements(j) e order by 1) end as x from p",
    "select id, case when jsonb_typeof(j) = 'array' then '0' < all (select e from jsonb_array_elements(j) e) end as x from p",
    "select id, a = 0 or exists (select from q where q.k > 10 / p.a) as x from p",
    "select id, a <> 0 and exists (select from q where q.k > 10 / p.a) as x from p",
    "select id, coalesce(nullif(a, 0) * 0, (select max(k) from q where q.k > 10 / (p.a + 1))) as x from p",
    "select id, case when a <> 0 then exists (select from q where q.k > 10 / p.a) end as x,
            case when a <> 0 and b > 1 then exists (select from q where q.k > 10 / p.a) else a is null end as y from p",
    "select id from p where a = 0 or exists (select from q where q.k > 10 / p.a)",
    "select id from p where jsonb_typeof(j) = 'array' and exists (select from jsonb_array_elements(j) e where e = '1')",
    "select id from p where jsonb_typeof(j) = 'array' and '1' in (select e from jsonb_array_elements(j) e)",
    "select id from p where jsonb_typeof(j) = 'array' and '1' not in (select e from jsonb_array_elements(j) e)",
    "select id, e from p, jsonb_array_elements(j) e where jsonb_typeof(j) = 'array'",
    // Guards that PostgreSQL computes decide about each other.
    "select id, case when jsonb_typeof(j) <> 'array' then -1 when jsonb_array_length(j) > 1 then (select count(*) from q where q.k > p.a) else 0 end as x from p",
    "select id, jsonb_typeof(j) = 'array' and jsonb_array_length(j) > 0 and exists (select from q where q.k > p.a) as x from p",
    "select id from p where jsonb_typeof(j) like 'arr%' and jsonb_array_length(j) > 0",
    "select id from p where jsonb_typeof(j) like 'arr%' and 10 / (jsonb_array_length(j) + 1) > 1 and b > 0",
    "select b, sum(jsonb_array_length(j)) filter (where jsonb_typeof(j) = 'array') as s, sum(10 / a) filter (where a <> 0) as t from p group by b",
    "select b, string_agg(jsonb_array_length(j)::text, ',' order by id) filter (where jsonb_typeof(j) = 'array') as s from p group by b",
    "select id, (select sum(jsonb_array_length(j)) filter (where jsonb_typeof(j) = 'array') from p where p.a = q.id) as s from p q",
    // The left side of an equality is a key.
    "select id, case when a <> 0 then exists (select from q where q.k = 10 / p.a) end as x from p",
    "select id, case when a <> 0 then exists (select from q where q.k is not distinct from 10 / p.a) end as x from p",
    "select id, case when a <> 0 then 10 / a in (select k from q) end as x from p",
    "select id, case when a <> 0 then 10 / a not in (select k from q) end as x from p",
    "select id, case when a <> 0 then 10 / a >= all (select k from q) end as x from p",
    "select id, case when a <> 0 then (select max(k) from q where q.a = 10 / p.a) end as x from p",
    "select id, case when jsonb_typeof(j) = 'array' then exists (select from q where q.a = jsonb_array_length(p.j)) end as x from p",
    "select id, case when jsonb_typeof(j) = 'array' then jsonb_array_length(j) in (select a from q) end as x from p",
    "select id, case when jsonb_typeof(j) = 'array' then (select max(k) from q where q.a = jsonb_array_length(p.j)) end as x from p",
    "select id from p where a = 0 or exists (select from q where q.k = 10 / p.a)",
    "select id from p where jsonb_typeof(j) is distinct from 'array' or jsonb_array_length(j) in (select a from q)",
    // CASE with a value, filters, and ON.
    "select id, case a when 0 then null else (select max(k) from q where q.k > 10 / p.a) end as x from p",
    "select id, case a when 0 then -1 when 2 then (select min(k) from q where q.k = 10 / p.a) end as x from p",
    "select sum((select max(k) from q where q.k > 10 / p.a)) filter (where a <> 0) as s from p",
    "select b, string_agg((select max(k)::text from q where q.k > 10 / p.a), ',' order by id) filter (where a <> 0) as s from p group by b",
    "select p.id, q.k from p left join q on q.a = p.id and p.a <> 0 and exists (select from q r where r.k > 10 / p.a)",
    // What is computed once keeps its place, or comes before all rows.
    "select id from p where a > (select min(k) - 1 from q where k > 0) and 10 / a > 1",
    "select id from p where exists (select from config where enabled) and 10 / a > 1",
    "select id, g from days, generate_series(ts, ts + interval '3 days', interval '36 hours') g where ts < (select max(cutoff) from config)",
    "select id, l.n from p left join lateral (select count(*) as n from jsonb_array_elements(j) x where x = '1') l on true where jsonb_typeof(j) = 'array'",
    "select id, g from days left join lateral generate_series(ts, ts + interval '3 days', interval '36 hours') g on true where isfinite(ts)",
    // A test of a row, a composite value: no guards.
    "select id, (b, (select max(k) from q where q.k > p.a)) in (select a, k from q) as x from p",
    "select id, coalesce(v, (select i.v from c i where i.id > c.id order by i.id limit 1)) as x from c",
    // It would have no end.
    "select id, g from days, generate_series(ts, ts + interval '3 days', interval '36 hours') g where isfinite(ts)",
    "select id, x.g from days, lateral (select max(g) as g from generate_series(ts, ts + interval '3 days', interval '36 hours') g) x where isfinite(ts)",
];

const CHANGES: &[&str] = &[
    "select 1",
    "insert into p values (4, 2, 2, '[]'), (5, null, 7, '[1, 1]')",
    "insert into q values (2, 50), (7, 2), (null, 3)",
    "update p set a = 3, b = null where id = 1; delete from q where k = 7",
    "insert into p values (6, 0, 7, '{}'), (7, 0, 1, '1')",
    "insert into days values (2, 'infinity'), (3, '2024-02-01')",
    "update p set a = 0, j = '{\"a\": 1}' where id = 2; update q set k = k + 1 where a = 3",
    "update p set a = 1, j = '[1, 2]' where id in (2, 6); delete from p where id = 3; insert into c values (3, row(5, null)), (4, row(null, null))",
    "delete from q where a = 2",
    "delete from q",
];

#[tokio::test(flavor = "multi_thread")]
async fn subqueries_in_calls_and_behind_guards_are_those_of_postgresql() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, TABLES).await;
        let named: Vec<(String, &str)> =
            PLACED.iter().chain(GUARDED).enumerate().map(|(i, q)| (format!("s{i}"), *q)).collect();
        for (name, query) in &named {
            let create = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
            scene.app.execute(create, &[name, query]).await.unwrap_or_else(|e| panic!("{query}: {e:?}"));
        }
        for (name, _) in &named {
            scene.wait_status(name, "ACTIVE DIFFERENTIAL").await;
        }
        for change in CHANGES {
            scene.run(change).await;
            scene.passed().await;
            for (name, query) in &named {
                let columns =
                    "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
                    where attrelid = $1::text::regclass and attnum > 0 and attname <> '__pgt_row_id'";
                let columns: String = scene.app.query_one(columns, &[name]).await.unwrap().get(0);
                let different = difference_of_text(&scene.app, query, name, &columns).await;
                let different = different.unwrap_or_else(|e| panic!("{query}\nafter {change}: {e:?}"));
                let status = scene.status(name).await;
                assert!(different.is_empty(), "{query}\nafter {change}: {different:?} ({status})");
                assert_eq!(status, "ACTIVE DIFFERENTIAL", "{query}\nafter {change}");
            }
        }
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A function that returns sets fails for its row also where nobody reads what it returns; one of a user's runs as the owner
/// also then.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_fails_is_an_error_also_where_nobody_reads_it() {
    const QUERIES: &[(&str, &str, &str)] = &[
        ("counted", "select count(*) as n from t, generate_series(1, 10 / d) g", "22012"),
        ("listed", "select id from (select id, generate_series(1, 10 / d) as g from t) x", "22012"),
        (
            "kept",
            "select distinct t.id from t left join lateral generate_series(1, 10 / d) g on true",
            "22012",
        ),
        (
            "split",
            "select id from t, regexp_split_to_table('a', case when d = 0 then '(' else 'b' end) r",
            "2201B",
        ),
        (
            "lengths",
            "select id from (select id, regexp_split_to_table('a', case when d = 0 then '(' else 'b' end) as r from t) x",
            "2201B",
        ),
        ("own", "select t.id from t, tenths(d) r", "22012"),
        ("below", "select id from (select t.id, f.r from t, tenths(d) f(r)) q", "22012"),
    ];
    const TABLE: &str = "create table t (id int primary key, d int not null default 1);
        insert into t (id) select i from generate_series(1, 20) i;
        create function tenths(d int) returns setof int immutable language plpgsql as $$
        begin
            if current_user not in ('app', 'dba') then raise exception 'it runs as %', current_user; end if;
            return query select 10 / d;
        end $$";
    for_each_major(async |server| {
        let scene = Scene::start(server, TABLE).await;
        for (name, query, _) in QUERIES {
            let create = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
            scene.app.execute(create, &[name, query]).await.unwrap_or_else(|e| panic!("{query}: {e:?}"));
        }
        for (name, ..) in QUERIES {
            scene.wait_status(name, "ACTIVE DIFFERENTIAL").await;
        }
        scene.run("update t set d = 0 where id = 3").await;
        for (name, query, wanted) in QUERIES {
            wait_until("the error", SOON, || async {
                let state = scene.column(name, "last_error_sqlstate").await;
                if state.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{query}: {state:?}")) }
            })
            .await;
        }
        scene.run("update t set d = 2 where id = 3").await;
        for (name, ..) in QUERIES {
            wait_until("it to be back", SOON, || async {
                let status = scene.status(name).await;
                if status.starts_with("SUSPENDED") {
                    let resume = format!("select pgtrickle.resume_stream_table('{name}')");
                    scene.app.batch_execute(&resume).await.map_err(|e| format!("{e:?}"))?;
                }
                if status == "ACTIVE DIFFERENTIAL" { Ok(()) } else { Err(status) }
            })
            .await;
            scene.check_in_time(&[name]).await;
        }
    })
    .await;
}
