//! The check in the middle: at every moment the stream tables show one commit boundary.
//!
//! How it is sound. The harness runs all statements of all writers from one task, one after the other, so it knows the
//! order of the commits: that of its own log. Each transaction writes its number into `log_seq`. Right after a commit
//! has returned, and before anything else may commit, a session of a pool takes a REPEATABLE READ snapshot: it contains
//! exactly the commits of the log so far (checked against `log_seq` in that very snapshot). The answers of all queries
//! are computed in it afterwards, while the writers go on; stream tables that queries read are replaced by the views that
//! define them, so nothing of the sidecar takes part. That gives the right answers of boundary 0, 1, 2 ...
//! A reader takes all stream tables in one snapshot, `seen` (a stream table of `select id from log_seq`) among them. It
//! must hold exactly a prefix of the log; its length names the boundary, and every stream table must equal the answer of
//! that boundary.
//!
//! TRUNCATE is the exception to snapshots: an older one finds the table empty. So a transaction that truncates first
//! waits until no answer is being computed, and nothing else commits until it ends.
//!
//! Boundaries without answers (bursts, where taking snapshots would slow the writers down) are checked for the prefix.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::answers::{Answer, differences, read};
use super::stage::{Stage, Stream};
use crate::harness::TestDatabase;

const SESSIONS: usize = 5;
/// The stream table of all numbers of transactions.
pub const SEEN: &str = "seen";

/// Right answers by number of commits.
pub type Answers = Arc<Mutex<BTreeMap<usize, Vec<Answer>>>>;

/// Computes the right answers after chosen commits.
pub struct Boundaries {
    stage: Arc<Stage>,
    pub log: Vec<i64>,
    pub answers: Answers,
    free: mpsc::Receiver<Client>,
    give: mpsc::Sender<Client>,
}

impl Boundaries {
    pub async fn new(stage: Arc<Stage>, database: &TestDatabase) -> Boundaries {
        let (give, free) = mpsc::channel(SESSIONS);
        for _ in 0..SESSIONS {
            let session = database.as_app().await;
            // Tables without statistics after a large transaction: no loops over thousands times thousands.
            session.batch_execute("set enable_nestloop = off; set jit = off").await.expect("settings");
            give.send(session).await.expect("room for a session");
        }
        Boundaries { stage, log: Vec::new(), answers: Answers::default(), free, give }
    }

    /// Takes the snapshot of the present boundary and computes its answers beside the writers.
    pub async fn take(&mut self) {
        let client = self.free.recv().await.expect("a session for answers");
        // SELECT takes the snapshot; BEGIN does not.
        client.batch_execute("begin isolation level repeatable read; select 1").await.expect("a snapshot");
        let (stage, answers, give) = (self.stage.clone(), self.answers.clone(), self.give.clone());
        let number = self.log.len();
        tokio::spawn(async move {
            let of: Vec<(&Stream, String)> =
                stage.streams.iter().map(|s| (s, format!("ref_{}", s.name))).collect();
            let (ids, found) = read(&client, "log_seq", &of).await.expect("the answers of a boundary");
            assert_eq!(ids.len(), number, "a snapshot of the harness is not at its boundary");
            client.batch_execute("commit").await.expect("the end of a snapshot");
            keep(&answers, number, found);
            let _ = give.send(client).await;
        });
    }

    /// Waits until no answer is being computed.
    pub async fn drain(&mut self) {
        let mut sessions = Vec::new();
        for _ in 0..SESSIONS {
            let session = tokio::time::timeout(Duration::from_secs(120), self.free.recv()).await;
            sessions.push(session.expect("answers end within two minutes").expect("a session"));
        }
        for session in sessions {
            let _ = self.give.send(session).await;
        }
    }
}

/// Most answers do not change from one boundary to the next: those share their rows.
fn keep(answers: &Answers, number: usize, mut found: Vec<Answer>) {
    let mut all = answers.lock().expect("the answers");
    if let Some((_, before)) = all.range(..number).next_back() {
        for (new, old) in found.iter_mut().zip(before) {
            if new == old {
                *new = old.clone();
            }
        }
    }
    all.insert(number, found);
}

/// How many stream tables had more than one answer: a round in which nothing changes proves nothing.
pub fn changing(answers: &Answers) -> usize {
    let answers = answers.lock().expect("the answers");
    let Some(first) = answers.values().next() else { return 0 };
    (0..first.len()).filter(|i| answers.values().any(|a| a[*i] != first[*i])).count()
}

/// What one snapshot of a reader showed.
pub struct Observation {
    ids: Vec<i64>,
    /// By index of the stream table.
    tables: Vec<(usize, Answer)>,
}

/// Reads `seen` and all active stream tables in one snapshot. `None`: one was dropped meanwhile, or `seen` is not
/// active.
pub async fn observe(client: &Client, stage: &Stage) -> Option<Observation> {
    client.batch_execute("begin isolation level repeatable read").await.expect("a reader's transaction");
    let active = "select pgt_name from pgtrickle.pgt_stream_tables
        where status = 'ACTIVE' and is_populated and refresh_mode = 'DIFFERENTIAL'";
    let rows = client.query(active, &[]).await.expect("the catalog can be read");
    let active: HashSet<String> = rows.iter().map(|r| r.get(0)).collect();
    let shown: Vec<usize> =
        (0..stage.streams.len()).filter(|i| active.contains(&stage.streams[*i].name)).collect();
    let of: Vec<(&Stream, String)> =
        shown.iter().map(|i| (&stage.streams[*i], stage.streams[*i].name.clone())).collect();
    let result = if active.contains(SEEN) { read(client, SEEN, &of).await.ok() } else { None };
    client.batch_execute("rollback").await.expect("the end of a reader's transaction");
    result.map(|(ids, answers)| Observation { ids, tables: shown.into_iter().zip(answers).collect() })
}

/// Reads again and again until it is stopped.
pub struct Reader {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<Observation>>,
}

impl Reader {
    pub async fn start(stage: Arc<Stage>, database: &TestDatabase) -> Reader {
        let client = database.as_app().await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut all: Vec<Observation> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                if let Some(new) = observe(&client, &stage).await {
                    let same = |old: &Observation| old.ids.len() == new.ids.len() && old.tables == new.tables;
                    if !all.last().is_some_and(same) {
                        all.push(new);
                    }
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            all
        });
        Reader { stop, task }
    }

    pub async fn finish(self) -> Vec<Observation> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the reader ends")
    }
}

/// Fails when an observation is not one commit boundary; returns how many tables were compared.
pub fn verify(stage: &Stage, log: &[i64], answers: &Answers, observations: &[Observation]) -> usize {
    // A failure of an earlier check does not make them wrong.
    let answers = answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut compared = 0;
    let mut faults: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for seen in observations {
        let number = seen.ids.len();
        let shown: HashSet<i64> = seen.ids.iter().copied().collect();
        if number > log.len() || shown != log[..number].iter().copied().collect() {
            let strange: Vec<i64> =
                log.iter().take(number).filter(|id| !shown.contains(id)).copied().collect();
            stage.fail(&format!(
                "seen holds {number} transactions which are not the first {number} of the {} committed ones; \
                 of those it lacks {strange:?}",
                log.len()
            ));
        }
        let Some(right) = answers.get(&number) else { continue };
        for (index, actual) in &seen.tables {
            compared += 1;
            let expected = &right[*index];
            if expected == actual {
                continue;
            }
            let stream = &stage.streams[*index];
            let rows = differences(expected, actual);
            // An answer of another commit is a table that was left behind; anything else is a wrong one.
            let other = answers.iter().rev().find(|(_, right)| right[*index] == *actual);
            let other = other.map_or("of no commit".to_owned(), |(commit, _)| format!("of commit {commit}"));
            let text = format!(
                "{} differs at commit {number} of {} (it is the answer {other}): {} rows instead of {}, \
                 {} differences:\n  {}\nquery: {}",
                stream.name,
                log.len(),
                actual.len(),
                expected.len(),
                rows.len(),
                rows.iter().take(6).cloned().collect::<Vec<_>>().join("\n  "),
                stream.query.stored()
            );
            faults.entry(stream.name.clone()).or_insert((0, text)).0 += 1;
        }
    }
    if !faults.is_empty() {
        let texts: Vec<String> =
            faults.values().map(|(count, text)| format!("({count} times, first:) {text}")).collect();
        stage.fail(&texts.join("\n\n"));
    }
    compared
}

impl Observation {
    /// How many commits it contains.
    pub fn commits(&self) -> usize {
        self.ids.len()
    }

    /// How many stream tables it shows.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }
}
