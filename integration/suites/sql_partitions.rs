//! Partitioned tables and tables with children as incremental sources: every way in which their rows change.
//!
//! Each test compares the stream tables with PostgreSQL's own answer, under capture from the WAL and by triggers.

use super::hazards::{Scene, sqlstate};
use crate::harness::servers::for_each_major;
use crate::harness::wait::{SOON, wait_until};

const MODES: [&[&str]; 2] = [&[], &["--cdc-mode", "trigger"]];

/// Leaves whose columns have other numbers than the root's, a partitioned partition, a default.
const PARTITIONED: &str = "
    create table sales (id int, region text not null, amount numeric, note text, primary key (id, region)) partition by list (region);
    create table sales_n partition of sales for values in ('n');
    create table sales_s (junk int, note text, amount numeric, region text not null, id int not null, primary key (id, region));
    alter table sales_s drop column junk;
    alter table sales attach partition sales_s for values in ('s');
    create table sales_w partition of sales for values in ('w1', 'w2') partition by list (region);
    create table sales_w1 partition of sales_w for values in ('w1');
    create table sales_w2 partition of sales_w for values in ('w2');
    create table sales_d partition of sales default;
    create table regions (region text primary key, title text);
    insert into regions values ('n', 'north'), ('s', 'south'), ('w1', 'west'), ('w2', 'far west'), ('x', 'elsewhere');
    insert into sales select i, (array['n', 's', 'w1', 'w2', 'x'])[1 + i % 5], i * 1.5, 'row ' || i from generate_series(1, 60) i;
";

const OVER_SALES: &[(&str, &str)] = &[
    ("all_sales", "select id, region, amount, note from sales"),
    ("by_region", "select region, count(*) as n, sum(amount) as total from sales group by region"),
    ("titled", "select s.id, s.region, r.title, s.amount from sales s join regions r using (region)"),
    ("north", "select id, region, amount from sales_n where amount > 10"),
    ("west", "select id, region, note from sales_w"),
    ("pairs", "select a.id, a.region, b.amount from sales a join sales_s b on a.id = b.id + 1"),
];

async fn create_all(scene: &Scene, queries: &[(&str, &str)]) -> Vec<String> {
    for (name, query) in queries {
        scene.create(name, query).await;
    }
    queries.iter().map(|(name, _)| (*name).to_owned()).collect()
}

fn names(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_change_through_the_root_a_middle_and_a_leaf() {
    for_each_major(async |server| {
        for arguments in MODES {
            let scene = Scene::start_with(server, PARTITIONED, arguments).await;
            let all = create_all(&scene, OVER_SALES).await;
            if arguments.is_empty() {
                let key = scene.column("all_sales", "key_columns").await;
                assert_eq!(key.as_deref(), Some("{id,region}"), "the primary key of the root counts");
            }
            for step in [
                "insert into sales select i, (array['n', 's', 'w1', 'w2', 'x'])[1 + i % 5], i, null from generate_series(61, 90) i",
                "insert into sales_s (id, region, amount) values (1000, 's', 7)",
                "insert into sales_w values (1001, 'w2', 8, 'through the middle')",
                "update sales set amount = amount + 1 where id % 3 = 0",
                "update sales_s set note = 'touched', id = id + 5000 where id % 2 = 0",
                // Rows that move: across leaves, across levels, into the default, and back in one transaction.
                "update sales set region = 's' where region = 'n' and id % 2 = 0",
                "update sales set region = 'w1' where region = 'w2'",
                "update sales_w set region = 'w2' where id % 4 = 0",
                "update sales set region = 'zz' where region = 's' and id < 40",
                "begin; update sales set region = 'n' where region = 'zz'; update sales set region = 'x' where region = 'n' and id < 20; commit",
                "insert into sales values (5, 'n', 1, 'upsert') on conflict (id, region) do update set amount = 99",
                "begin; insert into sales_n values (7777, 'n', 1, 'gone'); savepoint a; update sales set region = 's' where id = 7777; rollback to a; delete from sales where id = 7777; commit",
                "delete from sales_w1 where id % 2 = 1",
                "begin; truncate sales_n; insert into sales_n values (1, 'n', 2, 'after'); commit",
                "truncate sales_w",
                "begin; insert into sales values (2001, 'w1', 5, 'in'); truncate sales; insert into sales values (2002, 'w2', 6, 'out'), (2003, 's', 6, 'out'); commit",
                "insert into sales select i, 'n', i, 'again' from generate_series(1, 20) i",
            ] {
                scene.run(step).await;
                scene.check(&names(&all)).await;
            }
        }
    })
    .await;
}

/// ATTACH, DETACH, DROP and CREATE of partitions change rows without a row change. Everything else goes on meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_come_and_go() {
    for_each_major(async |server| {
        for arguments in MODES {
            let scene = Scene::start_with(server, PARTITIONED, arguments).await;
            let all = create_all(&scene, OVER_SALES).await;
            let before = scene.generation().await;
            for step in [
                "create table sales_e partition of sales for values in ('e')",
                "insert into sales values (1, 'e', 1, 'new partition'), (2, 'e', 2, 'new partition')",
                "update sales set region = 'e' where id = 3",
                "create table sales_q (like sales including all); insert into sales_q select i, 'q', i, 'came along' from generate_series(1, 9) i",
                "alter table sales attach partition sales_q for values in ('q')",
                "alter table sales detach partition sales_s; insert into sales_s (id, region, amount) values (4000, 's', 1)",
                "alter table sales detach partition sales_e concurrently",
                "delete from sales_s where id < 30",
                "alter table sales attach partition sales_s for values in ('s')",
                "drop table sales_q",
                "alter table sales detach partition sales_w",
                "alter table sales attach partition sales_w for values in ('w1', 'w2')",
                "insert into sales select i, (array['n', 's', 'w1', 'w2'])[1 + i % 4], i, null from generate_series(300, 330) i",
            ] {
                // DETACH CONCURRENTLY needs the default partition to be away.
                if step.ends_with("concurrently") {
                    scene.run("drop table sales_d").await;
                    scene.check_in_time(&names(&all)).await;
                }
                scene.run(step).await;
                scene.check_in_time(&names(&all)).await;
            }
            assert_eq!(scene.generation().await, before, "only what changed is read again");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_without_partitions_is_empty_and_fills() {
    for_each_major(async |server| {
        let scene = Scene::start(server, "create table p (id int primary key, v text) partition by range (id)").await;
        scene.create("of_p", "select id, v from p").await;
        scene.create("n_of_p", "select count(*) as n from p").await;
        scene.create("of_only", "select id from only p").await;
        scene.check(&["of_p", "n_of_p", "of_only"]).await;
        scene.run("create table p1 partition of p for values from (0) to (100); insert into p values (1, 'a'), (2, 'b')").await;
        scene.check_in_time(&["of_p", "n_of_p", "of_only"]).await;
        assert_eq!(scene.column("of_p", "key_columns").await.as_deref(), Some("{id}"));
        scene.run("drop table p1").await;
        scene.check_in_time(&["of_p", "n_of_p", "of_only"]).await;
    })
    .await;
}

/// The replica identity is a leaf's own, and so is what it lacks.
#[tokio::test(flavor = "multi_thread")]
async fn leaves_differ_in_identity_persistence_and_generated_columns() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table m (id int not null, v int, big text) partition by range (id);
             create table m_key partition of m (primary key (id)) for values from (0) to (100);
             create table m_full partition of m for values from (100) to (200);
             alter table m_full replica identity full;
             create table m_none partition of m for values from (200) to (300);
             create unlogged table m_unlogged partition of m for values from (300) to (400);
             create table m_index (big text, id int not null, v int);
             create unique index m_i on m_index (id); alter table m_index replica identity using index m_i;
             alter table m attach partition m_index for values from (400) to (500);
             insert into m select i, i % 7, repeat(md5(i::text), 200) from generate_series(0, 499, 3) i",
        )
        .await;
        let all = create_all(
            &scene,
            &[
                ("of_m", "select id, v, big from m"),
                ("sum_m", "select v, count(*) as n, max(length(big)) as longest from m group by v"),
                ("of_none", "select id, v from m_none"),
            ],
        )
        .await;
        for step in [
            "update m set v = v + 1 where id % 2 = 0",
            "update m set id = (id + 100) % 500 where id % 5 = 0 and id % 200 < 100",
            "insert into m_none values (250, 1, 'x'), (250, 1, 'x'); delete from m where id = 250",
            "insert into m_unlogged values (350, 1, 'y'); truncate m_none",
            "update m_index set big = 'short' where id % 2 = 1",
            "truncate m_unlogged, m_full; insert into m values (310, 3, null), (110, 3, null)",
        ] {
            scene.run(step).await;
            scene.check(&names(&all)).await;
        }
        scene.run("alter table m_none replica identity full").await;
        scene.run("update m set v = 9 where id between 200 and 260").await;
        scene.check_in_time(&names(&all)).await;
    })
    .await;
}

const FAMILY: &str = "
    create table beings (id int primary key, name text, born date);
    create table animals (legs int) inherits (beings);
    create table things (weight numeric, maker text);
    create table robots (model text) inherits (animals, things);
    create table plants (born date, height int, id int not null, name text);
    alter table plants inherit beings;
    insert into beings values (1, 'spirit', '2000-01-01'), (2, 'ghost', null);
    insert into animals values (1, 'cat', '2001-01-01', 4), (3, 'bird', '2001-02-02', 2);
    insert into robots values (4, 'r2', null, 3, 100, 'me', 'm1'), (1, 'c3', null, 2, 80, 'you', 'm2');
    insert into plants values (null, 3, 9, 'oak');
";

const OVER_FAMILY: &[(&str, &str)] = &[
    ("everybody", "select id, name, born from beings"),
    ("spirits", "select id, name from only beings"),
    ("walking", "select id, name, legs from animals where legs > 1"),
    ("made", "select weight, maker from things"),
    ("twice", "select b.id, b.name, r.model from beings b join robots r on r.id = b.id"),
    ("counted", "select name, count(*) as n from beings group by name"),
];

#[tokio::test(flavor = "multi_thread")]
async fn children_that_inherit_count_and_come_and_go() {
    for_each_major(async |server| {
        for arguments in MODES {
            let scene = Scene::start_with(server, FAMILY, arguments).await;
            let all = create_all(&scene, OVER_FAMILY).await;
            assert_eq!(scene.column("everybody", "key_columns").await, None, "a parent's key does not bind its children");
            if arguments.is_empty() {
                assert_eq!(scene.column("spirits", "key_columns").await.as_deref(), Some("{id}"));
            }
            for step in [
                "insert into animals values (1, 'dog', null, 4)",
                "update beings set name = name || '!' where id = 1",
                "update only beings set name = 'own' where id = 1",
                "update animals set legs = legs + 1",
                "update things set weight = weight * 2",
                "delete from beings where id = 3",
                "delete from only animals where id = 1",
                "insert into plants (id, name, height) values (1, 'fern', 1), (1, 'fern', 1)",
                "truncate only beings",
                "insert into beings values (1, 'spirit', '2000-01-01')",
                "truncate robots; insert into robots values (8, 'hal', null, 0, 1, 'x', 'm9')",
            ] {
                scene.run(step).await;
                scene.check(&names(&all)).await;
            }
            for step in [
                "alter table plants no inherit beings",
                "insert into plants (id, name) values (77, 'alone')",
                "alter table plants inherit beings",
                "create table stars (mass numeric) inherits (beings); insert into stars values (50, 'sun', null, 1)",
                "drop table stars",
                "truncate beings",
                "insert into robots values (4, 'r2', null, 3, 100, 'me', 'm1')",
            ] {
                scene.run(step).await;
                scene.check_in_time(&names(&all)).await;
            }
        }
    })
    .await;
}

/// What can't be followed leads to FULL with the reason, and back when it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_or_temporary_or_secured_child_means_full_and_back() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table p (id int primary key, v int); create table p1 () inherits (p);
             create table elsewhere (id int, v int); insert into p values (1, 1); insert into p1 values (2, 2); insert into elsewhere values (3, 3)",
        )
        .await;
        scene.create("of_p", "select id, v from p").await;
        let mut steps = vec![
            ("create temporary table passing () inherits (p)", "drop table passing", "temporary"),
            ("alter table p1 enable row level security", "alter table p1 disable row level security", "row-level security"),
        ];
        let foreign = scene
            .dba
            .batch_execute(&format!(
                "create extension postgres_fdw; create server here foreign data wrapper postgres_fdw options (host '127.0.0.1', port '{}', dbname '{}');
                 create user mapping for public server here options (user 'dba', password_required 'false'); grant usage on foreign server here to app",
                scene.db.port(), scene.db.name
            ))
            .await
            .is_ok();
        if foreign {
            steps.push((
                "create foreign table distant (id int not null, v int) server here options (schema_name 'app', table_name 'elsewhere'); alter foreign table distant inherit p",
                "alter foreign table distant no inherit p",
                "foreign",
            ));
        }
        for (there, gone, word) in steps {
            scene.run(there).await;
            scene.wait_status("of_p", "ACTIVE FULL").await;
            let reason = scene.column("of_p", "refresh_reason").await.unwrap();
            assert!(reason.contains(word) && reason.contains("child of app.p"), "{reason}");
            let refused = scene.app.execute("select pgtrickle.create_stream_table('no', 'select id from p', refresh_mode => 'DIFFERENTIAL')", &[]).await;
            assert_eq!(sqlstate(refused), "0A000", "{there}");
            scene.run(gone).await;
            scene.wait_status("of_p", "ACTIVE DIFFERENTIAL").await;
            scene.run("insert into p1 select max(id) + 1, 5 from p").await;
            scene.check(&["of_p"]).await;
        }
    })
    .await;
}

/// A captured table becomes a partition and leaves again; the publication holds leaves only.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_becomes_a_partition_and_is_one_no_more() {
    for_each_major(async |server| {
        for arguments in MODES {
            let scene = Scene::start_with(
                server,
                "create table a (id int primary key, v int); insert into a values (1, 1);
                 create table root (id int primary key, v int) partition by range (id)",
                arguments,
            )
            .await;
            scene.create("of_a", "select id, v from a").await;
            scene.create("of_root", "select id, v from root").await;
            scene.run("alter table root attach partition a for values from (0) to (100)").await;
            scene.run("insert into root values (2, 2); update root set v = 5; insert into a values (3, 3)").await;
            scene.check_in_time(&["of_a", "of_root"]).await;
            scene.run("delete from root where id = 1; truncate root; insert into root values (4, 4)").await;
            scene.check(&["of_a", "of_root"]).await;
            scene.run("alter table root detach partition a").await;
            scene.run("insert into a values (5, 5)").await;
            scene.check_in_time(&["of_a", "of_root"]).await;
            let published: i64 = scene.dba.query_one("select count(*) from pg_publication_rel r join pg_class c on c.oid = r.prrelid where c.relkind = 'p'", &[]).await.unwrap().get(0);
            assert_eq!(published, 0);
            scene.run("select pgtrickle.drop_stream_table('of_a'); select pgtrickle.drop_stream_table('of_root')").await;
            wait_until("the table to be let go", SOON, || async {
                let rows: i64 = scene.dba.query_one("select (select count(*) from pg_publication_rel) + (select count(*) from pg_trigger where tgname ~ '^pgtrickle' and tgrelid <> 'pgtrickle.settings'::regclass)", &[]).await.unwrap().get(0);
                if rows == 0 { Ok(()) } else { Err(format!("{rows} members or triggers")) }
            })
            .await;
        }
    })
    .await;
}

/// Whoever attaches and waits sees the rows, also while others write; and nobody else's frontier passes them.
#[tokio::test(flavor = "multi_thread")]
async fn attached_rows_are_there_when_the_wait_is_over() {
    for_each_major(async |server| {
        for arguments in MODES {
            let scene = Scene::start_with(
                server,
                "create table p (id int, k int, primary key (id, k)) partition by list (k);
                 create table p0 partition of p for values in (0);
                 create table parent (id int primary key); create table child (id int primary key);
                 create table other (id int primary key);
                 insert into p values (1, 0); insert into child values (1), (2)",
                arguments,
            )
            .await;
            scene.create("of_p", "select id, k from p").await;
            scene.create("n_of_p", "select count(*) as n from p").await;
            scene.create("over_it", "select n + 1 as m from n_of_p").await;
            scene.create("of_parent", "select count(*) as n from parent").await;
            scene.create("of_other", "select count(*) as n from other").await;
            let call = "select pgtrickle.create_stream_table('patient', 'select count(*) as n from p', schedule => 'manual')";
            scene.run(call).await;
            scene.wait_status("patient", "ACTIVE DIFFERENTIAL").await;
            let busy = scene.db.as_app().await;
            let writing = tokio::spawn(async move {
                for i in 0..2_000 {
                    busy.execute("insert into other values ($1)", &[&i]).await.unwrap();
                }
            });
            for round in 1..=8 {
                if round == 5 {
                    // The second half on an idle database.
                    while !writing.is_finished() {
                        scene.passed().await;
                    }
                }
                scene.run(&format!("create table p{round} (like p including all); insert into p{round} select i, {round} from generate_series(1, 10) i")).await;
                scene.run(&format!("alter table p attach partition p{round} for values in ({round})")).await;
                scene.check(&["of_p", "n_of_p", "over_it"]).await;
                scene.run("alter table child inherit parent").await;
                scene.check(&["of_parent"]).await;
                scene.run("select pgtrickle.refresh_stream_table('patient')").await;
                assert!(scene.differs("patient").await.is_empty(), "a refresh comes after the attach, too");
                scene.run("alter table child no inherit parent").await;
                scene.check(&["of_parent"]).await;
                if round % 2 == 0 {
                    scene.run(&format!("alter table p detach partition p{round}")).await;
                    scene.check(&["of_p", "n_of_p", "over_it"]).await;
                }
            }
            writing.await.unwrap();
            scene.check(&["of_other"]).await;
        }
    })
    .await;
}
