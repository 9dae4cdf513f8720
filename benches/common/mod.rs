//! What the benchmark programs share: settings from the environment, CPU time of processes, the tables of orders.

/// A number from the environment; underscores separate digits.
pub fn number(name: &str, otherwise: i64) -> i64 {
    let text = std::env::var(name).unwrap_or_else(|_| otherwise.to_string());
    text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}"))
}

/// Parent and CPU seconds (user and system; with those of ended children on request) of a process.
pub fn cpu_of(pid: u32, children: bool) -> (u32, f64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or("").split_whitespace().collect();
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    let ticks = field(11) + field(12) + if children { field(13) + field(14) } else { 0.0 };
    (field(1) as u32, ticks / 100.0)
}

/// Customers in 25 regions and their orders, as W1, W2 and W3 read them.
pub fn shop(orders: i64, customers: i64) -> String {
    format!(
        "create table customers (id bigint primary key, name text not null, region text not null);
         create table orders (id bigint primary key, customer_id bigint not null, amount numeric(12,2) not null,
             status text not null, note text not null);
         insert into customers select i, 'customer ' || i, 'region ' || i % 25 from generate_series(1, {customers}) i;
         insert into orders select i, 1 + (i::bigint * 7919) % {customers}, (i % 9973) * 0.25,
             case when i % 4 = 0 then 'open' else 'done' end, 'note ' || i from generate_series(1, {orders}) i;"
    )
}
