//! Which tables are children and partitions of which: a change of it moves rows in and out of a source without a single
//! row change in the WAL.
//!
//! Invariant: no frontier is stored past an ATTACH, DETACH, INHERIT or NO INHERIT that the stream tables do not contain.
//! The apply transaction asks for the children of all sources after everything that it contains has arrived; what was
//! committed before is visible to it, unless its commit is under way in that very moment, and then nobody has seen it.

use tokio_postgres::Client;
use tokio_postgres::types::{Oid, Type};

use crate::error::Result;
use crate::postgres::sessions::error;

/// The children of the sources of a pipeline at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// The sources and everything below them, as OIDs, without partitions below them that are plain tables: those can't
    /// have children, and when they leave, their parent has one less.
    members: Vec<Oid>,
    /// How many pairs of parent and child there are among them, and a hash over those.
    pairs: i64,
    hash: i64,
}

/// The catalog's index on parents is read: a few microseconds per member.
const PROBE: &str = "
    select pg_catalog.count(*), coalesce(pg_catalog.bit_xor(pg_catalog.hashint8extended(
               (i.inhparent::pg_catalog.int8 << 32) | i.inhrelid::pg_catalog.int8, 0)), 0)
      from pg_catalog.pg_inherits i where i.inhparent = any ($1) and not i.inhdetachpending";

const MEMBERS: &str = "
    with recursive rules (rule) as (
        select w.oid from pgtrickle.pgt_stream_tables s join pg_catalog.pg_rewrite w on w.ev_class = s.query_view
         where s.pipeline = $1
        union
        select w.oid from rules r
          join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = r.rule
           and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
          join pg_catalog.pg_class v on v.oid = d.refobjid and v.relkind = 'v'
          join pg_catalog.pg_rewrite w on w.ev_class = v.oid),
    members (oid) as (
        select c.oid from rules r
          join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = r.rule
           and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
          join pg_catalog.pg_class c on c.oid = d.refobjid and c.relkind in ('r', 'p', 'f')
        union
        select i.inhrelid from members m join pg_catalog.pg_inherits i on i.inhparent = m.oid and not i.inhdetachpending)
    select coalesce(pg_catalog.array_agg(m.oid order by m.oid), '{}')
      from members m join pg_catalog.pg_class c on c.oid = m.oid
     where not (c.relispartition and c.relkind = 'r' and exists (
           select from pg_catalog.pg_inherits i join members p on p.oid = i.inhparent where i.inhrelid = m.oid))";

impl Hierarchies {
    /// Reads what the stream tables of a pipeline stand on.
    pub async fn read(client: &Client, pipeline: &str) -> Result<Hierarchies> {
        let members: Vec<Oid> = client.query_one(MEMBERS, &[&pipeline]).await.map_err(error)?.get(0);
        let row = client.query_one(PROBE, &[&members]).await.map_err(error)?;
        Ok(Hierarchies { members, pairs: row.get(0), hash: row.get(1) })
    }

    /// Whether the sources have the children that they had. The statement is unnamed: in the session of the apply, owners'
    /// code could take a name that we prepared.
    pub async fn hold(&self, client: &Client) -> Result<bool> {
        if self.members.is_empty() {
            return Ok(true);
        }
        let row = client.query_typed_one(PROBE, &[(&self.members, Type::OID_ARRAY)]).await.map_err(error)?;
        Ok((row.get::<_, i64>(0), row.get::<_, i64>(1)) == (self.pairs, self.hash))
    }
}
