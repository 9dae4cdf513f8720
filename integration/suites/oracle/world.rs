//! Runs plans of transactions on several connections from one task: they are open at the same time and commit in another
//! order than they began, and yet the same seed does the same again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, Error};

use super::boundaries::Boundaries;
use super::prng::Prng;
use super::stage::Stage;
use super::transactions::{End, Plan, Planner, Step};
use crate::harness::TestDatabase;

const WRITERS: usize = 3;

struct Writer {
    client: Client,
    plan: Option<Plan>,
    next: usize,
    id: i64,
}

/// The application under test.
pub struct World {
    pub stage: Arc<Stage>,
    pub planner: Planner,
    pub boundaries: Boundaries,
    rng: Prng,
    writers: Vec<Writer>,
    /// Prepared transactions with their numbers.
    prepared: Vec<(String, i64)>,
    database: String,
    next_id: i64,
    /// Transactions that failed and were rolled back, with the last reason.
    pub failed: usize,
    pub last_failure: String,
    /// Percentage of commits whose answers are computed.
    pub watched: usize,
}

impl World {
    pub async fn new(stage: Arc<Stage>, database: &TestDatabase, mut rng: Prng) -> World {
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            let client = database.as_app().await;
            client.batch_execute("set lock_timeout = '40ms'").await.expect("a setting");
            writers.push(Writer { client, plan: None, next: 0, id: 0 });
        }
        let planner = Planner::new(rng.fork(), stage.tables.clone(), database.major);
        let boundaries = Boundaries::new(stage.clone(), database).await;
        World {
            stage,
            planner,
            boundaries,
            rng,
            writers,
            prepared: Vec::new(),
            database: database.name.clone(),
            next_id: 0,
            failed: 0,
            last_failure: String::new(),
            watched: 70,
        }
    }

    /// Begins this many transactions and runs their statements in turn; some stay open.
    pub async fn run(&mut self, transactions: usize) {
        let last = self.next_id + transactions as i64;
        while self.next_id < last {
            let number = self.rng.below(self.writers.len());
            if self.writers[number].plan.is_none() {
                let plan = self.planner.transaction();
                self.begin(number, plan).await;
            } else {
                self.step(number).await;
            }
            if !self.prepared.is_empty() && (self.prepared.len() > 2 || self.rng.chance(6)) {
                self.end_prepared().await;
            }
        }
    }

    /// One transaction from begin to end, without others in between.
    pub async fn transaction(&mut self, steps: &[&str]) {
        while self.writers[0].plan.is_some() {
            self.step(0).await;
        }
        let step = |sql: &&str| match sql.starts_with("truncate") {
            true => Step::Truncate((*sql).to_owned()),
            false => Step::Sql((*sql).to_owned()),
        };
        // It must succeed, also where a reader or a load holds a table for a while.
        let patience = Step::Sql("set local lock_timeout = '60s'".to_owned());
        let steps = std::iter::once(patience).chain(steps.iter().map(step)).collect();
        self.begin(0, Plan { steps, end: End::Commit }).await;
        let failed = self.failed;
        while self.writers[0].plan.is_some() {
            self.step(0).await;
        }
        assert_eq!(failed, self.failed, "a hand-written transaction failed: {}", self.last_failure);
    }

    /// Ends everything that is open.
    pub async fn finish(&mut self) {
        for number in 0..self.writers.len() {
            while self.writers[number].plan.is_some() {
                self.step(number).await;
            }
        }
        while !self.prepared.is_empty() {
            self.end_prepared().await;
        }
        self.boundaries.take().await;
        self.boundaries.drain().await;
    }

    async fn begin(&mut self, number: usize, plan: Plan) {
        self.next_id += 1;
        let writer = &mut self.writers[number];
        writer.client.batch_execute("begin").await.expect("a transaction begins");
        writer.plan = Some(plan);
        writer.next = 0;
        writer.id = self.next_id;
    }

    async fn step(&mut self, number: usize) {
        let writer = &self.writers[number];
        let Some(plan) = &writer.plan else { return };
        let Some(step) = plan.steps.get(writer.next).cloned() else { return self.end(number).await };
        self.writers[number].next += 1;
        match step {
            Step::Sql(sql) => {
                let result = self.writers[number].client.batch_execute(&sql).await;
                self.result(number, &sql, result).await;
            }
            Step::Copy(sql, data) => {
                let result = copy(&self.writers[number].client, &sql, data).await;
                self.result(number, &sql, result).await;
            }
            Step::Truncate(sql) => {
                self.boundaries.drain().await;
                let result = self.writers[number].client.batch_execute(&sql).await;
                self.result(number, &sql, result).await;
                // Nothing else commits until this transaction has ended.
                while self.writers[number].plan.is_some() {
                    Box::pin(self.step(number)).await;
                }
            }
        }
    }

    async fn result(&mut self, number: usize, sql: &str, result: Result<(), Error>) {
        let Err(error) = result else { return };
        self.failed += 1;
        self.last_failure = format!("{sql}: {error:?}");
        let writer = &mut self.writers[number];
        writer.plan = None;
        writer.client.batch_execute("rollback").await.expect("a transaction is rolled back");
    }

    async fn end(&mut self, number: usize) {
        let id = self.writers[number].id;
        let end = self.writers[number].plan.as_ref().map_or(End::Rollback, |p| p.end);
        let last = format!("insert into log_seq values ({id})");
        let result = self.writers[number].client.batch_execute(&last).await;
        self.result(number, &last, result).await;
        if self.writers[number].plan.take().is_none() {
            return;
        }
        let client = &self.writers[number].client;
        match end {
            End::Commit => {
                client.batch_execute("commit").await.expect("a commit");
                self.committed(id).await;
            }
            End::Rollback => client.batch_execute("rollback").await.expect("a rollback"),
            End::Prepare => {
                let gid = format!("{}_{id}", self.database);
                client.batch_execute(&format!("prepare transaction '{gid}'")).await.expect("is prepared");
                self.prepared.push((gid, id));
            }
        }
    }

    async fn end_prepared(&mut self) {
        let (gid, id) = self.prepared.swap_remove(self.rng.below(self.prepared.len()));
        // By a session without a transaction; there may be none at the moment.
        let Some(writer) = self.writers.iter().find(|w| w.plan.is_none()) else {
            self.prepared.push((gid, id));
            return;
        };
        if self.rng.chance(80) {
            writer.client.batch_execute(&format!("commit prepared '{gid}'")).await.expect("commits");
            self.committed(id).await;
        } else {
            writer.client.batch_execute(&format!("rollback prepared '{gid}'")).await.expect("rolls back");
        }
    }

    async fn committed(&mut self, id: i64) {
        self.boundaries.log.push(id);
        if self.rng.chance(self.watched) {
            self.boundaries.take().await;
        }
    }
}

async fn copy(client: &Client, sql: &str, data: String) -> Result<(), Error> {
    let sink = client.copy_in::<str, Bytes>(sql).await?;
    let mut sink = Box::pin(sink);
    sink.send(Bytes::from(data)).await?;
    sink.as_mut().finish().await.map(drop)
}

impl Drop for World {
    /// A prepared transaction would keep the database, its slot and the server's horizon.
    fn drop(&mut self) {
        if self.prepared.is_empty() {
            return;
        }
        let gids: Vec<String> = self.prepared.iter().map(|(gid, _)| gid.clone()).collect();
        eprintln!("left prepared by a failed test: {gids:?}");
    }
}

/// Deadline of everything that the sidecar does in a round.
pub const PATIENCE: Duration = Duration::from_secs(60);
