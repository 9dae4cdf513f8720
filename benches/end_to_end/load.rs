//! The application's throughput with a stream table and without, in turns.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_postgres::Client;

use crate::report::{Report, Target, median};
use crate::world::{Side, W1, World};

const CLIENTS: i64 = 2;
const ROUNDS: usize = 3;

/// One client of the application: 70 updates, 15 inserts, 15 deletes of a hundred.
struct Writer {
    client: Client,
    seed: u64,
    orders: i64,
    customers: i64,
    next: i64,
    own: VecDeque<i64>,
}

impl Writer {
    async fn new(side: &Side, number: i64, round: i64, orders: i64, customers: i64) -> Writer {
        let next = 1_000_000_000 * (1 + number) + 10_000_000 * round;
        let seed = (number * 7919 + round) as u64 + 1;
        Writer { client: side.db.as_app().await, seed, orders, customers, next, own: VecDeque::new() }
    }

    fn random(&mut self, below: i64) -> i64 {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        1 + ((self.seed >> 33) as i64) % below
    }

    fn fresh(&mut self) -> i64 {
        self.next += 1;
        self.own.push_back(self.next);
        self.next
    }

    /// Transactions of one row until `end`.
    async fn single(&mut self, end: Instant) -> u64 {
        let update =
            self.client.prepare("update orders set amount = amount + 1 where id = $1").await.unwrap();
        let insert = "insert into orders values ($1, $2, 12.50, 'open', 'new')";
        let insert = self.client.prepare(insert).await.unwrap();
        let delete = self.client.prepare("delete from orders where id = $1").await.unwrap();
        let mut count = 0;
        while Instant::now() < end {
            let done = match self.random(100) {
                71..=85 => {
                    let (id, customer) = (self.fresh(), self.random(self.customers));
                    self.client.execute(&insert, &[&id, &customer]).await
                }
                86.. if !self.own.is_empty() => {
                    let id = self.own.pop_front().unwrap();
                    self.client.execute(&delete, &[&id]).await
                }
                _ => {
                    let id = self.random(self.orders);
                    self.client.execute(&update, &[&id]).await
                }
            };
            assert_eq!(done.unwrap(), 1);
            count += 1;
        }
        count
    }

    /// Transactions of a hundred rows in three statements until `end`.
    async fn hundred(&mut self, end: Instant) -> u64 {
        let update = "update orders set amount = amount + 1 where id = any($1)";
        let update = self.client.prepare(update).await.unwrap();
        let insert =
            "insert into orders select i, 1 + i % $2, 12.50, 'open', 'new' from unnest($1::bigint[]) i";
        let insert = self.client.prepare(insert).await.unwrap();
        let delete = self.client.prepare("delete from orders where id = any($1)").await.unwrap();
        let mut count = 0;
        while Instant::now() < end {
            // In one order in all clients: no deadlocks.
            let mut ids: Vec<i64> = (0..70).map(|_| self.random(self.orders)).collect();
            ids.sort_unstable();
            let new: Vec<i64> = (0..15).map(|_| self.fresh()).collect();
            let keep = self.own.len().saturating_sub(15 + 15);
            let gone: Vec<i64> = if keep > 0 { self.own.drain(..15).collect() } else { Vec::new() };
            self.client.batch_execute("begin").await.unwrap();
            self.client.execute(&update, &[&ids]).await.unwrap();
            self.client.execute(&insert, &[&new, &self.customers]).await.unwrap();
            self.client.execute(&delete, &[&gone]).await.unwrap();
            self.client.batch_execute("commit").await.unwrap();
            count += 1;
        }
        count
    }
}

/// Transactions per second of [`CLIENTS`] clients.
async fn tps(side: &Side, world: (i64, i64), round: i64, big: bool, seconds: u64) -> f64 {
    let start = Instant::now();
    let end = start + Duration::from_secs(seconds);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut writer = Writer::new(side, number, round, world.0, world.1).await;
        clients.push(tokio::spawn(async move {
            if big { writer.hundred(end).await } else { writer.single(end).await }
        }));
    }
    let mut count = 0;
    for client in clients {
        count += client.await.unwrap();
    }
    count as f64 / start.elapsed().as_secs_f64()
}

pub async fn run(world: &mut World, report: &mut Report, seconds: u64) {
    world.create(W1).await;
    let size = (world.orders, world.customers);
    let mut round = 0;
    for (big, rows, target) in [(false, 1, 0.95), (true, 100, 0.9)] {
        let (mut with, mut without, mut lags, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut server_with, mut server_without) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            round += 1;
            let per_tx = |seconds_of_cpu: f64, tps: f64| seconds_of_cpu * 1000.0 / (tps * seconds as f64);
            let before = world.without.cpu();
            let alone = tps(&world.without, size, round, big, seconds).await;
            server_without.push(per_tx(world.without.cpu() - before, alone));
            without.push(alone);
            let (before, server) = (world.sidecar_cpu(), world.with.cpu());
            let beside = tps(&world.with, size, round, big, seconds).await;
            lags.push(world.passed().await);
            cpu.push(per_tx(world.sidecar_cpu() - before, beside));
            server_with.push(per_tx(world.with.cpu() - server, beside));
            with.push(beside);
            world.with.tidy().await;
            world.without.tidy().await;
        }
        let (a, b) = (median(&mut with), median(&mut without));
        let details = json!({
            "with_tps": with, "without_tps": without, "lag_s": lags, "seconds": seconds, "clients": CLIENTS,
            "sidecar_cpu_ms_per_tx": median(&mut cpu), "server_cpu_ms_per_tx_with": median(&mut server_with),
            "server_cpu_ms_per_tx_without": median(&mut server_without),
        });
        report.add(&format!("{rows}-row tps without"), b, "tx/s", Target::None, json!({}));
        report.add(&format!("{rows}-row tps with / without"), a / b, "x", Target::AtLeast(target), details);
        report.add(
            &format!("lag after {seconds} s of {rows}-row load"),
            median(&mut lags),
            "s",
            Target::None,
            json!({}),
        );
    }
    world.check(W1, "customer_id, total, n").await;
    world.drop(W1.0).await;
}
