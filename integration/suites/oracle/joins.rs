//! Random joins: inner, outer, cross, natural, by USING, by ranges, and lists of VALUES to join with.

use super::query::{Grammar, Relation, Source, whole};
use super::scalar::{Field, Image, condition, residual};
use super::types::Ty;

impl Grammar<'_> {
    pub(super) fn join(&mut self, source: &mut Source, depth: usize) {
        let (item, fields) = self.item(depth.saturating_sub(1));
        let pairs: Vec<(Field, Field)> = source
            .scope
            .iter()
            .flat_map(|l| fields.iter().map(move |r| (l.clone(), r.clone())))
            .filter(|(l, r)| l.join && r.join && l.ty.compares_with(r.ty))
            .collect();
        if pairs.is_empty() {
            return;
        }
        let (left, right) = self.rng.pick(&pairs).clone();
        let mut on = vec![format!("{} = {}", left.sql, right.sql)];
        if self.rng.chance(15) {
            let (left, right) = self.rng.pick(&pairs).clone();
            on.push(format!("{} = {}", left.sql, right.sql));
        }
        let mut both = source.scope.clone();
        both.extend(fields.iter().cloned());
        source.whole.extend(whole(&item));
        let unique = source.scope.iter().filter(|f| f.name == right.name).count() == 1;
        let alone = source.scope.iter().filter(|f| f.name == left.name).count() == 1;
        let form = self.rng.below(16);
        match form {
            _ if source.comma || form < 2 => {
                // Comma join: it binds weaker than JOIN, so it is written in front.
                source.from = format!("{item}, {}", source.from);
                source.conditions.extend(on);
                source.comma = true;
            }
            2 | 3 if unique && left.name == right.name => {
                let kind = self.rng.pick(&["join", "left join"]);
                source.from = format!("{} {kind} {item} using ({})", source.from, left.name);
            }
            10 => {
                source.from = format!("{} full join {item} on {}", source.from, on.join(" and "));
            }
            4..=6 => {
                if self.rng.chance(20) {
                    // Both sides, by what only the server computes.
                    on.push(format!("({}::text || {}::text) <> '11'", left.sql, right.sql));
                }
                if self.rng.chance(40) {
                    on.push(residual(self.rng, &both));
                }
                if self.rng.chance(20) {
                    on.push(condition(self.rng, &fields));
                }
                source.from = format!("{} left join {item} on {}", source.from, on.join(" and "));
            }
            11 => {
                if self.rng.chance(40) {
                    on.push(residual(self.rng, &both));
                }
                source.from = format!("{} right join {item} on {}", source.from, on.join(" and "));
            }
            12 if alone => {
                // Its own row is out of sight below the new one.
                if whole(&item).is_some() {
                    source.whole.pop();
                }
                let (item, fields) = self.renamed(&item, &fields, &left, &right);
                let kind = self.rng.pick(&["join", "join", "left join", "right join"]);
                source.from = format!("{} natural {kind} {item}", source.from);
                source.scope.extend(fields);
                return;
            }
            13 => {
                source.from = format!("{} cross join {item}", source.from);
                source.conditions.extend(on);
            }
            14 if left.ty.is_int() && right.ty.is_int() => {
                let kind = self.rng.pick(&["join", "join", "left join"]);
                let (l, r) = (&left.sql, &right.sql);
                let range = match self.rng.below(3) {
                    0 => format!("{r} between {l} and {l} + 1"),
                    1 => format!("{r} > {l} and {r} <= {l} + 2"),
                    _ => format!("{l} >= {r} and {l} < {r} + 2"),
                };
                source.from = format!("{} {kind} {item} on {range}", source.from);
            }
            _ => {
                if self.rng.chance(25) {
                    on.push(condition(self.rng, &both));
                }
                source.from = format!("{} join {item} on {}", source.from, on.join(" and "));
            }
        }
        source.scope = both;
    }

    /// An item of which only the column of `right` has a name that the other side knows: that of `left`.
    fn renamed(&mut self, item: &str, fields: &[Field], left: &Field, right: &Field) -> (String, Vec<Field>) {
        let alias = self.alias();
        let mut list = Vec::new();
        let mut renamed = Vec::new();
        for (number, field) in fields.iter().enumerate() {
            let name = match field.sql == right.sql {
                true => left.name.clone(),
                false => format!("{alias}x{number}"),
            };
            list.push(format!("{} as {name}", field.sql));
            renamed.push(Field { sql: format!("{alias}.{name}"), name, ..field.clone() });
        }
        (format!("(select {} from {item}) as {alias}", list.join(", ")), renamed)
    }

    /// A short list of rows that are written out, with a number to join by.
    pub(super) fn values(&mut self) -> Relation {
        let second = *self.rng.pick(&[Ty::Text, Ty::Numeric, Ty::Date, Ty::Bool]);
        let rows: Vec<String> = (0..1 + self.rng.below(4))
            .map(|_| format!("({}, {})", Ty::Int4.literal(self.rng), second.literal(self.rng)))
            .collect();
        let field = |name: &str, ty, join| Field {
            sql: name.to_owned(),
            name: name.to_owned(),
            ty,
            image: Image::Exact,
            join,
        };
        Relation {
            reference: format!("(select * from (values {}) as v(k, w))", rows.join(", ")),
            fields: vec![field("k", Ty::Int4, true), field("w", second, false)],
        }
    }
}
