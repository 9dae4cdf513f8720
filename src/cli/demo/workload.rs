//! The application: two writers with mixed transactions, and a probe that measures freshness.
//!
//! Invariant: every transaction runs while its task holds the gate for reading; whoever holds it for writing sees a shop in
//! which nothing is written.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::RwLock;
use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, Transaction};
use tokio_util::sync::CancellationToken;

use super::shop::{CUSTOMERS, ORDERS, PRODUCTS};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::{Purpose, Target, error};

/// Time between two transactions of one writer.
const PACE: Duration = Duration::from_micros(6_500);
/// Time between two probes.
const PROBE_PACE: Duration = Duration::from_millis(200);
/// Time between two looks of a probe: the error of its measurement.
const PROBE_STEP: Duration = Duration::from_millis(1);
/// A probe that is not seen within this time ends the demo.
const PROBE_PATIENCE: Duration = Duration::from_secs(60);
/// Orders that are still being worked on: the newest ones.
const RECENT: i64 = 5_000;

/// What the tasks share.
pub(super) struct Shared {
    pub(super) gate: RwLock<()>,
    pub(super) commits: AtomicU64,
    pub(super) changes: AtomicU64,
    /// Measured freshness: when, and how long.
    samples: Mutex<Vec<(Instant, Duration)>>,
    last_order: AtomicI64,
}

impl Shared {
    pub(super) fn new() -> Shared {
        Shared {
            gate: RwLock::new(()),
            commits: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            samples: Mutex::new(Vec::new()),
            last_order: AtomicI64::new(ORDERS),
        }
    }

    /// Freshness at 50 % and 99 % of the samples since `since` (all, when absent); absent without samples.
    pub(super) fn freshness(&self, since: Option<Instant>) -> Option<(Duration, Duration)> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = since.map_or(0, |since| samples.partition_point(|(when, _)| *when < since));
        let mut sorted: Vec<Duration> = samples[begin..].iter().map(|(_, took)| *took).collect();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied();
        Some((at(50)?, at(99)?))
    }

    fn committed(&self, changes: u64) {
        // A transaction without changes writes no commit.
        if changes > 0 {
            self.commits.fetch_add(1, Ordering::Relaxed);
            self.changes.fetch_add(changes, Ordering::Relaxed);
        }
    }
}

/// One writer, until `stop`.
pub(super) async fn write(app: Target, seed: u64, shared: &Shared, stop: CancellationToken) -> Result<()> {
    let mut client = app.connect(Purpose::Tool).await?;
    let mut random = Random(seed);
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = pace.tick() => {}
            () = stop.cancelled() => return Ok(()),
        }
        let _turn = shared.gate.read().await;
        match turn(&mut client, &mut random, shared).await {
            Ok(changes) => shared.committed(changes),
            // An application would try again; the next turn does.
            Err(e) if e.kind() == ErrorKind::Contention => {}
            Err(e) => return Err(e.during("the workload")),
        }
    }
}

/// One transaction; returns how many rows it changed.
async fn turn(client: &mut Client, random: &mut Random, shared: &Shared) -> Result<u64> {
    let newest = shared.last_order.load(Ordering::Relaxed);
    let recent = newest - random.below(RECENT);
    let any = 1 + random.below(newest);
    match random.below(100) {
        0..35 => place_order(client, random, shared).await,
        35..60 => {
            let advance = "update shop.orders set status = case status when 'new' then 'paid' when 'paid' then 'shipped'
                else 'done' end where id = $1 and status in ('new', 'paid', 'shipped')";
            run(client, advance, recent).await
        }
        60..72 => {
            run(client, "update shop.order_lines set quantity = 1 + quantity % 5 where order_id = $1", any)
                .await
        }
        72..79 => {
            run(
                client,
                "update shop.orders set status = 'cancelled' where id = $1 and status <> 'cancelled'",
                any,
            )
            .await
        }
        79..88 => {
            let transaction = client.transaction().await.map_err(error)?;
            let mut changes =
                run(&transaction, "delete from shop.order_lines where order_id = $1", any).await?;
            changes += run(&transaction, "delete from shop.orders where id = $1", any).await?;
            transaction.commit().await.map_err(error)?;
            Ok(changes)
        }
        88..91 => {
            let create =
                "insert into shop.customers (name, country) values ('Customer N' || $1::bigint, 'DE')";
            run(client, create, any).await
        }
        91..95 => {
            let move_away =
                "update shop.customers set country = case country when 'DE' then 'FR' else 'DE' end
                where id = $1";
            run(client, move_away, 1 + random.below(CUSTOMERS)).await
        }
        95..97 => {
            let several = "update shop.products set price = round(price * 1.01, 2), stock = stock + 1
                where id % 100 = $1 and price < 100000";
            run(client, several, random.below(100)).await
        }
        97..99 => partly_rolled_back(client, recent).await,
        _ => {
            let transaction = client.transaction().await.map_err(error)?;
            run(&transaction, "update shop.order_lines set quantity = quantity + 1 where order_id = $1", any)
                .await?;
            transaction.rollback().await.map_err(error)?;
            Ok(0)
        }
    }
}

async fn place_order(client: &mut Client, random: &mut Random, shared: &Shared) -> Result<u64> {
    let customer = (1 + random.below(141)) * (1 + random.below(141));
    let lines = 1 + random.below(4);
    let transaction = client.transaction().await.map_err(error)?;
    let insert = "insert into shop.orders (customer_id, status) values ($1, 'new') returning id";
    let insert = transaction.prepare(insert).await.map_err(error)?;
    let order: i64 = transaction.query_one(&insert, &[&customer]).await.map_err(error)?.get(0);
    for _ in 0..lines {
        let (product, quantity) = (1 + random.below(PRODUCTS), 1 + random.below(5));
        let statement = "insert into shop.order_lines (order_id, product_id, quantity, unit_price)
            select $1, p.id, $3::bigint, p.price from shop.products p where p.id = $2";
        transaction.execute(statement, &[&order, &product, &quantity]).await.map_err(error)?;
    }
    let product = 1 + random.below(PRODUCTS);
    run(&transaction, "update shop.products set stock = stock - 1 where id = $1", product).await?;
    transaction.commit().await.map_err(error)?;
    shared.last_order.fetch_max(order, Ordering::Relaxed);
    Ok(2 + lines.unsigned_abs())
}

/// Only the part before the savepoint counts.
async fn partly_rolled_back(client: &mut Client, order: i64) -> Result<u64> {
    let mut transaction = client.transaction().await.map_err(error)?;
    let changes = run(&transaction, "update shop.orders set placed_at = now() where id = $1", order).await?;
    let savepoint = transaction.savepoint("later").await.map_err(error)?;
    run(&savepoint, "delete from shop.order_lines where order_id = $1", order).await?;
    savepoint.rollback().await.map_err(error)?;
    transaction.commit().await.map_err(error)?;
    Ok(changes)
}

/// A statement with one number; returns how many rows it changed.
async fn run(session: &(impl Session + Sync), statement: &str, number: i64) -> Result<u64> {
    session.run(statement, number).await.map_err(error)
}

/// A client or a transaction. Statements are prepared by the client each time: one more round trip, as most
/// applications have it.
trait Session {
    fn run(
        &self,
        statement: &str,
        number: i64,
    ) -> impl Future<Output = std::result::Result<u64, tokio_postgres::Error>> + Send;
}

impl Session for Client {
    async fn run(&self, statement: &str, number: i64) -> std::result::Result<u64, tokio_postgres::Error> {
        self.execute(statement, &[&number]).await
    }
}

impl Session for Transaction<'_> {
    async fn run(&self, statement: &str, number: i64) -> std::result::Result<u64, tokio_postgres::Error> {
        self.execute(statement, &[&number]).await
    }
}

/// Writes an order of its own customer, waits until the stream table shows it, removes it, until `stop`.
pub(super) async fn probe(app: Target, shared: &Shared, stop: CancellationToken) -> Result<()> {
    let client = app.connect(Purpose::Tool).await?;
    let create = "insert into shop.customers (name, country) values ('Probe', 'DE') returning id";
    let customer: i64 = client.query_one(create, &[]).await.map_err(error)?.get(0);
    let insert = "insert into shop.orders (customer_id, status) values ($1, 'new') returning id";
    let insert = client.prepare(insert).await.map_err(error)?;
    let look = "select exists (select from shop.open_orders where id = $1)";
    let look = client.prepare(look).await.map_err(error)?;
    while !stop.is_cancelled() {
        let turn = shared.gate.read().await;
        let order: i64 = client.query_one(&insert, &[&customer]).await.map_err(error)?.get(0);
        let begin = Instant::now();
        shared.committed(1);
        drop(turn);
        loop {
            if client.query_one(&look, &[&order]).await.map_err(error)?.get(0) {
                let sample = (Instant::now(), begin.elapsed());
                shared.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                break;
            }
            if stop.is_cancelled() {
                break;
            }
            if begin.elapsed() > PROBE_PATIENCE {
                let waited = PROBE_PATIENCE.as_secs();
                return Err(Error::internal(format!(
                    "shop.open_orders did not show a new order for {waited} s"
                )));
            }
            tokio::time::sleep(PROBE_STEP).await;
        }
        let turn = shared.gate.read().await;
        let removed =
            client.execute("delete from shop.orders where id = $1", &[&order]).await.map_err(error)?;
        shared.committed(removed);
        drop(turn);
        tokio::select! {
            () = tokio::time::sleep(PROBE_PACE) => {}
            () = stop.cancelled() => {}
        }
    }
    Ok(())
}

/// xorshift64*: the same transactions in every run.
struct Random(u64);

impl Random {
    /// 0 up to, and without, `limit`.
    fn below(&mut self, limit: i64) -> i64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 1;
        (number % limit.max(1).unsigned_abs()).cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_repeat_and_stay_below_their_limit() {
        let draw = |seed| {
            let mut random = Random(seed);
            (0..1000).map(move |_| random.below(7)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).iter().all(|n| (0..7).contains(n)));
        assert!((0..7).all(|n| draw(1).contains(&n)));
    }

    #[test]
    fn freshness_is_taken_from_the_samples_of_the_window() {
        let shared = Shared::new();
        assert!(shared.freshness(None).is_none());
        let begin = Instant::now();
        for ms in 1..=100 {
            shared.samples.lock().unwrap().push((begin + Duration::from_secs(ms), Duration::from_millis(ms)));
        }
        let ms = Duration::from_millis;
        assert_eq!(shared.freshness(None), Some((ms(50), ms(99))));
        assert_eq!(shared.freshness(Some(begin + Duration::from_secs(91))).unwrap().0, ms(95));
    }
}
