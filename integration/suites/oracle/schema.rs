//! Random schemas: tables with every form of key and replica identity, columns of many types, cascading foreign keys.

use super::prng::Prng;
use super::types::{Ty, VALUE_TYPES, uuid};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Part of the key.
    Key,
    /// Small domain, for joins and groups.
    Join,
    /// Foreign key to the table's parent.
    Parent,
    Value,
    /// More than 2 kB, stored out of line: an update of other columns does not send it.
    Big,
}

#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub ty: Ty,
    pub role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    PrimaryKey,
    /// A unique index that is no constraint.
    Index,
    /// A primary key, but whole old rows in the WAL.
    KeyAndFull,
    /// No key at all: duplicates are possible.
    Full,
}

/// How many tables store the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    /// Hash partitions by the key (without one by `k`), so that rows move; one leaf numbers its columns in another way.
    Partitioned,
    /// A child with a column of its own.
    Inherited,
}

#[derive(Debug, Clone)]
pub struct Table {
    pub name: String,
    pub form: Form,
    pub columns: Vec<Column>,
    pub identity: Identity,
    /// Index of the parent table.
    pub parent: Option<usize>,
    pub on_delete: &'static str,
    /// A column `gen` that the server computes: its type and expression.
    pub generated: Option<(Ty, &'static str)>,
}

impl Table {
    pub fn key(&self) -> Vec<&Column> {
        self.columns.iter().filter(|c| c.role == Role::Key).collect()
    }

    /// `a, b` of the key.
    pub fn key_list(&self) -> String {
        self.key().iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    pub fn column(&self, role: Role) -> Option<&Column> {
        self.columns.iter().find(|c| c.role == role)
    }

    /// Column names, comma separated.
    pub fn list(&self) -> String {
        self.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn ddl(&self, tables: &[Table]) -> String {
        let mut parts: Vec<String> = Vec::new();
        for column in &self.columns {
            let not_null = if column.role == Role::Key { " not null" } else { "" };
            let mut part = format!("{} {}{not_null}", column.name, column.ty.column());
            if let (Role::Parent, Some(parent)) = (column.role, self.parent) {
                let parent = &tables[parent];
                let cascade = self.on_delete;
                part += &format!(
                    " references {} ({}) on update cascade on delete {cascade}",
                    parent.name,
                    parent.key_list()
                );
            }
            parts.push(part);
        }
        parts.extend(self.computed());
        if matches!(self.identity, Identity::PrimaryKey | Identity::KeyAndFull) {
            parts.push(format!("primary key ({})", self.key_list()));
        }
        let name = &self.name;
        let mut ddl = format!("create table {name} ({})", parts.join(", "));
        if self.form == Form::Partitioned {
            ddl += &format!(" partition by hash ({})", self.key().first().map_or("k", |c| c.name.as_str()));
        }
        ddl += ";\n";
        if let Some(big) = self.column(Role::Big) {
            ddl += &format!("alter table {name} alter column {} set storage external;\n", big.name);
        }
        ddl += &match self.identity {
            Identity::PrimaryKey => String::new(),
            Identity::KeyAndFull | Identity::Full => format!("alter table {name} replica identity full;\n"),
            Identity::Index => format!(
                "create unique index {name}_uniq on {name} ({});\n\
                 alter table {name} replica identity using index {name}_uniq;\n",
                self.key_list()
            ),
        };
        ddl + &self.members()
    }

    fn computed(&self) -> Option<String> {
        let (ty, expression) = self.generated?;
        Some(format!("gen {} generated always as ({expression}) stored", ty.sql()))
    }

    /// The tables below this one. Some have no usable replica identity: they are captured by triggers.
    fn members(&self) -> String {
        let name = &self.name;
        let whole = |table: String| match self.identity {
            Identity::KeyAndFull | Identity::Full => format!("alter table {table} replica identity full;\n"),
            _ => String::new(),
        };
        match self.form {
            Form::Plain => String::new(),
            Form::Inherited => {
                let key = match self.key_list() {
                    key if key.is_empty() => String::new(),
                    key => format!(", primary key ({key})"),
                };
                format!("create table {name}_kid (extra int{key}) inherits ({name});\n")
                    + &whole(format!("{name}_kid"))
            }
            Form::Partitioned => {
                // A unique index would have to hold the columns of every level.
                let last = match self.key().is_empty() {
                    false => format!(
                        "create table {name}_c partition of {name} for values with (modulus 3, remainder 2);\n"
                    ),
                    true => format!(
                        "create table {name}_c partition of {name} for values with (modulus 3, remainder 2) partition by hash (g);\n\
                         create table {name}_c0 partition of {name}_c for values with (modulus 1, remainder 0);\n"
                    ),
                };
                let bounds = |r: usize| format!("for values with (modulus 3, remainder {r})");
                let backwards: Vec<String> = self
                    .columns
                    .iter()
                    .rev()
                    .map(|c| {
                        format!(
                            "{} {}{}",
                            c.name,
                            c.ty.column(),
                            if c.role == Role::Key { " not null" } else { "" }
                        )
                    })
                    .chain(self.computed())
                    .collect();
                format!("create table {name}_a partition of {name} {};\n", bounds(0))
                    + &format!(
                        "create table {name}_b (gone int, {}); alter table {name}_b drop column gone;\n",
                        backwards.join(", ")
                    )
                    + &format!("alter table {name} attach partition {name}_b {};\n", bounds(1))
                    + &last
                    + &whole(format!("{name}_a"))
            }
        }
    }

    /// Where a new row is put: `name`, now and then a table below it that takes any row.
    pub fn target(&self, rng: &mut Prng) -> String {
        match self.form {
            Form::Inherited if rng.chance(40) => format!("{}_kid", self.name),
            _ => self.name.clone(),
        }
    }

    /// What a TRUNCATE empties: the table, now and then only a part of it.
    pub fn truncated(&self, rng: &mut Prng) -> String {
        let name = &self.name;
        match self.form {
            Form::Plain => name.clone(),
            Form::Partitioned => {
                [name.clone(), format!("{name}_b"), format!("{name}_c")][rng.below(3)].clone()
            }
            Form::Inherited => {
                [name.clone(), format!("only {name}"), format!("{name}_kid")][rng.below(3)].clone()
            }
        }
    }
}

/// Texts of the key columns of key number `n`.
pub fn key_values(table: &Table, n: usize) -> Vec<String> {
    let key = table.key();
    if key.len() == 2 {
        return vec![(n / 8).to_string(), format!("p{}", n % 8)];
    }
    key.iter()
        .map(|c| match c.ty {
            Ty::Int8 => (1_000_000_000_000 + n).to_string(),
            Ty::Text => format!("k{n}"),
            Ty::Uuid => uuid(n),
            _ => n.to_string(),
        })
        .collect()
}

/// The same as expressions over an integer expression `n`.
pub fn key_expressions(table: &Table, n: &str) -> Vec<String> {
    let key = table.key();
    if key.len() == 2 {
        return vec![format!("({n}) / 8"), format!("'p' || ({n}) % 8")];
    }
    key.iter()
        .map(|c| match c.ty {
            Ty::Int8 => format!("1000000000000 + ({n})"),
            Ty::Text => format!("'k' || ({n})"),
            Ty::Uuid => format!("('00000000-0000-4000-8000-' || lpad(({n})::text, 12, '0'))::uuid"),
            _ => format!("({n})"),
        })
        .collect()
}

/// Two to four tables; `more` are types that this server has besides.
pub fn tables(rng: &mut Prng, more: &[Ty]) -> Vec<Table> {
    let count = 2 + rng.below(3);
    let mut tables: Vec<Table> = Vec::new();
    for number in 0..count {
        let table = table(rng, number, &tables, more);
        tables.push(table);
    }
    tables
}

fn table(rng: &mut Prng, number: usize, before: &[Table], more: &[Ty]) -> Table {
    let identities =
        [Identity::PrimaryKey, Identity::PrimaryKey, Identity::Index, Identity::KeyAndFull, Identity::Full];
    let identity = if number == 0 { Identity::PrimaryKey } else { *rng.pick(&identities) };
    let mut columns = Vec::new();
    let mut add = |name: String, ty, role| columns.push(Column { name, ty, role });
    if identity != Identity::Full {
        match rng.below(5) {
            0 => add("id".into(), Ty::Int4, Role::Key),
            1 => add("id".into(), Ty::Int8, Role::Key),
            2 => add("id".into(), Ty::Text, Role::Key),
            3 => add("id".into(), Ty::Uuid, Role::Key),
            _ => {
                add("id".into(), Ty::Int4, Role::Key);
                add("part".into(), Ty::Text, Role::Key);
            }
        }
    }
    add("k".into(), *rng.pick(&[Ty::Int4, Ty::Int4, Ty::Int8, Ty::Int2]), Role::Join);
    add("g".into(), *rng.pick(&[Ty::Text, Ty::Text, Ty::Varchar]), Role::Join);
    let candidates: Vec<usize> = (0..before.len())
        // A foreign key does not see the rows of children.
        .filter(|t| before[*t].key().len() == 1 && before[*t].form != Form::Inherited)
        .collect();
    let parent = (!candidates.is_empty() && rng.chance(60)).then(|| *rng.pick(&candidates));
    if let Some(parent) = parent {
        add("parent".into(), before[parent].key()[0].ty, Role::Parent);
    }
    for value in 0..2 + rng.below(5) {
        let rare = !more.is_empty() && rng.chance(12);
        match if rare { *rng.pick(more) } else { *rng.pick(&VALUE_TYPES) } {
            // What is not built in is told by the name: see `needs_sidecar`.
            ty if ty.is_folded() => add(format!("app_c{value}"), ty, Role::Value),
            ty => add(format!("c{value}"), ty, Role::Value),
        }
    }
    if rng.chance(50) {
        add("big".into(), Ty::Text, Role::Big);
    }
    // The key is not always in front.
    for _ in 0..2 {
        let (a, b) = (rng.below(columns.len()), rng.below(columns.len()));
        if rng.chance(40) && columns[a].role != Role::Key && columns[b].role != Role::Key {
            columns.swap(a, b);
        }
    }
    if rng.chance(30) {
        let first = columns.remove(0);
        let composite = columns.first().is_some_and(|c| c.role == Role::Key);
        let at = if composite { 0 } else { columns.len() };
        columns.insert(at, first);
    }
    let on_delete = *rng.pick(&["cascade", "cascade", "set null"]);
    let form = match rng.below(10) {
        0..=2 => Form::Partitioned,
        3 | 4 => Form::Inherited,
        _ => Form::Plain,
    };
    let generated = match rng.below(8) {
        0 => Some((Ty::Int8, "k::int8 * 2 + 1")),
        1 => Some((Ty::Text, "coalesce(g, 'none') || '#'")),
        _ => None,
    };
    Table { name: format!("t{number}"), form, columns, identity, parent, on_delete, generated }
}

/// Everything that the application creates before its first transaction.
pub fn ddl(tables: &[Table]) -> String {
    let mut ddl = "create type mood as enum ('sad', 'ok', 'happy');\n".to_owned();
    for table in tables {
        ddl += &table.ddl(tables);
    }
    ddl
}
