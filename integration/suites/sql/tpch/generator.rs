//! The rows of TPC-H in small: the same rows for the same seed and size.
//!
//! The distributions are those of the specification (chapter 4.2) where the queries look at them, over fewer kinds of
//! parts, so that every query has an answer over a few hundred orders.

use std::fmt::Write as _;

use crate::suites::oracle::prng::Prng;

const REGIONS: [&str; 5] = ["AFRICA", "AMERICA", "ASIA", "EUROPE", "MIDDLE EAST"];
const NATIONS: [(&str, usize); 25] = [
    ("ALGERIA", 0),
    ("ARGENTINA", 1),
    ("BRAZIL", 1),
    ("CANADA", 1),
    ("EGYPT", 4),
    ("ETHIOPIA", 0),
    ("FRANCE", 3),
    ("GERMANY", 3),
    ("INDIA", 2),
    ("INDONESIA", 2),
    ("IRAN", 4),
    ("IRAQ", 4),
    ("JAPAN", 2),
    ("JORDAN", 4),
    ("KENYA", 0),
    ("MOROCCO", 0),
    ("MOZAMBIQUE", 0),
    ("PERU", 1),
    ("CHINA", 2),
    ("ROMANIA", 3),
    ("SAUDI ARABIA", 4),
    ("VIETNAM", 2),
    ("RUSSIA", 3),
    ("UNITED KINGDOM", 3),
    ("UNITED STATES", 1),
];
const SEGMENTS: [&str; 3] = ["AUTOMOBILE", "BUILDING", "MACHINERY"];
const PRIORITIES: [&str; 5] = ["1-URGENT", "2-HIGH", "3-MEDIUM", "4-NOT SPECIFIED", "5-LOW"];
const MODES: [&str; 7] = ["REG AIR", "AIR", "RAIL", "SHIP", "TRUCK", "MAIL", "AIR REG"];
const INSTRUCTIONS: [&str; 4] = ["DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN"];
const COLORS: [&str; 8] = ["forest", "green", "ivory", "lemon", "navy", "plum", "salmon", "tan"];
const WORDS: [&str; 10] = [
    "special",
    "requests",
    "packages",
    "deposits",
    "Customer",
    "Complaints",
    "carefully",
    "ideas",
    "sleep",
    "quickly",
];

/// Generates tables and refreshes; keys of new orders go on where the last ones ended.
#[derive(Debug)]
pub struct Generator {
    rng: Prng,
    customers: i64,
    suppliers: i64,
    parts: i64,
    next_order: i64,
    oldest_order: i64,
}

impl Generator {
    /// For about this many orders.
    pub fn new(seed: u64, orders: i64) -> Generator {
        Generator {
            rng: Prng::new(seed),
            customers: (orders / 10).max(30),
            suppliers: 50,
            parts: (orders / 10).max(60),
            next_order: 1,
            oldest_order: 1,
        }
    }

    /// INSERTs for all eight tables.
    pub fn load(&mut self, orders: i64) -> String {
        let mut sql = String::new();
        for (key, name) in REGIONS.iter().enumerate() {
            let _ = writeln!(sql, "insert into region values ({key}, '{name}', 'none');");
        }
        for (key, (name, region)) in NATIONS.iter().enumerate() {
            let _ = writeln!(sql, "insert into nation values ({key}, '{name}', {region}, 'none');");
        }
        for key in 1..=self.parts {
            self.part(&mut sql, key);
        }
        for key in 1..=self.suppliers {
            let (nation, comment) = (key % 25, self.comment(4));
            let phone = self.phone(nation);
            let balance = self.money(-99_999, 999_999);
            let _ = writeln!(
                sql,
                "insert into supplier values ({key}, 'Supplier#{key:09}', 'Street {key}', {nation}, '{phone}', {balance}, '{comment}');"
            );
        }
        for part in 1..=self.parts {
            for number in 0..4 {
                let (supplier, quantity) = (self.supplier(part, number), self.rng.between(1, 60));
                let cost = self.money(100, 100_000);
                let _ = writeln!(
                    sql,
                    "insert into partsupp values ({part}, {supplier}, {quantity}, {cost}, 'none');"
                );
            }
        }
        for key in 1..=self.customers {
            let nation = self.rng.between(0, 24);
            let (phone, balance) = (self.phone(nation), self.money(-99_999, 999_999));
            let segment = self.rng.pick(&SEGMENTS);
            let _ = writeln!(
                sql,
                "insert into customer values ({key}, 'Customer#{key:09}', 'Road {key}', {nation}, '{phone}', {balance}, '{segment}', 'none');"
            );
        }
        sql + &self.insert_orders(orders)
    }

    fn part(&mut self, sql: &mut String, key: i64) {
        let rng = &mut self.rng;
        let (first, second) = (*rng.pick(&COLORS), *rng.pick(&COLORS));
        let (maker, brand) = (rng.between(1, 3), rng.between(1, 3));
        let kind = [
            *rng.pick(&["ECONOMY", "STANDARD", "PROMO"]),
            *rng.pick(&["ANODIZED", "BURNISHED"]),
            *rng.pick(&["STEEL", "BRASS", "COPPER"]),
        ]
        .join(" ");
        let container = format!("{} {}", rng.pick(&["SM", "MED", "LG"]), rng.pick(&["CASE", "BOX", "PACK"]));
        let size = rng.between(1, 10);
        let price = price(key);
        let _ = writeln!(
            sql,
            "insert into part values ({key}, '{first} {second}', 'Manufacturer#{maker}', 'Brand#{maker}{brand}', '{kind}', {size}, '{container}', {price}, 'none');"
        );
    }

    /// RF1: new orders with their lines.
    pub fn insert_orders(&mut self, count: i64) -> String {
        let mut sql = String::new();
        for _ in 0..count {
            let key = self.next_order;
            self.next_order += 1;
            self.order(&mut sql, key);
        }
        sql
    }

    /// RF2: the oldest orders go, their lines first.
    pub fn delete_orders(&mut self, count: i64) -> String {
        let (from, to) = (self.oldest_order, self.oldest_order + count);
        self.oldest_order = to;
        format!(
            "delete from lineitem where l_orderkey >= {from} and l_orderkey < {to};
             delete from orders where o_orderkey >= {from} and o_orderkey < {to};"
        )
    }

    fn order(&mut self, sql: &mut String, key: i64) {
        // A third of the customers has no orders.
        let mut customer = self.rng.between(1, self.customers);
        customer -= i64::from(customer % 3 == 0);
        let date = self.rng.between(0, 2405);
        let lines = self.rng.between(1, 7);
        let (mut total, mut open, mut items) = (0, 0, String::new());
        for line in 1..=lines {
            let part = self.rng.between(1, self.parts);
            let number = self.rng.between(0, 3);
            let supplier = self.supplier(part, number);
            let rng = &mut self.rng;
            let quantity = rng.between(1, 50);
            let amount = quantity * cents(part);
            let (discount, tax) = (rng.between(0, 10), rng.between(0, 8));
            let ship = date + rng.between(1, 121);
            let (commit, receipt) = (date + rng.between(30, 90), ship + rng.between(1, 30));
            // 1995-06-17 is the current date of the specification.
            let shipped = ship <= 1263;
            open += i64::from(!shipped);
            let returned = if receipt <= 1263 { *rng.pick(&["R", "A"]) } else { "N" };
            let status = if shipped { "F" } else { "O" };
            let (instruction, mode) = (*rng.pick(&INSTRUCTIONS), *rng.pick(&MODES));
            total += amount;
            let day = |d: i64| format!("date '1992-01-01' + {d}");
            let _ = writeln!(
                items,
                "insert into lineitem values ({key}, {part}, {supplier}, {line}, {quantity}, {}, 0.{discount:02}, 0.{tax:02}, '{returned}', '{status}', {}, {}, {}, '{instruction}', '{mode}', 'none');",
                decimal(amount),
                day(ship),
                day(commit),
                day(receipt)
            );
        }
        let status = match open {
            0 => "F",
            n if n == lines => "O",
            _ => "P",
        };
        let (priority, comment) = (*self.rng.pick(&PRIORITIES), self.comment(5));
        let _ = writeln!(
            sql,
            "insert into orders values ({key}, {customer}, '{status}', {}, date '1992-01-01' + {date}, '{priority}', 'Clerk#{:09}', 0, '{comment}');",
            decimal(total),
            key % 7
        );
        *sql += &items;
    }

    /// The supplier of a part; four different ones for the numbers 0 to 3.
    fn supplier(&self, part: i64, number: i64) -> i64 {
        let s = self.suppliers;
        (part + number * (s / 4 + (part - 1) / s)) % s + 1
    }

    fn comment(&mut self, words: usize) -> String {
        (0..words).map(|_| *self.rng.pick(&WORDS)).collect::<Vec<_>>().join(" ")
    }

    fn phone(&mut self, nation: i64) -> String {
        format!("{}-{}-{}", nation + 10, self.rng.between(100, 999), self.rng.between(1000, 9999))
    }

    fn money(&mut self, low: i64, high: i64) -> String {
        decimal(self.rng.between(low, high))
    }
}

/// A part's price in hundredths.
fn cents(part: i64) -> i64 {
    90_000 + (part / 10) % 20_001 + 100 * (part % 1000)
}

fn price(part: i64) -> String {
    decimal(cents(part))
}

fn decimal(hundredths: i64) -> String {
    let sign = if hundredths < 0 { "-" } else { "" };
    format!("{sign}{}.{:02}", hundredths.abs() / 100, hundredths.abs() % 100)
}
