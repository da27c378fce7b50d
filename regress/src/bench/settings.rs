//! What a bench run is to do, from environment variables.

use std::path::PathBuf;

/// The settings of one bench run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `PGARK_BENCH_SCALE`: the size of the cluster as a share of 2 GB; 1 unless told otherwise.
    pub scale: f64,
    /// `PGARK_BENCH_RUNS`: counted runs of each operation and tool; 5.
    pub runs: u32,
    /// `PGARK_BENCH_SEGMENTS`: full WAL segments that are pushed and fetched in one run; 250.
    pub segments: u32,
    /// `PGARK_BENCH_RECOVERY_SEGMENTS`: WAL segments that a measured recovery replays; 100.
    pub recovery_segments: u32,
    /// `PGARK_BENCH_LONG_SEGMENTS`: segments of the one long run at the end; 1000, 0 leaves it out.
    pub long_segments: u32,
    /// `PGARK_BENCH_TRANSACTIONS`: of each of pgbench's two clients in one run; 50000.
    pub transactions: u32,
    /// `PGARK_BENCH_FILES`: small files that are backed up as a component; 1000000.
    pub files: u32,
    /// `PGARK_BENCH_ONLY`: a comma-separated list of operations; empty for all.
    pub only: Vec<String>,
    /// `PGARK_BENCH_SEED`: seeds the generated data; 20240229.
    pub seed: u64,
    /// `PGARK_BENCH_OUTPUT`: where the runs are written. Only a complete run is written to
    /// `regress/evidence/bench.json` by default.
    pub output: Option<PathBuf>,
    /// `PGARK_CACHE`: where the generated cluster is kept; `/var/cache/pgark`.
    pub cache: PathBuf,
}

impl Settings {
    /// Reads the environment.
    #[must_use]
    pub fn from_environment() -> Self {
        Self {
            scale: number("PGARK_BENCH_SCALE", 1.0),
            runs: number("PGARK_BENCH_RUNS", 5),
            segments: number("PGARK_BENCH_SEGMENTS", 250),
            recovery_segments: number("PGARK_BENCH_RECOVERY_SEGMENTS", 100),
            long_segments: number("PGARK_BENCH_LONG_SEGMENTS", 1000),
            transactions: number("PGARK_BENCH_TRANSACTIONS", 50_000),
            files: number("PGARK_BENCH_FILES", 1_000_000),
            only: variable("PGARK_BENCH_ONLY")
                .map(|list| list.split(',').map(str::to_owned).collect())
                .unwrap_or_default(),
            seed: number("PGARK_BENCH_SEED", 20_240_229),
            output: variable("PGARK_BENCH_OUTPUT").map(PathBuf::from),
            cache: PathBuf::from(
                variable("PGARK_CACHE").unwrap_or_else(|| "/var/cache/pgark".to_owned()),
            ),
        }
    }

    /// Whether `operation` is to be measured.
    #[must_use]
    pub fn wants(&self, operation: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == operation)
    }

    /// Whether the run shows everything that the fairness rules ask for.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.only.is_empty()
            && self.scale >= 1.0
            && self.runs >= 5
            && self.segments >= 250
            && self.long_segments >= 1000
            && self.transactions >= 50_000
            && self.files >= 1_000_000
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    match variable(name) {
        None => default,
        Some(text) => match text.parse() {
            Ok(value) => value,
            Err(_) => panic!("{name} is not a number: {text}"),
        },
    }
}
