//! What capture may cost while nobody reads it.

use super::world::{World, Writers};
use super::{becomes, text};
use crate::harness::servers::{SUPERUSER, Server, each, own_cluster};
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major};

/// About 3 MB of WAL.
const NOISE: &str = "create table if not exists noise (t text); insert into noise select repeat(md5(i::text), 30) from generate_series(1, 3000) i";

#[tokio::test(flavor = "multi_thread")]
async fn a_buffer_that_nobody_reads_stays_bounded_and_the_return_repairs_by_difference() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let world = World::new(&db, true).await;
        let dba = db.as_dba().await;
        dba.batch_execute("insert into pgtrickle.settings values ('buffer_limit_mb', '1')").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &["--cdc-mode", "trigger"]);
        sidecar.wait_ready(SOON).await;
        world.create().await;
        world.active().await;
        sidecar.kill9();
        // Far more than the bound; old transactions meet the mark as well.
        let old = db.as_app().await;
        old.batch_execute("begin isolation level repeatable read; select count(*) from accounts")
            .await
            .unwrap();
        for _ in 0..30 {
            world.app.batch_execute("update accounts set amount = amount + 1").await.unwrap();
        }
        let insert = "insert into events select 'big', i from generate_series(1, 40000) i";
        world.app.batch_execute(insert).await.unwrap();
        world.app.batch_execute(insert).await.unwrap();
        world.app.batch_execute("update events set v = v + 1 where kind = 'big'").await.unwrap();
        let largest = "select max(pg_relation_size(oid)) / 1048576 || ' MB'
            from pg_class where relnamespace = 'pgtrickle_changes'::regnamespace and relkind = 'r'";
        let size = text(&dba, largest).await;
        println!("  largest buffer after 160 000 changes: {size}");
        let marks: i64 = rows(&dba, "where op = 'G'").await.into_iter().sum();
        assert_eq!(marks, 2, "two sources have passed the bound, and each is marked once");
        let writers = world.writers(&db, 3).await;
        sidecar.start_again();
        writers.more(100).await;
        // It read nothing so far, so its snapshot shows the mark; what it writes now is recorded all the same.
        old.batch_execute("insert into events values ('old', 3); commit").await.unwrap();
        writers.more(100).await;
        writers.stop().await;
        world.active().await;
        world.check().await;
        becomes(
            &dba,
            "select (max(pg_relation_size(oid)) < 8 * 1048576)::text from pg_class
            where relnamespace = 'pgtrickle_changes'::regnamespace and relkind = 'r'",
            "true",
        )
        .await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_heartbeat_for_long_nothing_is_recorded() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let world = World::new(&db, false).await;
        let dba = db.as_dba().await;
        let mut sidecar = Sidecar::start(&db, &["--cdc-mode", "trigger"]);
        sidecar.wait_ready(SOON).await;
        world.create().await;
        world.active().await;
        sidecar.kill9();
        // A week passes.
        dba.batch_execute(
            "update pgtrickle.pgt_pipelines set heartbeat_at = heartbeat_at - interval '7 days'",
        )
        .await
        .unwrap();
        let writers = world.writers(&db, 3).await;
        writers.more(300).await;
        let most = rows(&dba, "").await.into_iter().max().unwrap();
        println!("  rows in the fullest buffer after 300 transactions of a week without a sidecar: {most}");
        assert!(most <= 6, "{most} rows were recorded");
        sidecar.start_again();
        writers.more(100).await;
        writers.stop().await;
        world.active().await;
        world.check().await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_past_its_thresholds_is_told_once_and_given_up_where_the_policy_says_so() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let world = World::new(&db, false).await;
        let dba = db.as_dba().await;
        dba.batch_execute(
            "insert into pgtrickle.settings values ('slot_lag_warning_threshold_mb', '2'),
                ('slot_lag_critical_threshold_mb', '8'), ('slot_return_after', '3 s')",
        )
        .await
        .unwrap();
        let mut listener = Listener::start(&db).await;
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        world.create().await;
        world.active().await;
        // An open transaction holds the slot back while others write.
        let old = db.as_app().await;
        let hold = "begin; update accounts set amount = amount where id = 1";
        old.batch_execute(hold).await.unwrap();
        dba.batch_execute(NOISE).await.unwrap();
        assert_eq!(listener.next().await, "slot_lag_warning");
        for _ in 0..3 {
            dba.batch_execute(NOISE).await.unwrap();
        }
        assert_eq!(listener.next().await, "slot_lag_critical");
        old.batch_execute("commit").await.unwrap();
        becomes(&dba, "select (pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) < 1000000)::text from pg_replication_slots", "true").await;
        assert_eq!(listener.next().await, "slot_lag_resolved");
        // The same with the policy that gives the slot up.
        dba.batch_execute("insert into pgtrickle.settings values ('slot_policy', 'shed')").await.unwrap();
        old.batch_execute(hold).await.unwrap();
        write_wal(&dba).await;
        becomes(&dba, SLOTS, "0").await;
        let writers = world.writers(&db, 2).await;
        writers.more(50).await;
        old.batch_execute("commit").await.unwrap();
        becomes(&dba, super::CAPTURE, "wal").await;
        writers.more(50).await;
        writers.stop().await;
        world.active().await;
        world.check().await;
        assert_eq!(text(&dba, super::WARNINGS).await, "SLOT_SHED app.accounts, SLOT_SHED app.holders");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A slot that waits for an open transaction before it exists keeps WAL as one that is read does.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_waits_to_be_made_past_the_threshold_is_given_up_too() {
    each(async |major| {
        let case = Case::new(major).await;
        let old = case.open_elsewhere().await;
        let mut sidecar = Sidecar::start(&case.db, &[]);
        becomes(&case.dba, SLOTS, "1").await;
        write_wal(&case.dba).await;
        becomes(
            &case.dba,
            "select coalesce(delivery, '') || ' ' || (slot_shed_at is not null) from pgtrickle.pgt_pipelines",
            "poll true",
        )
        .await;
        let reason = text(&case.dba, "select delivery_reason from pgtrickle.pgt_pipelines").await;
        assert!(reason.contains("waits for open transactions") && reason.contains("given up"), "{reason}");
        assert_eq!(text(&case.dba, SLOTS).await, "0");
        sidecar.wait_ready(SOON).await;
        case.world.create().await;
        case.world.active().await;
        let writers = case.world.writers(&case.db, 2).await;
        writers.more(50).await;
        old.batch_execute("commit").await.unwrap();
        case.ends_with_wal(writers, sidecar).await;
    })
    .await;
}

/// Whoever leaves takes with him what he waits for: made later, the slot would keep WAL for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_waits_to_be_made_goes_with_a_detach() {
    each(async |major| {
        let case = Case::new(major).await;
        let (old, sidecar) = case.waits_for_its_slot().await;
        case.dba.batch_execute("select pgtrickle.detach()").await.unwrap();
        becomes(&case.dba, SLOTS, "0").await;
        case.dba.batch_execute("select pgtrickle.attach()").await.unwrap();
        becomes(&case.dba, SLOTS, "1").await;
        let writers = case.world.writers(&case.db, 2).await;
        writers.more(50).await;
        // The session that makes it is ended: another one follows, and nobody starts anew.
        let generation = "select generation::text from pgtrickle.pgt_pipelines";
        let before = text(&case.dba, generation).await;
        case.dba
            .batch_execute("select pg_terminate_backend(active_pid) from pg_replication_slots")
            .await
            .unwrap();
        becomes(&case.dba, SLOTS, "0").await;
        becomes(&case.dba, SLOTS, "1").await;
        old.batch_execute("commit").await.unwrap();
        becomes(&case.dba, super::CAPTURE, "wal").await;
        assert_eq!(text(&case.dba, generation).await, before, "{}", sidecar.logs());
        case.ends_with_wal(writers, sidecar).await;
    })
    .await;
}

/// While something is prepared the stream does not take over from the buffers: the slot that is ready must not keep WAL, and
/// must not be left either until the preparation ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_ready_and_not_used_past_the_threshold_is_given_up() {
    each(async |major| {
        let case = Case::new(major).await;
        case.world
            .app
            .batch_execute(
                "create table large (id int primary key, body text);
                 insert into large select i, repeat('x', 1000) from generate_series(1, 40000) i",
            )
            .await
            .unwrap();
        let (old, sidecar) = case.waits_for_its_slot().await;
        case.dba
            .batch_execute("insert into pgtrickle.settings values ('hydrate_rate_mb', '1')")
            .await
            .unwrap();
        // At that rate it takes 40 seconds. Filled at once, it would be WAL enough to give the slot up while it still waits.
        let create =
            "select pgtrickle.create_stream_table('slow', 'select id, body from large', initialize => false)";
        case.world.app.batch_execute(create).await.unwrap();
        const LOADING: &str =
            "select count(*) || '' from pg_stat_activity where application_name = 'pgtrickle:main:hydrate'
            and datname = current_database()";
        becomes(&case.dba, LOADING, "1").await;
        old.batch_execute("commit").await.unwrap();
        const READY: &str = "select count(*) || '' from pg_stat_replication where state = 'streaming'";
        becomes(&case.dba, READY, "1").await;
        // An apply that takes long holds this row: the loop does not wait for it, and comes back.
        let holder = case.db.as_dba().await;
        holder.batch_execute("begin; select from pgtrickle.pgt_pipelines for update").await.unwrap();
        let generation = "select generation::text from pgtrickle.pgt_pipelines";
        let before = text(&case.dba, generation).await;
        write_wal(&case.dba).await;
        for _ in 0..4 {
            let now = text(&case.dba, "select clock_timestamp()::text").await;
            let turned = format!(
                "select bool_or(query_start > '{now}')::text from pg_stat_activity
                 where application_name = 'pgtrickle:main:control' and datname = current_database()"
            );
            becomes(&case.dba, &turned, "true").await;
        }
        holder.batch_execute("commit").await.unwrap();
        becomes(&case.dba, SLOTS, "0").await;
        assert_eq!(text(&case.dba, LOADING).await, "1", "the slot was kept until everything was loaded");
        assert!(sidecar.logs().contains("before it is used"), "{}", sidecar.logs());
        assert_eq!(text(&case.dba, generation).await, before, "{}", sidecar.logs());
        becomes(
            &case.dba,
            "select status from pgtrickle.pgt_stream_tables where pgt_name = 'slow'",
            "ACTIVE",
        )
        .await;
        let writers = case.world.writers(&case.db, 2).await;
        case.ends_with_wal(writers, sidecar).await;
    })
    .await;
}

const SLOTS: &str = "select count(*) || '' from pg_replication_slots";

/// More WAL than the threshold of a [`Case`], about nothing that anybody reads.
async fn write_wal(client: &tokio_postgres::Client) {
    for _ in 0..4 {
        client.batch_execute(NOISE).await.unwrap();
    }
}

/// A cluster of its own with little room for WAL. What is first here goes first.
struct Case {
    dba: tokio_postgres::Client,
    world: World,
    elsewhere: TestDatabase,
    db: TestDatabase,
    _server: Server,
}

impl Case {
    async fn new(major: u32) -> Case {
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        db.install();
        let world = World::new(&db, false).await;
        let dba = db.as_dba().await;
        dba.batch_execute(
            "insert into pgtrickle.settings values ('slot_lag_critical_threshold_mb', '8'), ('slot_return_after', '3 s')",
        )
        .await
        .unwrap();
        Case { dba, world, elsewhere: TestDatabase::create(&server).await, db, _server: server }
    }

    /// An open transaction that every new slot waits for.
    async fn open_elsewhere(&self) -> tokio_postgres::Client {
        let old = self.elsewhere.as_dba().await;
        old.batch_execute("begin; select txid_current()").await.unwrap();
        old
    }

    /// Stream tables that are captured by triggers, and a sidecar on its way back to the WAL that waits for that transaction.
    async fn waits_for_its_slot(&self) -> (tokio_postgres::Client, Sidecar) {
        let mut sidecar = Sidecar::start(&self.db, &["--cdc-mode", "trigger"]);
        sidecar.wait_ready(SOON).await;
        self.world.create().await;
        self.world.active().await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        let old = self.open_elsewhere().await;
        let mut sidecar = Sidecar::start(&self.db, &["--cdc-mode", "auto"]);
        sidecar.wait_ready(SOON).await;
        becomes(&self.dba, SLOTS, "1").await;
        (old, sidecar)
    }

    /// Changes come from the WAL again, and nothing was lost on the way.
    async fn ends_with_wal(self, writers: Writers, mut sidecar: Sidecar) {
        becomes(&self.dba, super::CAPTURE, "wal").await;
        writers.more(50).await;
        writers.stop().await;
        self.world.active().await;
        self.world.check().await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    }
}

/// Rows of each change buffer that fulfil a condition.
async fn rows(client: &tokio_postgres::Client, condition: &str) -> Vec<i64> {
    const BUFFERS: &str = "select oid::regclass::text from pg_class where relnamespace = 'pgtrickle_changes'::regnamespace and relkind = 'r'";
    let mut counts = Vec::new();
    for buffer in client.query(BUFFERS, &[]).await.unwrap() {
        let sql = format!("select count(*) from {} {condition}", buffer.get::<_, String>(0));
        counts.push(client.query_one(&sql, &[]).await.unwrap().get(0));
    }
    counts
}

/// Events of the channel `pg_trickle_alert`.
struct Listener {
    events: tokio::sync::mpsc::UnboundedReceiver<String>,
    _client: tokio_postgres::Client,
}

impl Listener {
    async fn start(db: &TestDatabase) -> Listener {
        let (client, mut connection) =
            tokio_postgres::connect(&db.url(SUPERUSER), tokio_postgres::NoTls).await.unwrap();
        let (sender, events) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                if let tokio_postgres::AsyncMessage::Notification(n) = message {
                    let payload: serde_json::Value = serde_json::from_str(n.payload()).unwrap();
                    // The test may have ended.
                    let _ = sender.send(payload["event"].as_str().unwrap_or("none").to_owned());
                }
            }
        });
        client.batch_execute("listen pg_trickle_alert").await.unwrap();
        Listener { events, _client: client }
    }

    async fn next(&mut self) -> String {
        tokio::time::timeout(SOON, self.events.recv()).await.expect("an alert within the deadline").unwrap()
    }
}
