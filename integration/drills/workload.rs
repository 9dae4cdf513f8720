//! The application that writes while things happen.
//!
//! Two sessions change all sources: single rows and transactions over several tables, updates of keys, bags with equal
//! rows, rollbacks, savepoints. A session that is lost is opened again: servers stop and come back in drills.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};

use crate::harness::wait::wait_until;

use super::proof::PATIENCE;

const WRITERS: u64 = 2;

/// Writers that run until they are stopped.
pub struct Workload {
    stop: watch::Sender<bool>,
    committed: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

impl Workload {
    /// Starts to write to the database behind `url`, as its role.
    pub fn start(url: &str) -> Workload {
        let (stop, stopped) = watch::channel(false);
        let committed = Arc::new(AtomicU64::new(0));
        let writers = (0..WRITERS)
            .map(|number| tokio::spawn(write(url.to_owned(), number, committed.clone(), stopped.clone())))
            .collect();
        Workload { stop, committed, writers }
    }

    /// Waits until `count` more transactions have been committed.
    pub async fn progress(&self, count: u64) {
        let goal = self.committed.load(Ordering::Relaxed) + count;
        wait_until("the application's transactions", PATIENCE, || async {
            let now = self.committed.load(Ordering::Relaxed);
            if now >= goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
        })
        .await;
    }

    /// Ends the writers between two transactions; returns how many they have committed.
    pub async fn stop(self) -> u64 {
        self.stop.send_replace(true);
        for writer in self.writers {
            writer.await.expect("the writer ends");
        }
        self.committed.load(Ordering::Relaxed)
    }
}

async fn write(url: String, number: u64, committed: Arc<AtomicU64>, mut stopped: watch::Receiver<bool>) {
    let mut turn = number;
    let mut session: Option<Client> = None;
    while !*stopped.borrow() {
        let client = match session.take() {
            Some(client) if !client.is_closed() => client,
            _ => match tokio_postgres::connect(&url, NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    client
                }
                // The server is away; the pace below is that of trying again.
                Err(_) => {
                    pace(&mut stopped, 20).await;
                    continue;
                }
            },
        };
        if client.batch_execute(&transaction(turn)).await.is_ok() {
            committed.fetch_add(1, Ordering::Relaxed);
        } else {
            // A deadlock of the two, or the end of the server.
            let _ = client.batch_execute("rollback").await;
        }
        session = Some(client);
        turn += WRITERS;
        pace(&mut stopped, 4).await;
    }
}

/// The pace of the application: it must leave something of a small machine to others.
async fn pace(stopped: &mut watch::Receiver<bool>, milliseconds: u64) {
    let _ = tokio::time::timeout(Duration::from_millis(milliseconds), stopped.wait_for(|stop| *stop)).await;
}

/// The statements of one turn; `turn` decides everything.
pub fn transaction(turn: u64) -> String {
    let n = turn.wrapping_mul(2_654_435_761) % 1_000_003;
    let (a, b, c) = (n % 200 + 1, n % 2000 + 1, n % 97);
    match turn % 9 {
        0 => format!(
            "insert into orders (customer, amount, status) values ({a}, {c}.25, 'open'), ({a}, {c}.5, 'done')"
        ),
        1 => format!(
            "update orders set amount = amount + 0.75, status = 'open' where id between {b} and {b} + 2"
        ),
        2 => format!("delete from orders where id = {b}"),
        3 => format!("update customers set region = 'r{}' where id = {a}", n % 7),
        4 => {
            format!("insert into events (kind, value) select 'k' || i % 3, {c} from generate_series(1, 4) i")
        }
        5 => format!("delete from events where value = {c} and kind = 'k1'"),
        6 => format!(
            "begin; insert into customers (name, region) values ('new {turn}', 'r{}');
             insert into orders (customer, amount, status) select max(id), {c}, 'open' from customers;
             update events set value = value + 1 where value = {c}; commit",
            n % 7
        ),
        7 => format!(
            "begin; savepoint s; delete from customers where id = {a}; rollback to s;
             update customers set name = name || '.' where id = {a}; commit"
        ),
        _ => "begin; delete from orders; delete from events; rollback".to_owned(),
    }
}
