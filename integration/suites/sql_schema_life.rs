//! The life of a schema while the application goes on writing: nothing is lost, whatever is added, dropped, renamed,
//! changed or replaced, and readers never see an empty stream table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::hazards::{Scene, sqlstate};
use super::oracle::prng::{Prng, seed};
use crate::harness::database::TestDatabase;
use crate::harness::oracle::difference_of_text;
use crate::harness::servers::{Server, for_each_major};
use crate::harness::wait::{SOON, wait_until};

const SETUP: &str = "
    create table customers (id int primary key, name text, city text);
    create table orders (id int primary key, customer_id int, amount numeric(10, 2), note text, unused int);
    create view big_orders as select id, customer_id, amount from orders where amount > 50;
    insert into customers select i, 'c' || i, 'city' || i % 3 from generate_series(1, 9) i;
    insert into orders select i, 1 + i % 9, i, 'n' || i, 0 from generate_series(1, 100) i;
";

const STREAMS: &[(&str, &str)] = &[
    ("order_list", "select id, customer_id, amount from orders"),
    (
        "per_customer",
        "select c.id, c.name, count(*) as n, sum(o.amount) as total from customers c join orders o on o.customer_id = c.id group by c.id, c.name",
    ),
    ("big", "select id, amount from big_orders"),
    ("summary", "select count(*) as customers, sum(n) as orders from per_customer"),
];

/// Of `orders`, in the course of the changes.
const NAMES: [&str; 4] = ["orders", "purchases", "shop.purchases", "store.purchases"];

/// An application that writes all the time, under the names that the tables have at the moment.
struct Writer {
    pause: Arc<Mutex<()>>,
    stop: Arc<AtomicBool>,
    task: Option<JoinHandle<u64>>,
}

impl Writer {
    async fn start(db: &TestDatabase) -> Writer {
        let client = db.as_app().await;
        let (pause, stop) = (Arc::new(Mutex::new(())), Arc::new(AtomicBool::new(false)));
        let (paused, stopped) = (pause.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let mut done = 0;
            for n in 1000u64.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let _turn = paused.lock().await;
                for (table, amount) in NAMES.iter().flat_map(|name| [(*name, "amount"), (*name, "price")]) {
                    let sql = format!(
                        "insert into {table} (id, customer_id, {amount}) values ({n}, {n} % 9 + 1, {n} % 97) on conflict do nothing;
                         update {table} set {amount} = {amount} + 1 where id in ({n} - 3, {n} % 100);
                         delete from {table} where id = {n} - 40"
                    );
                    // Most of the names are wrong at any moment.
                    done += u64::from(client.batch_execute(&sql).await.is_ok());
                }
            }
            done
        });
        Writer { pause, stop, task: Some(task) }
    }

    /// Number of transactions that were committed.
    async fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.take().expect("it runs").await.expect("it ends")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn scene(server: &Server) -> Scene {
    let scene = Scene::start(server, SETUP).await;
    for (name, query) in STREAMS {
        scene.create(name, query).await;
    }
    scene
}

fn names() -> Vec<&'static str> {
    STREAMS.iter().map(|(name, _)| *name).collect()
}

/// Changes of the schema; those of one list keep their order, the lists do not depend on each other. ORDERS, AMOUNT and
/// CUSTOMERS stand for what these have become.
const CHANGES: &[&[&str]] = &[
    &[
        "alter table ORDERS rename to purchases",
        "alter table ORDERS set schema shop",
        "alter schema shop rename to store",
        "alter table ORDERS set schema app",
        "alter table ORDERS rename to orders",
    ],
    &[
        "alter table ORDERS rename column AMOUNT to price",
        "alter table ORDERS rename column AMOUNT to amount",
    ],
    &["alter table ORDERS add column extra text default 'x'"],
    &["alter table ORDERS add column stamp uuid default gen_random_uuid()"],
    &["alter table ORDERS drop column unused"],
    &[
        "alter table ORDERS rename column note to remark",
        "alter table ORDERS alter column remark type varchar(100)",
    ],
    &["alter table CUSTOMERS rename column name to title"],
    &["alter table CUSTOMERS rename to people"],
    &[
        "create or replace view big_orders as select id, customer_id, AMOUNT as amount from ORDERS where AMOUNT > 20",
    ],
    &[
        "alter table ORDERS replica identity full",
        "alter table ORDERS replica identity nothing",
        "alter table ORDERS replica identity default",
    ],
    &["truncate ORDERS"],
    &[
        "begin; truncate CUSTOMERS cascade; insert into CUSTOMERS select i, 'd' || i, 'city' from generate_series(1, 5) i; commit",
    ],
    &["create index on ORDERS (customer_id); create unique index on ORDERS (id, customer_id)"],
    &[
        "begin; alter table ORDERS drop constraint orders_pkey; alter table ORDERS add constraint orders_pkey primary key (id); commit",
    ],
    &["alter table ORDERS add constraint positive check (AMOUNT > -1) not valid"],
    &["vacuum full ORDERS"],
    &["cluster ORDERS using orders_pkey"],
];

/// All changes, in one of the orders that they allow.
fn shuffled(rng: &mut Prng) -> Vec<&'static str> {
    let mut open: Vec<&[&'static str]> = CHANGES.to_vec();
    let mut steps = Vec::new();
    while !open.is_empty() {
        let place = rng.below(open.len());
        match open[place].split_first() {
            Some((step, rest)) => {
                steps.push(*step);
                open[place] = rest;
            }
            None => drop(open.swap_remove(place)),
        }
    }
    steps
}

impl Scene {
    /// A change with the present names of what it changes.
    async fn named(&self, step: &str) -> String {
        const SQL: &str = "select max(c.oid::regclass::text) filter (where a.attname = 'customer_id'),
                max(a.attname::text) filter (where a.attname in ('amount', 'price')),
                max(c.oid::regclass::text) filter (where a.attname = 'city')
            from pg_class c join pg_attribute a on a.attrelid = c.oid
            where c.relkind = 'r' and c.relname in ('orders', 'purchases', 'customers', 'people') and a.attnum > 0";
        let row = self.app.query_one(SQL, &[]).await.unwrap();
        let name = |place| row.get::<_, String>(place);
        step.replace("ORDERS", &name(0)).replace("AMOUNT", &name(1)).replace("CUSTOMERS", &name(2))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_tables_schemas_and_views_change_under_writes() {
    for_each_major(async |server| {
        let scene = scene(server).await;
        scene
            .dba
            .batch_execute("create schema shop authorization app; grant usage on schema shop to pgtrickle")
            .await
            .unwrap();
        let writer = Writer::start(&scene.db).await;
        let before = scene.generation().await;
        let seed = seed();
        let steps = shuffled(&mut Prng::new(seed));
        println!(
            "PGTRICKLE_ORACLE_SEED={seed} on PostgreSQL {}, in this order:\n  {}",
            server.major,
            steps.join("\n  ")
        );
        for step in steps {
            let step = scene.named(step).await;
            // A schema is renamed by who may create one.
            match step.starts_with("alter schema") {
                true => scene.dba.batch_execute(&step).await.unwrap(),
                false => scene.run(&step).await,
            }
            // A moment of writes over the new schema, then quiet, and equality.
            let turn = writer.pause.lock().await;
            scene.check_in_time(&names()).await;
            drop(turn);
        }
        assert!(writer.end().await > 20, "the application wrote all the time");
        scene.check_in_time(&names()).await;
        // One that is altered again while it is being read begins from the start; that is rare.
        let starts = scene.generation().await - before;
        assert!(starts <= 3, "the pipeline was started anew {starts} times");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_source_suspends_with_the_reason_and_everything_can_be_made_again() {
    for_each_major(async |server| {
        let scene = scene(server).await;
        let writer = Writer::start(&scene.db).await;
        assert_eq!(sqlstate(scene.app.batch_execute("drop table orders").await), "2BP01");
        assert_eq!(sqlstate(scene.app.batch_execute("alter table orders drop column amount").await), "2BP01");
        assert_eq!(sqlstate(scene.app.batch_execute("alter table orders alter column amount type bigint").await), "0A000");
        scene.run("drop table orders cascade").await;
        for name in ["order_list", "big", "per_customer"] {
            wait_until("the loss to be told", SOON, || async {
                let state = scene.column(name, "last_error_sqlstate").await;
                let status = scene.status(name).await;
                let told = state.as_deref() == Some("42P01") && !status.starts_with("ACTIVE");
                if told { Ok(()) } else { Err(format!("{status} {state:?}")) }
            })
            .await;
            assert!(scene.column(name, "last_error_message").await.unwrap().contains("CASCADE"), "{name}");
        }
        scene.run("create table orders (id int primary key, customer_id int, amount numeric(10, 2)); create view big_orders as select id, customer_id, amount from orders").await;
        scene.run("select pgtrickle.drop_stream_table('per_customer', cascade => true); select pgtrickle.drop_stream_table('big')").await;
        scene.run("select pgtrickle.alter_stream_table('order_list', query => 'select id, customer_id, amount from orders')").await;
        for (name, query) in &STREAMS[1..] {
            scene.create(name, query).await;
        }
        scene.wait_status("order_list", "ACTIVE DIFFERENTIAL").await;
        let turn = writer.pause.lock().await;
        scene.check_in_time(&names()).await;
        drop(turn);
        // The same name again, in one transaction and in quick succession.
        for round in 0..3 {
            let query = format!("select id, amount + {round} as v from orders");
            scene.run("begin; select pgtrickle.drop_stream_table('big')").await;
            scene.app.execute("select pgtrickle.create_stream_table('big', $1)", &[&query]).await.unwrap();
            scene.run("commit").await;
        }
        scene.wait_status("big", "ACTIVE DIFFERENTIAL").await;
        let turn = writer.pause.lock().await;
        scene.check_in_time(&names()).await;
        drop(turn);
        writer.end().await;
    })
    .await;
}

/// Reads all the time; counts how often it saw nothing.
struct Reader {
    stop: Arc<AtomicBool>,
    empty: Arc<AtomicU64>,
    task: JoinHandle<u64>,
}

impl Reader {
    async fn start(db: &TestDatabase, table: &'static str, snapshot: bool) -> Reader {
        let client = db.as_app().await;
        let (stop, empty) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, seen) = (stop.clone(), empty.clone());
        let task = tokio::spawn(async move {
            let mut reads = 0;
            while !stopped.load(Ordering::Relaxed) {
                let begin = match snapshot {
                    // One that is older than what it reads.
                    true => "begin isolation level repeatable read; select count(*) from customers",
                    false => "begin",
                };
                client.batch_execute(begin).await.unwrap();
                let row = client.query_one(&format!("select count(*) from {table}"), &[]).await.unwrap();
                client.batch_execute("commit").await.unwrap();
                seen.fetch_add(u64::from(row.get::<_, i64>(0) == 0), Ordering::Relaxed);
                reads += 1;
            }
            reads
        });
        Reader { stop, empty, task }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.task.await.unwrap() > 10);
        assert_eq!(self.empty.load(Ordering::Relaxed), 0, "somebody saw an empty table");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_table_is_renamed_indexed_granted_and_gets_new_queries() {
    for_each_major(async |server| {
        let scene = scene(server).await;
        let writer = Writer::start(&scene.db).await;
        let reader = Reader::start(&scene.db, "order_list", true).await;
        // Its table is made anew below: older snapshots can't see the new one's rows (docs/schema-changes.md).
        let of_big = Reader::start(&scene.db, "big", false).await;
        let check = async |all: &[&str]| {
            let turn = writer.pause.lock().await;
            scene.check_in_time(all).await;
            drop(turn);
        };
        scene.run("create index by_amount on order_list (amount); grant select on order_list to public; comment on table order_list is 'mine'").await;
        scene.run("create view over_list as select id, amount from order_list").await;
        for query in [
            "select id, customer_id, amount, note from orders",
            "select id, customer_id, amount, note, upper(note) as loud from orders where amount > 5",
            "select id, amount, note, 1 as one from orders",
            "select id, amount from orders",
        ] {
            scene.app.execute("select pgtrickle.alter_stream_table('order_list', query => $1)", &[&query]).await.unwrap();
            scene.wait_status("order_list", "ACTIVE DIFFERENTIAL").await;
            check(&["order_list"]).await;
            let kept: bool = scene.app.query_one("select to_regclass('by_amount') is not null and obj_description('order_list'::regclass) = 'mine' and has_table_privilege('pgtrickle', 'order_list', 'select')", &[]).await.unwrap().get(0);
            assert!(kept, "{query}");
        }
        reader.end().await;
        // A column that a view reads can't go; another type for it can't come.
        let refused = scene.app.batch_execute("select pgtrickle.alter_stream_table('order_list', query => 'select id from orders')").await;
        assert_eq!(sqlstate(refused), "2BP01");
        check(&["order_list"]).await;
        scene.run("drop view over_list").await;
        scene.dba.batch_execute("create schema reports authorization app; grant usage on schema reports to pgtrickle").await.unwrap();
        scene.run("alter table per_customer rename to customer_totals; alter table customer_totals set schema reports").await;
        scene.run("select pgtrickle.create_or_replace_stream_table('big', 'select id, customer_id from orders where amount > 3')").await;
        scene.run("select pgtrickle.create_or_replace_stream_table('big', 'select id, customer_id from orders where amount > 3')").await;
        scene.wait_status("big", "ACTIVE DIFFERENTIAL").await;
        // Its table is made anew: other columns, another identity of rows, and back.
        for query in [
            "select customer_id, count(*) as orders from orders group by customer_id",
            "select o.amount, c.name from orders o join customers c on c.id = o.customer_id",
            "select id, customer_id from orders where amount > 3",
        ] {
            scene.app.execute("select pgtrickle.alter_stream_table('big', query => $1)", &[&query]).await.unwrap();
            scene.wait_status("big", "ACTIVE DIFFERENTIAL").await;
            check(&["big"]).await;
        }
        of_big.end().await;
        scene.run("select pgtrickle.suspend_stream_table('big'); select pgtrickle.resume_stream_table('big')").await;
        check(&["big", "order_list"]).await;
        scene.wait_status("summary", "ACTIVE DIFFERENTIAL").await;
        check(&["summary"]).await;
        // Under its new name in its new schema it goes on too.
        const TOTALS: &str = "select c.id, c.name, count(*) as n, sum(o.amount) as total
            from customers c join orders o on o.customer_id = c.id group by c.id, c.name";
        let totals = async || {
            wait_until("reports.customer_totals to equal its query", SOON, || async {
                scene.passed().await;
                let columns = "id, name, n, total";
                let rows = difference_of_text(&scene.app, TOTALS, "reports.customer_totals", columns).await.unwrap();
                if rows.is_empty() { Ok(()) } else { Err(rows.join(", ")) }
            })
            .await;
            let sql = "select string_agg(x::text, ' ' order by x::text) from reports.customer_totals x";
            scene.app.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0)
        };
        let turn = writer.pause.lock().await;
        let before = totals().await;
        assert!(before.is_some(), "there are customers with orders");
        drop(turn);
        writer.end().await;
        scene.run("update orders set amount = amount + 1 where id % 2 = 0").await;
        assert_ne!(totals().await, before, "the moved stream table followed the changes");
        scene.check_in_time(&["big", "order_list", "summary"]).await;
    })
    .await;
}

/// What migration tools send, with the queries parked.
#[tokio::test(flavor = "multi_thread")]
async fn parked_queries_let_a_migration_run() {
    for_each_major(async |server| {
        let scene = scene(server).await;
        let writer = Writer::start(&scene.db).await;
        let check = async || {
            for name in names() {
                scene.wait_status(name, "ACTIVE DIFFERENTIAL").await;
            }
            let turn = writer.pause.lock().await;
            scene.check_in_time(&names()).await;
            drop(turn);
        };
        // In one transaction, as tools do it. The user's own view stands in the way as always.
        scene.run("create index by_amount on order_list (amount)").await;
        scene.run(
            "begin;
             select pgtrickle.begin_ddl('orders');
             drop view big_orders;
             alter table orders alter column amount type numeric(12, 3), alter column id set data type bigint;
             create view big_orders as select id, customer_id, amount from orders where amount > 50;
             select pgtrickle.end_ddl('orders');
             commit",
        )
        .await;
        check().await;
        let ty: String = scene.app.query_one("select format_type(atttypid, atttypmod) || ' ' || (to_regclass('by_amount') is not null) from pg_attribute where attrelid = 'order_list'::regclass and attname = 'amount'", &[]).await.unwrap().get(0);
        assert_eq!(ty, "numeric(12,3) true");
        // In steps, with the world going on in between.
        scene.run("select pgtrickle.begin_ddl('customers')").await;
        assert!(scene.status("per_customer").await.starts_with("SUSPENDED"));
        assert!(scene.column("per_customer", "last_error_message").await.unwrap().contains("end_ddl"));
        let refused = scene.app.batch_execute("select pgtrickle.resume_stream_table('per_customer')").await;
        assert_eq!(sqlstate(refused), "55000");
        let rows: i64 = scene.app.query_one("select count(*) from per_customer", &[]).await.unwrap().get(0);
        assert_eq!(rows, 9, "its rows stay");
        scene.run("alter table customers alter column name type varchar(40)").await;
        scene.run("alter table customers add column full_name text; update customers set full_name = name || ' jr'; alter table customers drop column name").await;
        // The query asks for what is gone.
        let error = scene.app.batch_execute("select pgtrickle.end_ddl('customers')").await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "42703");
        assert!(error.message().contains("per_customer") && error.hint().unwrap().contains("alter_stream_table"), "{error:?}");
        scene.run("select pgtrickle.alter_stream_table('per_customer', query => 'select c.id, c.full_name as name, count(*) as n, sum(o.amount) as total from customers c join orders o on o.customer_id = c.id group by c.id, c.full_name')").await;
        scene.run("select pgtrickle.end_ddl('customers')").await;
        check().await;
        let parked: i64 = scene.dba.query_one("select count(*) from pgtrickle.pgt_stream_tables where parked_query is not null", &[]).await.unwrap().get(0);
        assert_eq!(parked, 0);
        writer.end().await;
        check_last(&scene).await;
    })
    .await;
}

async fn check_last(scene: &Scene) {
    scene.check_in_time(&names()).await;
    let none: i64 = scene
        .app
        .query_one("select pgtrickle.begin_ddl('customers') - pgtrickle.end_ddl('customers')", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(none, 0);
}
