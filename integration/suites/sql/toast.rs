//! Large values that an update leaves unchanged are not in the WAL: they stay what they are, under every replica identity,
//! also when the key or another large value changes.

use super::{Case, Expect, Schema, conformance};
use crate::harness::for_each_major;

const SQL: &str = "
    create function large(seed int, size int) returns text immutable language sql
        as $$ select string_agg(md5(seed::text || i), '') from generate_series(1, size / 32) i $$;
    create table by_key (id int primary key, n int, body text, doc jsonb, raw bytea, words text[]);
    create table by_index (id int not null, code text not null, n int, body text, doc jsonb, raw bytea, words text[]);
    create unique index by_index_code on by_index (code);
    alter table by_index replica identity using index by_index_code;
    create table by_row (id int, n int, body text, doc jsonb, raw bytea, words text[]);
    alter table by_row replica identity full;
    create table by_nothing (id int primary key, n int, body text, doc jsonb, raw bytea, words text[]);
    alter table by_nothing replica identity nothing;
    create table by_none (id int, n int, body text, doc jsonb, raw bytea, words text[]);
    alter table by_key alter body set storage external, alter raw set storage external;
    insert into by_key select i, i % 4, large(i % 6, 9000), jsonb_build_object('k', large(i, 8000), 'i', i),
        decode(large(i, 6000), 'hex'), array[large(i, 3000), 'x', large(i % 3, 4000)] from generate_series(1, 16) i;
    insert into by_index select id, 'c' || id, n, body, doc, raw, words from by_key;
    insert into by_row select * from by_key;
    insert into by_nothing select * from by_key;
    insert into by_none select * from by_key;";

const TABLES: [&str; 5] = ["by_key", "by_index", "by_row", "by_nothing", "by_none"];

/// Statements that leave some large values as they are.
fn script() -> &'static [&'static str] {
    let steps = [
        "update TABLE set n = n + 1 where id % 2 = 0",
        "update TABLE set body = large(id + 100, 9000) where id % 3 = 0; update TABLE set n = null where id % 5 = 0",
        "begin; update TABLE set n = 7 where id = 4; update TABLE set doc = '{}' where id = 4; update TABLE set n = 8 where id = 4; commit",
        "update TABLE set id = id + 1000 where id % 4 = 1; update TABLE set words = null where id % 7 = 0",
        "begin; delete from TABLE where id = 6; insert into TABLE (id, n, body) values (6, 1, large(6, 9000)); update TABLE set n = 2 where id = 6; commit",
    ];
    let all = |step: &str| {
        let of = |table: &&str| {
            match *table {
                "by_index" => step
                    .replace("where id = 6; insert", "where id = 6 or code = 'c6'; insert")
                    .replace("(id, n, body) values (6", "(code, id, n, body) values ('c6', 6"),
                _ => step.to_owned(),
            }
            .replace("TABLE", table)
        };
        let text = TABLES.iter().map(of).collect::<Vec<_>>().join(";\n");
        &*text.leak()
    };
    steps.iter().map(|s| all(s)).collect::<Vec<&'static str>>().leak()
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_large_values_stay_under_every_replica_identity() {
    let mut cases = Vec::new();
    for table in TABLES {
        for (what, query) in [
            ("carried", "select id, n, body, doc, raw, words from TABLE"),
            ("without", "select id, n from TABLE"),
            ("filtered", "select id, n, raw from TABLE where body like '%a' or doc ? 'i'"),
            ("joined", "select a.id, b.body, a.words from TABLE a left join TABLE b on b.id = a.n"),
            (
                "counted",
                "select n, count(body) as c, max(length(body)) as m, count(distinct body) as d from TABLE group by n",
            ),
        ] {
            let name = format!("{table}_{what}");
            let query = query.replace("TABLE", table);
            cases.push(Case { name: name.leak(), query: query.leak(), expect: Expect::Incremental });
        }
    }
    let cases = &cases;
    let schema = Schema { script: script(), bursts: 2, transactions: 20, ..Schema::new("large values", SQL) };
    for_each_major(async |server| conformance(server, &schema, cases).await).await;
}
