//! Memory of the sidecar and WAL that its slot keeps, sampled while something runs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::World;

/// One look.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Seconds since the start.
    pub at: f64,
    /// Resident memory in MB.
    pub resident: f64,
    /// WAL since the position that the slot has confirmed, in MB.
    pub wal: f64,
    /// Seconds by which the stream tables are behind.
    pub lag: f64,
}

pub struct Curve {
    started: Instant,
    pub samples: Vec<Sample>,
}

impl Curve {
    pub fn start() -> Curve {
        Curve { started: Instant::now(), samples: Vec::new() }
    }

    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// `lag`: as measured by the caller.
    pub async fn sample(&mut self, world: &World, lag: f64) {
        let sql =
            "select coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)), 0)::float8
            from pg_replication_slots where database = current_database()";
        let wal = world.dba.query_one(sql, &[]).await.unwrap().get::<_, f64>(0) / 1_048_576.0;
        self.samples.push(Sample { at: self.seconds(), resident: world.memory().0, wal, lag });
    }

    /// Samples until `done`, with a pause between the looks.
    pub async fn until(&mut self, world: &World, pause: Duration, done: impl AsyncFn() -> bool) {
        while !done().await {
            self.sample(world, 0.0).await;
            tokio::time::sleep(pause).await;
        }
        self.sample(world, 0.0).await;
    }

    /// Samples while `work` runs.
    pub async fn during<T>(&mut self, world: &World, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            self.sample(world, 0.0).await;
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }

    /// The largest values of each of `parts` equal stretches of time.
    pub fn stretches(&self, parts: usize) -> Value {
        let end = self.samples.last().map_or(0.0, |s| s.at) + 0.001;
        let most = |samples: &[&Sample], of: fn(&Sample) -> f64| {
            (samples.iter().map(|s| of(s)).fold(0.0, f64::max) * 10.0).round() / 10.0
        };
        let stretch = |n: usize| {
            let (from, to) = (end * n as f64 / parts as f64, end * (n + 1) as f64 / parts as f64);
            let samples: Vec<&Sample> = self.samples.iter().filter(|s| s.at >= from && s.at < to).collect();
            json!({"until_s": to.round(), "memory_mb": most(&samples, |s| s.resident), "wal_mb": most(&samples, |s| s.wal),
                "lag_s": most(&samples, |s| s.lag)})
        };
        (0..parts).map(stretch).collect()
    }

    /// Growth of the memory over the later half, in MB per hour (least squares).
    pub fn growth(&self) -> f64 {
        let half = self.samples.last().map_or(0.0, |s| s.at) / 2.0;
        let later: Vec<&Sample> = self.samples.iter().filter(|s| s.at >= half).collect();
        let mean = |of: fn(&Sample) -> f64| later.iter().map(|s| of(s)).sum::<f64>() / later.len() as f64;
        let (at, resident) = (mean(|s| s.at), mean(|s| s.resident));
        let both: f64 = later.iter().map(|s| (s.at - at) * (s.resident - resident)).sum();
        both / later.iter().map(|s| (s.at - at).powi(2)).sum::<f64>() * 3600.0
    }
}
