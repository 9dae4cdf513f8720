//! The five stream tables, from a filter to a distinct left join.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::say;
use super::stage::Stage;
use crate::error::{Error, Result};
use crate::postgres::sessions::{Purpose, error};

/// Names in schema `shop` and defining queries, in the order of creation.
pub(super) const STREAM_TABLES: [(&str, &str); 5] = [
    ("open_orders", "select id, customer_id, status, placed_at from shop.orders where status in ('new', 'paid')"),
    (
        "customer_revenue",
        "select c.id as customer_id, c.name, c.country, count(*) as lines, sum(l.quantity * l.unit_price) as revenue
           from shop.customers c
           join shop.orders o on o.customer_id = c.id
           join shop.order_lines l on l.order_id = o.id
          where o.status <> 'cancelled'
          group by c.id, c.name, c.country",
    ),
    (
        "product_prices",
        "select p.id as product_id, p.name, p.category, count(*) as lines, min(l.unit_price) as lowest,
                max(l.unit_price) as highest, avg(l.unit_price) as average
           from shop.products p
           join shop.order_lines l on l.product_id = p.id
          group by p.id, p.name, p.category",
    ),
    (
        "top_customers",
        "select customer_id, name, country, revenue from shop.customer_revenue where revenue >= 100000",
    ),
    (
        "customer_states",
        "select distinct c.id as customer_id, c.name, o.status
           from shop.customers c
           left join shop.orders o on o.customer_id = c.id",
    ),
];

/// Longest time until a new stream table is maintained.
const ACTIVE: Duration = Duration::from_secs(180);

/// Creates all as the application, and waits until each is maintained incrementally.
pub(super) async fn create(stage: &mut Stage) -> Result<()> {
    let client = stage.app().connect(Purpose::Tool).await?;
    for (name, query) in STREAM_TABLES {
        let begin = Instant::now();
        let qualified = format!("shop.{name}");
        let call = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
        client.execute(call, &[&qualified, &query]).await.map_err(|e| error(e).during(&qualified))?;
        wait_active(stage, &client, name).await?;
        let counted =
            client.query_one(&format!("select count(*) from {qualified}"), &[]).await.map_err(error)?;
        let seconds = begin.elapsed().as_secs_f64();
        say(&format!("stream table {qualified}: {} rows after {seconds:.1} s", counted.get::<_, i64>(0)));
    }
    Ok(())
}

async fn wait_active(stage: &mut Stage, client: &Client, name: &str) -> Result<()> {
    let look = "select status, refresh_mode, coalesce(last_error_message, refresh_reason, '')
                  from pgtrickle.stream_tables_info where pgt_schema = 'shop' and pgt_name = $1";
    let begin = Instant::now();
    loop {
        stage.check_sidecar()?;
        let row = client.query_one(look, &[&name]).await.map_err(error)?;
        let (status, mode, note): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        match (status.as_str(), mode.as_str()) {
            (_, "FULL") => {
                return Err(Error::internal(format!("shop.{name} is not maintained incrementally: {note}")));
            }
            ("ACTIVE", _) => return Ok(()),
            ("ERROR" | "SUSPENDED", _) => {
                return Err(Error::internal(format!("shop.{name} is not maintained: {note}")));
            }
            _ if begin.elapsed() > ACTIVE => {
                let waited = ACTIVE.as_secs();
                return Err(Error::internal(format!("shop.{name} was still {status} after {waited} s")));
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
