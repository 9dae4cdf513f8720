//! Random inserts, updates, deletes, changed keys and NULLs over all tables of a schema, made from the catalog.
//!
//! Values come from what the columns held in the beginning, changed a little by the column's type, so that joins and groups
//! meet. A statement that breaks a constraint is rolled back to its savepoint: that too is a change the sidecar must bear.

use tokio_postgres::Client;

use crate::suites::oracle::prng::Prng;

#[derive(Debug)]
struct Column {
    name: String,
    ty: String,
    /// `typname` of the type, below domains.
    base: String,
    nullable: bool,
    /// Alone the key of a unique index.
    unique: bool,
    /// Part of the primary key.
    key: bool,
    /// Table and column that it refers to.
    refers: Option<(String, String)>,
    /// Values, as text.
    pool: Vec<String>,
}

#[derive(Debug)]
struct Table {
    name: String,
    columns: Vec<Column>,
}

/// The state of the generator and what it has done.
#[derive(Debug)]
pub struct Workload {
    rng: Prng,
    tables: Vec<Table>,
    fresh: i64,
    done: usize,
    failed: usize,
    /// The last failure, for the message when too many fail.
    last: String,
}

const TABLES: &str = "select c.oid::regclass::text from pg_class c where c.relnamespace = 'app'::regnamespace
    and (c.relkind = 'p' or c.relkind = 'r') and not c.relispartition and c.relname not like 'fixed\\_%' order by 1";

const COLUMNS: &str = "select quote_ident(a.attname), format_type(a.atttypid, a.atttypmod),
      coalesce(b.typname, t.typname)::text, not (a.attnotnull or t.typnotnull),
      exists (select from pg_index i where i.indrelid = a.attrelid and i.indisunique and i.indnkeyatts = 1
          and i.indkey[0] = a.attnum),
      exists (select from pg_index i where i.indrelid = a.attrelid and i.indisprimary and a.attnum = any (i.indkey::int2[])),
      (select array[k.confrelid::regclass::text, (select quote_ident(f.attname) from pg_attribute f
              where f.attrelid = k.confrelid and f.attnum = k.confkey[1])]
         from pg_constraint k where k.conrelid = a.attrelid and k.contype = 'f' and k.conkey = array[a.attnum] limit 1)
    from pg_attribute a join pg_type t on t.oid = a.atttypid left join pg_type b on b.oid = t.typbasetype and t.typtype = 'd'
    where a.attrelid = $1::text::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
      and a.attidentity <> 'a' order by a.attnum";

impl Workload {
    /// Looks at the tables of the schema `app`; those named `fixed_...` stay as they are.
    pub async fn new(client: &Client, seed: u64) -> Workload {
        let mut tables = Vec::new();
        for row in client.query(TABLES, &[]).await.expect("the tables") {
            let name: String = row.get(0);
            let mut columns = Vec::new();
            for row in client.query(COLUMNS, &[&name]).await.expect("the columns") {
                let mut column = Column {
                    name: row.get(0),
                    ty: row.get(1),
                    base: row.get(2),
                    nullable: row.get(3),
                    unique: row.get(4),
                    key: row.get(5),
                    refers: row
                        .get::<_, Option<Vec<String>>>(6)
                        .map(|pair| (pair[0].clone(), pair[1].clone())),
                    pool: Vec::new(),
                };
                column.pool = pool(client, &name, &column).await;
                columns.push(column);
            }
            tables.push(Table { name, columns });
        }
        Workload { rng: Prng::new(seed), tables, fresh: 1_000_000, done: 0, failed: 0, last: String::new() }
    }

    /// Transactions of some statements each; some are rolled back.
    pub async fn burst(&mut self, client: &Client, transactions: usize) {
        for _ in 0..transactions {
            client.batch_execute("begin").await.expect("begin");
            for _ in 0..self.rng.between(1, 6) {
                let statement = self.statement();
                client.batch_execute("savepoint before").await.expect("a savepoint");
                match client.batch_execute(&statement).await {
                    Ok(()) => self.done += 1,
                    Err(error) => {
                        self.failed += 1;
                        self.last = format!("{statement}: {error:?}");
                        let undo = client.batch_execute("rollback to savepoint before").await;
                        undo.unwrap_or_else(|e| panic!("{e:?} after {}", self.last));
                    }
                }
            }
            let end = if self.rng.chance(8) { "rollback" } else { "commit" };
            client.batch_execute(end).await.unwrap_or_else(|error| panic!("{end}: {error:?}"));
        }
    }

    /// Fails when most statements fail: then nothing was shown.
    pub fn assert_useful(&self, name: &str) {
        let Workload { done, failed, last, .. } = self;
        assert!(*failed <= *done, "{name}: only {done} statements of {} succeeded; {last}", done + failed);
    }

    fn statement(&mut self) -> String {
        let number = self.rng.below(self.tables.len());
        let rows = *self.rng.pick(&[1, 1, 1, 2, 3, 8]);
        match self.rng.below(100) {
            0..=37 => self.insert(number, rows),
            38..=75 => self.update(number, rows),
            _ => {
                let table = &self.tables[number];
                let place = self.rng.below(1 << 30);
                format!("delete from {} where {}", table.name, some_rows(table, place, rows))
            }
        }
    }

    fn insert(&mut self, number: usize, rows: usize) -> String {
        let tables = std::mem::take(&mut self.tables);
        let table = &tables[number];
        let names: Vec<&str> = table.columns.iter().map(|c| c.name.as_str()).collect();
        let rows: Vec<String> = (0..rows)
            .map(|_| {
                let values: Vec<String> = table.columns.iter().map(|c| self.value(c)).collect();
                format!("({})", values.join(", "))
            })
            .collect();
        let sql = format!(
            "insert into {} ({}) overriding system value values {} on conflict do nothing",
            table.name,
            names.join(", "),
            rows.join(", ")
        );
        self.tables = tables;
        sql
    }

    fn update(&mut self, number: usize, rows: usize) -> String {
        let tables = std::mem::take(&mut self.tables);
        let table = &tables[number];
        let change_key = self.rng.chance(12);
        let mut rows = rows;
        let mut set = Vec::new();
        for _ in 0..self.rng.between(1, 3) {
            let column = self.rng.pick(&table.columns);
            let (key, name) = (column.key || column.unique, &column.name);
            if key != change_key && table.columns.iter().any(|c| (c.key || c.unique) == change_key)
                || set.iter().any(|(n, _)| n == name)
            {
                continue;
            }
            // Many rows can't get one new key.
            rows = if key { 1 } else { rows };
            let value = match self.rng.below(3) {
                0 if !column.unique && column.refers.is_none() => {
                    shifted(column, &column.name, &mut self.rng)
                }
                _ => self.value(column),
            };
            set.push((name.clone(), value));
        }
        if set.is_empty() {
            let column = &table.columns[0];
            set.push((column.name.clone(), column.name.clone()));
        }
        let set: Vec<String> = set.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let place = self.rng.below(1 << 30);
        let sql =
            format!("update {} set {} where {}", table.name, set.join(", "), some_rows(table, place, rows));
        self.tables = tables;
        sql
    }

    fn value(&mut self, column: &Column) -> String {
        let ty = &column.ty;
        if column.nullable && self.rng.chance(10) {
            return "null".to_owned();
        }
        if let Some((table, key)) = &column.refers {
            let place = self.rng.below(1 << 30);
            return format!("(select {key} from {table} order by md5({key}::text || '{place}') limit 1)");
        }
        if column.unique {
            self.fresh += 1;
            let fresh = self.fresh;
            return match column.base.as_str() {
                "int2" => format!("{}", fresh % 30_000),
                "int4" | "int8" | "numeric" | "oid" => format!("{fresh}"),
                "uuid" => format!("md5('{fresh}')::uuid"),
                "text" | "varchar" | "bpchar" | "citext" => format!("'k{fresh}'"),
                _ => self.pooled(column),
            };
        }
        let pooled = self.pooled(column);
        let value = if self.rng.chance(35) { shifted(column, &pooled, &mut self.rng) } else { pooled };
        format!("{value}::{ty}")
    }

    fn pooled(&mut self, column: &Column) -> String {
        match column.pool.is_empty() {
            true => "null".to_owned(),
            false => format!("'{}'::{}", self.rng.pick(&column.pool).replace('\'', "''"), column.ty),
        }
    }
}

async fn pool(client: &Client, table: &str, column: &Column) -> Vec<String> {
    let (name, ty) = (&column.name, &column.ty);
    let labels =
        "select enumlabel::text from pg_enum where enumtypid = to_regtype($1) order by enumsortorder";
    let labels = client.query(labels, &[ty]).await.expect("the enum's labels");
    let sql = format!(
        "select v from (select distinct {name}::text as v from {table}) as d
         where v is not null order by md5(v), v limit 60"
    );
    let rows = match labels.is_empty() {
        true => client.query(&sql, &[]).await.expect("the column's values"),
        false => labels,
    };
    rows.iter().map(|row| row.get(0)).collect()
}

/// The expression, a little different, in a way that suits the type.
fn shifted(column: &Column, expression: &str, rng: &mut Prng) -> String {
    let n = rng.between(-3, 5);
    match column.base.as_str() {
        "int2" | "int4" | "int8" | "date" => format!("{expression} + ({n})"),
        "numeric" | "float4" | "float8" => format!("{expression} + ({n} / 4.0)"),
        "money" => format!("{expression} + {}::money", n + 3),
        "timestamp" | "timestamptz" => format!("{expression} + interval '{} minutes'", n * 611),
        "interval" => format!("{expression} + interval '{n} hours'"),
        "time" => format!("{expression} + interval '{} minutes'", n * 17),
        "bool" => format!("not ({expression})"),
        "text" if rng.chance(30) => format!("{expression} || '{n}'"),
        "jsonb" if rng.chance(50) => {
            format!(
                "case when jsonb_typeof({expression}) = 'object' then {expression} || '{{\"n\": {n}}}' else {expression} end"
            )
        }
        _ => expression.to_owned(),
    }
}

/// A condition for this many rows, chosen by what they hold: where they are stored is up to autovacuum, and the same seed
/// shall make the same changes. Of exact duplicates any will do.
fn some_rows(table: &Table, place: usize, rows: usize) -> String {
    let name = &table.name;
    format!(
        "(tableoid, ctid) in (select chosen.tableoid, chosen.ctid from {name} as chosen order by md5(chosen::text || '{place}') limit {rows})"
    )
}
