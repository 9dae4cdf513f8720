//! Random aggregates of ordered groups and of statistics, bits and ranges.
//!
//! Statistics of floats are over small integers: whether a sum of squares is zero decides between a number and NULL, and
//! must not depend on the order of the rows.

use super::query::{Grammar, grouped};
use super::scalar::{Field, Image, Scalar, condition};
use super::types::Ty;

impl Grammar<'_> {
    /// Nothing where the scope has no column that fits.
    pub(super) fn measure(&mut self, scope: &[Field]) -> Option<Scalar> {
        let call = |sql: String, ty, image| Scalar { sql, ty, image, join: false };
        let number = self.integer(scope);
        let value = match (self.rng.below(8), number) {
            (0 | 1, _) => self.ordered_value(scope)?,
            (2, Some(n)) => {
                let function = *self.rng.pick(&["rank", "dense_rank"]);
                let (at, direction) = (self.rng.below(6), *self.rng.pick(&["", " desc", " nulls first"]));
                let sql = format!("{function}({at}) within group (order by {}{direction})", n.sql);
                call(sql, Ty::Int8, Image::Exact)
            }
            (3, Some(n)) => {
                let function = *self.rng.pick(&["percent_rank(2)", "cume_dist(3)", "percentile_cont(0.3)"]);
                let sql = format!("{function} within group (order by ({} % 100)::float8)", n.sql);
                call(sql, Ty::Float8, Image::Approximate)
            }
            (4, Some(n)) => {
                let function = *self.rng.pick(&["stddev", "variance", "stddev_pop", "var_samp"]);
                call(format!("{function}({})", n.sql), Ty::Numeric, Image::Exact)
            }
            (5, Some(n)) => {
                let functions = [
                    "corr",
                    "covar_pop",
                    "covar_samp",
                    "regr_slope",
                    "regr_sxy",
                    "regr_r2",
                    "regr_intercept",
                ];
                let function = *self.rng.pick(&functions);
                let other = self.integer(scope)?;
                let sql = format!("{function}(({} % 20)::float8, ({} % 30)::float8)", n.sql, other.sql);
                call(sql, Ty::Float8, Image::Approximate)
            }
            (6, Some(n)) => {
                let function = *self.rng.pick(&["bit_and", "bit_or", "bit_xor"]);
                call(format!("{function}({})", n.sql), n.ty, Image::Exact)
            }
            _ => {
                let ranges: Vec<&Field> = scope.iter().filter(|f| f.ty == Ty::Range).collect();
                if ranges.is_empty() {
                    return None;
                }
                let field = self.rng.pick(&ranges).sql.clone();
                match self.rng.chance(50) {
                    true => call(format!("range_intersect_agg({field})"), Ty::Range, Image::Exact),
                    false => {
                        let filter = self.filter(scope);
                        return Some(call(
                            format!("range_agg({field}){filter}::text"),
                            Ty::Text,
                            Image::Exact,
                        ));
                    }
                }
            }
        };
        let filter = self.filter(scope);
        Some(Scalar { sql: value.sql + &filter, ..value })
    }

    fn filter(&mut self, scope: &[Field]) -> String {
        match self.rng.chance(20) {
            true => format!(" filter (where {})", condition(self.rng, scope)),
            false => String::new(),
        }
    }

    /// One of the group's values by its place or number.
    fn ordered_value(&mut self, scope: &[Field]) -> Option<Scalar> {
        let value = self.sortable(scope);
        // How a bare literal would be ordered is no question; of a folded one any may be meant.
        if value.ty.is_folded() || !scope.iter().any(|f| value.sql.contains(&f.sql)) {
            return None;
        }
        let function = *self.rng.pick(&["percentile_disc(0.5)", "percentile_disc(0.2)", "mode()"]);
        let direction = *self.rng.pick(&["", " desc"]);
        let sql = format!("{function} within group (order by {}{direction})", value.sql);
        Some(Scalar { sql, join: false, ..grouped(value) })
    }
}
