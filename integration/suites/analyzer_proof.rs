//! The proof catches what is not equal, and works with few rights, odd search paths and extensions.

use std::collections::HashMap;

use pgtrickle::ErrorKind;
use pgtrickle::analyzer::deparse::{self, Scope};
use pgtrickle::analyzer::node::Node;
use pgtrickle::analyzer::{load, verify, volatility};
use pgtrickle::plan::{RemoteBatch, RemoteExpr, RemoteInput};
use tokio_postgres::Client;

use super::analyzer_support::{database, load_view, prepare};
use super::expressions::SCHEMA;
use crate::harness::for_each_major;

async fn view(client: &Client, name: &str, expr: &str) {
    let sql = format!("create view {name} as select {expr} as e from all_types");
    client.batch_execute(&sql).await.unwrap_or_else(|e| panic!("{expr}: {e:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_text_is_never_proven() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        view(&client, "v", "case when t < v10 and i4 + 1 > 5 then n82 end").await;
        let right = prepare(&mut client, "v").await.expect("is proven");
        let loaded = load_view(&mut client, "v").await.expect("loads");
        let expr = loaded.query.nodes("targetList").unwrap()[0].node("expr").unwrap();
        let positions = right.attributes.clone();
        let inputs = move |n: &Node| {
            let attnum = n.int("varattno").ok().filter(|_| n.tag == "VAR")?;
            positions.iter().position(|a| i64::from(*a) == attnum)
        };
        let check = async |client: &mut Client, change: &dyn Fn(&mut RemoteBatch)| {
            let mut batch = right.batch.clone();
            change(&mut batch);
            verify::verify(client, &loaded.facts, &batch, &[expr], &inputs).await
        };
        check(&mut client, &|_| {}).await.expect("unchanged it is proven");
        let replacements = [
            ("'1'", "'2'"),
            ("'5'::\"pg_catalog\".\"int4\"", "'5'::\"pg_catalog\".\"int8\""),
            ("OPERATOR(\"pg_catalog\".>)", "OPERATOR(\"pg_catalog\".>=)"),
            ("AND", "OR"),
            ("x.c4", "round(x.c4, 2)"),
            ("(x.c2)", "(x.c1)"),
            ("x.c3", "(x.c3)::int4::int8"),
            ("(x.c1 ", "(x.c1 collate \"C\" "),
            ("ELSE NULL::\"pg_catalog\".\"numeric\"", "ELSE '0'::numeric"),
            ("END)", "END, 1"),
            ("x.c1", "nobody.c1"),
        ];
        for (from, to) in replacements {
            assert!(right.batch.exprs[0].sql.contains(from), "{from} in {}", right.batch.exprs[0].sql);
            let error = check(&mut client, &|b| b.exprs[0].sql = b.exprs[0].sql.replacen(from, to, 1)).await;
            let error = error.expect_err(to);
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{to}: {error}");
        }
        let input =
            |i: usize, change: fn(&mut RemoteInput)| move |b: &mut RemoteBatch| change(&mut b.inputs[i]);
        type Change = fn(&mut RemoteInput);
        let changes: [(usize, Change); 4] = [
            (0, |c| c.collate = " collate \"C\"".to_owned()),
            (1, |c| c.type_name = "varchar(9)".to_owned()),
            (2, |c| c.type_name = "int8".to_owned()),
            (3, |c| c.type_name = "numeric(8, 1)".to_owned()),
        ];
        for (i, change) in changes {
            let error = check(&mut client, &input(i, change)).await.expect_err("another input");
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        }
        let left: i64 = client
            .query_one("select count(*) from pg_class where relname = 'pgtrickle_probe'", &[])
            .await
            .expect("count")
            .get(0);
        assert_eq!(left, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_needs_only_the_right_to_make_temporary_tables() {
    for_each_major(|server| async {
        let (database, client) = database(server, SCHEMA).await;
        view(&client, "v", "jb @> '{\"k\": 1}' and pi > i4").await;
        let mut sidecar = database.as_sidecar().await;
        sidecar.batch_execute("set search_path = deparse_suite").await.expect("set");
        let oid: u32 = client.query_one("select 'v'::regclass::oid", &[]).await.expect("oid").get(0);
        let tree = load::view_tree(&sidecar, oid).await.expect("a tree needs no right");
        let none = HashMap::new();
        load::load(&sidecar, &tree, &none).await.expect("facts need no right");
        let schema_rights = "grant usage on schema deparse_suite to pgtrickle";
        client.batch_execute(schema_rights).await.expect("grant");
        let prepared = prepare(&mut sidecar, "v").await.expect("is proven without SELECT");
        assert!(prepared.batch.exprs[0].builtin_only);
        client
            .batch_execute(&format!("revoke temporary on database {} from public", database.name))
            .await
            .expect("revoke");
        let error = prepare(&mut sidecar, "v").await.err().expect("no temporary view");
        assert_eq!(error.kind(), ErrorKind::Privilege, "{error}");
        assert!(error.hint().is_some_and(|h| h.contains("grant temporary")));
        client
            .batch_execute(&format!("grant temporary on database {} to public", database.name))
            .await
            .expect("grant");
        sidecar.batch_execute("set default_transaction_read_only = on").await.expect("set");
        let error = prepare(&mut sidecar, "v").await.err().expect("read-only");
        assert_eq!(error.kind(), ErrorKind::ServerSetup, "{error}");
    })
    .await;
}

const TRAPS: &str = "
    create schema trap;
    create function trap.upper(text) returns text language sql immutable as $$ select 'trapped' $$;
    create function trap.eq(text, text) returns bool language sql immutable as $$ select true $$;
    create operator trap.= (leftarg = text, rightarg = text, procedure = trap.eq);
    create function trap.oid_eq(oid, oid) returns bool language sql immutable as $$ select false $$;
    create operator trap.= (leftarg = oid, rightarg = oid, procedure = trap.oid_eq);
    create domain trap.int4 as text;
    create domain trap.text as pg_catalog.text check (false);";

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_search_path_changes_nothing() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        client.batch_execute(TRAPS).await.expect("traps");
        view(&client, "v", "upper(t) = v and i4 is distinct from i8 and t is distinct from v").await;
        client.batch_execute("set search_path = trap, deparse_suite, pg_catalog").await.expect("set");
        prepare(&mut client, "v").await.expect("is proven");
        // Analysed with the trap's operators, the same words mean something else: refused or kept, never swapped.
        view(&client, "deparse_suite.w", "upper(t) = v").await;
        let trapped = prepare(&mut client, "w").await.expect("is proven");
        assert!(trapped.batch.exprs[0].sql.contains("\"trap\".\"upper\""), "{}", trapped.batch.exprs[0].sql);
        assert!(!trapped.batch.exprs[0].builtin_only);
        view(&client, "deparse_suite.y", "t is distinct from v").await;
        let error = prepare(&mut client, "y").await.err().expect("no operator can be named");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cast_from_text_that_somebody_made_is_no_way_in() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        view(&client, "v", "(p).a + i4").await;
        prepare(&mut client, "v").await.expect("is proven");
        let cast = "create function text_pair(text) returns pair immutable language sql as $$ select (0, $1)::pair $$;
            create cast (text as pair) with function text_pair(text)";
        client.batch_execute(cast).await.expect("cast");
        // Spawned, because the sidecar analyses on its runtime's threads.
        let prepared = tokio::spawn(async move { prepare(&mut client, "v").await }).await.expect("no panic");
        let error = prepared.err().expect("the text would not come back");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_extensions_and_their_modifiers_are_proven() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        let row = "select count(*) from pg_available_extensions where name = any ($1)";
        for (extension, column, exprs) in [
            ("citext", "citext", &["x = 'ABC'", "x || 'y'", "lower(x::text)", "x in ('a', 'B')"][..]),
            ("hstore", "hstore", &["x -> 'a'", "x @> 'a=>1'", "(x || 'b=>2')::text", "x ? 'k'"]),
            ("vector", "vector(3)", &["x <-> '[1,2,3]'", "(x + x)::vector(3)", "array[1, 2, i4]::vector(3)"]),
        ] {
            let there: i64 = client.query_one(row, &[&vec![extension]]).await.expect("list").get(0);
            if there == 0 {
                continue;
            }
            let sql = format!("create extension {extension}; alter table all_types add x {column}");
            client.batch_execute(&sql).await.expect("extension");
            for expr in exprs {
                view(&client, "v", expr).await;
                let prepared = prepare(&mut client, "v").await.unwrap_or_else(|e| panic!("{expr}: {e:?}"));
                assert!(!prepared.batch.exprs[0].builtin_only);
                client.batch_execute("drop view v").await.expect("drop");
            }
            client.batch_execute("alter table all_types drop x").await.expect("drop");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_can_be_an_input() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        view(&client, "v", "upper(max(v10)) || round(avg(n82), 2) || count(*)").await;
        let loaded = load_view(&mut client, "v").await.expect("loads");
        let expr = loaded.query.nodes("targetList").unwrap()[0].node("expr").unwrap();
        let mut aggregates: Vec<Node> = Vec::new();
        expr.walk(&mut |n| aggregates.extend((n.tag == "AGGREF").then(|| n.clone())));
        let found = aggregates.clone();
        let inputs = move |n: &Node| found.iter().position(|a| a == n);
        let sql =
            deparse::expression(expr, Scope { facts: &loaded.facts, inputs: &inputs }).expect("has a text");
        let result = load::type_info(&loaded.facts, 25, -1, 100).expect("text");
        let exprs = vec![RemoteExpr { sql, result, builtin_only: true }];
        let inputs_of_batch = aggregates
            .iter()
            .enumerate()
            .map(|(column, a)| RemoteInput {
                column,
                type_name: deparse::type_name(&loaded.facts, deparse::type_of(a).unwrap(), -1).unwrap(),
                collate: String::new(),
            })
            .collect();
        let mut batch = RemoteBatch { inputs: inputs_of_batch, exprs, owner_function: None };
        verify::verify(&mut client, &loaded.facts, &batch, &[expr], &inputs).await.expect("is proven");
        batch.inputs[0].type_name = "varchar(3)".to_owned();
        verify::verify(&mut client, &loaded.facts, &batch, &[expr], &inputs)
            .await
            .expect_err("would cut the value");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn constants_of_views_below_and_generated_columns_get_their_text() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        client
            .batch_execute(
                "create table generated (id int, g bool generated always as ('{3,4}'::int[] @> array[id]) stored);
                 create view below as select id, jb @> '{\"below\": [1, \"a''b\"]}' as q from all_types;
                 create view top as select below.q, g, '10.1.0.0/16'::inet as i from below join generated using (id)",
            )
            .await
            .expect("views");
        let loaded = load_view(&mut client, "top").await.expect("loads");
        let mut texts: Vec<&str> = loaded.facts.literals.values().map(String::as_str).collect();
        texts.sort();
        assert_eq!(texts, ["10.1.0.0/16", "{\"below\": [1, \"a'b\"]}", "{3,4}"]);
        let expr = loaded.generated.values().next().expect("the generated column");
        let inputs = |n: &Node| (n.tag == "VAR").then_some(0);
        let sql = deparse::expression(expr, Scope { facts: &loaded.facts, inputs: &inputs }).expect("has a text");
        let result = load::type_info(&loaded.facts, 16, -1, 0).expect("bool");
        let batch = RemoteBatch {
            inputs: vec![RemoteInput { column: 0, type_name: "int4".to_owned(), collate: String::new() }],
            exprs: vec![RemoteExpr { sql, result, builtin_only: true }],
            owner_function: None,
        };
        verify::verify(&mut client, &loaded.facts, &batch, &[expr], &inputs).await.expect("is proven");
        let sql = format!("select o, r::text from ({}) q", verify::evaluation_sql(&batch));
        let rows = client.query(&sql, &[&vec![Some("3"), None, Some("7")]]).await.expect("evaluates");
        let mut rows: Vec<(i64, &str)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
        rows.sort();
        assert_eq!(rows, [(1, "(t)"), (2, "(f)"), (3, "(f)")]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volatility_is_the_worst_of_all_parts() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        client
            .batch_execute(
                "create function now_too() returns timestamptz language sql stable as 'select now()';
                 create function any_time() returns int language sql volatile as 'select 1';
                 create domain today as date check (value <= current_date);
                 create domain checked as int check (value > any_time());",
            )
            .await
            .expect("functions");
        let cases = [
            ("i4 + 1", 'i', true),
            ("t || v10", 'i', true),
            ("t || i4", 's', true),
            ("ts::text", 's', true),
            ("n::text", 'i', true),
            ("t::timestamptz", 's', true),
            ("tstz::date", 's', true),
            ("m::text", 's', true),
            ("m = 'sad'", 'i', true),
            ("ia::text", 's', true),
            ("ta::int[]", 'i', true),
            ("current_date", 's', true),
            ("now_too()", 's', false),
            ("random()", 'v', false),
            ("any_time() + i4", 'v', false),
            ("d::today", 's', true),
            ("i4::checked", 'v', false),
            ("twice(i4)", 'i', false),
            ("i4 === 4", 'i', false),
            ("pi + 1", 'i', true),
            ("(p).a", 'i', true),
            ("query_to_xml(t, true, true, '') is null", 'v', false),
            ("table_to_xml(rel, true, true, '') is null", 's', false),
        ];
        for (i, (expr, wanted, builtin)) in cases.iter().enumerate() {
            view(&client, &format!("v{i}"), expr).await;
            let loaded = load_view(&mut client, &format!("v{i}")).await.expect("loads");
            let expr_node = loaded.query.nodes("targetList").unwrap()[0].node("expr").unwrap();
            assert_eq!(
                volatility::volatility(expr_node, &loaded.facts),
                *wanted,
                "{expr} on {}",
                server.major
            );
            let is_builtin = volatility::builtin_only(expr_node, &loaded.facts);
            assert_eq!(is_builtin, *builtin, "{expr} on {}", server.major);
        }
    })
    .await;
}
