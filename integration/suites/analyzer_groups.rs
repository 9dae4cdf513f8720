//! Groups that PostgreSQL computes and first rows of an order, for the interpreter of plans.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use pgtrickle::analyzer::verify;
use pgtrickle::kernel;
use pgtrickle::plan::{GroupBatch, GroupForm, GroupKey, SortKey};
use pgtrickle::row::record::parse_record;
use pgtrickle::row::{Datum, Row, RowBuilder, TypeClass};
use tokio_postgres::Client;

use super::analyzer_meaning::image;

type Rows = Vec<Row>;

pub(super) fn top(
    mut rows: Rows,
    partition: &[GroupKey],
    order: &[SortKey],
    (offset, limit, with_ties): (u64, Option<u64>, bool),
) -> Rows {
    let by_order = |a: &Row, b: &Row| {
        let column = |k: &SortKey| {
            let (x, y) = (a.get(k.column), b.get(k.column));
            match (x.is_null(), y.is_null()) {
                (false, false) if k.descending => kernel::compare(k.order, y, x),
                (false, false) => kernel::compare(k.order, x, y),
                (left, right) if k.nulls_first => right.cmp(&left),
                (left, right) => left.cmp(&right),
            }
        };
        order.iter().map(column).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
    };
    rows.sort_by(|a, b| by_order(a, b).then_with(|| a.cmp(b)));
    let mut partitions: BTreeMap<Row, Rows> = BTreeMap::new();
    for row in rows {
        let mut builder = RowBuilder::default();
        partition.iter().for_each(|g| g.form.push(row.get(g.column), &mut builder));
        partitions.entry(builder.finish()).or_default().push(row);
    }
    let shown = |rows: Rows| {
        let end = limit.map_or(rows.len(), |l| (l + offset) as usize).min(rows.len());
        let ties = |r: &&Row| with_ties && end > 0 && by_order(r, &rows[end - 1]).is_eq();
        let more = rows[end..].iter().take_while(ties).count();
        rows[(offset as usize).min(end)..end + more].to_vec()
    };
    partitions.into_values().flat_map(shown).collect()
}

pub(super) async fn group(client: &Client, rows: Rows, keys: &[GroupKey], batch: &GroupBatch) -> Rows {
    let mut groups: BTreeMap<Row, Rows> = BTreeMap::new();
    if batch.form == GroupForm::Global {
        groups.insert(Row::empty(), Vec::new());
    }
    let inputs: Vec<usize> = batch.inputs.iter().map(|i| i.column).collect();
    for row in rows {
        let mut builder = RowBuilder::default();
        keys.iter().for_each(|g| g.form.push(row.get(g.column), &mut builder));
        let key = match batch.form {
            GroupForm::Sets => row.project(&inputs),
            _ => builder.finish(),
        };
        groups.entry(key).or_default().push(row);
    }
    let mut arrays: Vec<Vec<Option<String>>> = vec![Vec::new(); inputs.len() + 2];
    for (number, rows) in groups.values_mut().enumerate() {
        rows.sort();
        let sent = if batch.form == GroupForm::Sets { 1 } else { rows.len() };
        for (position, row) in rows.iter().enumerate().take(sent) {
            arrays[0].push(Some(number.to_string()));
            arrays[1].push(Some(position.to_string()));
            let texts = image(&row.project(&inputs)).into_iter();
            texts.zip(&mut arrays[2..]).for_each(|(text, array)| array.push(text));
        }
    }
    let params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = arrays.iter().map(|a| a as _).collect();
    let sql = format!("select o, r::text from ({}) q", verify::group_sql(batch));
    let results = client.query(&sql, &params).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let mut classes: Vec<TypeClass> = batch.exprs.iter().map(|e| e.result.class).collect();
    if batch.form == GroupForm::Windows {
        classes.insert(0, TypeClass::Int8);
    }
    let groups: Vec<Rows> = groups.into_values().collect();
    let columns: Vec<usize> = keys.iter().map(|k| k.column).collect();
    let mut out = Vec::new();
    for result in results {
        let group = &groups[usize::try_from(result.get::<_, i64>(0)).expect("a group")];
        let record = parse_record(result.get::<_, &str>(1).as_bytes(), &classes).expect("a record");
        match batch.form {
            GroupForm::Global | GroupForm::Aggregates => {
                let shown = group.first().map_or(Row::empty(), |r| r.project(&columns));
                out.push(shown.concat(&record));
            }
            GroupForm::Windows => {
                let Datum::Int(position) = record.get(0) else { panic!("a position") };
                let rest: Vec<usize> = (1..classes.len()).collect();
                out.push(group[position as usize].concat(&record.project(&rest)));
            }
            GroupForm::Sets => out.extend(group.iter().map(|r| r.concat(&record))),
        }
    }
    out
}
