//! `pgbench`: what the extension costs those who do not ask it for anything. One cluster, in turns with pgark
//! preloaded, its worker looking each second at a schedule that holds, and without a trace of it; new tables
//! for each run, the same number of transactions. Nothing is archived, and nothing waits for a disk: what
//! differs is the server's own work.

use super::measure::{Watch, measure};
use super::record::Run;
use super::tool::MAJOR;
use super::{Settings, complete};
use crate::{Cluster, StopMode, TestDirectory};
use serde_json::json;
use std::process::Command;

pub(super) const OPERATION: &str = "pgbench";
/// `pgbench -s`: 100,000 accounts each.
const SCALE: u32 = 10;
const CLIENTS: u32 = 2;

const SETTINGS: &str = "autovacuum = off\nmax_wal_size = 4GB\ncheckpoint_timeout = 1h\n\
                        pgark.worker_interval = 1\n";

struct Bench<'a> {
    settings: &'a Settings,
    directory: &'a TestDirectory,
    cluster: Cluster<'a>,
}

/// All runs.
pub(super) fn runs(settings: &Settings) -> Vec<Run> {
    let directory = TestDirectory::new("bench_pgbench");
    let mut cluster = Cluster::builder(&directory, MAJOR, "pgbench").start();
    cluster.log_mut().allow("");
    cluster.configure(SETTINGS);
    let mut bench = Bench {
        settings,
        directory: &directory,
        cluster,
    };
    let mut runs = Vec::new();
    for run in 1..=settings.runs {
        // Each of them is first as often as the other.
        let first = run % 2 == 1;
        for with in [first, !first] {
            let run = bench.run(run, with);
            super::record::keep(&run);
            runs.push(run);
        }
    }
    bench.cluster.stop(StopMode::Immediate);
    runs
}

impl Bench<'_> {
    fn run(&mut self, run: u32, with: bool) -> Run {
        self.prepare(with);
        let transactions = self.settings.transactions;
        let mut command = self.pgbench();
        command
            .args(["--no-vacuum", "--protocol=prepared"])
            .args([format!("--client={CLIENTS}"), format!("--jobs={CLIENTS}")])
            .args([format!("--transactions={transactions}")])
            .args([format!("--random-seed={}", self.settings.seed)])
            .arg("postgres");
        let watch = Watch::default();
        let (argv, cost) = measure(watch, OPERATION, self.directory.path(), || {
            (complete(&mut command), watch)
        });
        let done = self.cluster.psql("SELECT count(*) FROM pgbench_history");
        assert_eq!(done, (transactions * CLIENTS).to_string());
        let per_second = f64::from(transactions * CLIENTS) / cost.seconds;
        let (tool, variant) = if with {
            ("pgark", "default")
        } else {
            ("postgres", "alone")
        };
        eprintln!("bench: pgbench {tool} {variant}, run {run}: {per_second:.0} transactions/s");
        Run {
            operation: OPERATION,
            tool,
            variant: variant.to_owned(),
            run,
            seconds: cost.seconds,
            cpu_seconds: cost.cpu_seconds,
            max_rss_bytes: cost.max_rss_bytes,
            stored_bytes: 0,
            stored_bytes_told: None,
            segments: 0,
            argv,
            config: format!(
                "{SETTINGS}shared_preload_libraries = '{}'\n",
                self.cluster.psql("SHOW shared_preload_libraries")
            ),
            version: self.cluster.psql("SHOW server_version"),
            seed: self.settings.seed,
            digest: blake3::hash(done.as_bytes()).to_hex().to_string(),
            info: json!({"transactions": transactions * CLIENTS, "transactions_per_second": per_second}),
        }
    }

    /// The same tables as ever, in a server with or without the extension.
    fn prepare(&mut self, with: bool) {
        let library = if with { "pgark" } else { "" };
        self.cluster.psql("DROP EXTENSION IF EXISTS pgark");
        self.cluster
            .configure(&format!("shared_preload_libraries = '{library}'\n"));
        self.cluster.restart();
        if with {
            self.cluster.psql("CREATE EXTENSION pgark");
            self.cluster
                .psql("SELECT pgark.schedule('yearly', '0 0 1 1 *', 'backup'), pgark.policy_stored(1, '{}')");
            let worker =
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pgark schedules'";
            let limit = std::time::Duration::from_secs(60);
            self.cluster.wait_for(worker, "1", limit);
        }
        let mut tables = self.pgbench();
        tables
            .args(["--initialize", "--quiet"])
            .args([format!("--scale={SCALE}")])
            .arg("postgres");
        complete(&mut tables);
        self.cluster.psql("CHECKPOINT");
    }

    fn pgbench(&self) -> Command {
        let mut command = MAJOR.command("pgbench");
        command
            .args(["-U", "postgres", "-h"])
            .arg(self.cluster.sockets());
        command
    }
}
