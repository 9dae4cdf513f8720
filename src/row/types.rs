//! What the pipeline knows about a PostgreSQL type: how its text is packed and which native operations are exact.

use serde::{Deserialize, Serialize};

/// Types with native meaning; everything else is `Other`: carried by image, compared only by PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TypeClass {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Numeric,
    Float4,
    Float8,
    Text,
    Varchar,
    Bpchar,
    Name,
    /// The one-byte type `"char"`.
    Char,
    Bytea,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Uuid,
    Enum,
    Other,
}

impl TypeClass {
    /// Class of a base type by its fixed OID (`pg_type.dat`); enums are recognised by their `typtype`.
    pub fn of(oid: u32, typtype: char) -> TypeClass {
        use TypeClass::*;
        if typtype == 'e' {
            return Enum;
        }
        match oid {
            16 => Bool,
            21 => Int2,
            23 => Int4,
            20 => Int8,
            26 => Oid,
            1700 => Numeric,
            700 => Float4,
            701 => Float8,
            25 => Text,
            1043 => Varchar,
            1042 => Bpchar,
            19 => Name,
            18 => Char,
            17 => Bytea,
            1082 => Date,
            1083 => Time,
            1114 => Timestamp,
            1184 => Timestamptz,
            1186 => Interval,
            2950 => Uuid,
            _ => Other,
        }
    }

    /// Packed as [`crate::row::Datum::Int`].
    pub fn is_int(self) -> bool {
        matches!(self, TypeClass::Int2 | TypeClass::Int4 | TypeClass::Int8 | TypeClass::Oid)
    }

    /// String types, whose comparison depends on a collation.
    pub fn is_string(self) -> bool {
        matches!(self, TypeClass::Text | TypeClass::Varchar | TypeClass::Bpchar | TypeClass::Name)
    }
}

/// A column's or expression's type as the server resolved it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TypeInfo {
    /// `pg_type.oid`. A domain keeps its own OID here; `class` is that of its base type.
    pub oid: u32,
    /// `atttypmod`, -1 for none.
    pub typmod: i32,
    /// `pg_collation.oid`, 0 for none.
    pub collation: u32,
    /// False only for nondeterministic collations, whose equality is not bytewise.
    pub deterministic: bool,
    pub class: TypeClass,
}
