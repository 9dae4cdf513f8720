//! A small seeded generator of random numbers (splitmix64): the same seed gives the same test on every machine.

/// The state; copies go their own way.
#[derive(Debug, Clone)]
pub struct Prng(u64);

impl Prng {
    pub fn new(seed: u64) -> Prng {
        Prng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `limit - 1`; 0 when there is no choice.
    pub fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.next() % limit as u64) as usize }
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as usize) as i64
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of a list that is not empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// A generator of its own, so that a change in one part does not change the others.
    pub fn fork(&mut self) -> Prng {
        Prng(self.next())
    }
}

/// The seed of this run: `PGTRICKLE_ORACLE_SEED`, by default the same for all (a failure can be seen again and is the
/// change's fault); `random` takes it from the clock.
pub fn seed() -> u64 {
    match std::env::var("PGTRICKLE_ORACLE_SEED").as_deref() {
        Ok("random") => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.expect("a clock after 1970").as_millis() as u64 % 1_000_000_007
        }
        Ok(text) => text.trim().parse().expect("PGTRICKLE_ORACLE_SEED is a number or `random`"),
        Err(_) => 20_260,
    }
}

/// Number of random rounds per major version: `PGTRICKLE_ORACLE_ROUNDS`, else 5.
pub fn rounds() -> u64 {
    std::env::var("PGTRICKLE_ORACLE_ROUNDS")
        .map_or(5, |text| text.trim().parse().expect("PGTRICKLE_ORACLE_ROUNDS is a number"))
}
