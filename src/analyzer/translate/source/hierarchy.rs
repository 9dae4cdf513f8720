//! Partitioned tables and tables with children: the rows of several tables under one name.
//!
//! Each table that stores rows is a source of its own: its identity, its columns' numbers, its TRUNCATE and its changes
//! are its own, whichever name a statement used, and it is held once, however many names read it. So rows that move
//! between partitions need no care, and only the set of tables has to be watched (`supervisor::validity`).

use super::{Translator, check_source, full_name, is_generated, unknown_form};
use crate::analyzer::facts::Relation;
use crate::analyzer::translate::refusal::{Refusal, Step};
use crate::analyzer::translate::stage::Stage;
use crate::plan::Rel;
use crate::plan::expr::Expr;
use crate::row::TypeInfo;

impl Translator<'_> {
    /// The rows of `top`, and (unless it was named with ONLY) of all tables below it, in the columns of `top`.
    pub(super) fn hierarchy(&mut self, top: &Relation, with_children: bool) -> Step<(Stage, Vec<i16>)> {
        let facts = self.facts();
        let below: &[u32] = if with_children { &top.descendants } else { &[] };
        let mut members: Vec<&Relation> = vec![top];
        for oid in below {
            let child = facts.relations.get(oid);
            members.push(child.ok_or_else(|| unknown_form("a child table that is not in the catalog"))?);
        }
        let mut inputs = Vec::new();
        for member in members.into_iter().filter(|m| m.kind != 'p') {
            if member.oid != top.oid {
                check_source(member).map_err(|e| below_refused(top, member, e))?;
                if member.stream_table.is_some() {
                    let own = Refusal::new("unsupported.inheritance", "it is a stream table itself");
                    return Err(below_refused(top, member, own));
                }
            }
            inputs.push(self.member(top, member)?);
        }
        let attributes: Vec<i16> = top.columns.iter().map(|c| c.attnum).collect();
        let rel = match top.kind {
            'p' => Rel::Partitioned { root: top.oid, attributes: attributes.clone(), leaves: inputs },
            _ => Rel::UnionAll { inputs },
        };
        Ok((Stage::new(rel, top.columns.iter().map(|c| c.ty.clone()).collect()), attributes))
    }

    /// The rows of one table in the columns of `top`, which are found by name: their numbers differ.
    fn member(&mut self, top: &Relation, member: &Relation) -> Step<Rel> {
        let mut places = Vec::with_capacity(top.columns.len());
        for column in &top.columns {
            let place = member.columns.iter().position(|c| c.name == column.name);
            let place = place.filter(|&p| same_type(&member.columns[p].ty, &column.ty));
            places.push(place.ok_or_else(|| {
                let text =
                    format!("{} has no column {} as {}", full_name(member), column.name, full_name(top));
                Refusal::new("unsupported.inheritance", text)
            })?);
        }
        if !places.iter().any(|&p| is_generated(member, p)) {
            let attributes = places.iter().map(|&p| member.columns[p].attnum).collect();
            return Ok(Rel::Source { source: member.oid, attributes });
        }
        // Each table may generate the column in its own way.
        let (stage, _) = self.table(member)?;
        let exprs = places.into_iter().map(Expr::Column).collect();
        Ok(Rel::Project { input: Box::new(stage.rel), exprs })
    }
}

fn same_type(one: &TypeInfo, other: &TypeInfo) -> bool {
    (one.oid, one.typmod, one.collation) == (other.oid, other.typmod, other.collation)
}

fn below_refused(top: &Relation, member: &Relation, refusal: Refusal) -> Refusal {
    let relation = if top.kind == 'p' { "partition" } else { "child" };
    Refusal {
        reason: format!("{}, a {relation} of {}: {}", full_name(member), full_name(top), refusal.reason),
        ..refusal
    }
}
