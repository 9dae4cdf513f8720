//! What a migration does to a table while its rows change, and takes back: a column or the table gets another name, a column
//! comes and goes, a partition or child leaves and returns. Stream tables go on as if nothing had happened, or hold what is
//! left: every commit in between is compared.

use super::prng::Prng;
use super::schema::{Form, Role};
use super::stage::Stage;
use super::world::World;

struct Change {
    table: usize,
    there: String,
    back: String,
    renamed: Option<Renamed>,
}

/// The name that the planner uses meanwhile.
enum Renamed {
    Table(String),
    Column(usize, String),
}

/// What can be done to the tables of this stage.
fn changes(stage: &Stage) -> Vec<Change> {
    // A whole row shows the names of its columns.
    let mut texts = stage.streams.iter().map(|s| &s.query.text).chain(&stage.views);
    let whole = texts.any(|text| text.contains("to_jsonb"));
    let mut changes = Vec::new();
    for (table, t) in stage.tables.iter().enumerate() {
        let name = &t.name;
        let alter = format!("alter table {name}");
        let mut add =
            |there: String, back: String, renamed| changes.push(Change { table, there, back, renamed });
        match t.form {
            // Rows that others refer to may not leave.
            Form::Partitioned if stage.tables.iter().any(|other| other.parent == Some(table)) => {}
            Form::Partitioned => {
                let back =
                    format!("{alter} attach partition {name}_b for values with (modulus 3, remainder 1)");
                add(format!("{alter} detach partition {name}_b"), back, None);
            }
            Form::Inherited => {
                let kid = format!("alter table {name}_kid");
                add(format!("{kid} no inherit {name}"), format!("{kid} inherit {name}"), None);
            }
            Form::Plain => {
                let other = format!("{name}_renamed");
                let back = format!("alter table {other} rename to {name}");
                add(format!("{alter} rename to {other}"), back, Some(Renamed::Table(other)));
            }
        }
        if whole {
            continue;
        }
        add(format!("{alter} add column more int default 5"), format!("{alter} drop column more"), None);
        for (number, column) in t.columns.iter().enumerate().filter(|(_, c)| c.role == Role::Value) {
            let (old, new) = (&column.name, format!("{}_renamed", column.name));
            let back = format!("{alter} rename column {new} to {old}");
            let there = format!("{alter} rename column {old} to {new}");
            add(there, back, Some(Renamed::Column(number, new)));
        }
    }
    changes
}

/// One change and its contrary, with transactions in between.
pub async fn reshape(stage: &Stage, world: &mut World, rng: &mut Prng, transactions: usize) {
    let mut changes = changes(stage);
    if changes.is_empty() {
        return;
    }
    let change = changes.swap_remove(rng.below(changes.len()));
    println!("  {}", change.there);
    world.finish().await;
    world.transaction(&[&change.there]).await;
    match change.renamed {
        Some(Renamed::Table(name)) => world.planner.tables[change.table].name = name,
        Some(Renamed::Column(number, name)) => {
            world.planner.tables[change.table].columns[number].name = name;
        }
        None => {}
    }
    world.run(transactions).await;
    world.finish().await;
    world.transaction(&[&change.back]).await;
    world.planner.tables[change.table] = stage.tables[change.table].clone();
}
