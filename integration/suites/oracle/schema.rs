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

#[derive(Debug, Clone)]
pub struct Table {
    pub name: String,
    pub columns: Vec<Column>,
    pub identity: Identity,
    /// Index of the parent table.
    pub parent: Option<usize>,
    pub on_delete: &'static str,
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
            let mut part = format!("{} {}{not_null}", column.name, column.ty.sql());
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
        if matches!(self.identity, Identity::PrimaryKey | Identity::KeyAndFull) {
            parts.push(format!("primary key ({})", self.key_list()));
        }
        let name = &self.name;
        let mut ddl = format!("create table {name} ({});\n", parts.join(", "));
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
        ddl
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

/// Two to four tables.
pub fn tables(rng: &mut Prng) -> Vec<Table> {
    let count = 2 + rng.below(3);
    let mut tables: Vec<Table> = Vec::new();
    for number in 0..count {
        let table = table(rng, number, &tables);
        tables.push(table);
    }
    tables
}

fn table(rng: &mut Prng, number: usize, before: &[Table]) -> Table {
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
    let candidates: Vec<usize> = (0..before.len()).filter(|t| before[*t].key().len() == 1).collect();
    let parent = (!candidates.is_empty() && rng.chance(60)).then(|| *rng.pick(&candidates));
    if let Some(parent) = parent {
        add("parent".into(), before[parent].key()[0].ty, Role::Parent);
    }
    for value in 0..2 + rng.below(5) {
        add(format!("c{value}"), *rng.pick(&VALUE_TYPES), Role::Value);
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
    Table { name: format!("t{number}"), columns, identity, parent, on_delete }
}

/// Everything that the application creates before its first transaction.
pub fn ddl(tables: &[Table]) -> String {
    let mut ddl = "create type mood as enum ('sad', 'ok', 'happy');\n".to_owned();
    for table in tables {
        ddl += &table.ddl(tables);
    }
    ddl
}
