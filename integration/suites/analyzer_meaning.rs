//! Plans mean what their queries mean: a small interpreter runs a plan over whole tables, and the rows are those of the
//! server.

use std::collections::{BTreeMap, HashMap};

use pgtrickle::analyzer::{TreeSource, analyze, verify};
use pgtrickle::kernel::{self, Scratch};
use pgtrickle::plan::expr::{Expr, Kernel};
use pgtrickle::plan::{
    Aggregate, AggregateFunction, JoinKey, JoinKind, Rel, RemoteBatch, SetOpKind, explain, width,
};
use pgtrickle::row::datum::datum_from_text;
use pgtrickle::row::key::KeyForm;
use pgtrickle::row::record::parse_record;
use pgtrickle::row::{Datum, Row, RowBuilder, TypeClass};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::analyzer_support::database;
use super::sql_subqueries::cases;
use super::{analyzer_groups, sql_groups};
use crate::harness::for_each_major;

const SCHEMA: &str = "
    create schema m;
    set search_path = m;
    set timezone = 'UTC';
    select setseed(0.25);
    create table c (id int primary key, name text not null, country char(3), parent int);
    create table o (id bigint primary key, c_id int, day date, amount numeric(8,2), note text, paid boolean, n int);
    create table i (o_id bigint, line smallint, sku text, n int, price numeric, primary key (o_id, line));
    insert into c select g, chr(97 + g % 5) || g % 3, (array['de', 'fr ', null])[1 + g % 3], nullif(g % 7, 0)
        from generate_series(1, 20) g;
    insert into o select g, nullif((random() * 22)::int, 3), date '2024-01-01' + (random() * 40)::int,
        (random() * 100)::numeric(8,2), (array['a', 'B', 'b', null])[1 + (random() * 3)::int], random() < 0.6, g % 5
        from generate_series(1, 60) g;
    insert into i select (random() * 65)::int, g, chr(97 + g % 4), (random() * 4)::int,
        (array[1.0, 1.00, 2.50, null])[1 + g % 4] from generate_series(1, 90) g on conflict do nothing;
    create view paid as select id, c_id, amount, upper(note) as note, 12 / nullif(n, 0) as part from o where paid;
";

const QUERIES: &[&str] = &[
    "select c.name, o.amount, i.sku from i, c, o where o.c_id = c.id and i.o_id = o.id and c.country = 'de'",
    "select c.id, o.id, i.line from c left join (o join i on i.o_id = o.id and i.n > 1) on o.c_id = c.id and o.paid",
    "select c.id, o.id from o right join c on o.c_id = c.id and o.n = c.parent where c.id < 15",
    "select c.id, o.id from c left join o on o.c_id = c.id and lower(o.note) = 'b' and lower(c.name) < 'c'",
    "select c.id, o.id from c left join o on o.c_id = c.id where o.id is null or o.n > 2",
    "select a.id, b.id, d.name from c a left join c b on b.id = a.parent left join c d on d.id = b.parent",
    "select a.id, b.id from c a, c b where a.parent + 1 = b.id and a.name <> b.name",
    "select a.id, b.id from c a, c b where a.id < b.id and a.country = b.country and lower(a.name) < b.name",
    "select id, parent, a.name, b.name from c a join c b using (id, parent)",
    "select p.id, p.note, p.part, 100 / p.part from paid p join c on c.id = p.c_id where p.part > 3",
    "select c_id, count(*), count(note), sum(n), sum(amount), min(day), max(id), bool_or(paid) from o group by c_id",
    "select c.id, c.name, c.country, sum(i.n * i.price), count(distinct i.sku) from c join o on o.c_id = c.id \
     join i on i.o_id = o.id group by c.id having count(*) > 1 and upper(c.name) <> 'A0'",
    "select lower(note), n + 1, count(*) filter (where paid), sum(id) from o group by lower(note), n + 1",
    "select count(*), sum(n), max(amount) from o where n > 100",
    "select max(s), count(*) from (select c_id, sum(amount) as s from paid group by c_id) x where s > 50",
    "select id from c union all select id from o where n = 1 union all select n from i",
    "select name, id % 3 from c union select note, n from o union select sku, line from i",
    "select distinct country, parent is null from c",
    "with t as (select c_id, sum(n) as s from o group by c_id) \
     select a.c_id, a.s, b.s from t a left join t b on b.c_id = a.c_id + 1 and b.s > a.s",
    "select v.a, c.id, v.b from (values (1, 'x'), (2, upper('y')), (null, 'z')) v(a, b) left join c on c.parent = v.a",
    "select case when n = 0 then -1 else 10 / n end, coalesce(note, country, '?'), n in (1, 3), n not in (0, null) \
     from o join c on c.id = o.c_id",
    "select day + n, (day - date '2024-01-10') * n, amount::numeric(5,1), amount::int from o where day > '2024-01-05'",
    "select 1, 'x' where 1 = 1",
    "select date '0044-03-15 bc', date '2024-02-29', date 'infinity', timestamp '12000-01-01 00:00:00.000001', \
     timestamptz '1969-12-31 23:59:59.5+05:30', timestamp '-infinity', time '24:00', time '01:02:03.40'",
    "select '\\xDEad'::bytea, 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::uuid, 'x'::\"char\", 'n\u{e9}'::name, true, \
     'ab '::bpchar, 'v'::varchar, 7::oid, (-7)::smallint, -9223372036854775807",
    "select 0.000100, -12345678901234567890.120, 'NaN'::numeric, 100000000::numeric, 1e100::numeric, 1e-30::numeric, \
     -0.00, '-Infinity'::numeric, 1.5::float8, 1e15::float8, 123456.789e-12::float8, 2::float8",
    "select 1 as a, count(*) as b from c where false having false",
    "select o.n, x.n from o left join (select n, count(*) as k from i group by n) x on x.n = o.n and x.k > 2 where o.n < 4",
];

type Rows = Vec<Row>;

fn key(row: &Row, columns: impl Iterator<Item = (usize, KeyForm)>) -> Option<Row> {
    let mut builder = RowBuilder::default();
    let mut null = false;
    for (column, form) in columns {
        null |= row.get(column).is_null();
        form.push(row.get(column), &mut builder);
    }
    (!null).then(|| builder.finish())
}

fn holds(predicate: &Expr, row: &Row) -> bool {
    kernel::is_true(predicate, &row.unpack(), &mut Scratch::default()).expect("no error in a condition")
}

pub(super) fn image(row: &Row) -> Vec<Option<String>> {
    let text = |d: Datum<'_>| {
        assert!(!d.is_error(), "an error reached the output");
        let mut bytes = Vec::new();
        d.write_text(&mut bytes).then(|| String::from_utf8(bytes).expect("UTF-8"))
    };
    row.iter().map(text).collect()
}

async fn server_rows(client: &Client, query: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(query).await.expect(query);
    let row = |m: &SimpleQueryMessage| match m {
        SimpleQueryMessage::Row(r) => Some((0..r.len()).map(|i| r.get(i).map(str::to_owned)).collect()),
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

/// Name and class of a table's columns by attnum.
type Columns = HashMap<i16, (String, TypeClass)>;

struct Interpreter<'a> {
    client: &'a Client,
    tables: HashMap<u32, (String, Columns)>,
}

impl Interpreter<'_> {
    async fn run(&self, rel: &Rel) -> Rows {
        match rel {
            Rel::Source { source, attributes } => self.source(*source, attributes).await,
            Rel::StreamTable { .. } | Rel::Recursive { .. } | Rel::RecursiveReference { .. } => {
                panic!("nothing of the kind here")
            }
            Rel::Constant { rows } => rows.clone(),
            Rel::Filter { input, predicate } => {
                let rows = Box::pin(self.run(input)).await;
                rows.into_iter().filter(|r| holds(predicate, r)).collect()
            }
            Rel::Project { input, exprs } => {
                let rows = Box::pin(self.run(input)).await;
                rows.iter().map(|r| kernel::project(exprs, &r.unpack(), &mut Scratch::default())).collect()
            }
            Rel::Evaluate { input, batch } => {
                let rows = Box::pin(self.run(input)).await;
                self.evaluate(rows, batch).await
            }
            Rel::Join { kind, left, right, on, residual } => {
                let (l, r) = (Box::pin(self.run(left)).await, Box::pin(self.run(right)).await);
                let widths = (width(left), width(right));
                join(*kind, (l, r), widths, on, residual.as_ref())
            }
            Rel::SetOp { kind, all, left, right, keys } => {
                let (left, right) = (Box::pin(self.run(left)).await, Box::pin(self.run(right)).await);
                set_operation(*kind, *all, left, right, keys)
            }
            Rel::Aggregate { input, group, aggregates } => {
                let rows = Box::pin(self.run(input)).await;
                let mut groups: BTreeMap<Row, Rows> = BTreeMap::new();
                if group.is_empty() {
                    groups.insert(Row::empty(), Vec::new());
                }
                for row in rows {
                    let mut builder = RowBuilder::default();
                    group.iter().for_each(|g| g.form.push(row.get(g.column), &mut builder));
                    groups.entry(builder.finish()).or_default().push(row);
                }
                let columns: Vec<usize> = group.iter().map(|g| g.column).collect();
                let shown = |rows: &Rows| rows.first().map_or(Row::empty(), |r| r.project(&columns));
                let value = |rows: &Rows, row: Row, a| row.concat(&aggregate(a, rows));
                groups
                    .values()
                    .map(|rows| aggregates.iter().fold(shown(rows), |r, a| value(rows, r, a)))
                    .collect()
            }
            Rel::Distinct { input, keys } => {
                let rows = Box::pin(self.run(input)).await;
                let mut seen = BTreeMap::new();
                for row in rows {
                    let mut builder = RowBuilder::default();
                    keys.iter().enumerate().for_each(|(i, f)| f.push(row.get(i), &mut builder));
                    seen.entry(builder.finish()).or_insert(row);
                }
                seen.into_values().collect()
            }
            Rel::Group { input, keys, batch } => {
                let rows = Box::pin(self.run(input)).await;
                analyzer_groups::group(self.client, rows, keys, batch).await
            }
            Rel::TopK { input, partition, order, offset, limit, with_ties } => {
                let rows = Box::pin(self.run(input)).await;
                analyzer_groups::top(rows, partition, order, (*offset, *limit, *with_ties))
            }
            Rel::UnionAll { inputs } | Rel::Partitioned { leaves: inputs, .. } => {
                let mut all = Vec::new();
                for input in inputs {
                    all.extend(Box::pin(self.run(input)).await);
                }
                all
            }
        }
    }

    async fn source(&self, source: u32, attributes: &[i16]) -> Rows {
        let (table, columns) = &self.tables[&source];
        let names: Vec<&str> = attributes.iter().map(|a| columns[a].0.as_str()).collect();
        let rows = server_rows(self.client, &format!("select {} from {table}", names.join(", "))).await;
        let datum = |value: &Option<String>, attribute: &i16| match value {
            Some(text) => {
                let class = columns[attribute].1;
                Row::from_datums([datum_from_text(class, text.as_bytes()).expect("a value")])
            }
            None => Row::from_datums([Datum::Null]),
        };
        let row = |r: &Vec<Option<String>>| {
            r.iter().zip(attributes).fold(Row::empty(), |row, (v, a)| row.concat(&datum(v, a)))
        };
        rows.iter().map(row).collect()
    }

    async fn evaluate(&self, rows: Rows, batch: &RemoteBatch) -> Rows {
        let text = |row: &Row, column| image(&row.project(&[column])).remove(0);
        let mut arrays: Vec<Vec<Option<String>>> =
            batch.inputs.iter().map(|i| rows.iter().map(|r| text(r, i.column)).collect()).collect();
        if arrays.is_empty() {
            arrays.push(vec![None; rows.len()]);
        }
        let params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = arrays.iter().map(|a| a as _).collect();
        let sql = format!("select o, r::text from ({}) q", verify::evaluation_sql(batch));
        let results = self.client.query(&sql, &params).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        let classes: Vec<TypeClass> = batch.exprs.iter().map(|e| e.result.class).collect();
        let mut out = rows;
        for result in results {
            let position = usize::try_from(result.get::<_, i64>(0) - 1).expect("an ordinal");
            let record = parse_record(result.get::<_, &str>(1).as_bytes(), &classes).expect("a record");
            out[position] = out[position].concat(&record);
        }
        out
    }
}

fn join(
    kind: JoinKind,
    (left, right): (Rows, Rows),
    widths: (usize, usize),
    on: &[JoinKey],
    residual: Option<&Expr>,
) -> Rows {
    let nulls = |count| Row::from_datums(std::iter::repeat_n(Datum::Null, count));
    let matches = |l: &Row, r: &Row| {
        on.iter().all(|k| {
            let null = l.get(k.left).is_null();
            let side = |row: &Row, column| {
                let mut builder = RowBuilder::default();
                k.form.push(row.get(column), &mut builder);
                builder.finish()
            };
            (!null || k.nulls_match) && side(l, k.left) == side(r, k.right)
        }) && residual.is_none_or(|p| holds(p, &l.concat(r)))
    };
    let (mut out, mut partnered) = (Vec::new(), vec![false; right.len()]);
    for l in &left {
        let partners: Vec<usize> = (0..right.len()).filter(|&i| matches(l, &right[i])).collect();
        partners.iter().for_each(|&i| partnered[i] = true);
        match kind {
            JoinKind::Semi => out.extend((!partners.is_empty()).then(|| l.clone())),
            JoinKind::Anti => out.extend(partners.is_empty().then(|| l.clone())),
            _ => {
                out.extend(partners.iter().map(|&i| l.concat(&right[i])));
                let kept = partners.is_empty() && kind != JoinKind::Inner;
                out.extend(kept.then(|| l.concat(&nulls(widths.1))));
            }
        }
    }
    if kind == JoinKind::Full {
        let alone = right.iter().zip(&partnered).filter(|(_, p)| !**p);
        out.extend(alone.map(|(r, _)| nulls(widths.0).concat(r)));
    }
    out
}

fn set_operation(kind: SetOpKind, all: bool, left: Rows, right: Rows, keys: &[KeyForm]) -> Rows {
    let class = |row: &Row| {
        let mut builder = RowBuilder::default();
        keys.iter().enumerate().for_each(|(i, f)| f.push(row.get(i), &mut builder));
        builder.finish()
    };
    let mut classes: BTreeMap<Row, (Rows, usize)> = BTreeMap::new();
    left.into_iter().for_each(|r| classes.entry(class(&r)).or_default().0.push(r));
    right.iter().for_each(|r| classes.entry(class(r)).or_default().1 += 1);
    let kept = classes.into_values().flat_map(|(rows, other)| {
        let count = match (kind, all) {
            (SetOpKind::Intersect, true) => rows.len().min(other),
            (SetOpKind::Intersect, false) => usize::from(other > 0),
            (SetOpKind::Except, true) => rows.len().saturating_sub(other),
            (SetOpKind::Except, false) => usize::from(other == 0),
        };
        rows.into_iter().take(count)
    });
    kept.collect()
}

fn aggregate(call: &Aggregate, rows: &Rows) -> Row {
    use AggregateFunction::*;
    let mut values: Vec<Row> = rows
        .iter()
        .filter(|r| call.filter.is_none_or(|f| r.get(f) == Datum::Bool(true)))
        .map(|r| r.project(&call.argument.into_iter().collect::<Vec<_>>()))
        .filter(|r| call.argument.is_none() || call.function == Single || !r.get(0).is_null())
        .collect();
    if let Some(form) = call.distinct {
        let mut seen = BTreeMap::new();
        values.into_iter().for_each(|v| drop(seen.insert(key(&v, [(0, form)].into_iter()), v)));
        values = seen.into_values().collect();
    }
    let one = |d: Datum<'_>| Row::from_datums([d]);
    let fold = |kernel: Kernel, first: Option<Kernel>| {
        let call = |kernel, args: &[&Row]| {
            let row = args.iter().fold(Row::empty(), |a, b| a.concat(b));
            let args = (0..args.len()).map(Expr::Column).collect();
            kernel::project(&[Expr::Call { kernel, args }], &row.unpack(), &mut Scratch::default())
        };
        let values = values.iter().map(|v| first.map_or_else(|| v.clone(), |k| call(k, &[v])));
        values.reduce(|a, b| call(kernel, &[&a, &b])).unwrap_or_else(|| one(Datum::Null))
    };
    let best = |order, keep| {
        let better = |a: Row, b: Row| if kernel::compare(order, b.get(0), a.get(0)) == keep { b } else { a };
        values.iter().cloned().reduce(better).unwrap_or_else(|| one(Datum::Null))
    };
    match call.function {
        CountStar | Count => one(Datum::Int(values.len() as i64)),
        SumInt8 => fold(Kernel::IntAdd(pgtrickle::plan::expr::IntWidth::I8), None),
        SumIntNumeric => fold(Kernel::NumericAdd, Some(Kernel::IntToNumeric)),
        SumNumeric => fold(Kernel::NumericAdd, None),
        Min(order) => best(order, std::cmp::Ordering::Less),
        Max(order) => best(order, std::cmp::Ordering::Greater),
        Single => {
            assert!(values.len() < 2, "several rows of a scalar subquery");
            values.pop().unwrap_or_else(|| one(Datum::Null))
        }
        BoolAnd | BoolOr if values.is_empty() => one(Datum::Null),
        BoolAnd => one(Datum::Bool(values.iter().all(|v| v.get(0) == Datum::Bool(true)))),
        BoolOr => one(Datum::Bool(values.iter().any(|v| v.get(0) == Datum::Bool(true)))),
        AvgInt | AvgNumeric => {
            let sum = fold(Kernel::NumericAdd, (call.function == AvgInt).then_some(Kernel::IntToNumeric));
            let count = one(Datum::Text(values.len().to_string().as_bytes()));
            let args = vec![Expr::Column(0), Expr::Column(1)];
            let quotient = Expr::Call { kernel: Kernel::NumericDiv, args };
            kernel::project(&[quotient], &sum.concat(&count).unpack(), &mut Scratch::default())
        }
        SumFloat4 | SumFloat8 | AvgFloat4 | AvgFloat8 => panic!("not among the queries"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_gives_the_rows_of_its_query() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        let mut wrong = Vec::new();
        for query in QUERIES.iter().chain(sql_groups::plans::QUERIES) {
            if let Err(what) = check(&mut client, query).await {
                wrong.push(format!("{query}\n{what}"));
            }
        }
        assert!(wrong.is_empty(), "on {}: {}", server.major, wrong.join("\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_of_subqueries_give_the_rows_of_their_queries() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, cases::SCHEMA).await;
        let mut wrong = Vec::new();
        for data in [
            "",
            "insert into e select g, g % 6, nullif(g % 4, 1) from generate_series(1, 9) g",
            "delete from c",
            "delete from b",
        ] {
            client.batch_execute(data).await.expect(data);
            for (name, query) in cases::CASES {
                if let Err(what) = check(&mut client, query).await {
                    wrong.push(format!("{name} after {data:?}: {query}\n{what}"));
                }
            }
        }
        assert!(wrong.is_empty(), "on {}: {}", server.major, wrong.join("\n"));
    })
    .await;
}

/// Compares a plan's rows with the server's, and its key with the rows.
async fn check(client: &mut Client, query: &str) -> Result<(), String> {
    let count = client.prepare(query).await.expect(query).columns().len();
    let columns: Vec<String> = (1..=count).map(|i| format!("c{i}")).collect();
    let source = TreeSource::Text { query, columns: &columns, owner: None };
    let analysis = analyze(client, source, &HashMap::new()).await.map_err(|e| e.to_string())?;
    let tables = analysis.relations.iter().map(|r| {
        let columns = r.columns.iter().map(|c| (c.attnum, (c.name.clone(), c.ty.class))).collect();
        (r.oid, (format!("{}.{}", r.schema, r.name), columns))
    });
    let tables = tables.collect();
    let names = analysis.names();
    let plan = analysis.plan.map_err(|r| format!("refused: {}", r.reason))?;
    let rows = Interpreter { client, tables }.run(&plan.rel).await;
    let mut got: Vec<_> = rows.iter().map(image).collect();
    let mut wanted = server_rows(client, query).await;
    let text = explain::explain(&plan, &names);
    if let Some(key) = &plan.key {
        let mut keys: Vec<_> =
            got.iter().map(|r| key.iter().map(|&k| r[k].clone()).collect::<Vec<_>>()).collect();
        keys.sort();
        let all = keys.len();
        keys.dedup();
        if keys.len() != all || !keys.iter().flatten().all(Option::is_some) {
            return Err(format!("false key\n{text}"));
        }
    }
    got.sort();
    wanted.sort();
    if got != wanted {
        return Err(format!("got {got:?}\nwanted {wanted:?}\n{text}"));
    }
    if std::env::var_os("PGTRICKLE_EXPLAIN").is_some() {
        println!("{query}\n{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_of_groups_windows_and_sets_give_the_rows_of_their_queries() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, sql_groups::cases::SCHEMA).await;
        let mut wrong = Vec::new();
        for data in ["", "delete from t where id % 3 = 1", "delete from u", "delete from t"] {
            client.batch_execute(data).await.expect(data);
            for (name, query) in sql_groups::cases::CASES {
                match check(&mut client, query).await {
                    // Which of equal values is shown is the server's choice.
                    Err(what) if what.starts_with("got") && sql_groups::cases::CHOICE.contains(name) => {}
                    Err(what) => wrong.push(format!("{name} after {data:?}: {query}\n{what}")),
                    Ok(()) => {}
                }
            }
        }
        assert!(wrong.is_empty(), "{} on {}: {}", wrong.len(), server.major, wrong.join("\n"));
        for (name, query) in sql_groups::cases::REFUSED {
            assert!(check(&mut client, query).await.is_err_and(|e| e.starts_with("refused")), "{name}");
        }
    })
    .await;
}
