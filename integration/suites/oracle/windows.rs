//! Random window functions over the order of rows: numbers, neighbours, first and last ones, sums over frames.
//!
//! The order holds everything that is shown or read, so rows that it leaves equal are alike, and which of them comes first
//! shows nowhere. All functions of a query that see single rows share one window: two orders could pair them differently.

use super::forms::exact;
use super::query::{Grammar, Query, build};
use super::scalar::Scalar;
use super::types::Ty;

impl Grammar<'_> {
    pub(super) fn positions(&mut self, depth: usize) -> Query {
        let source = self.source(depth);
        let (mut list, _) = self.sorted(&source.scope);
        let shown = list.clone();
        let mut order: Vec<String> = shown.iter().map(|v| v.sql.clone()).collect();
        let direction = *self.rng.pick(&["", " desc", " nulls first", " desc nulls last"]);
        order[0] += direction;
        let number = self.integer(&source.scope);
        order.extend(number.iter().map(|n| n.sql.clone()));
        let partition = match self.rng.chance(60) {
            true => format!("partition by {} ", self.groupable(&source.scope).sql),
            false => String::new(),
        };
        let window = format!("{partition}order by {}", order.join(", "));
        for _ in 0..1 + self.rng.below(3) {
            let value = self.rng.pick(&shown).clone();
            let v = value.sql.clone();
            let of_value = |sql: String| Scalar { sql, join: false, ..value.clone() };
            let whole = "rows between unbounded preceding and unbounded following";
            list.push(match (self.rng.below(10), &number) {
                (0, _) => exact(format!("row_number() over ({window})"), Ty::Int8),
                (1, _) => exact(format!("ntile(3) over ({window})"), Ty::Int4),
                (2, _) => of_value(format!("lag({v}) over ({window})")),
                (3, _) => of_value(format!("lead({v}, 2) over ({window})")),
                (4, _) => of_value(format!("first_value({v}) over ({window})")),
                (5, _) => of_value(format!("last_value({v}) over ({window} {whole})")),
                (6, _) => of_value(format!("nth_value({v}, 2) over ({window} {whole})")),
                (7, Some(n)) => {
                    let frame = *self.rng.pick(&ROWS);
                    exact(format!("sum(({} % 100)::int4) over ({window} {frame})", n.sql), Ty::Int8)
                }
                (8, _) => exact(format!("count({v}) over ({window} {})", self.rng.pick(&ROWS)), Ty::Int8),
                _ => exact(format!("rank() over ({window})"), Ty::Int8),
            });
        }
        list.extend(self.in_range(&shown));
        build("select ", list, &source, "")
    }

    /// A count over what lies near one of the shown values: equal values are peers, whatever their order.
    fn in_range(&mut self, shown: &[Scalar]) -> Option<Scalar> {
        let fits = |v: &&Scalar| v.ty.is_int() || matches!(v.ty, Ty::Date | Ty::Timestamp);
        let near: Vec<Scalar> = shown.iter().filter(fits).cloned().collect();
        if near.is_empty() || self.rng.chance(60) {
            return None;
        }
        let field = self.rng.pick(&near).clone();
        let (before, after) = match field.ty.is_int() {
            true => ("2", "1"),
            false => ("interval '2 days'", "interval '5 hours'"),
        };
        let frame = *self.rng.pick(&[
            "range between B preceding and A following",
            "range between B preceding and current row exclude current row",
            "range between A following and unbounded following",
            "range between B preceding and A preceding exclude ties",
        ]);
        let frame = frame.replace('B', before).replace('A', after);
        let direction = *self.rng.pick(&["", " desc"]);
        Some(exact(format!("count(*) over (order by {}{direction} {frame})", field.sql), Ty::Int8))
    }
}

const ROWS: [&str; 5] = [
    "rows between 2 preceding and current row",
    "rows between 1 preceding and 1 following",
    "rows between current row and unbounded following exclude current row",
    "rows between 3 preceding and 1 preceding",
    "groups between 1 preceding and 2 following exclude ties",
];
