//! Where the nodes of a graph are drawn: columns from left to right, as few crossings as a few sweeps find.
//!
//! A layered layout (Sugiyama): a node stands right of everything it reads; an edge over several columns goes through
//! invisible nodes that keep a lane free; columns are ordered by the mean place of their neighbours. Deterministic.

use std::fmt::Write;

/// Size of a node and the space around it, in pixels.
pub const NODE_WIDTH: f64 = 232.0;
pub const NODE_HEIGHT: f64 = 58.0;
const COLUMN_GAP: f64 = 84.0;
const ROW_GAP: f64 = 16.0;
const LANE: f64 = 14.0;
const MARGIN: f64 = 12.0;
const SWEEPS: usize = 8;

/// A drawing: places of the nodes (top left corner) and paths of the edges, in the order in which they were given.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    pub width: f64,
    pub height: f64,
    pub nodes: Vec<(f64, f64)>,
    pub edges: Vec<String>,
}

struct Item {
    column: usize,
    height: f64,
    /// Middle.
    y: f64,
    before: Vec<usize>,
    after: Vec<usize>,
}

/// Places `count` nodes with edges between their numbers, from what is read to what reads it.
pub fn place(count: usize, edges: &[(usize, usize)]) -> Layout {
    let columns = columns(count, edges);
    let new = |column, height| Item { column, height, y: 0.0, before: vec![], after: vec![] };
    let mut items: Vec<Item> = columns.iter().map(|column| new(*column, NODE_HEIGHT)).collect();
    let mut chains: Vec<Vec<usize>> = Vec::new();
    for &(from, to) in edges {
        let mut chain = vec![from];
        for column in columns[from] + 1..columns[to] {
            items.push(new(column, LANE));
            chain.push(items.len() - 1);
        }
        chain.push(to);
        for pair in chain.windows(2) {
            if let [a, b] = *pair {
                items[a].after.push(b);
                items[b].before.push(a);
            }
        }
        chains.push(chain);
    }
    let last = columns.iter().copied().max().unwrap_or(0);
    let mut order: Vec<Vec<usize>> =
        (0..=last).map(|c| (0..items.len()).filter(|i| items[*i].column == c).collect()).collect();
    order.iter().for_each(|column| stack(&mut items, column));
    for sweep in 0..SWEEPS {
        let forward = sweep % 2 == 0;
        let turns: Vec<usize> = if forward { (0..=last).collect() } else { (0..=last).rev().collect() };
        for column in turns {
            arrange(&mut items, &mut order[column], forward);
        }
    }
    let top = items.iter().map(|i| i.y - i.height / 2.0).fold(f64::INFINITY, f64::min);
    items.iter_mut().for_each(|item| item.y += MARGIN - top);
    let bottom = items.iter().map(|i| i.y + i.height / 2.0).fold(0.0, f64::max);
    let x = |column: usize| MARGIN + column as f64 * (NODE_WIDTH + COLUMN_GAP);
    Layout {
        width: x(last) + NODE_WIDTH + MARGIN,
        height: bottom + MARGIN,
        nodes: items[..count].iter().map(|i| (x(i.column), i.y - NODE_HEIGHT / 2.0)).collect(),
        edges: chains.iter().map(|chain| path(&items, chain, &x)).collect(),
    }
}

/// The column of each node: right of everything it reads.
fn columns(count: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut columns = vec![0; count];
    // As many rounds as there are nodes are enough; a circle, which no catalog holds, must not keep us.
    for _ in 0..count {
        let mut moved = false;
        for &(from, to) in edges {
            if columns[to] <= columns[from] && columns[from] + 1 < count {
                columns[to] = columns[from] + 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    columns
}

/// One under the other.
fn stack(items: &mut [Item], column: &[usize]) {
    let mut y = 0.0;
    for &item in column {
        let item = &mut items[item];
        item.y = y + item.height / 2.0;
        y += item.height + ROW_GAP;
    }
}

/// Orders a column by where its neighbours are, and moves it there as far as there is room.
fn arrange(items: &mut [Item], column: &mut [usize], forward: bool) {
    let wish = |items: &[Item], i: usize| {
        let item = &items[i];
        let near = if forward { &item.before } else { &item.after };
        let near = if near.is_empty() { if forward { &item.after } else { &item.before } } else { near };
        if near.is_empty() {
            return item.y;
        }
        near.iter().map(|n| items[*n].y).sum::<f64>() / near.len() as f64
    };
    let mut wishes: Vec<(f64, usize)> = column.iter().map(|i| (wish(items, *i), *i)).collect();
    wishes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut free = f64::NEG_INFINITY;
    let mut shift = 0.0;
    for (place, (wished, i)) in wishes.iter().enumerate() {
        column[place] = *i;
        let item = &mut items[*i];
        item.y = wished.max(free + item.height / 2.0);
        free = item.y + item.height / 2.0 + ROW_GAP;
        shift += wished - item.y;
    }
    let shift = shift / wishes.len().max(1) as f64;
    wishes.iter().for_each(|(_, i)| items[*i].y += shift);
}

/// A smooth line from the right side of the first node to the left side of the last.
fn path(items: &[Item], chain: &[usize], x: &impl Fn(usize) -> f64) -> String {
    let mut path = String::new();
    for pair in chain.windows(2) {
        let [a, b] = *pair else { continue };
        let (from_x, to_x) = (x(items[a].column) + NODE_WIDTH, x(items[b].column));
        let (from_y, to_y) = (items[a].y, items[b].y);
        let bend = (to_x - from_x) / 2.0;
        if path.is_empty() {
            let _ = write!(path, "M{from_x:.1} {from_y:.1}");
        } else {
            // Straight through the lane of the invisible node.
            let _ = write!(path, "L{from_x:.1} {from_y:.1}");
        }
        let _ = write!(
            path,
            "C{:.1} {from_y:.1} {:.1} {to_y:.1} {to_x:.1} {to_y:.1}",
            from_x + bend,
            to_x - bend
        );
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_stands_left_of_what_reads_it_and_nothing_overlaps() {
        // Two sources, a chain of three, and an edge over two columns.
        let edges = [(0, 2), (1, 2), (2, 3), (3, 4), (0, 4)];
        let layout = place(5, &edges);
        for (from, to) in edges {
            assert!(layout.nodes[from].0 + NODE_WIDTH < layout.nodes[to].0, "{from} -> {to}");
        }
        for (a, first) in layout.nodes.iter().enumerate() {
            for second in &layout.nodes[a + 1..] {
                let apart =
                    (first.0 - second.0).abs() >= NODE_WIDTH || (first.1 - second.1).abs() >= NODE_HEIGHT;
                assert!(apart, "{first:?} {second:?}");
            }
            assert!(first.0 >= 0.0 && first.0 + NODE_WIDTH <= layout.width, "{first:?}");
            assert!(first.1 >= 0.0 && first.1 + NODE_HEIGHT <= layout.height, "{first:?}");
        }
        assert_eq!(layout.edges.len(), edges.len());
    }

    #[test]
    fn crossings_that_can_be_avoided_are_avoided() {
        // Given crosswise: 0 -> 3 and 1 -> 2.
        let layout = place(4, &[(0, 3), (1, 2)]);
        let above = layout.nodes[0].1 < layout.nodes[1].1;
        assert_eq!(above, layout.nodes[3].1 < layout.nodes[2].1);
    }

    #[test]
    fn a_circle_and_no_nodes_at_all_end() {
        assert_eq!(place(2, &[(0, 1), (1, 0)]).nodes.len(), 2);
        assert_eq!(place(0, &[]).nodes.len(), 0);
    }
}
