//! What the analyzer knows about the objects a tree names: plain data, loaded once per analysis ([`super::load`]).

use std::collections::HashMap;

use super::node::Node;
use crate::row::TypeInfo;

/// Catalog facts by OID. A missing entry is an error of the loader, reported as such by the `get` functions' callers.
#[derive(Debug, Default, Clone)]
pub struct Facts {
    pub functions: HashMap<u32, Function>,
    pub operators: HashMap<u32, Operator>,
    pub types: HashMap<u32, Type>,
    pub collations: HashMap<u32, Collation>,
    pub relations: HashMap<u32, Relation>,
    /// `pg_default_acl`-free: the database's default collation is "C" or "POSIX".
    pub database_collation_is_c: bool,
    /// Major version of the server.
    pub major: u32,
    /// What `format_type` prints behind the name of a type that is not built in, by type and typmod: `(3)`.
    pub typmods: HashMap<(u32, i32), String>,
    /// Texts of constants that can't be read from their bytes, by type and bytes (see [`super::literals`]).
    pub literals: HashMap<(u32, Vec<u8>), String>,
}

#[derive(Debug, Clone)]
pub struct Function {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `prosrc`: for internal functions the C symbol, which names the operation whatever its SQL name.
    pub source: String,
    /// `pg_language.lanname`.
    pub language: String,
    /// `provolatile`: i, s or v.
    pub volatility: char,
    pub strict: bool,
    /// `prokind`: f, a, w, p.
    pub kind: char,
    pub returns_set: bool,
    /// Argument types (`proargtypes`).
    pub arguments: Vec<u32>,
    pub result: u32,
}

impl Function {
    /// Created by initdb: can't be users' code.
    pub fn is_builtin(&self) -> bool {
        self.oid < 16384 && self.schema == "pg_catalog"
    }
}

#[derive(Debug, Clone)]
pub struct Operator {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `b` infix or `l` prefix.
    pub kind: char,
    pub left: u32,
    pub right: u32,
    pub result: u32,
    /// `oprcode`.
    pub function: u32,
    /// It is the equality of the default hash operator class of its operands' type.
    pub is_hash_equality: bool,
}

#[derive(Debug, Clone)]
pub struct Type {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `typtype`: b, c, d, e, p, r, m.
    pub typtype: char,
    pub category: char,
    /// For a domain its base type (fully resolved), else itself.
    pub base: u32,
    pub element: u32,
    pub array: u32,
    pub relation: u32,
    pub length: i16,
    pub by_value: bool,
    pub collation: u32,
    /// Label by label OID, for enums.
    pub labels: Vec<(u32, String)>,
    /// Whether the type has a default btree or hash equality.
    pub has_equality: bool,
    /// `typbasetype`: the type directly below a domain, 0 otherwise.
    pub parent: u32,
    /// `typtypmod`: the length that a domain adds, -1 for none.
    pub typmod: i32,
    /// `typinput` and `typoutput`.
    pub input: u32,
    pub output: u32,
    /// `conbin` of a domain's own CHECK constraints (those of the domains below are with them).
    pub checks: Vec<Node>,
}

#[derive(Debug, Clone)]
pub struct Collation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub deterministic: bool,
    /// Bytewise order: "C", "POSIX", `ucs_basic`, builtin provider C, or the default collation of a C database.
    pub is_c: bool,
}

#[derive(Debug, Clone)]
pub struct Relation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `relkind`: r, p, v, m, f.
    pub kind: char,
    /// `relpersistence`: p, u, t.
    pub persistence: char,
    /// `relreplident`: d, n, f, i.
    pub replica_identity: char,
    pub row_security: bool,
    /// For views: `security_barrier` and `security_invoker` options.
    pub security_barrier: bool,
    pub security_invoker: bool,
    pub owner: u32,
    /// Has children in `pg_inherits` (or is partitioned).
    pub has_children: bool,
    /// All relations below it in `pg_inherits`, each once, ascending: what its name reads besides its own rows.
    pub descendants: Vec<u32>,
    /// Live columns, ascending attnum.
    pub columns: Vec<Column>,
    /// Immediate, valid, non-partial unique indexes over plain columns, primary key first.
    pub unique_keys: Vec<UniqueKey>,
    /// The stream table that this relation stores, if any.
    pub stream_table: Option<StreamTable>,
}

#[derive(Debug, Clone)]
pub struct Column {
    pub attnum: i16,
    pub name: String,
    pub ty: TypeInfo,
    pub not_null: bool,
    /// `attgenerated`: s, v, or a blank.
    pub generated: char,
}

#[derive(Debug, Clone)]
pub struct UniqueKey {
    pub index: u32,
    pub primary: bool,
    pub attributes: Vec<i16>,
    /// All columns are NOT NULL.
    pub not_null: bool,
    /// It is the relation's replica identity.
    pub is_replica_identity: bool,
}

/// A stream table as a source of another one.
#[derive(Debug, Clone)]
pub struct StreamTable {
    pub view: i64,
    /// Maintained incrementally and active: it is read through the dataflow. Otherwise its stored rows are the source.
    pub incremental: bool,
}
