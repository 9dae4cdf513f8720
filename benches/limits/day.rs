//! A day's worth of mixed load in an hour: whether memory, the slot or the lag grow.
//!
//! Two writers keep up a steady rate of one-row transactions (of a hundred: 69 updates, 15 inserts, 15 deletes, one
//! customer who moves); once a minute 10 000 rows change in one statement, a stream table is created and dropped, and
//! another transaction with a change in it stays open for 20 s. The number of rows stays the same.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio_postgres::Client;

use crate::curve::Curve;
use crate::harness::oracle::assert_equal;
use crate::world::{World, print};

const ORDERS: i64 = 200_000;
const CUSTOMERS: i64 = 10_000;

/// Name, query, columns.
const VIEWS: [(&str, &str, &str); 6] = [
    (
        "per_customer",
        "select customer_id, sum(amount) as total, count(*) as n from orders group by customer_id",
        "customer_id, total, n",
    ),
    (
        "per_region",
        "select c.region, sum(o.amount) as total, count(*) as n
         from orders o join customers c on c.id = o.customer_id group by c.region",
        "region, total, n",
    ),
    (
        "open_orders",
        "select o.id, c.name, c.region, o.amount
         from orders o join customers c on c.id = o.customer_id where o.status = 'open'",
        "id, name, region, amount",
    ),
    ("largest", "select id, amount from orders order by amount desc, id limit 100", "id, amount"),
    (
        "last_order",
        "select distinct on (customer_id) customer_id, id, amount from orders order by customer_id, id desc",
        "customer_id, id, amount",
    ),
    ("rich_regions", "select region, total from per_region where total > 0", "region, total"),
];

struct Writer {
    client: Client,
    seed: u64,
    next: i64,
    own: VecDeque<i64>,
}

impl Writer {
    fn random(&mut self, below: i64) -> i64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + ((self.seed >> 33) as i64) % below
    }

    async fn write(&mut self) {
        let sql = match self.random(100) {
            1 => format!(
                "update customers set region = 'region {}' where id = {}",
                self.random(25),
                self.random(CUSTOMERS)
            ),
            2..=16 => {
                self.next += 1;
                self.own.push_back(self.next);
                let (customer, amount) = (self.random(CUSTOMERS), self.random(2500));
                format!("insert into orders values ({}, {customer}, {amount}, 'open', 'new')", self.next)
            }
            17..=31 if !self.own.is_empty() => {
                format!("delete from orders where id = {}", self.own.pop_front().unwrap_or_default())
            }
            _ => format!("update orders set amount = amount + 0.25 where id = {}", self.random(ORDERS)),
        };
        self.client.batch_execute(&sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
}

/// What happens once a minute; the writers go on.
async fn interlude(client: &Client, minute: i64) {
    let first = 1 + minute * 10_000 % ORDERS;
    let bulk =
        format!("update orders set amount = amount + 1 where id between {first} and {}", first + 9_999);
    client.batch_execute(&bulk).await.unwrap();
    let query = "select status, count(*) as n from orders group by status";
    client.execute("select pgtrickle.create_stream_table('ad_hoc', $1)", &[&query]).await.unwrap();
    client.batch_execute("begin; update customers set name = name || '' where id = 1").await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    client.batch_execute("commit").await.unwrap();
    client.execute("select pgtrickle.drop_stream_table('ad_hoc')", &[]).await.unwrap();
}

pub async fn run(world: World, minutes: i64, rate: i64) {
    world
        .run(&format!(
            "create table customers (id bigint primary key, name text not null, region text not null);
             create table orders (id bigint primary key, customer_id bigint not null, amount numeric(12,2) not null,
                 status text not null, note text not null);
             insert into customers select i, 'customer ' || i, 'region ' || i % 25 from generate_series(1, {CUSTOMERS}) i;
             insert into orders select i, 1 + (i::bigint * 7919) % {CUSTOMERS}, (i % 9973) * 0.25,
                 case when i % 4 = 0 then 'open' else 'done' end, 'note ' || i from generate_series(1, {ORDERS}) i"
        ))
        .await;
    for (name, query, _) in VIEWS {
        world.create(name, query).await.unwrap();
    }
    let every = "select pgtrickle.create_stream_table('every_5s',
        'select status, sum(amount) as total from orders group by status', schedule => '5s')";
    world.run(every).await;
    world.active().await;
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for number in 1..=2_i64 {
        let client = world.database.as_app().await;
        let (stop, count) = (stop.clone(), count.clone());
        let mut writer =
            Writer { client, seed: number as u64, next: number * 1_000_000_000, own: VecDeque::new() };
        tasks.push(tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_micros((2_000_000 / rate) as u64));
            while !stop.load(Ordering::Relaxed) {
                pace.tick().await;
                writer.write().await;
                count.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let (client, ended) = (world.database.as_app().await, stop.clone());
    tasks.push(tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_secs(60));
        for minute in 0.. {
            pace.tick().await;
            if ended.load(Ordering::Relaxed) {
                return;
            }
            interlude(&client, minute).await;
        }
    }));
    let (mut curve, before) = (Curve::start(), world.cpu());
    let mut pace = tokio::time::interval(Duration::from_secs(2));
    let mut told = 0.0;
    while curve.seconds() < minutes as f64 * 60.0 {
        pace.tick().await;
        let lag = world.passed().await;
        curve.sample(&world, lag).await;
        if curve.seconds() >= told + 300.0 {
            told = curve.seconds();
            let now = json!({"seconds": told.round(), "memory_mb": world.memory().0,
                "transactions": count.load(Ordering::Relaxed)});
            print("day, so far", now);
        }
    }
    let (after, seconds) = (world.cpu(), curve.seconds());
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    world.passed().await;
    for (name, query, columns) in VIEWS {
        assert_equal(&world.app, query, name, columns).await;
    }
    let transactions = count.load(Ordering::Relaxed);
    print(
        "day",
        json!({"minutes": minutes, "transactions": transactions, "per_s": transactions as f64 / seconds,
            "stretches": curve.stretches(12), "memory_growth_later_half_mb_per_h": curve.growth(),
            "peak_mb": world.memory().1, "sidecar_cpu_percent": (after.0 - before.0) * 100.0 / seconds,
            "server_cpu_percent": (after.1 - before.1) * 100.0 / seconds, "all_equal": true}),
    );
}
