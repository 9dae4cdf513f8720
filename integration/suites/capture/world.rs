//! A small application that never stops writing: a keyed table and one without any identity.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::harness::oracle::assert_equal;
use crate::harness::{SOON, TestDatabase, wait_until};

const TABLES: &str = "
    create table accounts (id bigint primary key, holder text not null, amount numeric(12,2));
    create table holders (holder text primary key, city text);
    insert into accounts select i, 'h' || i % 20, i * 1.5 from generate_series(1, 500) i;
    insert into holders select 'h' || i, 'c' || i % 4 from generate_series(0, 19) i;
";

const WITHOUT_IDENTITY: &str = "
    create table events (kind text, v int);
    insert into events select 'k' || i % 5, i % 7 from generate_series(1, 300) i;
";

const QUERIES: &[(&str, &str, &str)] = &[
    ("rich", "select id, holder, amount from accounts where amount > 300", "id, holder, amount"),
    (
        "by_city",
        "select h.city, count(*) as n, sum(a.amount) as total from accounts a join holders h using (holder) group by h.city",
        "city, n, total",
    ),
    ("cities", "select distinct city from holders", "city"),
];

const QUERIES_WITHOUT_IDENTITY: &[(&str, &str, &str)] = &[
    ("kinds", "select kind, count(*) as n, sum(v) as total from events group by kind", "kind, n, total"),
    ("some_events", "select kind, v from events where v > 2", "kind, v"),
];

/// The application and its stream tables.
pub struct World {
    pub app: Client,
    with_events: bool,
}

impl World {
    /// Tables; with one that has no identity if asked for.
    pub async fn new(db: &TestDatabase, with_events: bool) -> World {
        let app = db.as_app().await;
        app.batch_execute(TABLES).await.unwrap();
        if with_events {
            app.batch_execute(WITHOUT_IDENTITY).await.unwrap();
        }
        World { app, with_events }
    }

    /// The same application after its server was restarted.
    pub async fn again(db: &TestDatabase, with_events: bool) -> World {
        World { app: db.as_app().await, with_events }
    }

    fn queries(&self) -> impl Iterator<Item = &'static (&'static str, &'static str, &'static str)> {
        let more = if self.with_events { QUERIES_WITHOUT_IDENTITY } else { &[] };
        QUERIES.iter().chain(more)
    }

    pub async fn create(&self) {
        for (name, query, _) in self.queries() {
            self.app.execute("select pgtrickle.create_stream_table($1, $2)", &[name, query]).await.unwrap();
        }
    }

    /// All stream tables are maintained incrementally.
    pub async fn active(&self) {
        wait_until("all stream tables are active", SOON, || async {
            const SQL: &str = "select string_agg(concat_ws(' ', name, status, refresh_mode, refresh_reason, last_error_message), ', ')
                from pgtrickle.pgt_status() where status <> 'ACTIVE' or refresh_mode <> 'DIFFERENTIAL'";
            match self.app.query_one(SQL, &[]).await.unwrap().get::<_, Option<String>>(0) {
                None => Ok(()),
                Some(others) => Err(others),
            }
        })
        .await;
    }

    /// Everything written before is in, and every stream table equals its query.
    pub async fn check(&self) {
        wait_until("the frontier passes", SOON, || async {
            match self.app.query_one("select pgtrickle.wait_for(timeout => '5 s')", &[]).await {
                Ok(row) if row.get(0) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        for (name, query, columns) in self.queries() {
            assert_equal(&self.app, query, name, columns).await;
        }
    }

    /// Starts `count` writers.
    pub async fn writers(&self, db: &TestDatabase, count: u64) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let commits = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for number in 0..count {
            let (client, stop, commits) = (db.as_app().await, stop.clone(), commits.clone());
            let events = self.with_events;
            tasks.push(tokio::spawn(async move { write(client, number, events, &stop, &commits).await }));
        }
        Writers { stop, commits, tasks }
    }
}

/// Running writers; [`Writers::stop`] ends them and says how many transactions they committed.
pub struct Writers {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Waits until so many more transactions have been committed.
    pub async fn more(&self, count: u64) {
        let target = self.commits.load(Ordering::Relaxed) + count;
        wait_until("the writers go on", SOON, || async {
            let now = self.commits.load(Ordering::Relaxed);
            if now >= target { Ok(()) } else { Err(format!("{now} commits of {target}")) }
        })
        .await;
    }

    pub async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a writer never fails");
        }
        self.commits.load(Ordering::Relaxed)
    }
}

/// Writes until it is told to stop. A statement that fails because of us fails the test.
async fn write(client: Client, number: u64, events: bool, stop: &AtomicBool, commits: &AtomicU64) {
    let mut state = number * 7919 + 17;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    // Keys of its own, also against writers of an earlier round.
    static WRITER: AtomicU64 = AtomicU64::new(1);
    let base = WRITER.fetch_add(1, Ordering::Relaxed) * 1_000_000;
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        next += 1;
        let (id, other, own) = (random(700), random(20), base + next);
        let statement = match random(10) {
            0 => format!("insert into accounts values ({own}, 'h{other}', {id})"),
            1 => format!("delete from accounts where id = {id}"),
            2 => format!(
                "update accounts set amount = amount + 1 where holder = 'h{other}' and (id / 20) % 4 = {}",
                number % 4
            ),
            3 => format!("update accounts set id = {own} where id = {id}"),
            4 => format!(
                "begin; insert into accounts values ({own}, 'x', 1); savepoint a; update accounts set amount = 900 where id = {own}; rollback to a; commit"
            ),
            5 => format!(
                "begin; update holders set city = 'c' || {} where holder = 'h{other}'; rollback",
                random(9)
            ),
            6 => format!("update holders set city = 'c{}' where holder = 'h{other}'", random(6)),
            7 if events => {
                format!("insert into events select 'k{other}', {} from generate_series(1, 3)", random(9))
            }
            8 if events => format!("update events set v = v + 1 where kind = 'k{}' and v < 20", random(5)),
            9 if events => format!(
                "delete from events where ctid in (select ctid from events where v = {} limit 2)",
                random(9)
            ),
            _ => format!(
                "insert into accounts values ({own}, 'h{other}', {id}) on conflict (id) do update set amount = 0"
            ),
        };
        match client.batch_execute(&statement).await {
            Ok(()) => drop(commits.fetch_add(1, Ordering::Relaxed)),
            Err(e) => {
                let state = e.as_db_error().map(|d| d.code().code().to_owned()).unwrap_or_default();
                assert!(state == "40P01", "{statement} failed: {e:?}");
                client.batch_execute("rollback").await.expect("a rollback");
            }
        }
    }
}
