//! FROM and WHERE: flattens inner joins, gives each table the conditions that cannot fail, joins along equality keys.

use std::collections::BTreeSet;

use crate::analyzer::node::Node;
use crate::plan::{JoinKind, Rel};
use crate::row::Row;

use super::lateral::Lateral;
use super::refusal::{Refusal, Step};
use super::stage::OUTER;
use super::stage::Stage;
use super::{Level, Translator, check, native, unknown_form};

/// A conjunct of WHERE or ON, expanded, and the range table entries that it reads.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    pub node: Node,
    pub entries: BTreeSet<i64>,
    /// It has a native form that cannot fail, so it may be evaluated early.
    pub early: bool,
}

/// The range table entries that an expanded expression reads.
pub(super) fn entries_of(node: &Node) -> BTreeSet<i64> {
    let mut entries = BTreeSet::new();
    node.walk(&mut |n| {
        if n.tag == "VAR" {
            entries.extend(n.field("varno").as_int());
        }
    });
    entries
}

/// The arguments of a binary operator, the one over entries of `left` first; `None` unless each reads one side alone.
pub(super) fn sides<'n>(
    node: &'n Node,
    left: &BTreeSet<i64>,
    right: &BTreeSet<i64>,
) -> Option<(&'n Node, &'n Node)> {
    let [a, b]: [&Node; 2] = node.nodes("args").ok()?.try_into().ok()?;
    let (ea, eb) = (entries_of(a), entries_of(b));
    if ea.is_empty() || eb.is_empty() {
        return None;
    }
    if ea.is_subset(left) && eb.is_subset(right) {
        Some((a, b))
    } else if eb.is_subset(left) && ea.is_subset(right) {
        Some((b, a))
    } else {
        None
    }
}

/// The base entries below a FROM item.
pub(super) fn entries_below(node: &Node) -> Step<BTreeSet<i64>> {
    Ok(match node.tag.as_str() {
        "RANGETBLREF" => BTreeSet::from([node.int("rtindex")?]),
        "JOINEXPR" => {
            let mut entries = entries_below(node.node("larg")?)?;
            entries.extend(entries_below(node.node("rarg")?)?);
            entries
        }
        _ => return Err(unknown_form("FROM")),
    })
}

impl Translator<'_> {
    /// Splits a condition at its top-level ANDs.
    pub(super) fn conjuncts(&self, frame: &Level, node: &Node, out: &mut Vec<Condition>) -> Step<()> {
        if node.tag == "BOOLEXPR" && node.text("boolop").as_deref() == Some("and") {
            return node.nodes("args")?.iter().try_for_each(|n| self.conjuncts(frame, n, out));
        }
        let node = self.expand(frame, node)?;
        check::scalar(self.facts(), &node)?;
        out.push(self.condition(node));
        Ok(())
    }

    pub(super) fn condition(&self, node: Node) -> Condition {
        let early = native::compile(self.facts(), &node).is_some_and(|e| e.is_infallible());
        Condition { entries: entries_of(&node), node, early }
    }

    /// The rows of all items of a FROM list for which all conditions hold; `outer`: with the domain of the query.
    pub(super) fn rows_of_items(
        &mut self,
        frame: &Level,
        items: &[&Node],
        mut conditions: Vec<Condition>,
        outer: bool,
    ) -> Step<Stage> {
        let mut flat = Vec::new();
        for item in items {
            self.flatten(frame, item, &mut flat, &mut conditions)?;
        }
        self.rows_of_flat(frame, flat, conditions, outer)
    }

    /// As [`Self::rows_of_items`], of items that are no inner joins.
    pub(super) fn rows_of_flat(
        &mut self,
        frame: &Level,
        items: Vec<&Node>,
        mut conditions: Vec<Condition>,
        outer: bool,
    ) -> Step<Stage> {
        let (mut parts, mut laterals) = (Vec::with_capacity(items.len()), Vec::new());
        for item in items {
            let mut entries = entries_below(item)?;
            let needs = self.needs(frame, item)?;
            let lateral = needs.iter().any(|n| *n != OUTER);
            if !lateral {
                entries.append(&mut needs.clone());
            }
            // Rows that they exclude could cost a LATERAL item an error, or have no end.
            let before = self.read_by_laterals(frame, item)?;
            let (mut down, mut rest) = (Vec::new(), Vec::new());
            for c in conditions {
                let first = !c.early && c.entries.is_subset(&before) && !self.is_late(&c.node)?;
                let here = !c.entries.is_empty() && c.entries.is_subset(&entries) && (c.early || first);
                if here { down.push(c) } else { rest.push(c) }
            }
            conditions = rest;
            if lateral {
                laterals.push(Lateral { item, needs, conditions: down });
                continue;
            }
            let stage = self.item(frame, item, down, !needs.is_empty())?;
            parts.push((entries, stage));
        }
        if let Some(domain) = frame.domain().filter(|_| outer && !parts.iter().any(|p| p.0.contains(&OUTER)))
        {
            parts.push((BTreeSet::from([OUTER]), domain.clone()));
        }
        if parts.is_empty() {
            let stage = Stage::new(Rel::Constant { rows: vec![Row::empty()] }, Vec::new());
            return self.filter_all(stage, conditions);
        }
        let stage = self.arrange(frame, parts, laterals, &mut conditions)?;
        self.filter_all(stage, conditions)
    }

    /// The entries of the side that an outer join keeps, where a LATERAL item follows it there.
    fn read_by_laterals(&self, frame: &Level, item: &Node) -> Step<BTreeSet<i64>> {
        let (kept, optional) = match item.tag.as_str() {
            "JOINEXPR" if item.int("jointype")? == 1 => (item.node("larg")?, item.node("rarg")?),
            _ => return Ok(BTreeSet::new()),
        };
        let lateral = self.needs(frame, optional)?.iter().any(|n| *n != OUTER);
        match lateral || !self.read_by_laterals(frame, kept)?.is_empty() {
            true => entries_below(kept),
            false => Ok(BTreeSet::new()),
        }
    }

    pub(super) fn filter_all(&mut self, stage: Stage, conditions: Vec<Condition>) -> Step<Stage> {
        let placed: Vec<Node> = conditions.iter().map(|c| stage.place(&c.node)).collect::<Step<_>>()?;
        self.filter(stage, &placed)
    }

    pub(super) fn flatten<'n>(
        &self,
        frame: &Level,
        item: &'n Node,
        items: &mut Vec<&'n Node>,
        conditions: &mut Vec<Condition>,
    ) -> Step<()> {
        if item.tag != "JOINEXPR" || item.int("jointype")? != 0 {
            items.push(item);
            return Ok(());
        }
        self.flatten(frame, item.node("larg")?, items, conditions)?;
        self.flatten(frame, item.node("rarg")?, items, conditions)?;
        match item.optional_node("quals") {
            Some(quals) => self.conjuncts(frame, quals, conditions),
            None => Ok(()),
        }
    }

    /// One item that is no inner join, with the conditions on it (early, or on the side that it keeps) applied; `outer`: it
    /// refers to what is around the query, so that its rows carry the domain.
    fn item(&mut self, frame: &Level, item: &Node, conditions: Vec<Condition>, outer: bool) -> Step<Stage> {
        if item.tag == "RANGETBLREF" {
            let stage = self.range_table(frame, item.int("rtindex")?)?;
            return self.filter_all(stage, conditions);
        }
        let (kind, kept, optional) = match item.int("jointype")? {
            1 => (JoinKind::Left, item.node("larg")?, item.node("rarg")?),
            3 => (JoinKind::Left, item.node("rarg")?, item.node("larg")?),
            2 => (JoinKind::Full, item.node("larg")?, item.node("rarg")?),
            _ => return Err(unknown_form("a kind of join")),
        };
        if kind == JoinKind::Full && outer {
            return Err(Refusal::new(
                "unsupported.full_join",
                "a FULL JOIN depends on a row outside of its subquery",
            ));
        }
        // A condition on the rows that an outer join keeps may come before it, one on the optional side may not.
        let (mut left_entries, optional_entries) = (entries_below(kept)?, entries_below(optional)?);
        left_entries.extend(outer.then_some(OUTER));
        let (down, above): (Vec<_>, Vec<_>) = conditions
            .into_iter()
            .partition(|c| kind == JoinKind::Left && c.entries.is_subset(&left_entries));
        let mut on = Vec::new();
        if let Some(quals) = item.optional_node("quals") {
            self.conjuncts(frame, quals, &mut on)?;
        }
        // In ON it is the other way round; the server too evaluates such a condition while it reads the optional side.
        let (optional_on, on): (Vec<_>, Vec<_>) = on.into_iter().partition(|c| {
            kind == JoinKind::Left && !c.entries.is_empty() && c.entries.is_subset(&optional_entries)
        });
        let left = self.rows_of_items(frame, &[kept], down, outer)?;
        let needs = self.needs(frame, optional)?;
        let stage = if needs.iter().any(|n| *n != OUTER) {
            let lateral = Lateral { item: optional, needs, conditions: optional_on };
            self.apply(frame, kind, (left_entries, left), lateral, on)?.1
        } else {
            let right = self.rows_of_items(frame, &[optional], optional_on, !needs.is_empty())?;
            let mut right_entries = optional_entries;
            right_entries.extend(needs);
            self.join(kind, (left_entries, left), (right_entries, right), on, Vec::new())?
        };
        self.filter_all(stage, above)
    }
}
