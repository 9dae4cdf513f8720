//! Transaction assembly: messages in, whole transactions of packed rows out.
//!
//! Invariants: changes keep message order (a key may be deleted and inserted again in one transaction); every change
//! of a registered relation is in [`Transaction::changes`], or its relation is in [`Transaction::to_reread`]; every
//! change of another relation is counted. Place in the data's way: replication -> **assembler** -> capture.
//!
//! Memory: one transaction is held at a time, at most `limit` bytes of it.

use std::mem::size_of;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::messages::{self, Message, OldTuple, RelationMessage, Tuple};
use super::relation::{Observed, RelationCache};
use super::tuple::{ColumnMap, Misfit, NewTuple, OldRow, WantedAttribute};
use crate::error::{Error, ErrorKind, Result};
use crate::row::RowBuilder;

/// What a shared row takes beside its packed bytes (two reference counts).
const ROW_HEADER: usize = 16;

/// A committed transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// Top-level xid without epoch; see [`super::widen_xid`].
    pub xid: u32,
    /// Position of the commit record.
    pub commit_lsn: u64,
    /// Position after it: the slot may be confirmed up to here once everything is durable.
    pub end_lsn: u64,
    /// Microseconds since 2000-01-01 UTC.
    pub commit_time: i64,
    /// In message order. Empty if `oversized`; not complete for relations in `reread`.
    pub changes: Vec<Change>,
    /// Memory of the changes. For an oversized transaction: that, plus the message bytes after the limit was passed.
    pub bytes: usize,
    /// The limit was passed and the changes were dropped: read all of `touched` again.
    pub oversized: bool,
    /// Registered relations with any change, in order of first touch.
    pub touched: Vec<u32>,
    /// Registered relations of which a change could not be turned into a row, with the first reason.
    pub reread: Vec<(u32, RereadReason)>,
    /// Number of changes per relation that is not registered.
    pub skipped: FxHashMap<u32, u64>,
    /// Transactional messages dropped because the transaction is oversized: whatever is captured through messages
    /// has to be read again.
    pub dropped_messages: u64,
    /// Name of the replication origin, if the transaction was replayed from elsewhere.
    pub origin: Option<String>,
    /// Changes that [`Assembler::take_part`] has taken before the commit; they are not in `changes`.
    pub taken: usize,
}

impl Transaction {
    /// Relations whose changes are not (all) in `changes`.
    pub fn to_reread(&self) -> impl Iterator<Item = u32> + '_ {
        let touched: &[u32] = if self.oversized { &self.touched } else { &[] };
        let misfits = self.reread.iter().map(|&(relation, _)| relation).filter(|_| !self.oversized);
        touched.iter().copied().chain(misfits)
    }

    /// Whether it changed any registered relation, as far as can be told.
    pub fn changed_any(&self) -> bool {
        self.oversized
            || self.dropped_messages > 0
            || !(self.changes.is_empty() && self.touched.is_empty() && self.reread.is_empty())
    }
}

/// Why changes of a relation are missing from a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RereadReason {
    /// The relation no longer (or not yet) has the registered columns.
    Columns(Misfit),
    /// A key column was unchanged TOAST and no old key came with it (servers before 14.2).
    KeyNotSent,
    /// The relation was registered in the middle of the transaction.
    Registered,
    /// A row lacks a value that an INSERT has to carry.
    ValueNotSent,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// OID of the table that holds the row (a leaf, not the partitioned root); 0 for a message.
    pub relation: u32,
    pub kind: ChangeKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    Insert {
        new: crate::row::Row,
    },
    /// Without `old` the replica identity is what it was before.
    Update {
        old: Option<OldRow>,
        new: NewTuple,
    },
    Delete {
        old: OldRow,
    },
    Truncate {
        cascade: bool,
        restart_identity: bool,
    },
    /// `pg_logical_emit_message(true, prefix, content)`; content in the server's encoding.
    Message {
        prefix: Box<[u8]>,
        content: Box<[u8]>,
    },
}

/// What a message led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A relation was described. The definition may differ from what was registered even if it is
    /// [`Observed::Same`]: compare its fingerprint with the catalog's.
    Relation {
        relation: u32,
        observed: Observed,
    },
    /// A non-transactional message; it comes before the transaction it was written in, and also if that aborts.
    Message {
        lsn: u64,
        prefix: Box<[u8]>,
        content: Box<[u8]>,
    },
    Committed(Box<Transaction>),
}

struct Source {
    wanted: Arc<[WantedAttribute]>,
    /// `None` until the relation is described on this connection.
    map: Option<Result<ColumnMap, Misfit>>,
    /// Serial of the last transaction that has the relation in `touched` / in `reread`.
    touched_in: u64,
    reread_in: u64,
}

impl Source {
    fn fit(&mut self, relations: &RelationCache, relation: u32) {
        self.map = relations.get(relation).map(|r| ColumnMap::new(r, &self.wanted));
    }
}

/// Collects the messages of one connection.
pub struct Assembler {
    limit: usize,
    prefix: Option<Box<[u8]>>,
    relations: RelationCache,
    sources: FxHashMap<u32, Source>,
    builder: RowBuilder,
    pub(super) open: Option<Transaction>,
    /// The open transaction has messages.
    pub(super) with_messages: bool,
    serial: u64,
}

impl Assembler {
    /// `limit`: bytes of changes that one transaction may hold.
    pub fn new(limit: usize) -> Assembler {
        Assembler {
            limit,
            prefix: None,
            relations: RelationCache::default(),
            sources: FxHashMap::default(),
            builder: RowBuilder::default(),
            open: None,
            with_messages: false,
            serial: 0,
        }
    }

    /// Only messages whose prefix begins with this are collected; without it all are.
    pub fn with_message_prefix(mut self, prefix: &[u8]) -> Assembler {
        self.prefix = Some(prefix.into());
        self
    }

    /// From here on rows of `relation` are collected, with these columns in this order. If the open transaction has
    /// already changed the relation, the relation is in its [`Transaction::reread`].
    pub fn register(&mut self, relation: u32, wanted: Vec<WantedAttribute>) {
        let mut source = Source { wanted: wanted.into(), map: None, touched_in: 0, reread_in: 0 };
        source.fit(&self.relations, relation);
        if let Some(open) = &mut self.open {
            if open.touched.contains(&relation) {
                source.touched_in = self.serial;
            }
            if open.reread.iter().any(|(r, _)| *r == relation) {
                source.reread_in = self.serial;
            }
            if source.touched_in == self.serial || open.skipped.contains_key(&relation) {
                touch(open, &mut source, relation, self.serial);
                reread(open, &mut source, relation, self.serial, RereadReason::Registered);
            }
        }
        self.sources.insert(relation, source);
    }

    /// From here on rows of `relation` are only counted.
    pub fn unregister(&mut self, relation: u32) {
        self.sources.remove(&relation);
    }

    /// How the tuples of a registered relation are read at the moment; `None` before its description.
    pub fn map(&self, relation: u32) -> Option<&Result<ColumnMap, Misfit>> {
        self.sources.get(&relation)?.map.as_ref()
    }

    /// The relations as last described.
    pub fn relations(&self) -> &RelationCache {
        &self.relations
    }

    /// The transaction that is being received.
    pub fn open_xid(&self) -> Option<u32> {
        self.open.as_ref().map(|t| t.xid)
    }

    /// Whether a Begin waits for its Commit.
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// The connection is new: the open transaction, if any, will be sent again from its start, and so will the
    /// descriptions of relations.
    pub fn reconnected(&mut self) {
        self.open = None;
        self.relations.reconnected();
        for source in self.sources.values_mut() {
            source.map = None;
        }
    }

    /// Takes the bytes of any message.
    pub fn change(&mut self, bytes: &[u8]) -> Result<Option<Event>> {
        if let Some(relation) = messages::changed_relation(bytes) {
            let open = open(&mut self.open)?;
            let Some(source) = self.sources.get_mut(&relation) else {
                *open.skipped.entry(relation).or_default() += 1;
                return Ok(None);
            };
            if open.oversized {
                touch(open, source, relation, self.serial);
                open.bytes = open.bytes.saturating_add(bytes.len());
                return Ok(None);
            }
        }
        self.feed(messages::parse(bytes)?)
    }

    /// Takes a parsed message.
    pub fn feed(&mut self, message: Message<'_>) -> Result<Option<Event>> {
        match message {
            Message::Begin(b) => self.begin(b.final_lsn, b.xid, b.commit_time).map(|()| None),
            Message::Commit(c) => {
                let done = self.commit(c.lsn, c.end_lsn, c.commit_time)?;
                Ok(Some(Event::Committed(Box::new(done))))
            }
            Message::Origin(o) => {
                open(&mut self.open)?.origin = Some(o.name.to_owned());
                Ok(None)
            }
            Message::Relation(r) => Ok(Some(self.relation(&r))),
            Message::Type(_) => Ok(None),
            Message::Insert { relation, new } => self.row(relation, RowMessage::Insert(new)),
            Message::Update { relation, old, new } => self.row(relation, RowMessage::Update(old, new)),
            Message::Delete { relation, old } => self.row(relation, RowMessage::Delete(old)),
            Message::Truncate(t) => {
                for relation in t.relations() {
                    self.truncate(relation, t.cascade, t.restart_identity)?;
                }
                Ok(None)
            }
            Message::Logical(m) => self.message(m.transactional, m.lsn, m.prefix, m.content),
        }
    }

    /// Opens a transaction. Protocol error if one is open.
    pub fn begin(&mut self, final_lsn: u64, xid: u32, commit_time: i64) -> Result<()> {
        if let Some(open) = &self.open {
            return Err(protocol(format!("transaction {xid} begins inside transaction {}", open.xid)));
        }
        self.serial += 1;
        self.with_messages = false;
        self.open = Some(Transaction { xid, commit_lsn: final_lsn, commit_time, ..Transaction::default() });
        Ok(())
    }

    /// Closes the open transaction. Protocol error if there is none or it was announced with another position.
    pub fn commit(&mut self, lsn: u64, end_lsn: u64, commit_time: i64) -> Result<Transaction> {
        let mut done = self.open.take().ok_or_else(outside)?;
        if done.commit_lsn != lsn {
            return Err(protocol(format!(
                "transaction {} was announced with commit position {:X} and commits at {lsn:X}",
                done.xid, done.commit_lsn
            )));
        }
        done.end_lsn = end_lsn;
        done.commit_time = commit_time;
        Ok(done)
    }

    /// Takes a logical decoding message; a non-transactional one comes back at once.
    pub fn message(
        &mut self,
        transactional: bool,
        lsn: u64,
        prefix: &[u8],
        content: &[u8],
    ) -> Result<Option<Event>> {
        if self.prefix.as_deref().is_some_and(|wanted| !prefix.starts_with(wanted)) {
            return Ok(None);
        }
        if !transactional {
            return Ok(Some(Event::Message { lsn, prefix: prefix.into(), content: content.into() }));
        }
        let open = open(&mut self.open)?;
        self.with_messages = true;
        let size = prefix.len() + content.len();
        if !open.oversized && open.bytes.saturating_add(size + size_of::<Change>()) <= self.limit {
            let kind = ChangeKind::Message { prefix: prefix.into(), content: content.into() };
            collect(open, Change { relation: 0, kind }, size, self.limit);
        } else {
            // Copying it first could take the memory that the limit is there to save.
            overflow(open, size);
            open.dropped_messages += 1;
        }
        Ok(None)
    }

    fn relation(&mut self, message: &RelationMessage<'_>) -> Event {
        let observed = self.relations.observe(message);
        if let Some(source) = self.sources.get_mut(&message.oid) {
            let fits = matches!(source.map, Some(Ok(_)));
            if observed != Observed::Same || !fits {
                source.fit(&self.relations, message.oid);
            }
        }
        Event::Relation { relation: message.oid, observed }
    }

    fn row(&mut self, relation: u32, row: RowMessage<'_>) -> Result<Option<Event>> {
        let open = open(&mut self.open)?;
        let Some(source) = self.sources.get_mut(&relation) else {
            *open.skipped.entry(relation).or_default() += 1;
            return Ok(None);
        };
        touch(open, source, relation, self.serial);
        if open.oversized {
            return Ok(None);
        }
        let map = match &source.map {
            Some(Ok(map)) => map,
            Some(Err(misfit)) => {
                let reason = RereadReason::Columns(misfit.clone());
                reread(open, source, relation, self.serial, reason);
                return Ok(None);
            }
            None => return Err(undescribed(relation)),
        };
        match row_change(map, row, &mut self.builder)? {
            Ok((kind, size)) => collect(open, Change { relation, kind }, size, self.limit),
            Err(reason) => reread(open, source, relation, self.serial, reason),
        }
        Ok(None)
    }

    fn truncate(&mut self, relation: u32, cascade: bool, restart_identity: bool) -> Result<()> {
        let open = open(&mut self.open)?;
        let Some(source) = self.sources.get_mut(&relation) else {
            *open.skipped.entry(relation).or_default() += 1;
            return Ok(());
        };
        touch(open, source, relation, self.serial);
        if open.oversized {
            return Ok(());
        }
        match &source.map {
            Some(Ok(_)) => {
                let kind = ChangeKind::Truncate { cascade, restart_identity };
                collect(open, Change { relation, kind }, 0, self.limit);
            }
            Some(Err(misfit)) => {
                let reason = RereadReason::Columns(misfit.clone());
                reread(open, source, relation, self.serial, reason);
            }
            None => return Err(undescribed(relation)),
        }
        Ok(())
    }
}

/// The tuples of a row message.
enum RowMessage<'a> {
    Insert(Tuple<'a>),
    Update(Option<OldTuple<'a>>, Tuple<'a>),
    Delete(OldTuple<'a>),
}

/// The change and its payload in bytes, or why the message does not hold all of it.
fn row_change(
    map: &ColumnMap,
    row: RowMessage<'_>,
    builder: &mut RowBuilder,
) -> Result<Result<(ChangeKind, usize), RereadReason>> {
    Ok(match row {
        RowMessage::Insert(new) => match map.new_row(None, &new, builder)? {
            NewTuple::Full(new) => {
                let size = new.byte_len() + ROW_HEADER;
                Ok((ChangeKind::Insert { new }, size))
            }
            NewTuple::Partial(_) => Err(RereadReason::ValueNotSent),
        },
        RowMessage::Update(old, new) => {
            let new = map.new_row(old.as_ref(), &new, builder)?;
            let old = old.map(|o| map.old_row(&o, builder)).transpose()?;
            let mut size = old.as_ref().map_or(0, |o| o.byte_len() + ROW_HEADER);
            match &new {
                NewTuple::Full(row) => size += row.byte_len() + ROW_HEADER,
                NewTuple::Partial(p) => {
                    if p.missing.iter().any(|i| map.key().contains(i)) {
                        return Ok(Err(RereadReason::KeyNotSent));
                    }
                    size += p.row.byte_len() + ROW_HEADER + p.missing.len() * size_of::<usize>();
                }
            }
            Ok((ChangeKind::Update { old, new }, size))
        }
        RowMessage::Delete(old) => {
            let old = map.old_row(&old, builder)?;
            let size = old.byte_len() + ROW_HEADER;
            Ok((ChangeKind::Delete { old }, size))
        }
    })
}

fn open(open: &mut Option<Transaction>) -> Result<&mut Transaction> {
    open.as_mut().ok_or_else(outside)
}

fn touch(open: &mut Transaction, source: &mut Source, relation: u32, serial: u64) {
    if source.touched_in != serial {
        source.touched_in = serial;
        open.touched.push(relation);
    }
}

fn reread(open: &mut Transaction, source: &mut Source, relation: u32, serial: u64, reason: RereadReason) {
    if source.reread_in != serial {
        source.reread_in = serial;
        open.reread.push((relation, reason));
    }
}

fn collect(open: &mut Transaction, change: Change, payload: usize, limit: usize) {
    let size = payload + size_of::<Change>();
    if open.bytes.saturating_add(size) > limit {
        overflow(open, size);
        return;
    }
    open.bytes += size;
    open.changes.push(change);
}

/// Drops what was collected; `touched` keeps what has to be read again.
fn overflow(open: &mut Transaction, size: usize) {
    open.bytes = open.bytes.saturating_add(size);
    open.oversized = true;
    let messages = open.changes.iter().filter(|c| matches!(c.kind, ChangeKind::Message { .. })).count();
    open.dropped_messages += messages as u64;
    open.changes = Vec::new();
}

#[cold]
fn outside() -> Error {
    protocol("a change or commit arrived outside a transaction".to_owned())
}

#[cold]
fn undescribed(relation: u32) -> Error {
    protocol(format!("a change of relation {relation} arrived before the relation's description"))
}

fn protocol(context: String) -> Error {
    Error::new(ErrorKind::Protocol, context)
}
