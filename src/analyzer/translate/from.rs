//! FROM and WHERE: flattens inner joins, gives each table the conditions that cannot fail, joins along equality keys.

use std::collections::BTreeSet;

use crate::analyzer::node::Node;
use crate::plan::{JoinKind, Rel};
use crate::row::Row;

use super::refusal::{Refusal, Step};
use super::stage::Stage;
use super::{Frame, Translator, check, native, unknown_form};

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

/// The base entries below a FROM item.
fn entries_below(node: &Node) -> Step<BTreeSet<i64>> {
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
    pub(super) fn conjuncts(&self, frame: &Frame<'_>, node: &Node, out: &mut Vec<Condition>) -> Step<()> {
        if node.tag == "BOOLEXPR" && node.text("boolop").as_deref() == Some("and") {
            return node.nodes("args")?.iter().try_for_each(|n| self.conjuncts(frame, n, out));
        }
        let node = self.expand(frame, node)?;
        check::scalar(self.facts(), &node)?;
        let early = native::compile(self.facts(), &node).is_some_and(|e| e.is_infallible());
        out.push(Condition { entries: entries_of(&node), node, early });
        Ok(())
    }

    /// The rows of all items of a FROM list for which all conditions hold.
    pub(super) fn rows_of_items(
        &mut self,
        frame: &Frame<'_>,
        items: &[&Node],
        mut conditions: Vec<Condition>,
    ) -> Step<Stage> {
        let mut flat = Vec::new();
        for item in items {
            self.flatten(frame, item, &mut flat, &mut conditions)?;
        }
        if flat.is_empty() {
            let stage = Stage::new(Rel::Constant { rows: vec![Row::empty()] }, Vec::new());
            return self.filter_all(stage, conditions);
        }
        let mut stages = Vec::with_capacity(flat.len());
        for item in flat {
            let entries = entries_below(item)?;
            let here = |c: &Condition| c.early && !c.entries.is_empty() && c.entries.is_subset(&entries);
            let (down, rest) = conditions.into_iter().partition(here);
            conditions = rest;
            stages.push((entries, self.item(frame, item, down)?));
        }
        let stage = self.arrange(stages, &mut conditions)?;
        self.filter_all(stage, conditions)
    }

    pub(super) fn filter_all(&mut self, stage: Stage, conditions: Vec<Condition>) -> Step<Stage> {
        let placed: Vec<Node> = conditions.iter().map(|c| stage.place(&c.node)).collect::<Step<_>>()?;
        self.filter(stage, &placed)
    }

    fn flatten<'n>(
        &self,
        frame: &Frame<'_>,
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

    /// One item that is no inner join, with the conditions on it (all early) applied.
    fn item(&mut self, frame: &Frame<'_>, item: &Node, conditions: Vec<Condition>) -> Step<Stage> {
        if item.tag == "RANGETBLREF" {
            let stage = self.range_table(frame, item.int("rtindex")?)?;
            return self.filter_all(stage, conditions);
        }
        let (kept, optional) = match item.int("jointype")? {
            1 => (item.node("larg")?, item.node("rarg")?),
            3 => (item.node("rarg")?, item.node("larg")?),
            2 => {
                return Err(Refusal::new(
                    "unsupported.full_join",
                    "FULL JOIN is not maintained incrementally yet",
                ));
            }
            _ => return Err(unknown_form("a kind of join")),
        };
        // A condition on the rows that an outer join keeps may come before it, one on the optional side may not.
        let kept_entries = entries_below(kept)?;
        let (down, above): (Vec<_>, Vec<_>) =
            conditions.into_iter().partition(|c| c.entries.is_subset(&kept_entries));
        let mut on = Vec::new();
        if let Some(quals) = item.optional_node("quals") {
            self.conjuncts(frame, quals, &mut on)?;
        }
        // In ON it is the other way round; the server too evaluates such a condition while it reads the optional side.
        let optional_entries = entries_below(optional)?;
        let (optional_on, on): (Vec<_>, Vec<_>) =
            on.into_iter().partition(|c| !c.entries.is_empty() && c.entries.is_subset(&optional_entries));
        let left = self.rows_of_items(frame, &[kept], down)?;
        let right = self.rows_of_items(frame, &[optional], optional_on)?;
        let stage = self.join(JoinKind::Left, (kept_entries, left), (optional_entries, right), on)?;
        self.filter_all(stage, above)
    }
}
