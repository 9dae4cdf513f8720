//! The measurements.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::curve::Curve;
use crate::world::{World, print};

/// Many stream tables over ten sources of a thousand rows.
pub async fn tables(mut world: World, count: i64) {
    for source in 0..10 {
        world
            .run(&format!(
                "create table s{source} (id int primary key, g int not null, v int not null);
                 insert into s{source} select i, i % 50, i from generate_series(1, 1000) i"
            ))
            .await;
    }
    let empty = world.memory().0;
    let started = Instant::now();
    for n in 0..count {
        let source = n % 10;
        let query = match n % 3 {
            0 => format!(
                "select g, sum(v) as total, count(*) as n from s{source} where v % 7 <> {n} group by g"
            ),
            1 => format!("select id, v + {n} as v from s{source} where g < 25"),
            _ => format!(
                "select a.id, b.v as other from s{source} a join s{} b on a.id = b.id",
                (source + 1) % 10
            ),
        };
        // All at once, as after a migration; the sidecar finds them.
        let sql = "select pgtrickle.create_stream_table($1, $2)";
        world.app.execute(sql, &[&format!("st{n}"), &query]).await.unwrap();
    }
    let created = started.elapsed().as_secs_f64();
    world.active().await;
    let active = started.elapsed().as_secs_f64();
    let latency = world.latency("update s0 set v = v + 1 where id = 5").await;
    let (memory, idle) = (world.memory(), world.idle().await);
    let ready = world.restart().await;
    let after = world.memory();
    world.active().await;
    let again = world.latency("update s1 set v = v + 1 where id = 5").await;
    print(
        "stream tables",
        json!({"stream_tables": count, "sources": 10, "create_s": created, "until_active_s": active,
            "latency_ms": latency, "memory_mb": memory.0, "peak_mb": memory.1, "empty_mb": empty,
            "idle_sidecar_cpu_percent": idle.0, "idle_server_cpu_percent": idle.1,
            "restart_until_ready_s": ready, "memory_after_restart_mb": after.0, "latency_after_restart_ms": again}),
    );
}

/// One stream table per source.
pub async fn sources(mut world: World, count: i64) {
    for n in 0..count {
        world
            .run(&format!(
                "create table s{n} (id int primary key, v int not null);
                 insert into s{n} select i, i from generate_series(1, 1000) i"
            ))
            .await;
    }
    let started = Instant::now();
    for n in 0..count {
        let sql = "select pgtrickle.create_stream_table($1, $2)";
        let query = format!("select v % 10 as g, count(*) as n from s{n} group by v % 10");
        world.app.execute(sql, &[&format!("st{n}"), &query]).await.unwrap();
    }
    world.active().await;
    let active = started.elapsed().as_secs_f64();
    let latency = world.latency("update s0 set v = v + 1 where id = 5").await;
    let idle = world.idle().await;
    let ready = world.restart().await;
    world.active().await;
    print(
        "sources",
        json!({"sources": count, "until_active_s": active, "latency_ms": latency, "memory_mb": world.memory().0,
            "idle_sidecar_cpu_percent": idle.0, "idle_server_cpu_percent": idle.1, "restart_until_ready_s": ready}),
    );
}

/// A source with as many columns as a table can have.
pub async fn columns(world: World, count: i64) {
    let columns: Vec<String> = (1..count).map(|n| format!("c{n} smallint default {}", n % 100)).collect();
    world.run(&format!("create table wide (id int primary key, {})", columns.join(", "))).await;
    world.run("insert into wide (id) select i from generate_series(1, 2000) i").await;
    let last = count - 1;
    let few = world.create("few", &format!("select id, c1, c{last} from wide")).await;
    let few_latency = world.latency("update wide set c1 = c1 + 1 where id = 7").await;
    let memory_few = world.memory().0;
    let all = world.create("everything", "select * from wide").await;
    let all_latency = world.latency("update wide set c1 = c1 + 1 where id = 7").await;
    let differing =
        world.text("select count(*)::text from (select * from wide except select * from everything) d").await;
    print(
        "columns",
        json!({"columns": count, "rows": 2000, "three_of_them_s": few, "latency_ms": few_latency,
            "memory_mb": memory_few, "all_of_them_s": all, "latency_all_ms": all_latency,
            "memory_all_mb": world.memory().0, "rows_that_differ": differing}),
    );
}

/// Stream tables over stream tables.
pub async fn chain(world: World, length: i64) {
    world
        .run(
            "create table t (id int primary key, v int not null);
             insert into t select i, i from generate_series(1, 1000) i",
        )
        .await;
    let mut latencies = serde_json::Map::new();
    for n in 0..length {
        let from = if n == 0 { "t".to_owned() } else { format!("c{}", n - 1) };
        if let Err(refused) =
            world.create(&format!("c{n}"), &format!("select id, v + 1 as v from {from}")).await
        {
            print("chain", json!({"length": n, "refused": refused}));
            return;
        }
        if [1, 10, 25, 50, 100].contains(&(n + 1)) {
            let latency = world.latency("update t set v = v + 1 where id = 7").await;
            latencies.insert((n + 1).to_string(), latency.into());
        }
    }
    let differing = format!(
        "select count(*)::text from (select id, v + {length} from t except select * from c{}) d",
        length - 1
    );
    print(
        "chain",
        json!({"length": length, "latency_ms_at_length": latencies, "memory_mb": world.memory().0,
            "rows_that_differ": world.text(&differing).await}),
    );
}

/// One join of many tables.
pub async fn join(world: World, widest: i64) {
    for n in 1..=widest {
        world
            .run(&format!(
                "create table t{n} (id int primary key, v int not null);
                 insert into t{n} select i, i % 10 from generate_series(1, 1000) i"
            ))
            .await;
    }
    for width in [2, 4, 8, 16, 32, 64].into_iter().filter(|w| *w <= widest) {
        let joined: String = (2..=width).map(|n| format!(" join t{n} using (id)")).collect();
        let sum: Vec<String> = (1..=width).map(|n| format!("t{n}.v")).collect();
        let query = format!("select id, {} as total from t1{joined}", sum.join(" + "));
        let created = world.create("joined", &query).await;
        if created.is_err() {
            print("join", json!({"tables": width, "refused": created.err()}));
            return;
        }
        let first = world.latency("update t1 set v = v + 1 where id = 7").await;
        let last = world.latency(&format!("update t{width} set v = v + 1 where id = 7")).await;
        let differing =
            format!("select count(*)::text from (select * from ({query}) q except select * from joined) d");
        print(
            "join",
            json!({"tables": width, "create_s": created.ok(), "latency_first_ms": first, "latency_last_ms": last,
                "memory_mb": world.memory().0, "rows_that_differ": world.text(&differing).await}),
        );
        world.run("select pgtrickle.drop_stream_table('joined')").await;
    }
}

/// One transaction of many rows, and one that changes them all.
pub async fn transaction(world: World, rows: i64) {
    world.run("create table t (id bigint primary key, g int not null, v int not null)").await;
    world.create("by_group", "select g, sum(v) as total, count(*) as n from t group by g").await.unwrap();
    world.create("tail", "select id, v from t where id % 1000 = 0").await.unwrap();
    let statements = [
        ("insert", format!("insert into t select i, i % 1000, i % 97 from generate_series(1, {rows}) i")),
        ("update", "update t set v = v + 1".to_owned()),
        ("delete", "delete from t".to_owned()),
    ];
    for (kind, statement) in statements {
        let started = Instant::now();
        world.run(&statement).await;
        let committed = started.elapsed().as_secs_f64();
        let mut curve = Curve::start();
        let fresh = curve.during(&world, world.passed()).await;
        world.active().await;
        let differing = world
            .text(
                "select count(*)::text from ((select g, sum(v), count(*) from t group by g) except select g, total, n from by_group) d",
            )
            .await;
        let (now, peak) = world.memory();
        print(
            "transaction",
            json!({"kind": kind, "rows": rows, "statement_s": committed, "until_fresh_s": fresh, "memory_mb": now,
                "peak_mb": peak, "stretches": curve.stretches(6), "groups_that_differ": differing}),
        );
    }
}

/// Changes that pile up while the sidecar stands still.
pub async fn backlog(world: World, changes: i64) {
    const STEP: i64 = 1_000;
    let rows = changes.min(1_000_000);
    world.run("create table t (id bigint primary key, g int not null, v int not null)").await;
    world.run(&format!("insert into t select i, i % 1000, i % 97 from generate_series(1, {rows}) i")).await;
    world.create("by_group", "select g, sum(v) as total, count(*) as n from t group by g").await.unwrap();
    world.create("tail", "select id, v from t where id % 1000 = 0").await.unwrap();
    world.sidecar.pause();
    let mut made = 0;
    while made < changes {
        let first = made % rows + 1;
        let last = first + STEP - 1;
        world.run(&format!("update t set v = v + 1 where id between {first} and {last}")).await;
        made += STEP;
    }
    let expected = world.text("select sum(v)::text from t").await;
    let (before, cpu, mut curve) = (world.memory().0, world.cpu(), Curve::start());
    world.sidecar.resume();
    let drained = async || world.text("select sum(total)::text from by_group").await == expected;
    curve.until(&world, Duration::from_millis(500), drained).await;
    let (seconds, after) = (curve.seconds(), world.cpu());
    let differing = world
        .text(
            "select count(*)::text from ((select g, sum(v), count(*) from t group by g) except select g, total, n from by_group) d",
        )
        .await;
    print(
        "backlog",
        json!({"changes": made, "rows_per_transaction": STEP, "wal_mb": curve.samples.first().map(|s| s.wal), "drained_s": seconds,
            "changes_per_s": made as f64 / seconds, "sidecar_cpu_us_per_change": (after.0 - cpu.0) * 1e6 / made as f64,
            "memory_before_mb": before, "peak_mb": world.memory().1, "stretches": curve.stretches(12),
            "growth_later_half_mb_per_h": curve.growth(), "groups_that_differ": differing}),
    );
}
