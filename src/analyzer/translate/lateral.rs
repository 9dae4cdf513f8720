//! FROM items that refer to others: LATERAL, and items of a correlated subquery that refer to what is around it.

use std::collections::BTreeSet;

use crate::analyzer::node::{Node, Value};
use crate::plan::{Expr, JoinKey, JoinKind};
use crate::row::Datum;
use crate::row::key::KeyForm;

use super::frame::{Frame, Level, Outer};
use super::from::{Condition, entries_below, entries_of};
use super::join::Part;
use super::refusal::{Refusal, Step};
use super::stage::{Block, OUTER, Stage, same};
use super::subquery::free_references;
use super::{Translator, native, range_table_entry, unknown_form};

/// An item that needs rows of others first.
pub(super) struct Lateral<'n> {
    pub item: &'n Node,
    /// The entries that it refers to.
    pub needs: BTreeSet<i64>,
    pub conditions: Vec<Condition>,
}

impl Translator<'_> {
    /// The entries outside of `item` that it refers to: siblings, and [`OUTER`].
    pub(super) fn needs(&self, frame: &Level, item: &Node) -> Step<BTreeSet<i64>> {
        let mut needs = BTreeSet::new();
        if item.tag == "JOINEXPR" {
            for side in ["larg", "rarg"] {
                needs.extend(self.needs(frame, item.node(side)?)?);
            }
            if let Some(quals) = item.optional_node("quals") {
                needs.extend(entries_of(&self.expand(frame, quals)?));
            }
            let below = entries_below(item)?;
            needs.retain(|n| !below.contains(n));
            return Ok(needs);
        }
        let entry = range_table_entry(&frame.query, item.int("rtindex")?)?;
        match entry.int("rtekind")? {
            1 => {
                for node in self.references(frame, entry.node("subquery")?)? {
                    needs.extend(entries_of(&node));
                }
            }
            3 => needs.extend(entries_of(&self.function_calls(frame, item.int("rtindex")?)?)),
            6 if entry.int("ctelevelsup")? == 0 => {
                for node in self.references(frame, self.cte_node(frame, entry)?.node("ctequery")?)? {
                    needs.extend(entries_of(&node));
                }
            }
            5 => {
                for list in entry.list("values_lists") {
                    for node in list.items().iter().filter_map(Value::as_node) {
                        needs.extend(entries_of(&self.expand(frame, node)?));
                    }
                }
            }
            _ => {}
        }
        Ok(needs)
    }

    /// The query of a CTE of this level.
    pub(super) fn cte_node<'f>(&self, level: &'f Level, entry: &Node) -> Step<&'f Node> {
        let name = entry.text("ctename");
        let ctes = level.query.nodes("cteList")?;
        let cte = ctes.into_iter().find(|c| c.text("ctename") == name);
        cte.ok_or_else(|| unknown_form("a CTE without a query"))
    }

    /// The level of a query in FROM; it works per row of `frame`'s domain if it refers to what that stands for.
    pub(super) fn query_below(&mut self, frame: &Level, query: &Node) -> Step<Stage> {
        let dependent = !free_references(query)?.is_empty();
        let outer = if dependent { frame.inherited() } else { None };
        self.query(&Frame::below(frame, query, outer))
    }

    /// Joins the rows of `item` to those of `left` that it refers to.
    pub(super) fn apply(
        &mut self,
        frame: &Level,
        kind: JoinKind,
        left: Part,
        lateral: Lateral<'_>,
        conditions: Vec<Condition>,
    ) -> Step<Part> {
        let odd = || {
            Refusal::new(
                "unsupported.lateral",
                "a LATERAL item that is no plain subquery refers to other tables of FROM",
            )
        };
        if lateral.item.tag != "RANGETBLREF" {
            return Err(odd());
        }
        let rtindex = lateral.item.int("rtindex")?;
        let entry = range_table_entry(&frame.query, rtindex)?;
        let (mut entries, left) = left;
        let always = |c: &Condition| {
            let value = native::compile(self.facts(), &c.node);
            matches!(value, Some(Expr::Literal(row)) if row.get(0) == Datum::Bool(true))
        };
        let conditions: Vec<Condition> = conditions.into_iter().filter(|c| !always(c)).collect();
        let query = match entry.int("rtekind")? {
            1 => entry.node("subquery")?,
            3 if kind == JoinKind::Inner || (conditions.is_empty() && lateral.conditions.is_empty()) => {
                let stage = self.with_functions(frame, rtindex, left, kind == JoinKind::Left)?;
                entries.insert(rtindex);
                let all = lateral.conditions.into_iter().chain(conditions).collect();
                return Ok((entries, self.filter_all(stage, all)?));
            }
            3 => {
                return self.apply_functions(
                    frame,
                    kind,
                    (entries, left),
                    rtindex,
                    lateral.conditions,
                    conditions,
                );
            }
            _ => return Err(odd()),
        };
        let nodes = self.references(frame, query)?;
        let placed = nodes.iter().map(|n| left.place(n)).collect::<Step<Vec<_>>>()?;
        let domain = self.domain(&left, &placed)?;
        let outer = Outer { nodes, types: domain.columns.clone(), domain: Some(domain) };
        let right = self.query(&Frame::below(frame, query, Some(outer)))?;
        let (left, positions) = self.columns_for(left, &placed)?;
        let keys = positions.into_iter().zip(right.outer_columns());
        let keys = keys
            .map(|(l, r)| JoinKey {
                left: l,
                right: r,
                form: KeyForm::by_image(&left.columns[l]),
                nulls_match: true,
            })
            .collect();
        let visible = right.visible();
        let right = right.named(rtindex, (1..).take(visible).collect());
        let mut right = self.with_presence(frame, rtindex, right)?;
        right.blocks.retain(|b| b.rtindex != OUTER);
        let right = self.filter_all(right, lateral.conditions)?;
        let right_entries = BTreeSet::from([rtindex]);
        let stage = self.join(kind, (entries.clone(), left), (right_entries, right), conditions, keys)?;
        entries.insert(rtindex);
        Ok((entries, stage))
    }

    /// Joins the rows of functions to those of `left` that they read, under conditions that are looked at for each pair
    /// before NULLs are put in: the functions are computed for the distinct values that they read.
    fn apply_functions(
        &mut self,
        frame: &Level,
        kind: JoinKind,
        left: Part,
        rtindex: i64,
        own: Vec<Condition>,
        conditions: Vec<Condition>,
    ) -> Step<Part> {
        let (mut entries, left) = left;
        let mut nodes: Vec<Node> = Vec::new();
        self.function_calls(frame, rtindex)?.walk(&mut |n| {
            if n.tag == "VAR" && !nodes.iter().any(|known| same(known, n)) {
                nodes.push(n.clone());
            }
        });
        let placed = nodes.iter().map(|n| left.place(n)).collect::<Step<Vec<_>>>()?;
        let mut domain = self.domain(&left, &placed)?;
        domain.blocks.clear();
        for (start, node) in nodes.iter().enumerate() {
            let attribute =
                i16::try_from(node.int("varattno")?).map_err(|_| unknown_form("a column's number"))?;
            domain.blocks.push(Block { rtindex: node.int("varno")?, start, attributes: vec![attribute] });
        }
        let mut right = self.with_functions(frame, rtindex, domain, false)?;
        right.blocks.retain(|b| b.rtindex == rtindex);
        let right = self.filter_all(right, own)?;
        let (left, positions) = self.columns_for(left, &placed)?;
        let keys = positions.into_iter().enumerate();
        let keys = keys
            .map(|(right, left_column)| JoinKey {
                left: left_column,
                right,
                form: KeyForm::by_image(&left.columns[left_column]),
                nulls_match: true,
            })
            .collect();
        let part = (BTreeSet::from([rtindex]), right);
        let stage = self.join(kind, (entries.clone(), left), part, conditions, keys)?;
        entries.insert(rtindex);
        Ok((entries, stage))
    }
}
