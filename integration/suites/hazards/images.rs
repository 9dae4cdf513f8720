//! What a value is: its bytes, its equality, its absence.

use super::{Scene, sqlstate};
use crate::harness::oracle::assert_equal;
use crate::harness::servers::for_each_major;

/// Equal values with different texts: 1.0 and 1.00, -0.0 and 0, 'a ' and 'a' as char(n), '1 mon' and '30 days'.
#[tokio::test(flavor = "multi_thread")]
async fn a14_groups_distinct_and_joins_go_by_equality_and_rows_by_image() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table n (id int primary key, x numeric, f float8, c char(4), j jsonb, i interval);
             insert into n values (1, 1.0, 0, 'a', '1.0', '1 mon'), (2, 1.00, '-0', 'a  ', '1.00', '30 days'),
                (3, 5, 'NaN', 'b', '2', '1 day'), (4, 1.000, '-0', 'b', '2.0', '24 hours')",
        )
        .await;
        scene.create("rows", "select id, x, f, c, j, i from n").await;
        scene.create("sums", "select c, sum(x) as s, avg(x) as a, count(*) as n from n group by c").await;
        scene.create("total", "select sum(x) as s from n").await;
        let by_equality = [
            ("by_x", "select x, count(*) as n from n group by x"),
            ("by_f", "select f, count(*) as n from n group by f"),
            ("by_i", "select i, count(*) as n from n group by i"),
            ("distinct_c", "select distinct c from n"),
            ("union_x", "select x from n where id < 3 union select x from n where id > 2"),
        ];
        for (name, query) in by_equality {
            scene.create(name, query).await;
        }
        scene
            .create("joined", "select a.id, b.id as other, b.x from n a join n b on b.x = a.x and b.f = a.f")
            .await;
        for change in [
            "select 1",
            "delete from n where id = 2",
            "update n set x = 1.0000, f = 0 where id = 4",
            "insert into n values (5, 5.00, '-0', 'a', '2.00', '1 day'), (6, 'NaN', 'NaN', null, null, null)",
            "delete from n where id in (1, 5)",
            "update n set x = 7.0 where id = 3",
            "delete from n where id = 6",
            "delete from n",
        ] {
            scene.run(change).await;
            scene.check(&["rows", "sums", "total", "joined"]).await;
            for (name, query) in by_equality {
                let columns = if query.contains("count") {
                    format!("{}, n", &name[3..])
                } else {
                    name[name.len() - 1..].to_owned()
                };
                assert_equal(&scene.app, query, name, &columns).await;
            }
        }
    })
    .await;
}

/// An unchanged TOAST value is not in the stream: it is not NULL.
#[tokio::test(flavor = "multi_thread")]
async fn toast_values_that_did_not_change_are_kept() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table d (id int primary key, long text, v int); alter table d alter long set storage external;
             create table f (id int, long text, v int); alter table f alter long set storage external; alter table f replica identity full;
             insert into d select i, repeat(i::text, 9000), i from generate_series(1, 20) i; insert into f select * from d",
        )
        .await;
        scene.create("of_d", "select id, long, v from d").await;
        scene.create("of_f", "select long, v from f").await;
        scene.create("lengths", "select length(long) as l, count(*) as n, sum(v) as s from d group by 1").await;
        for table in ["d", "f"] {
            scene.run(&format!("update {table} set v = v + 100 where id < 5")).await;
            scene.run(&format!("update {table} set id = id + 1000 where id < 3")).await;
            scene.run(&format!("begin; update {table} set v = 0 where id = 7; update {table} set id = 700 where id = 7;
                update {table} set long = 'short' where id = 8; update {table} set v = 1 where id = 8; delete from {table} where id = 9; commit")).await;
        }
        scene.check(&["of_d", "of_f", "lengths"]).await;
    })
    .await;
}

/// Generated columns are not sent: they are computed, and a new expression changes them without a row change.
#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_follow_their_expression() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table g (id int primary key, v int, twice int generated always as (v * 2) stored);
             insert into g (id, v) values (1, 1), (2, null), (3, 3)",
        )
        .await;
        scene.create("of_g", "select id, twice from g where twice is distinct from 4").await;
        scene.run("update g set v = 2 where id = 1; insert into g (id, v) values (4, 4); update g set v = 9 where id = 2").await;
        scene.check(&["of_g"]).await;
        if server.major >= 17 {
            scene.run("alter table g alter column twice set expression as (v * 3)").await;
            scene.check_in_time(&["of_g"]).await;
            scene.run("update g set v = 5 where id = 3").await;
            scene.check(&["of_g"]).await;
        }
        if server.major >= 18 {
            scene.run("alter table g add column virtual int generated always as (v + 1) virtual").await;
            scene.create("of_virtual", "select id, virtual from g").await;
            scene.run("update g set v = 6 where id = 3").await;
            scene.check(&["of_virtual"]).await;
            // PostgreSQL protects a published table from that.
            let refused = scene.app.batch_execute("alter table g alter column virtual set expression as (v + 2)").await;
            assert_eq!(sqlstate(refused), "0A000");
            scene.check(&["of_virtual"]).await;
        }
        // From now on it keeps what is written.
        scene.run("alter table g alter column twice drop expression").await;
        scene.run("update g set twice = 77 where id = 3").await;
        scene.check_in_time(&["of_g"]).await;
    })
    .await;
}
