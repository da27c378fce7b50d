//! `make bench`: full backup, restore, archive-push and archive-get of pgark and pgBackRest, on one
//! generated cluster, in one run, by the fairness rules of DESIGN 15.
//!
//! `pgbench` stands for itself: a server with the extension against one without. So do `files_first`,
//! `files_unchanged` and `files_restore`: a million small files, against restic.
//!
//! The order within a run: backups, each into a new repository; restores of the last of them; then
//! a load writes WAL, which is archived into new repositories; then WAL is fetched from the
//! repositories that hold the backups, which got all of it too. Tools take turns, and each round
//! another one begins.

mod dataset;
mod digest;
mod extension;
mod files;
mod measure;
mod record;
mod s3;
mod settings;
mod tool;
mod wal;

pub use settings::Settings;

use crate::{Cluster, StopMode, TestDirectory};
use digest::Relations;
use measure::{Watch, drop_caches, measure};
use record::{Record, Run};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tool::{MAJOR, PgBackRest, PgarkTool, Tool};
use wal::Archiving;

/// zstd levels of pgBackRest: the one that is pgark's default, and its own default.
const RIVAL_LEVELS: [u32; 2] = [1, 3];
const RECOVERY_LIMIT: Duration = Duration::from_secs(900);

/// Runs the bench, prints a table and writes the record.
pub fn run(settings: &Settings) {
    let started_at = chrono::Utc::now().to_rfc3339();
    let start = Instant::now();
    crate::pgark::measure_release();
    record::begin();
    let mut found = if settings.wants(extension::OPERATION) {
        extension::runs(settings)
    } else {
        Vec::new()
    };
    let mut data_bytes = 0;
    if files::OPERATIONS.iter().any(|one| settings.wants(one)) {
        found.extend(files::runs(settings));
    }
    let of_their_own =
        |one: &String| one == extension::OPERATION || files::OPERATIONS.contains(&one.as_str());
    if settings.only.is_empty() || !settings.only.iter().all(of_their_own) {
        let (runs, bytes) = on_the_dataset(settings);
        found.extend(runs);
        data_bytes = bytes;
    }
    let record = Record {
        format: 1,
        commit: std::env::var("PGARK_BENCH_COMMIT").unwrap_or_else(|_| "unknown".to_owned()),
        postgres: postgres_version(),
        host: host(),
        scale: settings.scale,
        data_bytes,
        complete: settings.is_complete(),
        method: measure::METHOD,
        caches_dropped: drop_caches(),
        digests: digest::MEANING,
        started_at,
        seconds: start.elapsed().as_secs_f64(),
        runs: found,
    };
    let evidence = Path::new(env!("CARGO_MANIFEST_DIR"));
    let default = if record.complete {
        evidence.join("evidence/bench.json")
    } else {
        evidence.join("results/bench.json")
    };
    let output = settings.output.clone().unwrap_or(default);
    record.write(&output);
    println!("{}", record.table());
    println!("written to {}", output.display());
}

/// What the tools do with one generated cluster; and how large that is.
fn on_the_dataset(settings: &Settings) -> (Vec<Run>, u64) {
    let cached = dataset::cached(settings);
    let directory = TestDirectory::new("bench");
    let mut cluster = Cluster::over(&directory, MAJOR, "source");
    dataset::copy(&cached, cluster.data());
    cluster.log_mut().allow("");
    cluster.start();
    let data_bytes = dataset::measured(&cluster, settings);
    let mut bench = Bench::new(settings, &directory, &cluster);
    bench.backups_and_restores();
    bench.s3_backups_and_restores();
    bench.wal();
    bench.s3_pushes();
    let runs = std::mem::take(&mut bench.runs);
    drop(bench);
    cluster.stop(StopMode::Immediate);
    (runs, data_bytes)
}

fn host() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name"));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let model = model
        .and_then(|line| line.split(": ").nth(1))
        .unwrap_or("?");
    format!("{cores} cores, {model}")
}

struct Bench<'a> {
    settings: &'a Settings,
    directory: &'a TestDirectory,
    cluster: &'a Cluster<'a>,
    archiving: Archiving<'a>,
    tools: Vec<Box<dyn Tool>>,
    runs: Vec<Run>,
}

/// What a run is recorded with besides its costs.
struct About {
    operation: &'static str,
    run: u32,
    argv: Vec<String>,
    stored_bytes: u64,
    segments: u32,
    digest: String,
}

impl<'a> Bench<'a> {
    fn new(settings: &'a Settings, directory: &'a TestDirectory, cluster: &'a Cluster<'a>) -> Self {
        let pgark = PgarkTool::new(directory, cluster);
        // For the archive module: ALTER SYSTEM knows it only once the library is loaded.
        let socket = pgark.socket();
        cluster.configure(&format!("pgark_archive.socket = '{}'\n", socket.display()));
        let mut tools: Vec<Box<dyn Tool>> = vec![Box::new(pgark)];
        for level in RIVAL_LEVELS {
            tools.push(Box::new(PgBackRest::new(directory, cluster, level)));
        }
        Self {
            settings,
            directory,
            cluster,
            archiving: Archiving::new(cluster),
            tools,
            runs: Vec::new(),
        }
    }

    /// Which tools run in round `run`, in turn: forwards, backwards, and each time from another on.
    fn order(&self, run: u32) -> Vec<usize> {
        let count = self.tools.len();
        let mut order: Vec<usize> = (0..count).map(|at| (at + run as usize) % count).collect();
        if run.is_multiple_of(2) {
            order.reverse();
        }
        order
    }

    fn record(&mut self, at: usize, cost: measure::Cost, about: About) {
        let run = self.run_of(self.tools[at].as_ref(), cost, about);
        record::keep(&run);
        self.runs.push(run);
    }

    fn record_of(&mut self, tool: &dyn Tool, cost: measure::Cost, about: About) {
        let run = self.run_of(tool, cost, about);
        record::keep(&run);
        self.runs.push(run);
    }

    fn run_of(&self, tool: &dyn Tool, cost: measure::Cost, about: About) -> Run {
        let info = tool.info();
        eprintln!(
            "bench: {} {} {}, run {}: {:.2} s, cpu {:.2} s, {} MiB",
            about.operation,
            tool.name(),
            tool.variant(),
            about.run,
            cost.seconds,
            cost.cpu_seconds,
            cost.max_rss_bytes >> 20
        );
        let told = tool.told_bytes(&info);
        Run {
            operation: about.operation,
            tool: tool.name(),
            variant: tool.variant(),
            run: about.run,
            seconds: cost.seconds,
            cpu_seconds: cost.cpu_seconds,
            max_rss_bytes: cost.max_rss_bytes,
            stored_bytes: about.stored_bytes,
            stored_bytes_told: told,
            segments: about.segments,
            argv: about.argv,
            config: tool.config(),
            version: tool.version(),
            seed: self.settings.seed,
            digest: about.digest,
            info,
        }
    }

    fn backups_and_restores(&mut self) {
        self.cluster.psql("CHECKPOINT");
        let source = Relations::of(self.cluster.data());
        for run in 1..=self.settings.runs {
            for at in self.order(run) {
                self.archiving.off();
                self.archiving.forget();
                self.backup(at, run, &source);
            }
            if !self.settings.wants("full_backup") {
                break;
            }
        }
        self.archiving.off();
        if self.settings.wants("restore") {
            for run in 1..=self.settings.runs {
                for at in self.order(run) {
                    self.restore(at, run, &source);
                }
            }
        }
    }

    fn backup(&mut self, at: usize, run: u32, source: &Relations) {
        let tool = &mut self.tools[at];
        tool.fresh();
        self.archiving.set(&tool.archive_command(), "");
        let archiver = Some(self.archiving.archiver());
        let watch = Watch {
            agent: tool.agent(),
            archiver,
            startup: None,
        };
        let mut command = tool.backup();
        let _ = drop_caches();
        let (argv, cost) = measure(watch, tool.name(), self.directory.path(), || {
            (complete(&mut command), watch)
        });
        let about = About {
            operation: "full_backup",
            run,
            argv,
            stored_bytes: tool.disk_bytes().0,
            segments: 0,
            digest: source.digest(),
        };
        if self.settings.wants("full_backup") {
            self.record(at, cost, about);
        }
    }

    fn restore(&mut self, at: usize, run: u32, source: &Relations) {
        let tool = &self.tools[at];
        let target = self.directory.join("restored");
        let mut command = tool.restore(&target, None);
        let watch = Watch::default();
        let _ = drop_caches();
        let (argv, cost) = measure(watch, tool.name(), self.directory.path(), || {
            (complete(&mut command), watch)
        });
        let restored = Relations::of(&target);
        source.assert_same(&restored, tool.name());
        std::fs::remove_dir_all(&target).unwrap();
        let about = About {
            operation: "restore",
            run,
            argv,
            stored_bytes: tool.disk_bytes().0,
            segments: 0,
            digest: restored.digest(),
        };
        self.record(at, cost, about);
    }

    fn wal(&mut self) {
        let wanted = [
            "archive_push",
            "archive_push_module",
            "archive_get",
            "archive_get_inline",
        ];
        if !wanted
            .iter()
            .any(|operation| self.settings.wants(operation))
            && !self.settings.wants("archive_get_recovery")
        {
            return;
        }
        eprintln!("bench: writing {} WAL segments", self.settings.segments);
        let segments = self.archiving.write_segments(self.settings.segments);
        let source = self.source_digest(&segments);
        self.tools.iter().for_each(|tool| tool.park());
        for run in 1..=self.settings.runs {
            for at in self.order(run) {
                if self.settings.wants("archive_push") {
                    self.push("archive_push", at, run, &segments, &source);
                }
                if at == 0 && self.settings.wants("archive_push_module") {
                    self.push("archive_push_module", at, run, &segments, &source);
                }
            }
        }
        self.archive_beside_backups(&segments);
        for inline in [false, true] {
            let operation = if inline {
                "archive_get_inline"
            } else {
                "archive_get"
            };
            if self.settings.wants(operation) {
                self.gets(operation, &segments, &source, inline);
            }
        }
        if self.settings.wants("archive_get_recovery") {
            self.recoveries(&segments);
        }
        if self.settings.long_segments > 0 && self.settings.wants("archive_push") {
            self.tools.iter().for_each(|tool| tool.park());
            let segments = self.archiving.write_segments(self.settings.long_segments);
            let source = self.source_digest(&segments);
            for at in self.order(1) {
                self.push("archive_push_long", at, 1, &segments, &source);
            }
        }
    }

    fn source_digest(&self, segments: &[String]) -> String {
        let folder = self.cluster.data().join("pg_wal");
        digest::files(segments.iter().map(|name| folder.join(name)))
    }

    /// The repositories with the backups get the WAL too, uncounted: `segments`, and what lies
    /// between the backups and them.
    fn archive_beside_backups(&mut self, segments: &[String]) {
        self.archiving.off();
        self.archiving.forget();
        let mut all = self.archiving.named("done");
        all.retain(|name| name.len() == 24 && Some(name) <= segments.last());
        for tool in &mut self.tools {
            tool.stop();
            tool.unpark();
            tool.start();
            self.archiving.make_ready(&all);
            self.archiving.set(&tool.archive_command(), "");
            self.archiving.wait_done(&all);
            self.archiving.off();
        }
    }

    fn push(
        &mut self,
        operation: &'static str,
        at: usize,
        run: u32,
        segments: &[String],
        source: &str,
    ) {
        let module = operation == "archive_push_module";
        self.archiving.off();
        self.archiving.forget();
        let tool = &mut self.tools[at];
        tool.fresh();
        let (command, library) = if module {
            (String::new(), "pgark_archive")
        } else {
            (tool.archive_command(), "")
        };
        self.archiving.use_library(library);
        let watch = Watch {
            agent: tool.agent(),
            archiver: Some(self.archiving.archiver()),
            startup: None,
        };
        let archiving = &mut self.archiving;
        let _ = drop_caches();
        let ((), cost) = measure(watch, tool.name(), self.directory.path(), || {
            archiving.make_ready(segments);
            archiving.set(&command, library);
            archiving.wait_done(segments);
            ((), watch)
        });
        let about = About {
            operation,
            run,
            argv: vec![if module { library.to_owned() } else { command }],
            stored_bytes: tool.disk_bytes().1,
            segments: u32::try_from(segments.len()).unwrap(),
            digest: source.to_owned(),
        };
        self.record(at, cost, about);
    }

    /// `restore_command` in a loop, in a data directory that is restored but not started.
    fn gets(&mut self, operation: &'static str, segments: &[String], source: &str, inline: bool) {
        let folders: Vec<PathBuf> = (0..self.tools.len())
            .map(|at| {
                let target = self.directory.join(&format!("get-{at}"));
                complete(&mut self.tools[at].restore(&target, None));
                target
            })
            .collect();
        for run in 1..=self.settings.runs {
            for at in self.order(run) {
                let data = &folders[at];
                let tool = &mut self.tools[at];
                tool.stop();
                if !inline {
                    tool.start();
                }
                let watch = Watch {
                    agent: tool.agent(),
                    ..Watch::default()
                };
                let fetch = |name: &str| {
                    complete(&mut tool.archive_get(data, name, "pg_wal/RECOVERYXLOG", inline))
                };
                let _ = drop_caches();
                let (argv, cost) = measure(watch, tool.name(), self.directory.path(), || {
                    let mut argv = Vec::new();
                    for name in segments {
                        argv = fetch(name);
                    }
                    (argv, watch)
                });
                let mut hasher = blake3::Hasher::new();
                if run == 1 {
                    for name in segments {
                        fetch(name);
                        digest::content(&mut hasher, &data.join("pg_wal/RECOVERYXLOG"));
                    }
                    assert_eq!(hasher.finalize().to_hex().as_str(), source, "wrong WAL");
                }
                let about = About {
                    operation,
                    run,
                    argv,
                    stored_bytes: tool.disk_bytes().1,
                    segments: u32::try_from(segments.len()).unwrap(),
                    digest: source.to_owned(),
                };
                self.record(at, cost, about);
            }
        }
        for folder in folders {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }

    /// Real recoveries, each of a new restore, up to where a number of segments has been replayed.
    fn recoveries(&mut self, segments: &[String]) {
        let count = (self.settings.recovery_segments as usize).min(segments.len() - 1);
        let last: pgark_types::SegmentName = segments[count].parse().unwrap();
        let until = last
            .start_lsn(pgark_types::SegmentSize::DEFAULT)
            .unwrap()
            .to_string();
        let mut expected = None;
        for run in 1..=self.settings.runs {
            for at in self.order(run) {
                let name = format!("r{run}-{at}");
                let mut recovered = Cluster::over(self.directory, MAJOR, &name);
                recovered.log_mut().allow("");
                let tool = &mut self.tools[at];
                complete(&mut tool.restore(recovered.data(), Some(&until)));
                tool.stop();
                tool.start();
                let watch = Watch {
                    agent: tool.agent(),
                    ..Watch::default()
                };
                let _ = drop_caches();
                let ((), cost) = measure(watch, tool.name(), self.directory.path(), || {
                    recovered.start_only();
                    let startup = wait_for_pause(&recovered);
                    ((), Watch { startup, ..watch })
                });
                let digest = sql_digest(&recovered);
                let expected = expected.get_or_insert_with(|| digest.clone());
                assert_eq!(
                    &digest,
                    expected,
                    "{} recovered something else",
                    tool.name()
                );
                recovered.stop(StopMode::Immediate);
                std::fs::remove_dir_all(recovered.data()).unwrap();
                let about = About {
                    operation: "archive_get_recovery",
                    run,
                    argv: vec!["restore_command".to_owned()],
                    stored_bytes: tool.disk_bytes().1,
                    segments: u32::try_from(count).unwrap(),
                    digest,
                };
                self.record(at, cost, about);
            }
        }
    }
}

/// Waits until recovery has reached its target; the startup process's id.
fn wait_for_pause(cluster: &Cluster<'_>) -> Option<i32> {
    let start = Instant::now();
    loop {
        let text = cluster.log().text();
        if let Some(line) = text
            .lines()
            .find(|line| line.contains("pausing at the end of recovery"))
        {
            let pid = line
                .split('[')
                .nth(1)
                .and_then(|rest| rest.split(']').next());
            return pid.and_then(|pid| pid.parse().ok());
        }
        assert!(
            start.elapsed() < RECOVERY_LIMIT && !text.contains("FATAL:  "),
            "the recovery does not reach its target:\n{text}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn sql_digest(cluster: &Cluster<'_>) -> String {
    let text = cluster.psql(
        "SELECT count(*), sum(hashtext(metadata::text)) FROM documents
         UNION ALL SELECT count(*), sum(hashtext(payload::text)) FROM events WHERE id >= 10000000
         UNION ALL SELECT count(*), sum(hashtext(vector::text)) FROM embeddings WHERE id >= 10000000",
    );
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn postgres_version() -> String {
    let said = crate::cluster::run(MAJOR.command("postgres").arg("--version"));
    let said = said.trim();
    said.strip_prefix("postgres (PostgreSQL) ")
        .unwrap_or(said)
        .to_owned()
}

/// Runs a command to its end, which must be a good one, and returns what was run.
fn complete(command: &mut Command) -> Vec<String> {
    crate::cluster::run(command);
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect()
}
