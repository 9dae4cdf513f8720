//! Random set operations, over branches of one type or of several that PostgreSQL resolves.

use super::query::{Grammar, Query, build};
use super::scalar::{Image, of_type};
use super::types::Ty;

/// Types that may stand in one column; two of them give the later one.
const FAMILIES: &[&[Ty]] = &[
    &[Ty::Int8],
    &[Ty::Text],
    &[Ty::Numeric],
    &[Ty::Bool],
    &[Ty::Date],
    &[Ty::Jsonb],
    &[Ty::Ints],
    &[Ty::Int2, Ty::Int4, Ty::Int8, Ty::Numeric],
    &[Ty::Varchar, Ty::Text],
    &[Ty::Date, Ty::Timestamp, Ty::Timestamptz],
];

impl Grammar<'_> {
    pub(super) fn union(&mut self, depth: usize) -> Query {
        let operator = *self.rng.pick(&[
            "union all",
            "union all",
            "union all",
            "union",
            "union",
            "intersect",
            "except",
            "intersect all",
            "except all",
        ]);
        let all = operator == "union all";
        // Mostly one type in all branches, else some that PostgreSQL resolves to the last of them.
        let families: Vec<&[Ty]> = (0..1 + self.rng.below(3)).map(|_| *self.rng.pick(FAMILIES)).collect();
        let branches: Vec<Query> = (0..2 + self.rng.below(2))
            .map(|_| {
                let source = self.source(depth - 1);
                let list = families.iter().map(|family| {
                    let ty = *self.rng.pick(family);
                    of_type(self.rng, &source.scope, ty)
                });
                build("select ", list.collect(), &source, "")
            })
            .collect();
        let rank = |family: &[Ty], ty: Ty| family.iter().position(|t| *t == ty).unwrap_or(0);
        let types: Vec<Ty> = (0..families.len())
            .map(|i| {
                let of_branches = branches.iter().map(|b| rank(families[i], b.columns[i].0));
                families[i][of_branches.max().unwrap_or(0)]
            })
            .collect();
        let columns = (0..types.len()).map(|i| {
            let image = branches.iter().map(|b| b.columns[i].1).max().unwrap_or(Image::Exact);
            let ambiguous = !all && types[i] == Ty::Numeric && image == Image::Exact;
            (types[i], if ambiguous { Image::Value } else { image })
        });
        let texts: Vec<&str> = branches.iter().map(|b| b.text.as_str()).collect();
        Query {
            columns: columns.collect(),
            joins: vec![false; types.len()],
            text: texts.join(&format!(" {operator} ")),
        }
    }
}
