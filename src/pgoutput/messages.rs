//! The messages of pgoutput protocol 1, parsed without copying.
//!
//! Invariant: a parsed message is fully validated (lengths, names, column kinds), so its iterators cannot fail.
//! Place in the data's way: the first step after the replication connection.
//!
//! Source: documentation section "Logical Replication Message Formats"; `proto.c` (`logicalrep_write_*`).

use super::reader::Reader;
use crate::error::Result;

/// One message. LSNs are byte positions in the WAL, times microseconds since 2000-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    Begin(Begin),
    Commit(Commit),
    Origin(Origin<'a>),
    Relation(RelationMessage<'a>),
    Type(TypeMessage<'a>),
    Insert { relation: u32, new: Tuple<'a> },
    Update { relation: u32, old: Option<OldTuple<'a>>, new: Tuple<'a> },
    Delete { relation: u32, old: OldTuple<'a> },
    Truncate(Truncate<'a>),
    Logical(LogicalMessage<'a>),
}

/// `B`: a transaction follows, complete and in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Position of the commit record; equal to [`Commit::lsn`].
    pub final_lsn: u64,
    pub commit_time: i64,
    /// The top-level transaction's xid, without epoch.
    pub xid: u32,
}

/// `C`: the end of the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Position of the commit record.
    pub lsn: u64,
    /// Position after the commit record.
    pub end_lsn: u64,
    pub commit_time: i64,
}

/// `O`: the transaction was replayed from another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Commit position on the server of origin.
    pub lsn: u64,
    pub name: &'a str,
}

/// `R`: a relation as the server describes it, before its first change and after every change of its definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationMessage<'a> {
    pub oid: u32,
    /// Empty for `pg_catalog`.
    pub schema: &'a str,
    pub name: &'a str,
    /// `pg_class.relreplident`: `d`, `n`, `f` or `i`.
    pub replica_identity: char,
    columns: u16,
    body: &'a [u8],
}

/// One column of a [`RelationMessage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnMessage<'a> {
    /// Part of the replica identity (all columns under FULL).
    pub is_key: bool,
    pub name: &'a str,
    pub type_oid: u32,
    pub typmod: i32,
}

/// `Y`: name of a type that is not built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeMessage<'a> {
    pub oid: u32,
    /// Empty for `pg_catalog`.
    pub schema: &'a str,
    pub name: &'a str,
}

/// The old image of an updated or deleted row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// `K`: only the columns of the replica identity carry values; the others are null and mean nothing.
    Key(Tuple<'a>),
    /// `O`: all columns (REPLICA IDENTITY FULL).
    Full(Tuple<'a>),
}

/// `T`: relations emptied by one TRUNCATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate<'a> {
    pub cascade: bool,
    pub restart_identity: bool,
    relations: &'a [u8],
}

/// `M`: written by `pg_logical_emit_message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    pub transactional: bool,
    /// Position of the message itself.
    pub lsn: u64,
    pub prefix: &'a [u8],
    /// Sent as it was written: text here is in the *server's* encoding.
    pub content: &'a [u8],
}

/// The columns of a row, in the order of the relation message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: u16,
    body: &'a [u8],
}

/// One value of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    /// Stored out of line and not changed by the UPDATE: the value is *not* sent and is not null.
    UnchangedToast,
    Text(&'a [u8]),
}

/// Parses one message (the payload of an XLogData). Protocol error for anything that is not exactly one message.
pub fn parse(bytes: &[u8]) -> Result<Message<'_>> {
    let mut r = Reader::new(bytes)?;
    let message = match r.kind() {
        b'B' => Message::Begin(Begin {
            final_lsn: r.u64("final position")?,
            commit_time: r.i64("commit time")?,
            xid: r.u32("transaction id")?,
        }),
        b'C' => commit(&mut r)?,
        b'O' => Message::Origin(Origin { lsn: r.u64("origin position")?, name: r.name("origin name")? }),
        b'R' => relation(&mut r)?,
        b'Y' => Message::Type(TypeMessage {
            oid: r.u32("type oid")?,
            schema: r.name("schema name")?,
            name: r.name("type name")?,
        }),
        b'I' => {
            let relation = r.u32("relation oid")?;
            let at = r.at();
            if r.u8("tuple kind")? != b'N' {
                return Err(r.error(at, "an INSERT has no new tuple"));
            }
            Message::Insert { relation, new: tuple(&mut r)? }
        }
        b'U' => update(&mut r)?,
        b'D' => {
            let relation = r.u32("relation oid")?;
            let at = r.at();
            let kind = r.u8("tuple kind")?;
            match old_tuple(kind, &mut r)? {
                Some(old) => Message::Delete { relation, old },
                None => return Err(r.error(at, "a DELETE has no old tuple")),
            }
        }
        b'T' => {
            let relations = r.u32("number of relations")?;
            let flags = r.u8("flags")?;
            // A count whose bytes do not fit an address cannot fit the message either.
            let length = usize::try_from(relations).ok().and_then(|n| n.checked_mul(4)).unwrap_or(usize::MAX);
            Message::Truncate(Truncate {
                cascade: flags & 1 != 0,
                restart_identity: flags & 2 != 0,
                relations: r.take(length, "relation list")?,
            })
        }
        b'M' => {
            let flags = r.u8("flags")?;
            Message::Logical(LogicalMessage {
                transactional: flags & 1 != 0,
                lsn: r.u64("position")?,
                prefix: r.c_bytes("prefix")?,
                content: r.counted("content")?,
            })
        }
        _ => return Err(r.error(0, "this kind of message is not part of protocol 1")),
    };
    r.end()?;
    Ok(message)
}

/// The relation of an `I`, `U` or `D` message, without looking at its tuples; `None` for other kinds.
pub fn changed_relation(bytes: &[u8]) -> Option<u32> {
    match bytes {
        [b'I' | b'U' | b'D', a, b, c, d, ..] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

fn commit<'a>(r: &mut Reader<'a>) -> Result<Message<'a>> {
    let at = r.at();
    if r.u8("flags")? != 0 {
        return Err(r.error(at, "unknown flags"));
    }
    Ok(Message::Commit(Commit {
        lsn: r.u64("commit position")?,
        end_lsn: r.u64("end position")?,
        commit_time: r.i64("commit time")?,
    }))
}

fn relation<'a>(r: &mut Reader<'a>) -> Result<Message<'a>> {
    let oid = r.u32("relation oid")?;
    let schema = r.name("schema name")?;
    let name = r.name("relation name")?;
    let replica_identity = char::from(r.u8("replica identity")?);
    let columns = r.u16("number of columns")?;
    let from = r.at();
    for _ in 0..columns {
        r.u8("column flags")?;
        r.name("column name")?;
        r.u32("column type")?;
        r.i32("column typmod")?;
    }
    let body = r.since(from);
    Ok(Message::Relation(RelationMessage { oid, schema, name, replica_identity, columns, body }))
}

fn update<'a>(r: &mut Reader<'a>) -> Result<Message<'a>> {
    let relation = r.u32("relation oid")?;
    let mut at = r.at();
    let mut kind = r.u8("tuple kind")?;
    let old = old_tuple(kind, r)?;
    if old.is_some() {
        at = r.at();
        kind = r.u8("tuple kind")?;
    }
    if kind != b'N' {
        return Err(r.error(at, "an UPDATE has no new tuple"));
    }
    Ok(Message::Update { relation, old, new: tuple(r)? })
}

fn old_tuple<'a>(kind: u8, r: &mut Reader<'a>) -> Result<Option<OldTuple<'a>>> {
    Ok(match kind {
        b'K' => Some(OldTuple::Key(tuple(r)?)),
        b'O' => Some(OldTuple::Full(tuple(r)?)),
        _ => None,
    })
}

fn tuple<'a>(r: &mut Reader<'a>) -> Result<Tuple<'a>> {
    let columns = r.u16("number of columns")?;
    let from = r.at();
    for _ in 0..columns {
        let at = r.at();
        match r.u8("column kind")? {
            b'n' | b'u' => {}
            b't' => {
                r.counted("column value")?;
            }
            b'b' => {
                return Err(r
                    .error(at, "binary tuples are not requested")
                    .with_hint("the replication connection must be started without the option binary"));
            }
            _ => return Err(r.error(at, "unknown column kind")),
        }
    }
    Ok(Tuple { columns, body: r.since(from) })
}

impl<'a> RelationMessage<'a> {
    /// Number of columns.
    pub fn len(&self) -> usize {
        self.columns.into()
    }

    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The columns, in the order in which tuples carry them.
    pub fn columns(&self) -> impl Iterator<Item = ColumnMessage<'a>> + use<'a> {
        let mut rest = self.body;
        std::iter::from_fn(move || {
            let (&flags, tail) = rest.split_first()?;
            let end = tail.iter().position(|&b| b == 0)?;
            let (name, tail) = tail.split_at_checked(end)?;
            let (type_oid, tail) = tail.get(1..)?.split_first_chunk()?;
            let (typmod, tail) = tail.split_first_chunk()?;
            rest = tail;
            Some(ColumnMessage {
                is_key: flags & 1 != 0,
                name: std::str::from_utf8(name).ok()?,
                type_oid: u32::from_be_bytes(*type_oid),
                typmod: i32::from_be_bytes(*typmod),
            })
        })
    }
}

impl<'a> Truncate<'a> {
    /// OIDs of the emptied relations: every leaf of a partitioned table, those reached by CASCADE included.
    pub fn relations(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.relations.as_chunks::<4>().0.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

impl<'a> Tuple<'a> {
    /// Number of columns.
    pub fn len(&self) -> usize {
        self.columns.into()
    }

    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The values, in the order of the relation message.
    pub fn values(&self) -> Values<'a> {
        Values { rest: self.body }
    }
}

/// Iterator over the values of a tuple.
#[derive(Debug, Clone)]
pub struct Values<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        let (&kind, tail) = self.rest.split_first()?;
        let (value, tail) = match kind {
            b'n' => (Value::Null, tail),
            b'u' => (Value::UnchangedToast, tail),
            _ => {
                let (length, tail) = tail.split_first_chunk()?;
                let (text, tail) = tail.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                (Value::Text(text), tail)
            }
        };
        self.rest = tail;
        Some(value)
    }
}
