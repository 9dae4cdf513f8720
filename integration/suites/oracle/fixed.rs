//! Hand-written queries that usually go wrong somewhere, and the transactions that make them.

use super::query::Query;
use super::scalar::Image::{Approximate, Exact, Value};
use super::schema::{Column, Form, Identity, Role, Table};
use super::stage::{Stage, Stream};
use super::types::Ty;

fn table(name: &str, columns: &[(&str, Ty, Role)], identity: Identity, parent: Option<usize>) -> Table {
    let column =
        |(name, ty, role): &(&str, Ty, Role)| Column { name: (*name).to_owned(), ty: *ty, role: *role };
    let columns = columns.iter().map(column).collect();
    let (name, on_delete, generated) = (name.to_owned(), "cascade", None);
    Table { name, form: Form::Plain, columns, identity, parent, on_delete, generated }
}

/// A table, a child of it, a table without key, and one that starts empty and mostly stays so.
pub fn tables() -> Vec<Table> {
    let a = [
        ("id", Ty::Int4, Role::Key),
        ("k", Ty::Int4, Role::Join),
        ("g", Ty::Text, Role::Join),
        ("n", Ty::Numeric, Role::Value),
        ("i", Ty::Int4, Role::Value),
        ("f", Ty::Float8, Role::Value),
        ("flag", Ty::Bool, Role::Value),
        ("big", Ty::Text, Role::Big),
        ("extra", Ty::Jsonb, Role::Value),
    ];
    let b = [
        ("id", Ty::Int8, Role::Key),
        ("parent", Ty::Int4, Role::Parent),
        ("k", Ty::Int8, Role::Join),
        ("g", Ty::Varchar, Role::Join),
        ("m", Ty::Money, Role::Value),
        ("d", Ty::Date, Role::Value),
        ("c", Ty::Char, Role::Value),
    ];
    let bag = [
        ("k", Ty::Int4, Role::Join),
        ("g", Ty::Text, Role::Join),
        ("t", Ty::Text, Role::Value),
        ("n", Ty::Numeric, Role::Value),
    ];
    vec![
        table("a", &a, Identity::PrimaryKey, None),
        table("b", &b, Identity::PrimaryKey, Some(0)),
        table("bag", &bag, Identity::Full, None),
    ]
}

/// Type and comparison of each column.
type Columns = Vec<(Ty, super::scalar::Image)>;

/// The stream tables; each exists once for the sake of one trap.
pub fn streams() -> Vec<Stream> {
    let i8 = (Ty::Int8, Exact);
    let i4 = (Ty::Int4, Exact);
    let text = (Ty::Text, Exact);
    let numeric = (Ty::Numeric, Exact);
    let value = (Ty::Numeric, Value);
    let float = (Ty::Float8, Approximate);
    let all: Vec<(&str, &str, Columns)> = vec![
        (
            "global_of_nothing",
            "select count(*) as o0, sum(i) as o1, max(g collate \"C\") as o2, avg(n) as o3, bool_and(flag) as o4 \
           from a where i = 999",
            vec![i8, i8, text, numeric, i8],
        ),
        (
            "global",
            "select count(*) as o0, sum(n) as o1, min(n) as o2, avg(i) as o3 from a",
            vec![i8, numeric, value, numeric],
        ),
        ("null_keys", "select k as o0, g as o1, count(*) as o2 from a group by k, g", vec![i4, text, i8]),
        (
            "sum_of_nulls",
            "select k as o0, sum(i) as o1, sum(n) as o2, avg(n) as o3, count(n) as o4 from a group by k",
            vec![i4, i8, numeric, numeric, i8],
        ),
        (
            "vanishing_group",
            "select k as o0, count(*) as o1, max(id) as o2 from a where flag group by k",
            vec![i4, i8, i4],
        ),
        ("duplicates", "select t as o0, k as o1 from bag", vec![text, i4]),
        (
            "duplicate_count",
            "select t as o0, count(*) as o1, sum(n) as o2 from bag group by t",
            vec![text, i8, numeric],
        ),
        (
            "moved_keys",
            "select id % 5 as o0, sum(id) as o1, count(*) as o2 from a group by id % 5",
            vec![i4, i8, i8],
        ),
        (
            "scales",
            "select g as o0, sum(n) as o1, avg(n) as o2 from bag group by g",
            vec![text, numeric, numeric],
        ),
        ("scale_keys", "select n as o0, count(*) as o1 from bag group by n", vec![value, i8]),
        (
            "count_distinct",
            "select g as o0, count(distinct n) as o1, count(distinct t) as o2, sum(distinct k) as o3 \
           from bag group by g",
            vec![text, i8, i8, i8],
        ),
        (
            "self_join",
            "select x.id as o0, y.id as o1, x.g as o2 from a as x join a as y on x.k = y.k and x.id < y.id",
            vec![i4, i4, text],
        ),
        (
            "left_match",
            "select a.id as o0, b.id as o1, b.m as o2 from a left join b on b.parent = a.id",
            vec![i4, i8, numeric],
        ),
        (
            "left_residual",
            "select a.id as o0, b.id as o1 from a left join b on b.k = a.k and b.m > a.i",
            vec![i4, i8],
        ),
        (
            "left_missing",
            "select a.id as o0, a.g as o1 from a left join b on b.parent = a.id where b.id is null",
            vec![i4, text],
        ),
        (
            "left_group",
            "select a.id as o0, count(b.id) as o1, sum(b.m) as o2 from a left join b on b.parent = a.id \
           group by a.id",
            vec![i4, i8, numeric],
        ),
        (
            "chain",
            "select a.id as o0, b.id as o1, bag.t as o2 from a join b on b.parent = a.id left join bag on bag.k = b.k \
           where a.flag is not false",
            vec![i4, i8, text],
        ),
        ("using_types", "select k as o0, a.id as o1, b.id as o2 from a join b using (k)", vec![i8, i4, i8]),
        (
            "comma",
            "select a.id as o0, bag.n as o1 from a, bag where a.g = bag.g and a.k = bag.k",
            vec![i4, numeric],
        ),
        ("distinct_nulls", "select distinct k as o0, flag as o1 from a", vec![i4, i4]),
        ("union_sets", "select g as o0 from a union select g from b union select t from bag", vec![text]),
        (
            "union_bags",
            "select k::int8 as o0, g as o1 from a union all select k, g::text from b",
            vec![i8, text],
        ),
        (
            "filters",
            "select g as o0, count(*) filter (where flag) as o1, sum(i) filter (where n > 1) as o2, \
           count(*) filter (where k is null) as o3 from a group by g",
            vec![text, i8, i8, i8],
        ),
        (
            "having_flips",
            "select g as o0, count(*) as o1 from a group by g having count(*) = 2 or sum(i) > 10",
            vec![text, i8],
        ),
        ("only_having", "select k as o0 from b group by k having max(d) > '2024-02-25'", vec![i8]),
        ("floats", "select k as o0, sum(f) as o1, avg(f) as o2 from a group by k", vec![i4, float, float]),
        (
            "passengers",
            "select id as o0, big as o1, extra as o2, upper(g) as o3, substring(big from 5 for 3) as o4 \
           from a",
            vec![i4, text, text, text, text],
        ),
        ("padded", "select c as o0, count(*) as o1 from b group by c", vec![text, i8]),
        (
            "of_distinct",
            "select count(*) as o0, sum(q.k) as o1 from (select distinct k, g from a) as q",
            vec![i8, i8],
        ),
        (
            "of_group",
            "with w as (select k, count(*) as c from a group by k) select c as o0, count(*) as o1 from w \
           group by c",
            vec![i8, i8],
        ),
        (
            "with_total",
            "select a.id as o0, q.c as o1 from a join (select count(*) as c from b) as q on true",
            vec![i4, i8],
        ),
        (
            "over_group",
            "select o1 as o0, count(*) as o1, max(o0) as o2 from @null_keys@ group by o1",
            vec![text, i8, i4],
        ),
        (
            "over_bag",
            "select d.o0 as o0, c.o1 as o1 from @duplicates@ as d join @duplicate_count@ as c on c.o0 = d.o0",
            vec![text, i8],
        ),
        ("over_both", "select count(*) as o0, sum(o1) as o1 from @over_group@", vec![i8, numeric]),
    ];
    all.into_iter()
        .map(|(name, query, columns)| Stream {
            name: name.to_owned(),
            query: Query::written(query, &columns),
        })
        .collect()
}

/// The fixed stage, empty at the beginning.
pub fn stage(seed: u64) -> Stage {
    let mut stage = Stage::begin(seed, tables(), Vec::new());
    stage.streams = streams();
    stage
}

/// What happens before the random transactions, one transaction a line.
pub const SCRIPT: &[&[&str]] = &[
    &["insert into a (id, k, g, n, i, f, flag) values (1, 1, 'x', 1.0, 5, 0.1, true), (2, 1, 'x', 1.00, null, 0.2, true),
       (3, null, null, null, null, null, null), (4, 2, null, 2.5, 7, 0.3, false)"],
    // A group of NULLs only: its sum is NULL, not 0.
    &["insert into a (id, k) values (5, 9), (6, 9)"],
    &["insert into bag values (1, 'x', 'dup', 1.0), (1, 'x', 'dup', 1.0), (1, 'x', 'dup', 1.00), (2, 'y', null, null)"],
    // The display scale of a sum goes back with the row that brought it.
    &["delete from bag where n::text = '1.00'"],
    &["delete from bag where ctid = (select min(ctid) from bag where t = 'dup')"],
    &["insert into b (id, parent, k, g, m, d, c) values (10, 1, 1, 'x', 9.99, '2024-02-26', 'a'), (11, 1, 1, 'y', 0, null, 'a  ')"],
    // A match disappears, and with it the row; then it comes back.
    &["delete from b where id = 10"],
    &["insert into b (id, parent, k, m) values (10, 1, 1, 3)", "update b set m = 100 where id = 10"],
    // The group vanishes and comes back, first in two transactions, then in one.
    &["update a set flag = null where k = 1"],
    &["update a set flag = true where k = 1"],
    &["delete from a where k = 9", "insert into a (id, k, flag) values (5, 9, true)"],
    // A key moves between groups; keys are swapped.
    &["update a set id = 22 where id = 2"],
    &["update a set id = -1 where id = 1", "update a set id = 1 where id = 4", "update a set id = 4 where id = -1"],
    &["update a set n = n * 1.000 where id = 22"],
    &["update a set g = 'y' where g is null"],
    &["truncate a cascade"],
    &["insert into a (id, k, g, n, i, f, flag) values (1, 1, 'x', 'NaN', 5, 'NaN', true), (2, 1, 'x', 'Infinity', 2, 1e100, true)"],
    &["update a set n = 0, f = 0.5 where id = 1"],
    &["insert into a (id, k, big) values (30, 3, repeat('large text ', 400))"],
    &["update a set k = 4 where id = 30"],
    &["update a set id = 31 where id = 30"],
    &["update a set big = null where id = 31"],
];
