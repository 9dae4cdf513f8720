//! The columns of a source that the pipeline holds, in held order: identity first.

use std::sync::Arc;

use crate::analyzer::facts::{Column, Relation, UniqueKey};
use crate::dataflow::Binding;
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::WantedAttribute;
use crate::row::TypeClass;

/// A captured column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldColumn {
    pub attnum: i16,
    pub name: String,
    pub type_oid: u32,
    pub class: TypeClass,
}

/// How the changes of a source are recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CapturedBy {
    /// The publication and the WAL.
    Wal,
    /// Triggers that write whole rows as text (D8).
    Triggers(Arc<Triggered>),
}

/// A source captured by triggers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Triggered {
    /// `pgt_sources.source_id`: names the buffer, the function and the messages.
    pub source_id: i64,
    /// Its replica identity would do: it is captured by triggers only for want of a slot.
    pub from_wal: bool,
    /// Attribute and class of each field of a row's text, in order.
    pub fields: Vec<(i16, TypeClass)>,
}

/// What to capture of one relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpec {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub captured_by: CapturedBy,
    /// Number of leading columns that identify a row; 0: by image (REPLICA IDENTITY FULL without a key).
    pub identity: usize,
    pub columns: Vec<HeldColumn>,
}

/// The columns as they are decoded now; only ever appended to, so that rows decoded earlier are prefixes.
pub type SourceLayout = SourceSpec;

impl SourceSpec {
    /// The capture of `relation` with at least the attributes `needed`.
    ///
    /// Errors: `Unsupported` where updates and deletes could not be followed (D10).
    pub fn new(relation: &Relation, needed: &[i16]) -> Result<SourceSpec> {
        let named = || format!("{}.{}", relation.schema, relation.name);
        if relation.persistence == 'u' {
            let context = format!("{} is unlogged: its changes are not in the WAL", named());
            return Err(Error::new(ErrorKind::Unsupported, context)
                .with_sqlstate("0A000")
                .with_hint("run: alter table ... set logged"));
        }
        let sent = |k: &&UniqueKey| k.not_null && is_sent(relation, k);
        let not_null_key = relation.unique_keys.iter().find(sent);
        let identity: Vec<i16> = match relation.replica_identity {
            'f' => not_null_key.map(|k| k.attributes.clone()).unwrap_or_default(),
            'd' => relation
                .unique_keys
                .iter()
                .find(|k| k.primary && is_sent(relation, k))
                .map(|k| k.attributes.clone())
                .unwrap_or_default(),
            'i' => relation
                .unique_keys
                .iter()
                .find(|k| k.is_replica_identity && sent(k))
                .map(|k| k.attributes.clone())
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        if identity.is_empty() && relation.replica_identity != 'f' {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} has no usable replica identity", named()),
            )
            .with_sqlstate("0A000")
            .with_hint("add a primary key, or run: alter table ... replica identity full"));
        }
        let others = needed.iter().copied().filter(|a| !identity.contains(a));
        Self::build(relation, identity.clone(), others.collect(), CapturedBy::Wal)
    }

    /// The capture of `relation` by triggers: any row can be followed. Without a key, rows are held by image.
    pub fn triggered(relation: &Relation, needed: &[i16], source_id: i64) -> Result<SourceSpec> {
        let fields = relation.columns.iter().map(|c| (c.attnum, c.ty.class)).collect();
        let published = Self::new(relation, needed);
        let from_wal = published.is_ok();
        let captured_by = CapturedBy::Triggers(Arc::new(Triggered { source_id, from_wal, fields }));
        // The same identity as from the WAL where that is possible: the rows in memory stay when the capture changes.
        if let Ok(spec) = published {
            return Ok(SourceSpec { captured_by, ..spec });
        }
        let key = relation.unique_keys.iter().find(|k| k.not_null && is_sent(relation, k));
        let identity = key.map(|k| k.attributes.clone()).unwrap_or_default();
        let others = needed.iter().copied().filter(|a| !identity.contains(a)).collect();
        Self::build(relation, identity, others, captured_by)
    }

    fn build(
        relation: &Relation,
        identity: Vec<i16>,
        others: Vec<i16>,
        captured_by: CapturedBy,
    ) -> Result<SourceSpec> {
        let named = || format!("{}.{}", relation.schema, relation.name);
        let columns = identity
            .iter()
            .copied()
            .chain(others)
            .map(|attnum| {
                let column = relation.columns.iter().find(|c| c.attnum == attnum);
                column
                    .map(held)
                    .ok_or_else(|| Error::internal(format!("{} has no attribute {attnum}", named())))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(SourceSpec {
            oid: relation.oid,
            schema: relation.schema.clone(),
            name: relation.name.clone(),
            captured_by,
            identity: identity.len(),
            columns,
        })
    }

    /// The source's id if it is captured by triggers.
    pub fn triggers(&self) -> Option<&Triggered> {
        match &self.captured_by {
            CapturedBy::Wal => None,
            CapturedBy::Triggers(triggered) => Some(triggered),
        }
    }

    pub fn qualified(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// Whether a column's type was made by a user: the text of its values may depend on the catalog.
    pub fn has_users_types(&self) -> bool {
        /// OIDs below are given by initdb.
        const FIRST_NORMAL_OID: u32 = 16384;
        self.columns.iter().any(|c| c.type_oid >= FIRST_NORMAL_OID)
    }

    /// For the pgoutput assembler.
    pub fn wanted(&self) -> Vec<WantedAttribute> {
        let wanted =
            |c: &HeldColumn| WantedAttribute { name: c.name.clone(), type_oid: c.type_oid, class: c.class };
        self.columns.iter().map(wanted).collect()
    }

    pub fn binding(&self, instance: u64) -> Binding {
        Binding { instance, attributes: self.columns.iter().map(|c| c.attnum).collect() }
    }

    /// Whether the first `width` columns hold all of `other`'s.
    pub fn covers(&self, width: usize, other: &SourceSpec) -> bool {
        let held = self.columns.get(..width).unwrap_or(&self.columns);
        self.identity == other.identity
            && self.captured_by == other.captured_by
            && other.columns.iter().all(|c| held.contains(c))
    }

    /// Whether a column of `other` is held under another name or as another type.
    pub fn contradicts(&self, other: &SourceSpec) -> bool {
        let held = |c: &HeldColumn| self.columns.iter().find(|h| h.attnum == c.attnum);
        other.columns.iter().any(|c| held(c).is_some_and(|h| h != c))
    }

    /// Appends the columns of `other` that are missing.
    pub fn extend(&mut self, other: &SourceSpec) {
        for column in &other.columns {
            if !self.columns.iter().any(|c| c.attnum == column.attnum) {
                self.columns.push(column.clone());
            }
        }
    }
}

/// Generated columns are computed, not sent.
fn is_sent(relation: &Relation, key: &UniqueKey) -> bool {
    let plain = |c: &Column| !matches!(c.generated, 's' | 'v');
    key.attributes.iter().all(|a| relation.columns.iter().any(|c| c.attnum == *a && plain(c)))
}

fn held(column: &Column) -> HeldColumn {
    HeldColumn {
        attnum: column.attnum,
        name: column.name.clone(),
        type_oid: column.ty.oid,
        class: column.ty.class,
    }
}

/// Quotes an identifier, always.
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
