//! What a round works on: tables, views, and the stream tables with their queries.

use tokio_postgres::Client;

use super::forms::FUNCTIONS;
use super::prng::Prng;
use super::query::{Grammar, Query, Relation};
use super::scalar::{Field, Image};
use super::schema::{Role, Table, ddl, tables};
use super::transactions::Planner;
use super::types::{NOCASE, Ty};
use crate::harness::{TestDatabase, left_out};

/// A stream table to be made.
#[derive(Debug, Clone)]
pub struct Stream {
    pub name: String,
    pub query: Query,
}

/// Everything that is made before the first transaction.
#[derive(Debug, Clone)]
pub struct Stage {
    pub seed: u64,
    pub tables: Vec<Table>,
    pub ddl: String,
    pub views: Vec<String>,
    pub streams: Vec<Stream>,
    /// Rows of the beginning.
    pub load: Vec<String>,
}

/// Stream tables of a random round: over tables and views, over those, over those again.
const LEVELS: [usize; 3] = [8, 3, 2];
const VIEWS: usize = 3;
/// A query with more rows in the beginning is left out: every answer of every commit is kept.
const MOST_ROWS: i64 = 1500;
const MOST_ROWS_LARGE: i64 = 12_000;

/// A query for which PostgreSQL handles more rows than this is left out: it is asked at every commit.
const MOST_ROWS_HANDLED: f64 = 400_000.0;

/// Rows that all nodes of an analysed plan put out or removed.
fn handled(plan: &[String]) -> f64 {
    let number = |line: &str, before: &str| -> Option<f64> {
        let rest = line.split_once(before)?.1;
        rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.parse().ok()
    };
    // The figures are per loop of the node; a correlated subquery loops once per row.
    let mut loops = 1.0;
    let rows = |line: &String| match number(line, "(actual rows=") {
        Some(rows) => {
            loops = number(line, "loops=").unwrap_or(1.0);
            rows * loops
        }
        None => {
            let removed = ["Rows Removed by Join Filter: ", "Rows Removed by Filter: "];
            removed.iter().find_map(|what| number(line, what)).unwrap_or(0.0) * loops
        }
    };
    plan.iter().map(rows).sum()
}

/// A base table as FROM sees it.
pub fn relation(table: &Table) -> Relation {
    let fields = table.columns.iter().map(|c| Field {
        sql: c.name.clone(),
        name: c.name.clone(),
        ty: c.ty,
        image: Image::Exact,
        // Half of a composite key says little: thousands of rows would meet thousands.
        join: matches!(c.role, Role::Key | Role::Join | Role::Parent) && c.name != "part",
    });
    let mut fields: Vec<Field> = fields.collect();
    fields.extend(table.generated.map(|(ty, _)| {
        let name = "gen".to_owned();
        Field { sql: name.clone(), name, ty, image: Image::Exact, join: false }
    }));
    Relation { reference: table.name.clone(), fields }
}

/// Makes the types that not every server has, and says aloud which ones it lacks.
async fn more_types(database: &TestDatabase) -> Vec<Ty> {
    let dba = database.as_dba().await;
    let mut types = Vec::new();
    for (ty, sql, name) in [
        (Ty::Citext, "create extension citext schema app", "citext"),
        (Ty::Nocase, NOCASE, "nondeterministic collations of ICU"),
    ] {
        match dba.batch_execute(sql).await {
            Ok(()) => types.push(ty),
            Err(error) => {
                let why = error.as_db_error().map_or_else(|| error.to_string(), |e| e.message().to_owned());
                left_out(&format!("PostgreSQL {} lacks {name}: {why}", database.major));
            }
        }
    }
    types
}

impl Stage {
    /// Tables and rows; the sequence table that every transaction writes to.
    pub fn begin(seed: u64, tables: Vec<Table>, load: Vec<String>) -> Stage {
        let ddl = format!("create table log_seq (id int8 primary key);{FUNCTIONS}{}", ddl(&tables));
        Stage { seed, tables, ddl, views: Vec::new(), streams: Vec::new(), load }
    }

    /// A random stage, made on the server as it is found: queries that give too many rows, now or after a large
    /// transaction on every table (`probe` holds those open), are left out.
    pub async fn random(seed: u64, database: &TestDatabase) -> Stage {
        let (client, probe) = (&database.as_app().await, &database.as_app().await);
        let major = database.major;
        let mut rng = Prng::new(seed);
        let tables = tables(&mut rng, &more_types(database).await);
        let load = Planner::new(rng.fork(), tables.clone(), major).load();
        let mut stage = Stage::begin(seed, tables, load);
        stage.install_tables(client).await;
        stage
            .execute(probe, "begin; set local statement_timeout = '2s'; set local enable_nestloop = off")
            .await;
        let mut planner = Planner::new(rng.fork(), stage.tables.clone(), major);
        for table in 0..stage.tables.len() {
            let insert = planner.large_insert(table);
            stage.execute(probe, &insert).await;
        }
        let mut relations: Vec<Relation> = stage.tables.iter().map(relation).collect();
        for number in 0..VIEWS {
            let query = stage.some_query(&mut rng, &relations, 1, client, probe).await;
            let view = format!("create view v{number} as {}", query.stored());
            stage.execute(client, &view).await;
            stage.views.push(view);
            // Twice as likely as a table: views stand on views, too.
            relations.push(query.relation(&format!("v{number}")));
            relations.push(query.relation(&format!("v{number}")));
        }
        if let Ok(file) = std::env::var("PGTRICKLE_ORACLE_QUERIES") {
            stage.chosen(&file, client).await;
            stage.execute(probe, "rollback").await;
            return stage;
        }
        for (level, count) in LEVELS.iter().enumerate() {
            let mut made = Vec::new();
            // Mostly over the level below.
            if level > 0 {
                let upstreams: Vec<Relation> =
                    relations.iter().filter(|r| r.reference.starts_with('@')).cloned().collect();
                relations.extend(upstreams);
            }
            for number in 0..*count {
                let name = format!("st{level}{number}");
                let query = stage.some_query(&mut rng, &relations, 2, client, probe).await;
                let view = format!("create view ref_{name} as {}", query.inlined());
                stage.execute(client, &view).await;
                made.push(query.relation(&format!("@{name}@")));
                stage.streams.push(Stream { name, query });
            }
            relations.extend(made);
        }
        stage.execute(probe, "rollback").await;
        stage
    }

    /// Stream tables of a file, one query a line (columns `o0`, `o1` ...), in place of random ones: a failure is made
    /// small with it. All columns are compared exactly.
    async fn chosen(&mut self, file: &str, client: &Client) {
        let text = std::fs::read_to_string(file).expect("PGTRICKLE_ORACLE_QUERIES names a file");
        for (number, line) in text.lines().filter(|l| !l.trim().is_empty()).enumerate() {
            let name = format!("st{number}");
            let inlined = Query::written(line, &[]).inlined();
            self.execute(client, &format!("create view ref_{name} as {inlined}")).await;
            let columns = client.prepare(&inlined).await.expect("the query is valid").columns().len();
            let query = Query::written(line, &vec![(Ty::Text, Image::Exact); columns]);
            self.streams.push(Stream { name, query });
        }
    }

    /// A random query that PostgreSQL takes and that has not too many rows.
    async fn some_query(
        &self,
        rng: &mut Prng,
        relations: &[Relation],
        depth: usize,
        client: &Client,
        probe: &Client,
    ) -> Query {
        for _ in 0..100 {
            let query = Grammar::new(rng, relations).query(depth);
            // Of the text: items of the select list count too.
            let count = format!("select count(q::text) from ({}) as q", query.inlined());
            match client.query_one(&count, &[]).await {
                // What is empty in the beginning mostly stays so: only some of these.
                Ok(row) => match row.get::<_, i64>(0) {
                    0 if rng.chance(92) => {}
                    0..=MOST_ROWS if self.stays_small(&count, probe).await => return query,
                    _ => {}
                },
                Err(error) => self.fail(&format!("the query {} is wrong: {error:?}", query.inlined())),
            }
        }
        self.fail("no query with few rows was found")
    }

    /// The size of a query's answer after large transactions, and the rows that PostgreSQL handles on the way to it (a
    /// UNION of sixty million equal rows is small, and takes half a minute at every commit).
    async fn stays_small(&self, count: &str, probe: &Client) -> bool {
        self.execute(probe, "savepoint probe").await;
        let explain = format!("explain (analyze, timing off, costs off) {count}");
        let small = match probe.query(&explain, &[]).await {
            Ok(lines) => {
                handled(&lines.iter().map(|line| line.get(0)).collect::<Vec<String>>()) <= MOST_ROWS_HANDLED
                    && probe
                        .query_one(count, &[])
                        .await
                        .is_ok_and(|row| row.get::<_, i64>(0) <= MOST_ROWS_LARGE)
            }
            Err(_) => false,
        };
        self.execute(probe, "rollback to probe").await;
        small
    }

    /// Creates the tables and loads them.
    pub async fn install_tables(&self, client: &Client) {
        self.execute(client, &self.ddl).await;
        for statement in &self.load {
            self.execute(client, statement).await;
        }
    }

    /// The view that a stream table is compared with.
    pub async fn install_references(&self, client: &Client) {
        for stream in &self.streams {
            self.execute(client, &format!("create view ref_{} as {}", stream.name, stream.query.inlined()))
                .await;
        }
    }

    async fn execute(&self, client: &Client, sql: &str) {
        if let Err(error) = client.batch_execute(sql).await {
            self.fail(&format!("{sql} failed: {error:?}"));
        }
    }

    /// What is needed to see a failure again.
    pub fn describe(&self) -> String {
        let streams: Vec<String> =
            self.streams.iter().map(|s| format!("-- {}\n{};", s.name, s.query.stored())).collect();
        let views = self.views.join(";\n");
        format!("seed {}\nschema:\n{}{views};\nstream tables:\n{}", self.seed, self.ddl, streams.join("\n"))
    }

    /// Fails with the whole stage.
    pub fn fail(&self, what: &str) -> ! {
        panic!("{what}\n--- PGTRICKLE_ORACLE_SEED={}\n{}", self.seed, self.describe())
    }
}
