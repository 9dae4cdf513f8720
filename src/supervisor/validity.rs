//! What a plan was made from: a change of it means a new plan.
//!
//! A view does not depend on the body of a function, on what a type is made of, on the unique index that proved its key, on the expression of a
//! generated column, on the partitions and children of a table, nor on itself being replaced (hazards A6, A8, B9). All of that is read before the analysis and
//! again by a timer; a difference takes the stream table out of the dataflow and prepares it anew. Functions that are
//! called inside of a function's text are not seen: PostgreSQL does not record them. Whether a table may be published
//! decides how it is captured.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::rights::Meant;
use crate::error::Result;
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// By stream table; one that is gone has none.
pub type Validity = BTreeMap<ViewId, String>;

/// `xmin` of a catalog row moves with every change of it.
const SQL: &str = "
with recursive rules (pgt_id, rule) as (
    select s.pgt_id, w.oid
      from (select t.pgt_id, t.query_view::pg_catalog.oid as view from pgtrickle.pgt_stream_tables t
             where $2::int8 is null and t.pipeline = $1
            union all select $2, $3::pg_catalog.oid where $2 is not null) s
      join pg_catalog.pg_rewrite w on w.ev_class = s.view
    union
    select r.pgt_id, w.oid from rules r
      join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = r.rule
       and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
      join pg_catalog.pg_class v on v.oid = d.refobjid and v.relkind = 'v'
      join pg_catalog.pg_rewrite w on w.ev_class = v.oid),
named (pgt_id, class, oid) as (
    select distinct r.pgt_id, d.refclassid::pg_catalog.regclass, d.refobjid from rules r
      join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = r.rule),
below (pgt_id, parent, oid) as (
    select n.pgt_id, i.inhparent, i.inhrelid from named n
      join pg_catalog.pg_inherits i on n.class = 'pg_catalog.pg_class'::pg_catalog.regclass and i.inhparent = n.oid
     where not i.inhdetachpending
    union
    select b.pgt_id, i.inhparent, i.inhrelid from below b
      join pg_catalog.pg_inherits i on i.inhparent = b.oid and not i.inhdetachpending),
refs (pgt_id, class, oid) as (
    select * from named
    union
    select b.pgt_id, 'pg_catalog.pg_class'::pg_catalog.regclass, b.oid from below b),
-- Asked once for each relation: a thousand stream tables over ten sources are ten questions, not a thousand.
unpublishable (oid) as materialized (
    select c.oid from pg_catalog.pg_class c
     where c.relkind = 'r' and c.oid in (select r.oid from refs r where r.class = 'pg_catalog.pg_class'::pg_catalog.regclass)
       and pgtrickle._publish_obstacle(c.oid::pg_catalog.regclass, $1) is not null),
-- A whole row has all columns of its table, also those that are added later.
whole (pgt_id) as (
    select distinct r.pgt_id from rules r join pg_catalog.pg_rewrite w on w.oid = r.rule
     where position(':varattno 0 ' in w.ev_action::pg_catalog.text) > 0),
facts (pgt_id, fact) as (
    select r.pgt_id, concat_ws(' ', 'row', a.attrelid,
            string_agg(concat_ws(',', a.attnum, a.attname, a.atttypid, a.atttypmod), ';' order by a.attnum))
      from whole r join refs n on n.pgt_id = r.pgt_id and n.class = 'pg_catalog.pg_class'::pg_catalog.regclass
      join pg_catalog.pg_attribute a on a.attrelid = n.oid and a.attnum > 0 and not a.attisdropped
     group by r.pgt_id, a.attrelid
    union all
    select b.pgt_id, concat_ws(' ', 'child', b.parent, b.oid, c.relkind, c.relpersistence, c.relrowsecurity)
      from below b join pg_catalog.pg_class c on c.oid = b.oid
    union all
    select r.pgt_id, concat_ws(' ', 'rule', w.oid, w.xmin) from rules r join pg_catalog.pg_rewrite w on w.oid = r.rule
    union all
    select r.pgt_id, concat_ws(' ', 'function', p.oid, p.xmin) from refs r
      left join pg_catalog.pg_operator o on r.class = 'pg_catalog.pg_operator'::pg_catalog.regclass and o.oid = r.oid
      join pg_catalog.pg_proc p on p.oid = case when r.class = 'pg_catalog.pg_proc'::pg_catalog.regclass then r.oid else o.oprcode end
    union all
    select r.pgt_id, concat_ws(' ', 'collation', c.oid, c.xmin) from refs r
      join pg_catalog.pg_collation c on r.class = 'pg_catalog.pg_collation'::pg_catalog.regclass and c.oid = r.oid
    union all
    select u.pgt_id, concat_ws(' ', 'types', pgtrickle._type_facts(pg_catalog.array_agg(u.oid))) from (
        select r.pgt_id, r.oid from refs r where r.class = 'pg_catalog.pg_type'::pg_catalog.regclass
        union
        select r.pgt_id, a.atttypid from refs r
          join pg_catalog.pg_attribute a on r.class = 'pg_catalog.pg_class'::pg_catalog.regclass and a.attrelid = r.oid
           and a.attnum > 0 and not a.attisdropped) u
     where u.oid >= 16384 group by u.pgt_id
    union all
    select r.pgt_id, concat_ws(' ', 'key', i.indexrelid) from refs r
      join pg_catalog.pg_index i on r.class = 'pg_catalog.pg_class'::pg_catalog.regclass and i.indrelid = r.oid
     where i.indisunique and i.indisvalid and i.indimmediate
    union all
    select r.pgt_id, concat_ws(' ', 'unpublishable', u.oid) from refs r
      join unpublishable u on r.class = 'pg_catalog.pg_class'::pg_catalog.regclass and u.oid = r.oid
    union all
    select r.pgt_id, concat_ws(' ', 'generated', a.attrelid, a.attnum, a.attgenerated, e.xmin) from refs r
      join pg_catalog.pg_attribute a on r.class = 'pg_catalog.pg_class'::pg_catalog.regclass and a.attrelid = r.oid
       and a.attgenerated <> '' and not a.attisdropped
      left join pg_catalog.pg_attrdef e on e.adrelid = a.attrelid and e.adnum = a.attnum)
select pgt_id, md5(string_agg(fact, ';' order by fact)) from facts group by pgt_id";

/// Reads what the plans of one stream table, or of all of a pipeline, stand on.
pub async fn read(client: &Client, pipeline: &str, only: Option<Meant>) -> Result<Validity> {
    let (only, view) = only.unzip();
    let rows = client.query(SQL, &[&pipeline, &only, &view]).await.map_err(error)?;
    Ok(rows.iter().map(|r| (r.get(0), r.get(1))).collect())
}
