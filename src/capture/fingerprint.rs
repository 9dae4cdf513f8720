//! What makes held rows valid besides row changes: the shape of the source.
//!
//! ALTER TYPE ... USING, a rename of an enum label, an attribute of a composite type, a new replica identity change rows or their text without a single
//! row in the WAL. The fingerprint covers them; it is read at the boundary, under the locks, and compared again by a
//! timer. A difference means: read the source again. A source is a table's own rows: its children are not part of it
//! but of the plans that read them (`supervisor::validity`).

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::error::Result;
use crate::postgres::sessions::error;

/// Fingerprints by relation OID. A relation that is gone has none.
pub type Fingerprints = BTreeMap<u32, Fingerprint>;

/// The shape of a source as far as held rows depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// Names, types with what they are made of, identity.
    shape: String,
    /// `xmin` of the held columns' `pg_attribute` rows: every ALTER of a column moves it, also one that keeps the type;
    /// so does a GRANT on a column.
    marks: String,
    /// `relfilenode`: moves with every rewrite, also with TRUNCATE and VACUUM FULL.
    file: u32,
}

impl Fingerprint {
    /// Whether rows may have changed without a row change in the WAL. A rewrite by ALTER moves both marks and file in
    /// one transaction; a GRANT moves only the first, a TRUNCATE only the second.
    pub fn differs(&self, now: &Fingerprint) -> bool {
        self.shape != now.shape || (self.marks != now.marks && self.file != now.file)
    }
}

const SQL: &str = "
select c.oid, md5(concat_ws('|', n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident, c.relrowsecurity,
    (select string_agg(concat_ws(',', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attnotnull,
                                 a.attgenerated), ';' order by a.attnum)
       from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        and a.attnum = any(w.attributes)),
    (select pgtrickle._type_facts(array_agg(a.atttypid)) from pg_catalog.pg_attribute a
      where a.attrelid = c.oid and a.attnum = any(w.attributes) and a.atttypid >= 16384 and not a.attisdropped),
    (select string_agg(concat_ws(',', i.indexrelid, i.indisprimary, i.indisreplident, i.indimmediate, i.indisvalid), ';'
            order by i.indexrelid)
       from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisunique))),
    (select coalesce(string_agg(a.xmin::text, ',' order by a.attnum), '') from pg_catalog.pg_attribute a
      where a.attrelid = c.oid and a.attnum = any(w.attributes) and not a.attisdropped),
    c.relfilenode
from pg_catalog.unnest($1::pg_catalog.oid[]) with ordinality o(oid, n)
join lateral (select array(select x::int2 from pg_catalog.unnest(pg_catalog.string_to_array(($2::text[])[o.n], ',')) x)) w(attributes) on true
join pg_catalog.pg_class c on c.oid = o.oid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace";

/// Reads the fingerprints of relations over the attributes held of each.
pub async fn read(client: &Client, held: &[(u32, Vec<i16>)]) -> Result<Fingerprints> {
    let oids: Vec<u32> = held.iter().map(|(oid, _)| *oid).collect();
    let lists: Vec<String> = held
        .iter()
        .map(|(_, attributes)| attributes.iter().map(i16::to_string).collect::<Vec<_>>().join(","))
        .collect();
    let rows = client.query(SQL, &[&oids, &lists]).await.map_err(error)?;
    let fingerprint =
        |r: &tokio_postgres::Row| Fingerprint { shape: r.get(1), marks: r.get(2), file: r.get(3) };
    Ok(rows.iter().map(|r| (r.get(0), fingerprint(r))).collect())
}
