//! What the loader finds: trees, placeholders, views below views, keys, types and collations, on every major.

use std::collections::HashMap;

use pgtrickle::analyzer::load::{self, Loaded};

use tokio_postgres::Client;

use super::analyzer_support::database;
use crate::harness::for_each_major;

const SCHEMA: &str = "
    create schema load_suite;
    set search_path = load_suite;
    create type mood as enum ('sad', 'ok', 'happy');
    create domain small as int check (value < 1000);
    create domain smaller as small check (value > 0);
    create type pair as (a int, b json);
    create type good_pair as (a int, b text);
    create collation ci (provider = libc, locale = 'C');
    create table t (id int primary key, dropped int, name text collate ci, m mood, s smaller, p pair, g good_pair,
        j json[], k int[], n int not null, twice int generated always as (n * 2) stored);
    alter table t drop column dropped;
    create unique index t_n on t (n, name);
    create unique index t_partial on t (n) where n > 5;
    create unique index t_expression on t ((n + 1));
    create unique index t_other_collation on t (name collate \"POSIX\");
    create unique index t_other_class on t (name text_pattern_ops);
    alter table t add constraint t_late unique (s) deferrable;
    create table parent (a int primary key);
    create table child () inherits (parent);
    create table root (a int) partition by list (a);
    create view below with (security_barrier) as select id, name, m, n from t where upper(name) <> 'X';
    create view middle with (security_barrier = off) as select * from below;
    create view top as select m.id, m.m, array_agg(m.n order by m.n) filter (where m.n operator(pg_catalog.>) 3) a
        from middle m join parent on parent.a = m.id join root on root.a = m.id group by 1, 2;
    create view types as select s, p, g, j, k, twice from t;
";

async fn loaded(client: &Client, view: &str) -> Loaded {
    let oid: u32 =
        client.query_one(&format!("select '{view}'::regclass::oid"), &[]).await.expect("oid").get(0);
    let tree = load::view_tree(client, oid).await.expect("tree");
    load::load(client, &tree, &HashMap::new()).await.expect("loads")
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_followed_and_placeholders_are_no_sources() {
    for_each_major(|server| async {
        let (_database, client) = database(server, SCHEMA).await;
        let top = loaded(&client, "top").await;
        assert_eq!(load::placeholders(&top.query), if server.major < 16 { 2 } else { 0 }, "{}", server.major);
        let mut names: Vec<_> = top.facts.relations.values().map(|r| (r.name.as_str(), r.kind)).collect();
        names.sort();
        let wanted = [
            ("below", 'v'),
            ("child", 'r'),
            ("good_pair", 'c'),
            ("middle", 'v'),
            ("pair", 'c'),
            ("parent", 'r'),
            ("root", 'p'),
            ("t", 'r'),
        ];
        assert_eq!(names, wanted, "{}", server.major);
        assert_eq!(top.views.len(), 2);
        assert_eq!(top.facts.major, server.major);
        let by_name = |n: &str| top.facts.relations.values().find(|r| r.name == n).expect("relation");
        assert!(by_name("below").security_barrier && !by_name("middle").security_barrier);
        assert!(by_name("parent").has_children && by_name("root").has_children && !by_name("t").has_children);
        assert!(
            top.facts.functions.values().any(|f| f.name == "array_agg" && f.kind == 'a' && f.is_builtin())
        );
        assert!(top.facts.functions.values().any(|f| f.source == "upper" && f.volatility == 'i'));
        assert!(top.facts.operators.values().any(|o| o.name == ">" && o.kind == 'b'));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_only_those_that_hold_under_the_columns_own_equality() {
    for_each_major(|server| async {
        let (_database, client) = database(server, SCHEMA).await;
        let types = loaded(&client, "types").await;
        let t = types.facts.relations.values().find(|r| r.name == "t").expect("t");
        let keys: Vec<_> = t
            .unique_keys
            .iter()
            .map(|k| (k.attributes.clone(), k.primary, k.not_null, k.is_replica_identity))
            .collect();
        assert_eq!(
            keys,
            [(vec![1], true, true, true), (vec![10, 3], false, false, false)],
            "{}",
            server.major
        );
        assert_eq!(t.columns.iter().map(|c| c.attnum).collect::<Vec<_>>(), [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!((t.columns[9].generated, types.generated.len()), ('s', 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_know_their_base_labels_checks_and_equality() {
    for_each_major(|server| async {
        let (_database, client) = database(server, SCHEMA).await;
        let facts = loaded(&client, "types").await.facts;
        let by_name = |n: &str| facts.types.values().find(|t| t.name == n).expect("type");
        assert_eq!((by_name("smaller").base, by_name("smaller").checks.len()), (23, 1));
        assert_eq!(by_name("small").checks.len(), 1);
        assert_eq!(
            by_name("mood").labels.iter().map(|l| l.1.as_str()).collect::<Vec<_>>(),
            ["sad", "ok", "happy"]
        );
        for (name, equality) in [
            ("pair", false),
            ("good_pair", true),
            ("_json", false),
            ("_int4", true),
            ("mood", true),
            ("smaller", true),
        ] {
            assert_eq!(by_name(name).has_equality, equality, "{name} on {}", server.major);
        }
        let ci = facts.collations.values().find(|c| c.name == "ci").expect("collation");
        assert!(ci.is_c && ci.deterministic);
        let info = load::type_info(&facts, by_name("smaller").oid, -1, 0).expect("type");
        assert_eq!(info.class, pgtrickle::row::TypeClass::Int4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_overlaps_is_no_unique_key() {
    for_each_major(|server| async {
        let (_database, client) = database(server, SCHEMA).await;
        let sql = "select count(*) from pg_available_extensions where name = 'btree_gist'";
        let there: i64 = client.query_one(sql, &[]).await.expect("list").get(0);
        if server.major < 18 || there == 0 {
            return;
        }
        let sql = "create extension btree_gist;
            create table stays (room int, at int4range, primary key (room, at without overlaps));
            create table late (a int); alter table late add not null a not valid;
            create view v as select stays.room, late.a from stays, late";
        client.batch_execute(sql).await.expect("schema");
        let facts = loaded(&client, "v").await.facts;
        let by_name = |n: &str| facts.relations.values().find(|r| r.name == n).expect("relation");
        assert!(by_name("stays").unique_keys.is_empty());
        assert!(!by_name("late").columns[0].not_null && by_name("stays").columns[0].not_null);
    })
    .await;
}
