//! `docs/sql-reference.md` against the catalog: every function that users may call, with its signature and its comment,
//! and every view. `PGTRICKLE_DOCS=write` rewrites the page.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::harness::database::TestDatabase;
use crate::harness::servers::for_each_major;

/// Trigger functions are nobody's to call.
const FUNCTIONS: &str = "select proname::text, pg_get_function_arguments(oid), pg_get_function_result(oid),
        obj_description(oid, 'pg_proc') from pg_proc
    where pronamespace = 'pgtrickle'::regnamespace and proname !~ '^_' and prorettype <> 'trigger'::regtype order by 1, 2";

const VIEWS: &str = "select c.relname::text, string_agg(a.attname, ', ' order by a.attnum), obj_description(c.oid, 'pg_class')
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
    where c.relnamespace = 'pgtrickle'::regnamespace and c.relkind = 'v' group by c.oid, c.relname order by 1";

/// `a text DEFAULT NULL::text` as people write it.
fn plain(arguments: &str) -> String {
    let mut text = arguments.replace("DEFAULT", "default").replace("timestamp with time zone", "timestamptz");
    for cast in ["::text[]", "::text", "::interval", "::pg_lsn"] {
        text = text.replace(cast, "");
    }
    text.replace("NULL", "null")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_has_every_function_and_view_as_the_catalog_has_it() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        database.install();
        let dba = database.as_dba().await;
        let mut functions: BTreeMap<String, String> = BTreeMap::new();
        for row in dba.query(FUNCTIONS, &[]).await.expect("the functions") {
            let (name, arguments, result): (String, String, String) = (row.get(0), row.get(1), row.get(2));
            let comment: Option<String> = row.get(3);
            let comment = comment.unwrap_or_else(|| panic!("{name} has no comment in schema/020_comments.sql"));
            let arguments = plain(&arguments).replace(", ", ",\n    ");
            let result = plain(&result).replace("TABLE(", "table (").replace(", ", ",\n    ");
            let block = functions.entry(name.clone()).or_default();
            write!(block, "```text\n{name}({arguments})\n  → {result}\n```\n\n{comment}\n\n").expect("text");
        }
        let mut views = String::new();
        for row in dba.query(VIEWS, &[]).await.expect("the views") {
            let (name, columns, comment): (String, String, Option<String>) = (row.get(0), row.get(1), row.get(2));
            let comment = comment.unwrap_or_else(|| panic!("{name} has no comment in schema/020_comments.sql"));
            write!(views, "### {name}\n{comment}\n\nColumns: {columns}\n\n").expect("text");
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sql-reference.md");
        let page = std::fs::read_to_string(&path).expect("the page");
        let mut wanted = String::new();
        let mut inside = false;
        for line in page.lines() {
            if line == "## Views" {
                wanted += "## Views\n";
                wanted += &views;
                break;
            }
            if let Some(name) = line.strip_prefix("### ") {
                let block = functions.remove(name).unwrap_or_else(|| panic!("there is no function {name}"));
                write!(wanted, "### {name}\n{block}").expect("text");
            } else if line.starts_with("## ") || line.starts_with("# ") || !inside {
                wanted += line;
                wanted.push('\n');
            }
            inside = if line.starts_with("### ") { true } else { inside && !line.starts_with("## ") };
        }
        assert!(functions.is_empty(), "docs/sql-reference.md has no heading for {:?}", functions.keys());
        let wanted = format!("{}\n", wanted.trim_end());
        if std::env::var("PGTRICKLE_DOCS").is_ok_and(|v| v == "write") {
            std::fs::write(&path, &wanted).expect("the page can be written");
        } else if page != wanted {
            let line = page.lines().zip(wanted.lines()).position(|(a, b)| a != b).unwrap_or(0);
            panic!(
                "docs/sql-reference.md differs from the catalog at line {}: {:?}; PGTRICKLE_DOCS=write makes it again",
                line + 1,
                wanted.lines().nth(line)
            );
        }
    })
    .await;
}
