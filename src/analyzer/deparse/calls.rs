//! SQL of aggregate calls, window function calls and the items of their ORDER BY.

use super::{Scope, names};
use crate::analyzer::node::{Node, Value};
use crate::error::{Error, Result};

/// Bits of `frameOptions` (`nodes/parsenodes.h`).
mod frame {
    pub const NONDEFAULT: i64 = 0x1;
    pub const RANGE: i64 = 0x2;
    pub const ROWS: i64 = 0x4;
    pub const GROUPS: i64 = 0x8;
    pub const BETWEEN: i64 = 0x10;
    pub const START_UNBOUNDED_PRECEDING: i64 = 0x20;
    pub const END_UNBOUNDED_PRECEDING: i64 = 0x40;
    pub const START_UNBOUNDED_FOLLOWING: i64 = 0x80;
    pub const END_UNBOUNDED_FOLLOWING: i64 = 0x100;
    pub const START_CURRENT_ROW: i64 = 0x200;
    pub const END_CURRENT_ROW: i64 = 0x400;
    pub const START_OFFSET_PRECEDING: i64 = 0x800;
    pub const END_OFFSET_PRECEDING: i64 = 0x1000;
    pub const START_OFFSET_FOLLOWING: i64 = 0x2000;
    pub const END_OFFSET_FOLLOWING: i64 = 0x4000;
    pub const EXCLUDE_CURRENT_ROW: i64 = 0x8000;
    pub const EXCLUDE_GROUP: i64 = 0x10000;
    pub const EXCLUDE_TIES: i64 = 0x20000;
}

impl Scope<'_> {
    /// `name(args) FILTER (...)` with DISTINCT, ORDER BY and WITHIN GROUP.
    pub(super) fn aggregate(&self, node: &Node) -> Result<String> {
        let name = names::function(self.facts, node.oid("aggfnoid")?)?;
        let entries = node.nodes("args")?;
        let mut args = Vec::new();
        for entry in entries.iter().filter(|e| !e.bool("resjunk")) {
            args.push(self.expression(entry.node("expr")?)?);
        }
        let order = self.sort_list(node.list("aggorder"), &entries)?;
        let within_group = node.text("aggkind").as_deref() != Some("n");
        let mut call = if within_group {
            let mut direct = self.items(node, "aggdirectargs")?;
            variadic(node.bool("aggvariadic"), &mut direct);
            format!("{name}({}) WITHIN GROUP (ORDER BY {order})", direct.join(", "))
        } else if node.bool("aggstar") {
            format!("{name}(*)")
        } else {
            variadic(node.bool("aggvariadic"), &mut args);
            let distinct = if node.list("aggdistinct").is_empty() { "" } else { "DISTINCT " };
            let order = if order.is_empty() { order } else { format!(" ORDER BY {order}") };
            format!("{name}({distinct}{}{order})", args.join(", "))
        };
        self.filter_clause(node, &mut call)?;
        Ok(call)
    }

    /// A call with its window inside it, as [`crate::analyzer::window::resolved`] makes it.
    pub(super) fn window(&self, node: &Node) -> Result<String> {
        let name = names::function(self.facts, node.oid("winfnoid")?)?;
        let args = if node.bool("winstar") { "*".to_owned() } else { self.list(node, "args")? };
        let mut call = format!("{name}({args})");
        self.filter_clause(node, &mut call)?;
        let over = node.node("over")?;
        let mut order = Vec::new();
        for item in over.nodes("order")? {
            order.push(self.sort_item(item.node("expr")?, item)?);
        }
        if over.bool("by_position") {
            order.push("x.o".to_owned());
        }
        let order = if order.is_empty() { String::new() } else { format!(" ORDER BY {}", order.join(", ")) };
        Ok(format!("{call} OVER (PARTITION BY x.g{order}{})", self.frame(over)?))
    }

    fn filter_clause(&self, node: &Node, call: &mut String) -> Result<()> {
        if let Some(filter) = node.optional_node("aggfilter") {
            *call += &format!(" FILTER (WHERE {})", self.expression(filter)?);
        }
        Ok(())
    }

    /// The items of a list of SORTGROUPCLAUSE over the entries of the same call.
    fn sort_list(&self, clauses: &[Value], entries: &[&Node]) -> Result<String> {
        let mut items = Vec::new();
        for clause in clauses.iter().filter_map(Value::as_node) {
            let reference = clause.field("tleSortGroupRef");
            let entry = entries.iter().find(|e| e.field("ressortgroupref") == reference);
            let entry = entry.ok_or_else(|| Error::unsupported("ORDER BY of an aggregate names nothing"))?;
            items.push(self.sort_item(entry.node("expr")?, clause)?);
        }
        Ok(items.join(", "))
    }

    /// `<` and `>` are what ASC and DESC mean for the type; whether they are is seen when the text is verified.
    fn sort_item(&self, expr: &Node, clause: &Node) -> Result<String> {
        let operator = clause.oid("sortop")?;
        let direction = match names::operator_facts(self.facts, operator)?.name.as_str() {
            "<" => "ASC".to_owned(),
            ">" => "DESC".to_owned(),
            _ => format!("USING {}", names::operator(self.facts, operator)?),
        };
        let nulls = if clause.bool("nulls_first") { "FIRST" } else { "LAST" };
        let sql = match expr.tag.as_str() {
            // A bare integer would be the number of a column, a bare string is refused.
            "CONST" => format!("({})", self.expression(expr)?),
            _ => self.expression(expr)?,
        };
        Ok(format!("{sql} {direction} NULLS {nulls}"))
    }

    fn frame(&self, over: &Node) -> Result<String> {
        let options = over.int("frameOptions")?;
        let has = |bit: i64| options & bit != 0;
        if !has(frame::NONDEFAULT) {
            return Ok(String::new());
        }
        let odd = || Error::unsupported("a window frame of an unknown form");
        let mode = match options & (frame::RANGE | frame::ROWS | frame::GROUPS) {
            frame::RANGE => "RANGE",
            frame::ROWS => "ROWS",
            frame::GROUPS => "GROUPS",
            _ => return Err(odd()),
        };
        let offset = |field: &str| self.expression(over.node(field)?);
        let start = if has(frame::START_UNBOUNDED_PRECEDING) {
            "UNBOUNDED PRECEDING".to_owned()
        } else if has(frame::START_CURRENT_ROW) {
            "CURRENT ROW".to_owned()
        } else if has(frame::START_OFFSET_PRECEDING) {
            format!("{} PRECEDING", offset("startOffset")?)
        } else if has(frame::START_OFFSET_FOLLOWING) {
            format!("{} FOLLOWING", offset("startOffset")?)
        } else {
            return Err(odd());
        };
        let end = if has(frame::END_UNBOUNDED_FOLLOWING) {
            "UNBOUNDED FOLLOWING".to_owned()
        } else if has(frame::END_CURRENT_ROW) {
            "CURRENT ROW".to_owned()
        } else if has(frame::END_OFFSET_PRECEDING) {
            format!("{} PRECEDING", offset("endOffset")?)
        } else if has(frame::END_OFFSET_FOLLOWING) {
            format!("{} FOLLOWING", offset("endOffset")?)
        } else {
            return Err(odd());
        };
        if has(frame::END_UNBOUNDED_PRECEDING) || has(frame::START_UNBOUNDED_FOLLOWING) {
            return Err(odd());
        }
        let bounds = match has(frame::BETWEEN) {
            true => format!("BETWEEN {start} AND {end}"),
            false => start,
        };
        let exclusion = if has(frame::EXCLUDE_CURRENT_ROW) {
            " EXCLUDE CURRENT ROW"
        } else if has(frame::EXCLUDE_GROUP) {
            " EXCLUDE GROUP"
        } else if has(frame::EXCLUDE_TIES) {
            " EXCLUDE TIES"
        } else {
            ""
        };
        Ok(format!(" {mode} {bounds}{exclusion}"))
    }
}

fn variadic(is: bool, args: &mut [String]) {
    if let Some(last) = args.last_mut().filter(|_| is) {
        *last = format!("VARIADIC {last}");
    }
}
