//! Random subqueries: EXISTS, IN, ANY, ALL and scalar ones over the columns in scope, and LATERAL items.

use super::forms::told;
use super::query::Grammar;
use super::scalar::{Field, Image, Scalar, condition, residual};
use super::types::Ty;

/// FROM and WHERE of a subquery, with its own columns.
struct Inner {
    from: String,
    filter: String,
    fields: Vec<Field>,
}

/// Compared natively and exactly.
fn is_number(field: &Field) -> bool {
    (field.ty.is_int() || field.ty.is_numeric()) && field.image != Image::Approximate
}

impl Grammar<'_> {
    /// A subquery that is mostly correlated with the scope by an equality.
    fn inner(&mut self, scope: &[Field]) -> Option<Inner> {
        let (from, fields) = self.item(0);
        let pairs: Vec<(Field, Field)> = scope
            .iter()
            .flat_map(|l| fields.iter().map(move |r| (l.clone(), r.clone())))
            .filter(|(l, r)| l.join && r.join && l.ty.compares_with(r.ty))
            .collect();
        if pairs.is_empty() {
            return None;
        }
        let mut conditions = Vec::new();
        for _ in 0..*self.rng.pick(&[1, 1, 1, 1, 2]) {
            let (l, r) = self.rng.pick(&pairs);
            let form = if self.rng.chance(90) { "=" } else { "is not distinct from" };
            conditions.push(format!("{} {form} {}", r.sql, l.sql));
        }
        if self.rng.chance(30) {
            let mut both = scope.to_vec();
            both.extend(fields.iter().cloned());
            conditions.push(residual(self.rng, &both));
        }
        if self.rng.chance(30) {
            conditions.push(condition(self.rng, &fields));
        }
        Some(Inner { from, filter: conditions.join(" and "), fields })
    }

    fn exists(&mut self, scope: &[Field]) -> Option<String> {
        let inner = self.inner(scope)?;
        let not = if self.rng.chance(40) { "not " } else { "" };
        Some(format!("{not}exists (select 1 from {} where {})", inner.from, inner.filter))
    }

    /// `x in (select ...)`, also negated, correlated or not; and ANY and ALL over numbers.
    fn quantified(&mut self, scope: &[Field]) -> Option<String> {
        let inner = self.inner(scope)?;
        let compared = |l: &&Field, r: &Field| {
            let exact = l.image != Image::Approximate && r.image != Image::Approximate;
            exact && (l.join == r.join) && l.ty.compares_with(r.ty) && !l.ty.is_passenger()
        };
        let pairs: Vec<(String, String, bool)> = scope
            .iter()
            .flat_map(|l| inner.fields.iter().filter(move |r| compared(&l, r)).map(move |r| (l, r)))
            .map(|(l, r)| (l.sql.clone(), r.sql.clone(), is_number(l) && is_number(r)))
            .collect();
        if pairs.is_empty() {
            return None;
        }
        let (left, right, numbers) = self.rng.pick(&pairs).clone();
        let filter = match self.rng.below(3) {
            0 => String::new(),
            1 => format!(" where {}", condition(self.rng, &inner.fields)),
            _ => format!(" where {}", inner.filter),
        };
        let others: Vec<_> = pairs.iter().filter(|p| p.0 != left && p.1 != right).cloned().collect();
        if !others.is_empty() && self.rng.chance(20) {
            let (also, too, _) = self.rng.pick(&others).clone();
            let not = if self.rng.chance(40) { "not " } else { "" };
            return Some(format!(
                "({left}, {also}) {not}in (select {right}, {too} from {}{filter})",
                inner.from
            ));
        }
        let operator = if numbers && self.rng.chance(35) {
            let operator = *self.rng.pick(&["<", "<=", ">", ">=", "=", "<>"]);
            format!("{operator} {}", self.rng.pick(&["any", "all"]))
        } else if self.rng.chance(40) {
            "not in".to_owned()
        } else {
            "in".to_owned()
        };
        Some(format!("{left} {operator} (select {right} from {}{filter})", inner.from))
    }

    /// A condition with a subquery, alone or below OR or NOT.
    pub(super) fn nested_condition(&mut self, scope: &[Field]) -> Option<String> {
        let first = match self.rng.below(5) {
            0 | 1 => self.exists(scope)?,
            2 | 3 => self.quantified(scope)?,
            _ => {
                let value = self.nested_value(scope)?;
                let literal = value.ty.literal(self.rng);
                format!("{} {} {literal}", value.sql, self.rng.pick(&["<", ">=", "="]))
            }
        };
        Some(match self.rng.below(8) {
            0 => format!("({first} or {})", condition(self.rng, scope)),
            1 => format!("not ({first} and {})", condition(self.rng, scope)),
            _ => first,
        })
    }

    /// An aggregate over correlated rows.
    fn nested_value(&mut self, scope: &[Field]) -> Option<Scalar> {
        let inner = self.inner(scope)?;
        let numbers: Vec<Field> = inner.fields.iter().filter(|f| f.ty.is_int()).cloned().collect();
        let (call, ty) = match self.rng.below(4) {
            0 | 1 => ("count(*)".to_owned(), Ty::Int8),
            _ if numbers.is_empty() => ("count(*)".to_owned(), Ty::Int8),
            2 => {
                let field = self.rng.pick(&numbers).clone();
                (format!("max({})", field.sql), field.ty)
            }
            _ => {
                let field = self.rng.pick(&numbers).clone();
                (format!("count(distinct {})", field.sql), Ty::Int8)
            }
        };
        let sql = format!("(select {call} from {} where {})", inner.from, inner.filter);
        Some(Scalar { sql, ty, image: Image::Exact, join: false })
    }

    /// An item of a select list.
    pub(super) fn nested_scalar(&mut self, scope: &[Field]) -> Option<Scalar> {
        let flag = |sql: String| Scalar { sql, ty: Ty::Bool, image: Image::Exact, join: false };
        match self.rng.below(4) {
            0 => self.exists(scope).map(flag),
            1 => self.quantified(scope).map(|sql| flag(format!("({sql})"))),
            _ => self.nested_value(scope),
        }
    }

    /// An array of a column of correlated rows, in its order.
    pub(super) fn array_of(&mut self, scope: &[Field]) -> Option<String> {
        let inner = self.inner(scope)?;
        let plain =
            |f: &&Field| f.image == Image::Exact && (f.ty.is_int() || f.ty.is_text() || f.ty == Ty::Date);
        let fields: Vec<Field> = inner.fields.iter().filter(plain).cloned().collect();
        if fields.is_empty() {
            return None;
        }
        let (field, distinct) =
            (told(self.rng.pick(&fields)), if self.rng.chance(20) { "distinct " } else { "" });
        let direction = *self.rng.pick(&["", " desc", " desc nulls last"]);
        let limit = if self.rng.chance(25) { " limit 3" } else { "" };
        Some(format!(
            "array(select {distinct}{field} from {} where {} order by 1{direction}{limit})",
            inner.from, inner.filter
        ))
    }

    /// A LATERAL item over the scope and its columns.
    pub(super) fn lateral(&mut self, scope: &[Field]) -> Option<(String, Vec<Field>)> {
        let inner = self.inner(scope)?;
        let alias = self.alias();
        let mut list = Vec::new();
        let mut fields = Vec::new();
        let mut group = String::new();
        for (number, field) in inner.fields.iter().enumerate().take(6) {
            list.push(format!("{} as l{number}", field.sql));
            let name = format!("l{number}");
            fields.push(Field { sql: format!("{alias}.{name}"), name, ..field.clone() });
        }
        if self.rng.chance(30) {
            list = vec!["count(*) as l0".to_owned()];
            let sql = format!("{alias}.l0");
            let name = "l0".to_owned();
            fields = vec![Field { sql, name, ty: Ty::Int8, image: Image::Exact, join: false }];
            if self.rng.chance(40) {
                group = format!(" group by {}", inner.fields.iter().find(|f| f.join)?.sql);
            }
        }
        let query = format!("select {} from {} where {}{group}", list.join(", "), inner.from, inner.filter);
        Some((format!("lateral ({query}) as {alias}"), fields))
    }
}
