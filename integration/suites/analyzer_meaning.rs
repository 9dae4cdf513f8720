//! Plans mean what their queries mean: a small interpreter runs a plan over whole tables, and the rows are those of the
//! server.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use pgtrickle::analyzer::{TreeSource, analyze, verify};
use pgtrickle::kernel::{self, Scratch};
use pgtrickle::plan::expr::{Expr, Kernel};
use pgtrickle::plan::{
    Aggregate, AggregateFunction, GroupBatch, GroupForm, GroupKey, JoinKind, Rel, RemoteBatch, SortKey,
};
use pgtrickle::row::datum::datum_from_text;
use pgtrickle::row::key::KeyForm;
use pgtrickle::row::record::parse_record;
use pgtrickle::row::{Datum, Row, RowBuilder, TypeClass};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::analyzer_support::database;
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

/// What PostgreSQL computes over groups, and the first rows of an order.
const GROUPS: &[&str] = &[
    "select c_id, string_agg(note, ',' order by id), array_agg(n order by id desc), count(*), sum(amount) from o group by c_id",
    "select percentile_cont(0.5) within group (order by amount), mode() within group (order by note), \
     rank(3) within group (order by n), string_agg(distinct note, '|') from o",
    "select max(name), min(note) from c, o where c.id = o.c_id and o.n > 100",
    "select n, regr_slope(amount, n), stddev(amount), json_agg(note order by id), bit_or(n) filter (where paid) from o group by n",
    "select n + 1, corr(id, amount) from o group by n + 1 having array_agg(id order by id) <> '{}' and max(note) > 'A'",
    "select id, row_number() over (partition by c_id order by amount, id), sum(amount) over (partition by c_id) from o",
    "select id, sum(n) over (order by id rows between 2 preceding and 1 following exclude current row), \
     rank() over (partition by n order by amount desc nulls last), lag(note, 2, 'none') over w, count(*) filter (where paid) over w \
     from o window w as (partition by note order by id)",
    "select c_id, sum(sum(amount)) over (order by c_id), 100 * count(*) / sum(count(*)) over () from o group by c_id",
    "select id, first_value(day) over (order by day range between interval '3 days' preceding and current row) from o",
    "select id, amount from o order by amount desc, id limit 7",
    "select id, note from o order by note nulls first, id limit 10 offset 5",
    "select id, n from o order by n fetch first 13 rows with ties",
    "select id, note from o order by note desc fetch first 13 rows with ties",
    "select distinct on (c_id) c_id, id, amount from o order by c_id, amount desc, id",
    "select distinct on (upper(note)) id, note from o order by upper(note), id limit 2",
    "select x.id, c.name from (select * from o order by day, id limit 5) x left join c on c.id = x.c_id",
    "select n, paid, count(*), sum(amount), grouping(n, paid) from o group by rollup (n, paid)",
    "select n, note, max(note), grouping(note) from o group by cube (n, note) having count(*) > 1",
    "select n, paid, string_agg(note, '' order by id) from o group by grouping sets ((n), (paid), (), (n))",
    "select id, generate_series(1, n) as g, unnest(array[id, n]) from o",
    "select distinct generate_series(n, 3) from o order by 1 limit 2",
    "select '{}'::jsonb || jsonb_build_object('a', n), count(*) from o group by 1",
    "select distinct array[n, 1.0], row(n, note) from o",
    "select jsonb_build_object('k', amount::int) from o union select jsonb_build_object('k', n * 1.0) from i",
    "select count(distinct jsonb_build_object('k', n)), count(distinct array[note]) from o",
    "select id, count(*) over (partition by jsonb_build_object('k', n % 2)) from o",
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

fn image(row: &Row) -> Vec<Option<String>> {
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
            Rel::StreamTable { .. } => panic!("no stream tables here"),
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
                let (left, right) =
                    (Box::pin(self.run(left)).await, (right, Box::pin(self.run(right)).await));
                let nulls = vec![Datum::Null; pgtrickle::plan::width(right.0)];
                let mut out = Vec::new();
                for l in &left {
                    let lk = key(l, on.iter().map(|k| (k.left, k.form)));
                    let before = out.len();
                    for r in &right.1 {
                        let rk = key(r, on.iter().map(|k| (k.right, k.form)));
                        let row = l.concat(r);
                        if lk.is_some() && lk == rk && residual.as_ref().is_none_or(|p| holds(p, &row)) {
                            out.push(row);
                        }
                    }
                    if *kind == JoinKind::Left && out.len() == before {
                        out.push(l.concat(&Row::from_datums(nulls.iter().copied())));
                    }
                }
                out
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
                self.group(rows, keys, batch).await
            }
            Rel::TopK { input, partition, order, offset, limit, with_ties } => {
                let mut rows = Box::pin(self.run(input)).await;
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
                    let ties = |r: &&Row| *with_ties && end > 0 && by_order(r, &rows[end - 1]).is_eq();
                    let more = rows[end..].iter().take_while(ties).count();
                    rows[(*offset as usize).min(end)..end + more].to_vec()
                };
                partitions.into_values().flat_map(shown).collect()
            }
            Rel::UnionAll { inputs } => {
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

    async fn group(&self, rows: Rows, keys: &[GroupKey], batch: &GroupBatch) -> Rows {
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
        let sql = verify::group_sql(batch);
        let results = self.client.query(&sql, &params).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
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

    async fn evaluate(&self, rows: Rows, batch: &RemoteBatch) -> Rows {
        let text = |row: &Row, column| image(&row.project(&[column])).remove(0);
        let mut arrays: Vec<Vec<Option<String>>> =
            batch.inputs.iter().map(|i| rows.iter().map(|r| text(r, i.column)).collect()).collect();
        if arrays.is_empty() {
            arrays.push(vec![None; rows.len()]);
        }
        let params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = arrays.iter().map(|a| a as _).collect();
        let sql = verify::evaluation_sql(batch);
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

fn aggregate(call: &Aggregate, rows: &Rows) -> Row {
    use AggregateFunction::*;
    let mut values: Vec<Row> = rows
        .iter()
        .filter(|r| call.filter.is_none_or(|f| r.get(f) == Datum::Bool(true)))
        .map(|r| r.project(&call.argument.into_iter().collect::<Vec<_>>()))
        .filter(|r| call.argument.is_none() || !r.get(0).is_null())
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
        BoolAnd | BoolOr if values.is_empty() => one(Datum::Null),
        BoolAnd => one(Datum::Bool(values.iter().all(|v| v.get(0) == Datum::Bool(true)))),
        BoolOr => one(Datum::Bool(values.iter().any(|v| v.get(0) == Datum::Bool(true)))),
        SumFloat4 | SumFloat8 | AvgInt | AvgNumeric | AvgFloat => panic!("not among the queries"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_gives_the_rows_of_its_query() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        for query in QUERIES.iter().chain(GROUPS) {
            let count = client.prepare(query).await.expect(query).columns().len();
            let columns: Vec<String> = (1..=count).map(|i| format!("c{i}")).collect();
            let source = TreeSource::Text { query, columns: &columns };
            let analysis = analyze(&mut client, source, &HashMap::new()).await.expect(query);
            let tables = analysis.relations.iter().map(|r| {
                let columns = r.columns.iter().map(|c| (c.attnum, (c.name.clone(), c.ty.class))).collect();
                (r.oid, (format!("{}.{}", r.schema, r.name), columns))
            });
            let tables = tables.collect();
            let plan = analysis.plan.unwrap_or_else(|r| panic!("{query}: {}", r.reason));
            let rows = Interpreter { client: &client, tables }.run(&plan.rel).await;
            let mut got: Vec<_> = rows.iter().map(image).collect();
            let mut wanted = server_rows(&client, query).await;
            if let Some(key) = &plan.key {
                let mut keys: Vec<_> =
                    got.iter().map(|r| key.iter().map(|&k| r[k].clone()).collect::<Vec<_>>()).collect();
                keys.sort();
                let all = keys.len();
                keys.dedup();
                assert!(
                    keys.len() == all && keys.iter().flatten().all(Option::is_some),
                    "false key: {query}"
                );
            }
            assert!(!wanted.is_empty() || query.contains("having false"), "nothing to compare: {query}");
            got.sort();
            wanted.sort();
            assert_eq!(got, wanted, "{query} on {}", server.major);
        }
    })
    .await;
}
