//! The classes of operators, and how one is measured. Also run by the tests, with little data.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_postgres::Client;

use crate::harness::database::TestDatabase;
use crate::harness::oracle::assert_equal;
use crate::harness::servers::Server;
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::wait_until;

const LONG: Duration = Duration::from_secs(300);

/// A class: a query in which it is the work, and the statement whose changes it maintains.
pub struct Class {
    pub name: &'static str,
    pub query: &'static str,
    pub columns: &'static str,
    pub change: Change,
}

#[derive(Clone, Copy)]
pub enum Change {
    Orders,
    Nodes,
}

const fn class(name: &'static str, query: &'static str, columns: &'static str) -> Class {
    Class { name, query, columns, change: Change::Orders }
}

pub const CLASSES: &[Class] = &[
    class(
        "filter and project",
        "select id, amount * 2 as double, status from orders where status = 'open'",
        "id, double, status",
    ),
    class(
        "inner join",
        "select o.id, c.name, o.amount from orders o join customers c on c.id = o.customer_id",
        "id, name, amount",
    ),
    class(
        "left join",
        "select o.id, c.name, o.amount from orders o left join customers c on c.id = o.customer_id and c.region <> 'region 3'",
        "id, name, amount",
    ),
    class(
        "full join",
        "select o.id, c.id as customer, o.amount from orders o full join customers c on c.id = o.customer_id",
        "id, customer, amount",
    ),
    class(
        "non-equi join",
        "select o.id, b.name, o.amount from orders o join bands b on o.amount >= b.low and o.amount < b.high",
        "id, name, amount",
    ),
    class(
        "semi join",
        "select id, amount from orders o where exists (select from customers c where c.id = o.customer_id and c.region <> 'region 3')",
        "id, amount",
    ),
    class(
        "anti join",
        "select id, amount from orders o where not exists (select from customers c where c.id = o.customer_id and c.region <> 'region 3')",
        "id, amount",
    ),
    class(
        "linear aggregate",
        "select customer_id, sum(amount) as total, count(*) as n from orders group by customer_id",
        "customer_id, total, n",
    ),
    class(
        "min and max",
        "select customer_id, min(amount) as least, max(amount) as most from orders group by customer_id",
        "customer_id, least, most",
    ),
    class(
        "collected group",
        "select customer_id, string_agg(amount::text, ',' order by id) as list from orders group by customer_id",
        "customer_id, list",
    ),
    class(
        "grouping sets",
        "select customer_id, status, sum(amount) as total, count(*) as n from orders group by rollup (customer_id, status)",
        "customer_id, status, total, n",
    ),
    class(
        "equality by PostgreSQL",
        "select doc, count(*) as n from (select jsonb_build_object('customer', customer_id, 'amount', amount) as doc from orders) o group by doc",
        "doc, n",
    ),
    class(
        "set-returning function",
        "select o.id, s.part from orders o, lateral generate_series(1, (o.amount % 4)::int + 1) as s(part)",
        "id, part",
    ),
    class("distinct", "select distinct customer_id, amount from orders", "customer_id, amount"),
    class(
        "set operation",
        "select customer_id, amount from orders where amount > 100 except select id, 100.25 from customers",
        "customer_id, amount",
    ),
    class("top-k", "select id, amount from orders order by amount desc, id limit 100", "id, amount"),
    class(
        "top-k in an order of PostgreSQL's",
        "select id, shown from (select id, to_char(amount, 'FM0000D00') as shown from orders) o order by shown desc, id limit 100",
        "id, shown",
    ),
    class(
        "distinct on",
        "select distinct on (customer_id) customer_id, id, amount from orders order by customer_id, amount desc, id",
        "customer_id, id, amount",
    ),
    class(
        "window function",
        "select id, row_number() over (partition by customer_id order by amount, id) as place from orders",
        "id, place",
    ),
    Class {
        name: "recursion",
        query: "with recursive tree as (select id, 0 as depth, weight from nodes where parent is null
                union all select n.id, t.depth + 1, t.weight + n.weight from tree t join nodes n on n.parent = t.id)
                select id, depth, weight from tree",
        columns: "id, depth, weight",
        change: Change::Nodes,
    },
    class(
        "correlated subquery",
        "select c.id, (select max(o.amount) from orders o where o.customer_id = c.id) as most from customers c",
        "id, most",
    ),
    class(
        "evaluation by PostgreSQL",
        "select id, to_char(amount, 'FM999G990D00') as shown from orders",
        "id, shown",
    ),
];

/// One server, one sidecar, the tables.
pub struct World {
    app: Client,
    sidecar: Sidecar,
    _database: TestDatabase,
    orders: i64,
}

/// Medians of one class.
pub struct Figures {
    class: &'static str,
    changes: i64,
    per_second: f64,
    cpu_us: f64,
    own: f64,
    shared: f64,
    state: serde_json::Value,
    load: String,
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl World {
    pub async fn start(server: &Server, orders: i64) -> World {
        let database = TestDatabase::create(server).await;
        database.install();
        let app = database.as_app().await;
        let customers = (orders / 20).max(5);
        app.batch_execute(&format!(
            "create table customers (id bigint primary key, name text not null, region text not null);
             create table orders (id bigint primary key, customer_id bigint not null, amount numeric(12,2) not null,
                 status text not null);
             create table bands (low numeric(12,2) not null, high numeric(12,2) not null, name text not null);
             insert into bands select i * 250, (i + 1) * 250, 'band ' || i from generate_series(0, 9) i;
             create table nodes (id bigint primary key, parent bigint, weight bigint not null);
             insert into customers select i, 'customer ' || i, 'region ' || i % 25 from generate_series(1, {customers}) i;
             insert into orders select i, 1 + (i::bigint * 7919) % {customers}, (i % 9973) * 0.25,
                 case when i % 4 = 0 then 'open' else 'done' end from generate_series(1, {orders}) i;
             insert into nodes select i, nullif(i / 8, 0), i % 7 from generate_series(1, {orders} / 4) i;
             analyze"
        ))
        .await
        .unwrap();
        let mut sidecar = Sidecar::start(&database, &[]);
        sidecar.wait_ready(LONG).await;
        World { app, sidecar, _database: database, orders }
    }

    async fn passed(&self) {
        let sql = "select pgtrickle.wait_for(null, interval '300 s')";
        assert!(self.app.query_one(sql, &[]).await.unwrap().get::<_, bool>(0), "not fresh within 300 s");
    }

    /// Changes a tenth of the rows per round; the last round is held against the query's own answer.
    pub async fn measure(&mut self, class: &Class, rounds: usize) -> Figures {
        let name = "measured";
        let sql = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
        self.app.execute(sql, &[&name, &class.query]).await.unwrap();
        wait_until("the stream table to be active", LONG, || async {
            let sql =
                "select status || ' ' || coalesce(last_error_message, '') from pgtrickle.stream_tables_info";
            let now: String = self.app.query_one(sql, &[]).await.map_err(|e| e.to_string())?.get(0);
            if now.starts_with("ACTIVE") { Ok(()) } else { Err(now) }
        })
        .await;
        self.passed().await;
        let state = self.state().await;
        let (table, rows) = match class.change {
            Change::Orders => ("orders set amount = amount + 0.25", self.orders),
            Change::Nodes => ("nodes set weight = weight + 1", self.orders / 4),
        };
        let changes = (rows / 10).max(1);
        let (mut seconds, mut cpu) = (Vec::new(), Vec::new());
        for round in 0..rounds as i64 {
            let from = round * changes % rows + 1;
            let update = format!("update {table} where id between {from} and {}", from + changes - 1);
            let before = self.cpu();
            self.app.batch_execute(&update).await.unwrap();
            let committed = Instant::now();
            self.passed().await;
            seconds.push(committed.elapsed().as_secs_f64());
            cpu.push((self.cpu() - before) * 1e6 / changes as f64);
        }
        assert_equal(&self.app, class.query, name, class.columns).await;
        self.app.execute("select pgtrickle.drop_stream_table($1)", &[&name]).await.unwrap();
        let bytes = |shared: bool| {
            let parts = state.as_array().into_iter().flatten().filter(|p| p["shared"] == shared);
            parts.filter_map(|p| p["bytes"].as_f64()).sum::<f64>() / rows as f64
        };
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Figures {
            class: class.name,
            changes,
            per_second: changes as f64 / median(&mut seconds),
            cpu_us: median(&mut cpu),
            own: bytes(false),
            shared: bytes(true),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            state,
        }
    }

    /// What the sidecar says that it holds, once it has said so.
    async fn state(&self) -> serde_json::Value {
        let sql = "select coalesce(json_agg(s), '[]') from pgtrickle.stream_table_state('measured') s";
        let read = || async { self.app.query_one(sql, &[]).await.unwrap().get::<_, serde_json::Value>(0) };
        wait_until("figures of the state", LONG, || async {
            let now = read().await;
            if now.as_array().is_some_and(|parts| !parts.is_empty()) { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
        read().await
    }

    /// CPU seconds of the sidecar.
    fn cpu(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.sidecar.pid());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or("").split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / 100.0
    }

    pub async fn stop(mut self) {
        self.sidecar.terminate(Duration::from_secs(30)).await;
    }
}

impl Figures {
    pub fn json(&self) -> serde_json::Value {
        json!({"class": self.class, "changes": self.changes, "changes_per_s": self.per_second.round(),
            "sidecar_cpu_us_per_change": self.cpu_us, "own_bytes_per_row": self.own,
            "shared_bytes_per_row": self.shared, "state": self.state, "load_1min": self.load})
    }

    pub fn cells(&self) -> [String; 6] {
        let whole = |n: f64| format!("{n:.0}");
        let name = self.class.to_owned();
        let cpu = format!("{:.1}", self.cpu_us);
        [name, whole(self.per_second), cpu, whole(self.own), whole(self.shared), self.load.clone()]
    }
}
