//! Several hundred queries as people write them, over four schemas: all right, and nearly all incremental.
//!
//! `corpus/<schema>_<n>.sql` hold the queries, each after a line `-- name: ...`.

use super::{Case, Expect, Schema, conformance};
use crate::harness::{Server, for_each_major};

const SHOP: Schema = Schema {
    script: &[
        "update orders set status = 'shipped', shipped_at = placed_at + interval '3 days' where status = 'paid'",
        "update payments set method = 'bitcoin' where id % 11 = 0",
    ],
    ..Schema::new("shop", include_str!("corpus/shop_schema.sql"))
};
const SAAS: Schema = Schema {
    script: &["update usage_daily set value = value + 3000 where metric = 'api' and value > 60"],
    ..Schema::new("saas", include_str!("corpus/saas_schema.sql"))
};
const FINANCE: Schema = Schema {
    script: &[
        "update invoices set paid_on = issued + 9 where party_id in (3, 4, 5)",
        "update fx set rate = rate + 0.5; update staff set salary = salary + 100",
        "update invoices set party_id = (select p.id from parties p order by p.id offset invoices.id % 4 limit 1), amount = 100, issued = date '2024-02-01' + id % 20 where id % 5 = 0",
    ],
    ..Schema::new("finance", include_str!("corpus/finance_schema.sql"))
};
const FIELD: Schema = Schema {
    script: &[
        "update readings set at = at + interval '9 days' where device_id % 5 = 0",
        "update readings set value = value + 500 where metric = 'temp' and device_id % 4 = 0; delete from edges where src in (2, 7)",
        "insert into shifts select person_id, day, starts, ends, slot from shifts where person_id < 5;
         insert into shifts select person_id, day, starts + interval '1 hour', ends, slot from shifts where person_id between 5 and 9",
    ],
    ..Schema::new("field", include_str!("corpus/field_schema.sql"))
};

const OF_SHOP: &[&str] = &[include_str!("corpus/shop_1.sql"), include_str!("corpus/shop_2.sql")];
const OF_SAAS: &[&str] = &[include_str!("corpus/saas_1.sql"), include_str!("corpus/saas_2.sql")];
const OF_FINANCE: &[&str] = &[include_str!("corpus/finance_1.sql"), include_str!("corpus/finance_2.sql")];
const OF_FIELD: &[&str] = &[include_str!("corpus/field_1.sql"), include_str!("corpus/field_2.sql")];

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_a_shop_are_right() {
    play(&SHOP, OF_SHOP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_a_service_are_right() {
    play(&SAAS, OF_SAAS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_bookkeeping_are_right() {
    play(&FINANCE, OF_FINANCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_organisations_and_telemetry_are_right() {
    play(&FIELD, OF_FIELD).await;
}

/// The page says that all are right and incremental, so none may be pending.
#[test]
fn the_page_tells_how_many_queries_there_are() {
    let files = [OF_SHOP, OF_SAAS, OF_FINANCE, OF_FIELD].concat();
    let cases: Vec<Case> = files.into_iter().flat_map(blocks).collect();
    let told = format!("{} realistic queries", cases.len());
    assert!(include_str!("../../../docs/sql.md").contains(&told), "docs/sql.md does not speak of {told}");
    let pending = include_str!("pending.txt");
    let names = pending.lines().filter_map(|line| line.split_whitespace().next());
    let known: Vec<&str> = names.filter(|name| cases.iter().any(|case| case.name == *name)).collect();
    assert!(known.is_empty(), "these are not maintained: {known:?}");
}

async fn play(schema: &Schema, files: &[&'static str]) {
    let cases: Vec<Case> = files.iter().flat_map(|text| blocks(text)).collect();
    for_each_major(async |server: &Server| conformance(server, schema, &cases).await).await;
}

/// The queries of a file; all shall be maintained.
pub fn blocks(text: &'static str) -> Vec<Case> {
    let block = |block: &'static str| {
        let (name, query) = block.split_once('\n').expect("a name and a query");
        let query = query.trim().trim_end_matches(';');
        Case { name: name.trim(), query, expect: Expect::Incremental }
    };
    text.split("-- name: ").skip(1).map(block).collect()
}
