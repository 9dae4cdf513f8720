//! Random transactions: what applications do to tables, planned statement by statement.
//!
//! A plan is text only; the world runs it, and a statement that fails (a key that exists, a lock that somebody holds)
//! rolls its transaction back, which is one more thing that applications do.

use super::prng::Prng;
use super::schema::{Role, Table, key_expressions, key_values};
use super::types::{Ty, big_text, copied, quoted, typed};

#[derive(Debug, Clone)]
pub enum Step {
    Sql(String),
    /// Statement and data.
    Copy(String, String),
    /// Nothing else may commit between this and the end of its transaction (see the module `boundaries`).
    Truncate(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Commit,
    Rollback,
    /// PREPARE TRANSACTION; somebody ends it later.
    Prepare,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub end: End,
}

/// Keys that the small statements use.
const KEYS: usize = 40;

/// Makes plans for the given tables.
pub struct Planner {
    pub rng: Prng,
    pub tables: Vec<Table>,
    pub major: u32,
    /// Rows of a large transaction.
    pub large: usize,
    fresh: usize,
}

impl Planner {
    pub fn new(rng: Prng, tables: Vec<Table>, major: u32) -> Planner {
        Planner { rng, tables, major, large: 2000, fresh: 200 }
    }

    /// Rows to begin with.
    pub fn load(&mut self) -> Vec<String> {
        let mut statements = Vec::new();
        for table in 0..self.tables.len() {
            for _ in 0..4 {
                statements.push(self.insert(table, 8, false));
            }
        }
        statements
    }

    pub fn transaction(&mut self) -> Plan {
        if self.rng.chance(4) {
            return self.large_transaction();
        }
        let mut steps = Vec::new();
        let count = *self.rng.pick(&[1, 1, 1, 2, 2, 3, 4, 6]);
        for _ in 0..count {
            self.statements(&mut steps);
        }
        let truncates = steps.iter().any(|s| matches!(s, Step::Truncate(_)));
        let end = match self.rng.below(20) {
            0 | 1 => End::Rollback,
            2 | 3 if !truncates => End::Prepare,
            _ => End::Commit,
        };
        Plan { steps, end }
    }

    fn statements(&mut self, steps: &mut Vec<Step>) {
        let table = self.rng.below(self.tables.len());
        let keyed = !self.tables[table].key().is_empty();
        let sql = match self.rng.below(24) {
            0..=4 => {
                let rows = 1 + self.rng.below(3);
                self.insert(table, rows, false)
            }
            5 | 6 => {
                let rows = 1 + self.rng.below(3);
                self.insert(table, rows, keyed)
            }
            7..=11 => self.update(table),
            12 if keyed => self.move_key(table),
            13 if keyed => return self.swap_keys(table, steps),
            14..=16 => self.delete(table),
            17 if keyed && self.major >= 15 => self.merge(table),
            18 => return steps.push(self.copy(table)),
            19 | 20 => return self.savepoint(steps),
            21 if self.rng.chance(40) => return steps.push(self.truncate(table)),
            22 => self.nothing(table),
            _ => {
                // A row that comes and goes within its transaction.
                let rows = 1 + self.rng.below(2);
                steps.push(Step::Sql(self.insert(table, rows, false)));
                self.delete(table)
            }
        };
        steps.push(Step::Sql(sql));
    }

    fn key(&mut self) -> usize {
        self.rng.below(KEYS)
    }

    /// A value of the column as a typed expression; a parent's key only where that parent exists.
    fn value(&mut self, table: usize, column: usize) -> String {
        let column = self.tables[table].columns[column].clone();
        match column.role {
            Role::Parent => {
                let number = self.key();
                let Some(parent) = self.tables[table].parent else { return "null".to_owned() };
                let parent = &self.tables[parent];
                let key = typed(&Some(key_values(parent, number).remove(0)), column.ty);
                let name = &parent.key()[0].name;
                format!("(select {name} from {} where {name} = {key})", parent.name)
            }
            Role::Big if self.rng.chance(60) => quoted(&Some(big_text(self.rng.below(9)))),
            Role::Join if column.ty.is_int() => match self.rng.value_of(13) {
                None => "null".to_owned(),
                Some(n) => n.to_string(),
            },
            Role::Join => typed(&self.rng.value_of(9).map(|n| format!("g{n}")), column.ty),
            _ => typed(&column.ty.value(&mut self.rng), column.ty),
        }
    }

    fn row(&mut self, table: usize, key: usize) -> Vec<String> {
        let mut keys = key_values(&self.tables[table], key).into_iter();
        (0..self.tables[table].columns.len())
            .map(|c| {
                let column = &self.tables[table].columns[c];
                match column.role {
                    Role::Key => typed(&keys.next(), column.ty),
                    _ => self.value(table, c),
                }
            })
            .collect()
    }

    fn insert(&mut self, table: usize, rows: usize, upsert: bool) -> String {
        let mut values: Vec<String> = Vec::new();
        let mut used = Vec::new();
        for _ in 0..rows {
            let key = self.key();
            // An upsert may not touch a row twice.
            if !used.contains(&key) {
                used.push(key);
                values.push(format!("({})", self.row(table, key).join(", ")));
            }
        }
        let t = &self.tables[table];
        if t.key().is_empty() && self.rng.chance(30) {
            let twin = values[0].clone();
            values.push(twin);
        }
        let sets: Vec<String> = t
            .columns
            .iter()
            .filter(|c| c.role != Role::Key)
            .map(|c| format!("{0} = excluded.{0}", c.name))
            .filter(|_| self.rng.chance(70))
            .collect();
        let conflict = match (t.key().is_empty(), upsert && !sets.is_empty()) {
            (true, _) => String::new(),
            (_, false) => " on conflict do nothing".to_owned(),
            (_, true) => format!(" on conflict ({}) do update set {}", t.key_list(), sets.join(", ")),
        };
        let (target, columns) = (t.clone().target(&mut self.rng), t.list());
        format!("insert into {target} ({columns}) values {}{conflict}", values.join(", "))
    }

    /// Which rows a statement touches.
    fn filter(&mut self, table: usize) -> String {
        let t = self.tables[table].clone();
        let keyed = !t.key().is_empty();
        match self.rng.below(10) {
            0..=5 if keyed => self.key_filter(table),
            6 => format!("g = 'g{}'", self.rng.below(9)),
            7 => format!("k between {} and {}", self.rng.below(13), self.rng.below(13)),
            8 if !keyed => {
                let some = format!("select min(ctid) from {} where k = {}", t.name, self.rng.below(13));
                format!("ctid = ({some})")
            }
            _ => format!("k = {}", self.rng.below(13)),
        }
    }

    fn key_filter(&mut self, table: usize) -> String {
        let key = self.key();
        let t = &self.tables[table];
        let parts = t.key().into_iter().zip(key_values(t, key));
        parts
            .map(|(c, v)| format!("{} = {}", c.name, typed(&Some(v), c.ty)))
            .collect::<Vec<_>>()
            .join(" and ")
    }

    fn update(&mut self, table: usize) -> String {
        let columns: Vec<usize> = (0..self.tables[table].columns.len())
            .filter(|c| !matches!(self.tables[table].columns[*c].role, Role::Key))
            .collect();
        let mut sets = Vec::new();
        for column in columns {
            let c = self.tables[table].columns[column].clone();
            // The out-of-line text mostly stays as it is.
            if self.rng.chance(if c.role == Role::Big { 10 } else { 40 }) {
                let changed = match c.ty {
                    Ty::Int2 | Ty::Int4 | Ty::Int8 if c.role == Role::Value && self.rng.chance(50) => {
                        format!("{} % 1000 + 1", c.name)
                    }
                    Ty::Numeric if self.rng.chance(30) => format!("round({}, 1)", c.name),
                    _ => self.value(table, column),
                };
                sets.push(format!("{} = {changed}", c.name));
            }
        }
        if sets.is_empty() {
            sets.push("g = 'g1'".to_owned());
        }
        let filter = self.filter(table);
        format!("update {} set {} where {filter}", self.tables[table].name, sets.join(", "))
    }

    fn nothing(&mut self, table: usize) -> String {
        let filter = self.filter(table);
        format!("update {} set g = g where {filter}", self.tables[table].name)
    }

    fn delete(&mut self, table: usize) -> String {
        let filter = self.filter(table);
        format!("delete from {} where {filter}", self.tables[table].name)
    }

    fn key_is(&self, table: usize, key: usize) -> String {
        let t = &self.tables[table];
        let values = t.key().into_iter().zip(key_values(t, key)).map(|(c, v)| typed(&Some(v), c.ty));
        format!("({}) = ({})", t.key_list(), values.collect::<Vec<_>>().join(", "))
    }

    fn set_key(&self, table: usize, from: usize, to: usize) -> String {
        let t = &self.tables[table];
        let values = t.key().into_iter().zip(key_values(t, to));
        let sets = values.map(|(c, v)| format!("{} = {}", c.name, typed(&Some(v), c.ty)));
        format!(
            "update {} set {} where {}",
            t.name,
            sets.collect::<Vec<_>>().join(", "),
            self.key_is(table, from)
        )
    }

    fn move_key(&mut self, table: usize) -> String {
        let (from, to) = (self.key(), self.key());
        let taken = format!("select from {} where {}", self.tables[table].name, self.key_is(table, to));
        format!("{} and not exists ({taken})", self.set_key(table, from, to))
    }

    fn swap_keys(&mut self, table: usize, steps: &mut Vec<Step>) {
        let (a, b) = (self.key(), self.key());
        let temporary = 190 + self.rng.below(5);
        for (from, to) in [(a, temporary), (b, a), (temporary, b)] {
            steps.push(Step::Sql(self.set_key(table, from, to)));
        }
    }

    fn merge(&mut self, table: usize) -> String {
        let keys: Vec<usize> = vec![self.key(), 60 + self.rng.below(20)];
        let rows: Vec<String> =
            keys.iter().map(|k| format!("({})", self.row(table, *k).join(", "))).collect();
        let t = self.tables[table].clone();
        let on: Vec<String> = t.key().iter().map(|c| format!("t.{0} = s.{0}", c.name)).collect();
        let sets: Vec<String> = t
            .columns
            .iter()
            .filter(|c| c.role != Role::Key)
            .map(|c| format!("{0} = s.{0}", c.name))
            .collect();
        let values: Vec<String> = t.columns.iter().map(|c| format!("s.{}", c.name)).collect();
        format!(
            "merge into {} as t using (values {}) as s ({}) on {} when matched and t.k > 5 then delete \
             when matched then update set {} when not matched then insert ({}) values ({})",
            t.name,
            rows.join(", "),
            t.list(),
            on.join(" and "),
            sets.join(", "),
            t.list(),
            values.join(", ")
        )
    }

    fn copy(&mut self, table: usize) -> Step {
        let mut data = String::new();
        for _ in 0..1 + self.rng.below(20) {
            self.fresh += 1;
            let mut keys = key_values(&self.tables[table], self.fresh).into_iter();
            let columns = self.tables[table].columns.clone();
            let fields: Vec<String> = columns
                .iter()
                .map(|c| match c.role {
                    Role::Key => copied(&keys.next()),
                    Role::Parent => copied(&None),
                    Role::Join if c.ty.is_int() => copied(&self.rng.value_of(13).map(|n| n.to_string())),
                    Role::Join => copied(&self.rng.value_of(9).map(|n| format!("g{n}"))),
                    Role::Big => copied(&Some(big_text(self.rng.below(9)))),
                    Role::Value => copied(&c.ty.value(&mut self.rng)),
                })
                .collect();
            data += &fields.join("\t");
            data.push('\n');
        }
        let t = &self.tables[table];
        let (target, columns) = (t.clone().target(&mut self.rng), t.list());
        Step::Copy(format!("copy {target} ({columns}) from stdin"), data)
    }

    fn savepoint(&mut self, steps: &mut Vec<Step>) {
        let name = format!("s{}", self.rng.below(100));
        steps.push(Step::Sql(format!("savepoint {name}")));
        let before = steps.len();
        self.statements(steps);
        // A TRUNCATE that may be undone is one too many for the rule of `Step::Truncate`.
        steps.retain(|s| !matches!(s, Step::Truncate(_)));
        let verb = if self.rng.chance(60) && steps.len() > before { "rollback to" } else { "release" };
        steps.push(Step::Sql(format!("{verb} {name}")));
    }

    fn truncate(&mut self, table: usize) -> Step {
        let table = self.tables[table].clone();
        Step::Truncate(format!("truncate {} cascade", table.truncated(&mut self.rng)))
    }

    /// Thousands of rows with join columns of their own.
    pub fn large_insert(&mut self, table: usize) -> String {
        let t = self.tables[table].clone();
        let mut keys = key_expressions(&t, "n").into_iter();
        let columns: Vec<usize> = (0..t.columns.len()).collect();
        let values: Vec<String> = columns
            .into_iter()
            .map(|c| match (t.columns[c].role, t.columns[c].ty) {
                (Role::Key, _) => keys.next().unwrap_or_default(),
                (Role::Join, ty) if ty.is_int() => format!("n::{}", ty.sql()),
                (Role::Join, ty) => format!("('g' || n)::{}", ty.sql()),
                // The same parent for all would join thousands with thousands.
                (Role::Parent, _) => "null".to_owned(),
                (Role::Big, _) => "repeat('large', 2)".to_owned(),
                _ => self.value(table, c),
            })
            .collect();
        let conflict = if t.key().is_empty() { "" } else { " on conflict do nothing" };
        let (name, list, last) = (&t.name, t.list(), 999 + self.large);
        let values = values.join(", ");
        format!(
            "insert into {name} ({list}) select {values} from generate_series(1000, {last}) as n{conflict}"
        )
    }

    /// Thousands of rows at once, with join columns of their own; or all of those changed, or deleted.
    fn large_transaction(&mut self) -> Plan {
        let table = self.rng.below(self.tables.len());
        let t = self.tables[table].clone();
        let high = match t.key().is_empty() {
            true => "k >= 1000".to_owned(),
            false => format!(
                "({}) in (select {} from generate_series(1000, {}) as n)",
                t.key_list(),
                key_expressions(&t, "n").join(", "),
                999 + self.large
            ),
        };
        let sql = match self.rng.below(3) {
            0 => format!("delete from {} where {high}", t.name),
            1 => format!("update {} set g = g || 'x' where {high} and length(g) < 10", t.name),
            _ => self.large_insert(table),
        };
        let mut steps = vec![Step::Sql(sql)];
        // Without a key a second load would double the first, and a join multiply it.
        if t.key().is_empty() {
            steps.insert(0, Step::Sql(format!("delete from {} where {high}", t.name)));
        }
        // They do not stay for long: every answer would carry them.
        let again = format!("delete from {} where {high}", t.name);
        if self.rng.chance(30) {
            steps.push(Step::Sql(again));
        }
        Plan { steps, end: End::Commit }
    }
}

impl Prng {
    /// A number below `limit`, or NULL.
    fn value_of(&mut self, limit: usize) -> Option<usize> {
        if self.chance(10) { None } else { Some(self.below(limit)) }
    }
}
