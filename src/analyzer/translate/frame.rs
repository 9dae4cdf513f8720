//! Query levels, and what a level refers to outside of itself.
//!
//! A query that refers to rows around it (a correlated subquery, LATERAL) is translated for all of them at once: the
//! distinct values of its references, its *domain*, are one more item of its FROM, and each of its steps (grouping,
//! DISTINCT, set operations) works per row of the domain. Its result carries those values along, and is joined back by
//! them (Neumann and Kemper, "Unnesting Arbitrary Queries").

use std::rc::Rc;

use crate::analyzer::node::Node;
use crate::row::TypeInfo;

use super::stage::{OUTER, Stage, var_node};

/// Shared, because subqueries are translated after the expression that holds them.
pub(super) type Level = Rc<Frame>;

/// A query level and the ones around it.
#[derive(Debug)]
pub(super) struct Frame {
    pub query: Node,
    pub parent: Option<Level>,
    pub outer: Option<Outer>,
}

/// References of a query to what is around it.
#[derive(Debug, Clone)]
pub(super) struct Outer {
    /// Distinct expressions over the entries of the parent level.
    pub nodes: Vec<Node>,
    pub types: Vec<TypeInfo>,
    /// The distinct values: block [`OUTER`], one column per node. `None` where the rows around are joined directly.
    pub domain: Option<Stage>,
}

impl Frame {
    /// A query without another around it.
    pub fn top(query: &Node) -> Level {
        Rc::new(Frame { query: query.clone(), parent: None, outer: None })
    }

    /// A query below `parent`; `outer` says what it refers to there.
    pub fn below(parent: &Level, query: &Node, outer: Option<Outer>) -> Level {
        Rc::new(Frame { query: query.clone(), parent: Some(parent.clone()), outer })
    }

    pub fn domain(&self) -> Option<&Stage> {
        self.outer.as_ref()?.domain.as_ref()
    }

    /// Whether the rows of the query carry the values of its outer references.
    pub fn is_dependent(&self) -> bool {
        self.domain().is_some()
    }

    /// Vars for the outer references of a dependent query, in order.
    pub fn outer_nodes(&self) -> Vec<Node> {
        match &self.outer {
            Some(outer) if outer.domain.is_some() => {
                outer.types.iter().enumerate().map(|(i, ty)| var_node(OUTER, i, ty)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The references of this level as those of a query below it, which then works per row of the same domain.
    pub fn inherited(&self) -> Option<Outer> {
        let outer = self.outer.as_ref()?;
        let domain = outer.domain.clone()?;
        Some(Outer { nodes: self.outer_nodes(), types: outer.types.clone(), domain: Some(domain) })
    }
}
