//! WITH RECURSIVE: trees, graphs with cycles, series and paths, under changes of every kind; a recursion that does not end
//! stops its stream table and no other.

use super::sql::{Case, Expect, Schema, conformance};
use crate::harness::oracle::assert_equal;
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

/// A tree, a graph that may have cycles (few nodes, so that cycles come and go), parts of parts, and another table.
const SCHEMA: Schema = Schema::new(
    "recursion",
    "create table staff (id int primary key, boss int, name text, pay numeric);
     insert into staff select i, case when i > 1 then i / 2 end, 'n' || i, i * 1.5 from generate_series(1, 20) i;
     create table edges (a int, b int, weight int);
     insert into edges select i % 7, (i * 3) % 7, i from generate_series(1, 12) i;
     create table parts (whole int not null, part int not null, n int not null, primary key (whole, part));
     insert into parts select i / 2, i, 1 + i % 3 from generate_series(1, 15) i where i / 2 < i;
     create table colours (node int, colour text);
     insert into colours select i % 9, 'c' || i % 3 from generate_series(1, 10) i;",
);

/// The tree has no cycle only as long as nobody makes one: UNION ends there too.
const CASES: &[Case] = &[
    case(
        "reachable",
        "with recursive r(n) as (select a from edges where a = 1 union select e.b from r join edges e on e.a = r.n) select n from r",
    ),
    case(
        "closure",
        "with recursive r(a, b) as (select a, b from edges union select r.a, e.b from r, edges e where e.a = r.b) select a, b from r",
    ),
    case(
        "closure_backwards",
        "with recursive r as (select a, b from edges union select e.a, r.b from edges e join r on r.a = e.b) select * from r where a < b",
    ),
    case(
        "closure_size",
        "with recursive r(a, b) as (select a, b from edges union select r.a, e.b from r, edges e where e.a = r.b) select a, count(*) as n, max(b) as m from r group by a",
    ),
    case(
        "subordinates",
        "with recursive s as (select id, boss, 0 as depth from staff where boss is null union select c.id, c.boss, s.depth + 1 from staff c join s on c.boss = s.id where s.depth < 12) select id, depth from s",
    ),
    case(
        "pay_below",
        "with recursive s(top, id) as (select id, id from staff union select s.top, c.id from s join staff c on c.boss = s.id) select s.top, sum(t.pay) as pay, count(*) as n from s join staff t on t.id = s.id group by s.top",
    ),
    case(
        "paths",
        "with recursive p(id, path, depth) as (select id, name, 0 from staff where boss is null union all select c.id, p.path || '/' || coalesce(c.name, '?'), p.depth + 1 from p join staff c on c.boss = p.id where p.depth < 8) select * from p",
    ),
    case(
        "array_paths",
        "with recursive p(n, path) as (select a, array[a] from edges where a is not null union all select e.b, p.path || e.b from p join edges e on e.a = p.n where not e.b = any(p.path) and cardinality(p.path) < 4) select n, path from p",
    ),
    case(
        "explosion",
        "with recursive x(part, n, depth) as (select part, n, 1 from parts where whole in (0, 1) union all select p.part, x.n * p.n, x.depth + 1 from x join parts p on p.whole = x.part where x.depth < 6 and abs(x.n) < 1000 and abs(p.n) < 1000) select part, sum(n) as n from x group by part",
    ),
    case(
        "numbers",
        "with recursive t(n) as (values (1) union all select n + 1 from t where n < 30) select n from t",
    ),
    case(
        "days_without",
        "with recursive t(n) as (select 0 union all select n + 1 from t where n < 8) select t.n, count(c.node) as seen from t left join colours c on c.node = t.n group by t.n",
    ),
    case(
        "twice_mentioned",
        "with recursive r(n) as (select 1 union select e.b from r join edges e on e.a = r.n where e.b is not null) select x.n, y.n as m from r x join r y on y.n > x.n",
    ),
    case(
        "coloured",
        "with recursive r(n) as (select node from colours where colour = 'c1' union select e.b from r join edges e on e.a = r.n) select r.n, c.colour from r left join colours c on c.node = r.n",
    ),
    case(
        "two_recursions",
        "with recursive up(id) as (select 7 union select s.boss from up join staff s on s.id = up.id), down(id) as (select id from up union select s.id from down join staff s on s.boss = down.id) select id from down",
    ),
    case(
        "inner_view",
        "select * from (with recursive r(n) as (select 2 union select e.b from r join edges e on e.a = r.n) select n, n * 2 as m from r) q where m > 2",
    ),
    case(
        "not_recursive",
        "with recursive r as (select a from edges where weight > 4) select a, count(*) as n from r group by a",
    ),
    case(
        "remote_step",
        "with recursive r(t) as (select 'a' union select substr(r.t || c.colour, 1, 6) from r join colours c on c.node = length(r.t)) select t from r",
    ),
    case(
        "several_steps",
        "with recursive r(n) as (select 1 union (select e.b from r join edges e on e.a = r.n where e.weight > 2)) select n from r where n is not null",
    ),
    Case {
        name: "outer_join_inside",
        query: "with recursive r(n) as (select 1 union select e.b from r left join edges e on e.a = r.n) select n from r",
        expect: Expect::Full("recursive term"),
    },
    Case {
        name: "window_step",
        query: "with recursive r(n, k) as (select 1, 1::bigint union select e.b, least(row_number() over (order by e.b), 2) from r join edges e on e.a = r.n) select n, k from r",
        expect: Expect::Full("recursive term"),
    },
    case(
        "searched",
        "with recursive r(id, boss) as (select id, boss from staff where boss is null union all select c.id, c.boss from r join staff c on c.boss = r.id where c.id > r.id) search depth first by id set ord select id, boss from r order by ord",
    ),
    Case {
        name: "search_order_read",
        query: "with recursive r(n) as (select 1 union all select n + 1 from r where n < 5) search breadth first by n set ord select n, row_number() over (order by ord) as k from r",
        expect: Expect::Full("SEARCH"),
    },
    case(
        "cycles",
        "with recursive r(id, boss) as (select id, boss from staff union all select s.id, s.boss from r join staff s on s.id = r.boss) cycle id set looped using path select id, boss, looped from r",
    ),
    case(
        "cycles_distinct",
        "with recursive r(n) as (select a from edges where a < 3 union select e.b from r join edges e on e.a = r.n where e.weight <= 5) cycle n set looped to 1 default 0 using path select n, looped, count(*) as c from r group by n, looped",
    ),
    case(
        "cycles_and_search",
        "with recursive r(id, boss) as (select id, boss from staff where id < 4 union all select c.id, c.boss from r join staff c on c.id = r.boss) search breadth first by id set ord cycle id, boss set looped using path select id, boss from r where not looped",
    ),
    Case {
        name: "cycle_path_read",
        query: "with recursive r(n) as (select a from edges where a = 1 union all select e.b from r join edges e on e.a = r.n) cycle n set looped using path select n, path::text as p from r",
        expect: Expect::Full("path of CYCLE"),
    },
    case(
        "distinct_step",
        "with recursive r(n) as (select 1 union select distinct e.b from r join edges e on e.a = r.n where e.weight > 1) select n from r",
    ),
];

const fn case(name: &'static str, query: &'static str) -> Case {
    Case { name, query, expect: Expect::Incremental }
}

#[tokio::test(flavor = "multi_thread")]
async fn recursive_queries_follow_trees_and_graphs() {
    for_each_major(async |server| conformance(server, &SCHEMA, CASES).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recursion_that_does_not_end_stops_its_stream_table_and_no_other() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute("create table edges (a int, b int); insert into edges values (1, 2), (2, 3)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        let runaway = "with recursive r(n, depth) as (select 1, 0 union all select e.b, depth + 1 from r join edges e on e.a = r.n)
            select n, depth from r";
        let other = "select a, count(*) as n from edges group by a";
        for (name, query) in [("runaway", runaway), ("other", other)] {
            app.execute("select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')", &[&name, &query])
                .await
                .unwrap();
        }
        // One that is still being filled may not be up to date with the frontier.
        wait_until("both stream tables to be active", SOON, || async {
            let sql = "select string_agg(name || ' ' || status, ', ') from pgtrickle.pgt_status() where status <> 'ACTIVE'";
            app.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).map_or(Ok(()), Err)
        })
        .await;
        let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
        assert!(passed);
        assert_equal(&app, runaway, "runaway", "n, depth").await;
        app.batch_execute("insert into edges values (3, 1)").await.unwrap();
        wait_until("the stream table to be stopped", SOON, || async {
            let sql = "select last_error_sqlstate from pgtrickle.stream_tables_info where pgt_name = 'runaway'";
            match app.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).as_deref() {
                Some("54001") => Ok(()),
                state => Err(format!("{state:?}")),
            }
        })
        .await;
        app.batch_execute("insert into edges values (9, 9)").await.unwrap();
        let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
        assert!(passed);
        assert_equal(&app, other, "other", "a, n").await;
        // Mended, it comes back.
        app.batch_execute("delete from edges where a = 3").await.unwrap();
        wait_until("the stream table to come back", SOON, || async {
            let sql = "select status from pgtrickle.stream_tables_info where pgt_name = 'runaway'";
            let status: String = app.query_one(sql, &[]).await.unwrap().get(0);
            if status == "ACTIVE" { Ok(()) } else { Err(status) }
        })
        .await;
        assert_equal(&app, runaway, "runaway", "n, depth").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// Half of the transaction has a cycle, its end has none. It is long enough to arrive in parts.
#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_that_its_own_transaction_takes_back_is_never_followed() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute("create table edges (a int primary key, b int); insert into edges values (1, 2), (2, 3)").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        let walk = |from: &str| {
            format!(
                "with recursive r(n, depth) as (select 1, 0 union all select e.b, depth + 1 from r join {from} e on e.a = r.n)
                 select n, depth from r"
            )
        };
        let queries = [
            ("walked", walk("edges")),
            ("copied", "select a, b from edges".to_owned()),
            ("walked_copy", walk("copied")),
        ];
        for (name, query) in &queries {
            let sql = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
            app.execute(sql, &[name, query]).await.unwrap();
            wait_until("the stream table to be active", SOON, || async {
                let sql = "select status from pgtrickle.stream_tables_info where pgt_name = $1";
                let status: String = app.query_one(sql, &[name]).await.unwrap().get(0);
                if status == "ACTIVE" { Ok(()) } else { Err(status) }
            })
            .await;
        }
        let dba = db.as_dba().await;
        let filled = "select count(*) from pgtrickle.pgt_refresh_history where action <> 'DIFFERENTIAL'";
        let before: i64 = dba.query_one(filled, &[]).await.unwrap().get(0);
        for _ in 0..2 {
            app.batch_execute(
                "begin;
                 insert into edges values (3, 1);
                 insert into edges select 1000 + i, i from generate_series(1, 60000) i;
                 delete from edges where a = 3;
                 delete from edges where a > 1000;
                 commit",
            )
            .await
            .unwrap();
        }
        let sql = "select pgtrickle.wait_for(timeout => interval '60 s')";
        assert!(app.query_one(sql, &[]).await.unwrap().get::<_, bool>(0), "the frontier did not pass");
        for (name, query) in &queries {
            let columns = if *name == "copied" { "a, b" } else { "n, depth" };
            assert_equal(&app, query, name, columns).await;
        }
        // One that was stopped in between has been filled again.
        assert_eq!(dba.query_one(filled, &[]).await.unwrap().get::<_, i64>(0), before);
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
