//! TPC-H: its 22 queries as stream tables over a small generated database, right after every refresh.
//!
//! `PGTRICKLE_TPCH_ORDERS` sets the size by the number of orders; the default takes seconds.

mod generator;

use super::{Schema, conformance, corpus::blocks};
use crate::harness::{Server, for_each_major};
use generator::Generator;

const REFRESHES: i64 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn the_queries_of_tpc_h_are_right_after_every_refresh() {
    let orders: i64 =
        std::env::var("PGTRICKLE_TPCH_ORDERS").map_or(500, |text| text.trim().parse().expect("a number"));
    let mut generator = Generator::new(22, orders);
    let load = format!("{}{}", include_str!("schema.sql"), generator.load(orders));
    let refreshes: Vec<&'static str> = (0..REFRESHES)
        .map(|number| {
            let count = (orders / 40).max(5);
            // Beyond the refresh functions: what all other queries read changes too.
            let sql = format!(
                "begin; {} commit; begin; {} commit;
                 begin; update supplier set s_acctbal = s_acctbal + 1, s_address = reverse(s_address);
                 update customer set c_acctbal = c_acctbal + 100; update partsupp set ps_availqty = ps_availqty + 10;
                 update part set p_brand = 'Brand#23', p_container = 'MED BOX' where p_partkey % 7 = {number};
                 update lineitem set l_extendedprice = l_extendedprice + 1,
                     l_receiptdate = case when l_orderkey % 5 = {number} then l_commitdate + 3 else l_receiptdate end; commit",
                generator.insert_orders(count),
                generator.delete_orders(count)
            );
            &*sql.leak()
        })
        .collect();
    let schema =
        Schema { script: refreshes.leak(), bursts: 1, transactions: 20, ..Schema::new("TPC-H", load.leak()) };
    let cases = &blocks(include_str!("queries.sql"));
    assert_eq!(cases.len(), 22);
    for_each_major(async |server: &Server| conformance(server, &schema, cases).await).await;
}
