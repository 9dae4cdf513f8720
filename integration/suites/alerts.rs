//! Alerts on the channel `pg_trickle_alert`: one per cause, taken back when it is over, silent about what is planned.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::AsyncMessage;

use super::hazards::Scene;
use super::snapshots::value;
use crate::harness::servers::{SUPERUSER, each, own_cluster};
use crate::harness::{SOON, TestDatabase, for_each_major, wait_until};

/// What has been told since the start.
pub(super) struct Listener {
    events: tokio::sync::mpsc::UnboundedReceiver<Value>,
    pub(super) all: Vec<Value>,
    _client: tokio_postgres::Client,
}

impl Listener {
    pub(super) async fn start(db: &TestDatabase) -> Listener {
        let (client, mut connection) =
            tokio_postgres::connect(&db.url(SUPERUSER), tokio_postgres::NoTls).await.unwrap();
        let (sender, events) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(n) = message {
                    // The test may have ended.
                    let _ = sender.send(serde_json::from_str(n.payload()).unwrap());
                }
            }
        });
        client.batch_execute("listen pg_trickle_alert").await.unwrap();
        Listener { events, all: Vec::new(), _client: client }
    }

    /// Takes what has come.
    pub(super) fn take(&mut self) -> &[Value] {
        while let Ok(event) = self.events.try_recv() {
            self.all.push(event);
        }
        &self.all
    }

    fn names(&mut self) -> Vec<String> {
        self.take().iter().map(|e| e["event"].as_str().unwrap_or("none").to_owned()).collect()
    }

    /// Waits for an event and returns it.
    async fn wait(&mut self, event: &str) -> Value {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(found) = self.take().iter().find(|e| e["event"] == event) {
                return found.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.events.recv()).await {
                Ok(Some(next)) => self.all.push(next),
                _ => panic!("waited {SOON:?} for {event}; told so far: {:?}", self.names()),
            }
        }
    }
}

/// Nothing waits long before it is told.
const AT_ONCE: &str = "insert into pgtrickle.settings values ('alert_after', '1 s')";

async fn scene(server: &crate::harness::Server, arguments: &[&str]) -> Scene {
    let scene = Scene::start_with(
        server,
        "create table t (id int primary key, v int not null); insert into t values (1, 1)",
        arguments,
    )
    .await;
    scene.dba.batch_execute(AT_ONCE).await.unwrap();
    scene.create("st", "select id, v from t").await;
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_table_that_fails_is_told_once_also_across_a_restart_and_taken_back() {
    for_each_major(async |server| {
        let mut scene = scene(server, &[]).await;
        let mut listener = Listener::start(&scene.db).await;
        scene.create("quotients", "select id, 10 / v as q from t").await;
        scene.run("update t set v = 0").await;
        let told = listener.wait("auto_suspended").await;
        assert_eq!(
            (&told["status"], &told["severity"], &told["st"], &told["pgt_name"], &told["sqlstate"]),
            (
                &"firing".into(),
                &"critical".into(),
                &"app.quotients".into(),
                &"quotients".into(),
                &"22012".into()
            ),
            "{told:#}"
        );
        assert!(told["runbook"].as_str().unwrap().ends_with("#stream_table"), "{told:#}");
        assert_eq!(
            value(
                &scene.dba,
                "select event || ' ' || severity from pgtrickle.pgt_alerts where cause = 'stream_table'"
            )
            .await,
            "auto_suspended critical"
        );
        // Another process finds it told.
        scene.sidecar.kill9();
        scene.sidecar.start_again();
        scene.check_in_time(&["st"]).await;
        scene.run("update t set v = 5; select pgtrickle.resume_stream_table('quotients')").await;
        let resolved = listener.wait("stream_table_resolved").await;
        assert_eq!(resolved["status"], "resolved", "{resolved:#}");
        let names = listener.names();
        assert_eq!(names.iter().filter(|n| *n == "auto_suspended").count(), 1, "{names:?}");
        assert_eq!(
            value(&scene.dba, "select count(*) from pgtrickle.pgt_alerts where cause = 'stream_table'").await,
            "0"
        );
        wait_until("the log to tell it too", SOON, || async {
            if scene.sidecar.logs().contains("alert resolved: ") { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_is_one_incident_with_an_end() {
    for_each_major(async |server| {
        let mut scene = scene(server, &[]).await;
        scene.run("create table u (id int primary key); insert into u values (1)").await;
        scene.create("su", "select id from u").await;
        let mut listener = Listener::start(&scene.db).await;
        scene.sidecar.kill9();
        let drop_slot = "select pg_drop_replication_slot(slot_name) from pgtrickle.pgt_pipelines";
        wait_until("the slot to be dropped", SOON, || async {
            scene.dba.batch_execute(drop_slot).await.map_err(|e| e.to_string())
        })
        .await;
        scene.sidecar.start_again();
        let told = listener.wait("reinitialize_needed").await;
        assert_eq!((&told["diagnosis"], &told["sources"]), (&"SLOT_MISSING".into(), &2.into()), "{told:#}");
        assert!(!told.to_string().contains("app.t"), "names of sources are not for everybody: {told:#}");
        scene.check_in_time(&["st", "su"]).await;
        let resolved = listener.wait("recovery_resolved").await;
        assert_eq!(
            (&resolved["status"], &resolved["sources"]),
            (&"resolved".into(), &2.into()),
            "{resolved:#}"
        );
        let names = listener.names();
        assert_eq!(names.iter().filter(|n| *n == "reinitialize_needed").count(), 1, "{names:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_by_triggers_out_of_need_and_its_growing_buffer_are_told() {
    each(async |major| {
        let server = own_cluster(major, &[("wal_level", "replica")]).await;
        let scene = scene(&server, &[]).await;
        let mut listener = Listener::start(&scene.db).await;
        let told = listener.wait("capture_by_triggers").await;
        assert!(told["reason"].as_str().unwrap().contains("wal_level"), "{told:#}");
        // A sidecar that lives and takes nothing in: what is the case, as it would see it itself.
        scene
            .dba
            .batch_execute("update pgtrickle.pgt_pipelines set buffer_limit = 1048576")
            .await
            .unwrap();
        scene.sidecar.pause();
        let fill = "insert into t select m.id + i, 1 from (select max(id) as id from t) m, generate_series(1, 500) i";
        let facts = "select coalesce(string_agg(f ->> 'event', ' '), 'nothing')
            from jsonb_array_elements(pgtrickle._alert_facts('main') -> 'facts') f where f ->> 'cause' = 'buffer_growth'
             and not (f ->> 'held')::boolean";
        wait_until("the buffer to be told", SOON, || async {
            scene.run(fill).await;
            let told = value(&scene.dba, facts).await;
            if told == "buffer_growth_warning" { Ok(()) } else { Err(told) }
        })
        .await;
        scene.sidecar.resume();
        scene.check_in_time(&["st"]).await;
    })
    .await;
}

/// How long nothing may be told: `PGTRICKLE_SOAK_SECONDS`, else a short while.
fn soak() -> Duration {
    let seconds = std::env::var("PGTRICKLE_SOAK_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// What a shop keeps: tables that do not grow, so that memory must not either.
const SHOP: &str = "
    create table customers (id int primary key, city text);
    create table orders (id int primary key, customer_id int not null, amount int not null, note text);
    insert into customers select i, 'city ' || i % 20 from generate_series(1, 500) i;
    insert into orders select i, i % 500 + 1, i % 100, 'note ' || i from generate_series(1, 5000) i";

/// Name, schedule, query: followed, followed through a join, by PostgreSQL's functions, of another one, by a schedule,
/// and recomputed.
const KEPT: [(&str, &str, &str); 6] = [
    ("large_orders", "calculated", "select id, customer_id, amount from orders where amount > 50"),
    (
        "per_city",
        "calculated",
        "select c.city, count(*) as orders, sum(o.amount) as amount, max(o.amount) as largest
           from customers c join orders o on o.customer_id = c.id group by c.city",
    ),
    ("notes", "calculated", "select id, md5(note) as note from orders"),
    ("best_cities", "calculated", "select city, amount from per_city order by amount desc, city limit 5"),
    ("by_schedule", "5s", "select customer_id, count(*) as orders from orders group by customer_id"),
    ("recomputed", "10s", "select count(*) as orders, now() - now() as nothing from orders"),
];

/// One order comes, one goes, one changes.
const TRADE: &str = "
    with gone as (delete from orders where id = (select min(id) from orders) returning customer_id)
    insert into orders select (select max(id) + 1 from orders), customer_id, (random() * 100)::int, 'new' from gone;
    update orders set amount = (random() * 100)::int, note = 'changed ' || amount
     where id = (select min(id) from orders) + (random() * 4000)::int";

/// Resident memory of a process, in MiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_pipeline_a_restart_and_a_pause_tell_nothing() {
    for_each_major(async |server| {
        let mut scene = Scene::start(server, SHOP).await;
        for (name, schedule, query) in KEPT {
            let create = "select pgtrickle.create_stream_table($1, $2, schedule => $3)";
            scene.app.execute(create, &[&name, &query, &schedule]).await.unwrap();
            scene.wait_status(name, "ACTIVE").await;
        }
        let followed = ["large_orders", "per_city", "notes", "best_cities"];
        scene.check_in_time(&followed).await;
        let mut listener = Listener::start(&scene.db).await;
        let (length, start) = (soak(), Instant::now());
        let (mut writes, mut told, mut minute) = (0_u64, 0, Instant::now());
        // Freshness in seconds, WAL that waits and that the slot keeps in MiB: the worst that was seen.
        let mut worst = [0.0_f64; 3];
        let first = resident(scene.sidecar.pid());
        let tick = std::cell::RefCell::new(&mut worst);
        let (app, dba, pid) = (&scene.app, &scene.dba, scene.sidecar.pid());
        wait_until("the soak to end", length + SOON, || {
            writes += 1;
            let over = start.elapsed() >= length;
            let look = writes % 50 == 0;
            let say = minute.elapsed() >= Duration::from_secs(60);
            if say {
                minute = Instant::now();
                told = listener.take().len();
            }
            let (tick, writes) = (&tick, writes);
            async move {
                app.batch_execute(TRADE).await.unwrap();
                if look {
                    const SQL: &str = "select extract(epoch from clock_timestamp() - p.data_timestamp)::float8,
                            pg_wal_lsn_diff(pg_current_wal_lsn(), p.frontier)::float8 / 1048576,
                            s.retained_bytes::float8 / 1048576
                        from pgtrickle.pgt_pipelines p join pgtrickle.pipeline_slots s on s.pipeline = p.pipeline";
                    let row = dba.query_one(SQL, &[]).await.unwrap();
                    for (n, worst) in tick.borrow_mut().iter_mut().enumerate() {
                        *worst = worst.max(row.get::<_, f64>(n));
                    }
                }
                if say {
                    let [fresh, lag, kept] = **tick.borrow();
                    println!(
                        "  {:.0} min: {writes} writes, {} MiB resident, worst freshness {fresh:.1} s, lag {lag:.1} MiB, retained {kept:.1} MiB, {told} alerts",
                        start.elapsed().as_secs_f64() / 60.0,
                        resident(pid)
                    );
                }
                if over { Ok(()) } else { Err("it goes on".to_owned()) }
            }
        })
        .await;
        let last = resident(scene.sidecar.pid());
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
        scene.run(TRADE).await;
        scene.sidecar.start_again();
        scene.check_in_time(&followed).await;
        scene.dba.batch_execute("select pgtrickle.pause(now() + interval '3 s')").await.unwrap();
        scene.run(TRADE).await;
        scene.check_in_time(&followed).await;
        println!(
            "  {writes} writes in {:.0} s, a restart and a pause: {} alerts; {first} MiB resident at the start, {last} at the end; worst freshness {:.1} s, lag {:.1} MiB, retained {:.1} MiB",
            start.elapsed().as_secs_f64(),
            listener.take().len(),
            worst[0],
            worst[1],
            worst[2]
        );
        assert!(listener.take().is_empty(), "{:?}", listener.all);
        assert_eq!(value(&scene.dba, "select count(*) from pgtrickle.pgt_alerts").await, "0");
    })
    .await;
}
