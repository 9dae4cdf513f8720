//! Random queries of the larger forms: windows, GROUPING SETS, DISTINCT ON, first rows, recursion, functions that return
//! sets, ordered lists, arrays of subqueries, whole rows, functions and aggregates of users.
//!
//! Where PostgreSQL may choose (row numbers among ties, first rows among equal ones) nothing is generated: every order
//! is over all columns that are shown, windows see equal rows as equal.

use super::query::{Grammar, Query, Source, build, grouped};
use super::scalar::{Field, Image, Scalar, condition, plain};
use super::types::Ty;

/// Made with the tables.
pub const FUNCTIONS: &str = "
create function app_mixed(x int8) returns int8 immutable language plpgsql as 'begin return x % 1000 * 3 + 1; end';
create function app_label(x text, n int) returns text immutable language sql as 'select coalesce(x, ''none'') || ''-'' || n';
create aggregate app_most(int8) (sfunc = int8larger, stype = int8);
";

pub(super) fn exact(sql: String, ty: Ty) -> Scalar {
    Scalar { sql, ty, image: Image::Exact, join: false }
}

impl Grammar<'_> {
    pub(super) fn form(&mut self, depth: usize) -> Query {
        match self.rng.below(9) {
            0 | 1 => self.windows(depth),
            7 | 8 => self.positions(depth),
            2 => self.grouping_sets(depth),
            3 => self.distinct_on(depth),
            4 => self.first_rows(depth),
            5 => self.recursion(),
            _ => self.of_users(depth),
        }
    }

    /// Columns with a total order up to equality, whose texts do not differ among equal values in a way that shows.
    pub(super) fn sortable(&mut self, scope: &[Field]) -> Scalar {
        loop {
            let value = self.groupable(scope);
            if value.ty != Ty::Char {
                return value;
            }
        }
    }

    pub(super) fn integer(&mut self, scope: &[Field]) -> Option<Field> {
        let fields: Vec<Field> = scope.iter().filter(|f| f.ty.is_int()).cloned().collect();
        if fields.is_empty() { None } else { Some(self.rng.pick(&fields).clone()) }
    }

    fn windows(&mut self, depth: usize) -> Query {
        let source = self.source(depth);
        let mut list: Vec<Scalar> =
            (0..1 + self.rng.below(2)).map(|_| self.groupable(&source.scope)).collect();
        for _ in 0..1 + self.rng.below(3) {
            let call = match (self.rng.below(6), self.integer(&source.scope)) {
                (0, _) => ("rank()".to_owned(), Ty::Int8),
                (1, _) => ("dense_rank()".to_owned(), Ty::Int8),
                (2, Some(f)) => (format!("max({})", f.sql), f.ty),
                (3, Some(f)) => (format!("sum({}::int4 % 100)", shrunk(&f)), Ty::Int8),
                (4, Some(f)) => (format!("app_most({}::int8)", f.sql), Ty::Int8),
                _ => ("count(*)".to_owned(), Ty::Int8),
            };
            let ranks = call.0.starts_with("rank") || call.0.starts_with("dense");
            let mut over = Vec::new();
            if self.rng.chance(70) {
                over.push(format!("partition by {}", self.groupable(&source.scope).sql));
            }
            if ranks || self.rng.chance(60) {
                let (first, second) = (self.sortable(&source.scope).sql, self.sortable(&source.scope).sql);
                let direction = *self.rng.pick(&["", " desc", " nulls first", " desc nulls last"]);
                over.push(format!("order by {first}{direction}, {second}"));
                if !ranks && self.rng.chance(40) {
                    over.push((*self.rng.pick(&FRAMES)).to_owned());
                }
            }
            let filter = match !ranks && !call.0.starts_with("app_") && self.rng.chance(15) {
                true => format!(" filter (where {})", condition(self.rng, &source.scope)),
                false => String::new(),
            };
            list.push(exact(format!("{}{filter} over ({})", call.0, over.join(" ")), call.1));
        }
        list.extend(source.scope.iter().find(|f| f.join).map(plain));
        build("select ", list, &source, "")
    }

    fn grouping_sets(&mut self, depth: usize) -> Query {
        let source = self.source(depth);
        let mut keys: Vec<Scalar> = Vec::new();
        for _ in 0..2 + self.rng.below(2) {
            let key = self.groupable(&source.scope);
            // A literal alone would be a position or no key at all.
            if source.scope.iter().any(|f| key.sql.contains(&f.sql)) && !keys.iter().any(|k| k.sql == key.sql)
            {
                keys.push(key);
            }
        }
        if keys.len() < 2 {
            return self.aggregation(depth);
        }
        let names: Vec<String> = keys.iter().map(|k| format!("({})", k.sql)).collect();
        let all = names.join(", ");
        let sets = match self.rng.below(3) {
            0 => format!("rollup ({all})"),
            1 => format!("cube ({all})"),
            _ => format!("grouping sets (({all}), ({}), ())", names[0]),
        };
        let mark = exact(format!("grouping({all})"), Ty::Int4);
        let mut list: Vec<Scalar> = keys.into_iter().map(grouped).collect();
        list.push(mark);
        for _ in 0..1 + self.rng.below(3) {
            list.push(self.aggregate(&source.scope));
        }
        build("select ", list, &source, &format!(" group by {sets}"))
    }

    /// Shown are the columns that are sorted by, so equal rows look alike up to the texts of equal numerics.
    pub(super) fn sorted(&mut self, scope: &[Field]) -> (Vec<Scalar>, Vec<String>) {
        let mut list: Vec<Scalar> = Vec::new();
        for _ in 0..2 + self.rng.below(3) {
            let value = self.sortable(scope);
            if !list.iter().any(|v| v.sql == value.sql) {
                list.push(value);
            }
        }
        let names = (0..list.len()).map(|i| format!("o{i}")).collect();
        let valued = list.iter().any(|v| v.ty == Ty::Numeric || v.ty == Ty::Float8 || v.ty.is_folded());
        let list = list.into_iter().map(|v| {
            let v = grouped(v);
            // One of two equal rows may go, and takes the texts of all of its columns with it.
            Scalar { image: if valued { v.image.max(Image::Value) } else { v.image }, ..v }
        });
        (list.collect(), names)
    }

    fn distinct_on(&mut self, depth: usize) -> Query {
        let source = self.source(depth);
        let (list, names) = self.sorted(&source.scope);
        let on = list[0].sql.clone();
        let direction = *self.rng.pick(&["", " desc", " desc nulls last"]);
        let rest: String = names.iter().skip(1).map(|n| format!(", {n}{direction}")).collect();
        // A bare literal would be a position.
        build(&format!("select distinct on (({on})) "), list, &source, &format!(" order by ({on}){rest}"))
    }

    fn first_rows(&mut self, depth: usize) -> Query {
        let source = self.source(depth);
        let (list, names) = self.sorted(&source.scope);
        let direction = *self.rng.pick(&["", " desc", " nulls first"]);
        let order: Vec<String> = names.iter().map(|n| format!("{n}{direction}")).collect();
        let relation = self.rng.pick(self.relations).reference.clone();
        let bound = match self.rng.below(6) {
            0 => format!("offset {}", self.rng.below(5)),
            1 => format!("fetch first {} rows with ties", 1 + self.rng.below(6)),
            2 => format!("limit (select count(*) / 3 + 1 from {relation})"),
            3 => format!("offset (select count(*) % 5 from {relation}) limit 7"),
            _ => format!("offset {} limit {}", self.rng.below(4), 1 + self.rng.below(9)),
        };
        build("select ", list, &source, &format!(" order by {} {bound}", order.join(", ")))
    }

    /// Numbers below eleven that lead to each other through the rows of a relation, four steps deep.
    fn recursion(&mut self) -> Query {
        let (first, begin) = self.item(0);
        let (second, step) = self.item(0);
        let (Some(a), Some(b), Some(c)) = (self.integer(&begin), self.integer(&step), self.integer(&step))
        else {
            return self.projection(0);
        };
        let filter = condition(self.rng, &begin);
        let operator = *self.rng.pick(&["union", "union", "union all"]);
        let depth = if operator == "union" { 4 } else { 1 };
        let text = format!(
            "with recursive w(n, d) as (select abs({a}::int8 % 11), 0 from {first} where {filter} and {a} is not null \
             {operator} select abs((w.n + {b}::int8 % 7) % 11), w.d + 1 from w join {second} on {c}::int8 % 5 = w.n % 5 \
             where w.d < {depth} and {b} is not null) select n as o0, d as o1{} from w{}",
            if operator == "union" { "" } else { ", count(*) as o2" },
            if operator == "union" { "" } else { " group by n, d" },
            a = a.sql,
            b = b.sql,
            c = c.sql,
        );
        let mut columns = vec![(Ty::Int8, Image::Exact), (Ty::Int4, Image::Exact)];
        if operator != "union" {
            columns.push((Ty::Int8, Image::Exact));
        }
        Query::written(&text, &columns)
    }

    fn of_users(&mut self, depth: usize) -> Query {
        let source = self.source(depth);
        let Some(number) = self.integer(&source.scope) else { return self.projection(depth) };
        let texts: Vec<Field> =
            source.scope.iter().filter(|f| f.ty.is_text() && f.image == Image::Exact).cloned().collect();
        let text = match texts.is_empty() {
            true => "'t'".to_owned(),
            false => self.rng.pick(&texts).sql.clone(),
        };
        let label = exact(format!("app_label({text}::text, {}::int4)", shrunk(&number)), Ty::Text);
        let mixed = exact(format!("app_mixed({}::int8)", number.sql), Ty::Int8);
        if self.rng.chance(50) {
            return build("select ", vec![mixed, label], &source, "");
        }
        let most = exact(format!("app_most({})", mixed.sql), Ty::Int8);
        let count = exact("count(*)".to_owned(), Ty::Int8);
        let tail = format!(" group by {}", label.sql);
        build("select ", vec![label, most, count], &source, &tail)
    }

    /// A function in FROM over columns of the scope, with its join, and its columns.
    pub(super) fn set_of_rows(&mut self, scope: &[Field]) -> Option<(String, Vec<Field>)> {
        let alias = self.alias();
        let field = |name: &str, ty| Field {
            sql: format!("{alias}.{name}"),
            name: name.to_owned(),
            ty,
            image: Image::Exact,
            join: false,
        };
        let arrays: Vec<Field> = scope.iter().filter(|f| f.ty == Ty::Ints).cloned().collect();
        let documents: Vec<Field> = scope.iter().filter(|f| f.ty == Ty::Jsonb).cloned().collect();
        let number = self.integer(scope);
        let (call, names, fields) = match (self.rng.below(5), number) {
            (3, _) if !documents.is_empty() => {
                let json = &self.rng.pick(&documents).sql;
                let array = format!("case jsonb_typeof({json}) when 'array' then {json} end");
                (format!("jsonb_array_elements({array}) with ordinality"), "(u, w)", {
                    vec![field("u", Ty::Jsonb), field("w", Ty::Int8)]
                })
            }
            (4, _) if !documents.is_empty() => {
                let json = &self.rng.pick(&documents).sql;
                let object = format!("case jsonb_typeof({json}) when 'object' then {json} end");
                let fields = vec![field("u", Ty::Text), field("w", Ty::Text)];
                (format!("jsonb_each_text({object})"), "(u, w)", fields)
            }
            (0, _) if !arrays.is_empty() => {
                let array = &self.rng.pick(&arrays).sql;
                let fields = vec![field("u", Ty::Int4), field("w", Ty::Int8)];
                (format!("unnest({array}) with ordinality"), "(u, w)", fields)
            }
            (1, Some(n)) => {
                let fields = vec![field("u", Ty::Text)];
                (format!("regexp_split_to_table('a-b-' || ({} % 3), '-')", n.sql), "(u)", fields)
            }
            (_, Some(n)) => {
                let fields = vec![field("u", Ty::Int4)];
                (format!("generate_series(1, ({} % 4)::int4)", n.sql), "(u)", fields)
            }
            _ => return None,
        };
        let (kind, on) = match self.rng.below(3) {
            0 => ("cross join", String::new()),
            1 => ("left join", " on true".to_owned()),
            _ => ("left join", format!(" on {}", condition(self.rng, &fields))),
        };
        Some((format!("{kind} lateral {call} as {alias}{names}{on}"), fields))
    }

    /// Functions that return sets in the select list: one, or two in step.
    pub(super) fn sets_of_values(&mut self, scope: &[Field]) -> Vec<Scalar> {
        let arrays: Vec<Field> = scope.iter().filter(|f| f.ty == Ty::Ints).cloned().collect();
        let number = self.integer(scope);
        let mut list = Vec::new();
        if let Some(n) = &number {
            list.push(exact(format!("generate_series(1, ({} % 4)::int4)", n.sql), Ty::Int4));
        }
        if !arrays.is_empty() && (list.is_empty() || self.rng.chance(50)) {
            list.push(exact(format!("unnest({})", self.rng.pick(&arrays).sql), Ty::Int4));
        }
        if let Some(n) = number.filter(|_| self.rng.chance(25)) {
            list.push(exact(format!("regexp_split_to_table('a-b-' || ({} % 3), '-')", n.sql), Ty::Text));
        }
        list
    }

    /// `array_agg` or `string_agg` of a column in its own order: equal ones look alike, so the order is total.
    pub(super) fn ordered_list(&mut self, scope: &[Field]) -> Option<Scalar> {
        let plain =
            |f: &&Field| f.image == Image::Exact && (f.ty.is_int() || f.ty.is_text() || f.ty == Ty::Date);
        let fields: Vec<Field> = scope.iter().filter(plain).cloned().collect();
        if fields.is_empty() {
            return None;
        }
        let field = told(self.rng.pick(&fields));
        let distinct = if self.rng.chance(25) { "distinct " } else { "" };
        let direction = *self.rng.pick(&["", " desc", " nulls first", " desc nulls last"]);
        let call = match self.rng.chance(50) {
            true => format!("array_agg({distinct}{field} order by {field}{direction})"),
            false => format!("string_agg({distinct}{field}::text, '|' order by {field}::text{direction})"),
        };
        let filter = match self.rng.chance(20) {
            true => format!(" filter (where {})", condition(self.rng, scope)),
            false => String::new(),
        };
        // The beginning, because the whole may be too long for a key of what reads it.
        Some(exact(format!("left(({call}{filter})::text, 60)"), Ty::Text))
    }

    /// An array of a correlated subquery, or a whole row, as text.
    pub(super) fn composed(&mut self, source: &Source) -> Option<Scalar> {
        if self.rng.chance(60) {
            let array = self.array_of(&source.scope)?;
            return Some(exact(format!("({array})::text"), Ty::Text));
        }
        // Rows of stream tables have a number that the views they are compared with have not.
        let items: Vec<String> = source.whole.clone();
        if items.is_empty() {
            return None;
        }
        let alias = self.rng.pick(&items).clone();
        let of_alias = |f: &&Field| f.sql.starts_with(&format!("{alias}."));
        let image = source.scope.iter().filter(of_alias).map(|f| f.image).max()?;
        let sql = format!("to_jsonb({alias})::text");
        (image == Image::Exact).then(|| exact(sql, Ty::Text))
    }
}

/// A field whose text will be shown. That of a date depends on settings: see `needs_sidecar`.
pub(super) fn told(field: &Field) -> String {
    let mark = if field.ty == Ty::Date { " /* DateStyle */" } else { "" };
    format!("{}{mark}", field.sql)
}

/// An int8 that fits an int4.
fn shrunk(field: &Field) -> String {
    format!("({} % 1000)", field.sql)
}

const FRAMES: [&str; 4] = [
    "groups between 1 preceding and 1 following",
    "range between unbounded preceding and unbounded following",
    "groups between unbounded preceding and current row exclude group",
    "range between current row and unbounded following",
];
