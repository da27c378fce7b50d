//! The WAL that is archived: full segments of a real load, archived as often as the bench needs by
//! giving them back their `.ready` files.

use crate::session::Session;
use crate::{Cluster, process};
use std::path::PathBuf;
use std::time::Duration;

/// Time enough for the archiver to have seen its signal.
const RELOAD: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(3600);

/// The server's archiving, at our command.
pub(super) struct Archiving<'a> {
    cluster: &'a Cluster<'a>,
    session: Session,
    /// Rounds of the load so far.
    rounds: u64,
}

impl<'a> Archiving<'a> {
    pub(super) fn new(cluster: &'a Cluster<'a>) -> Self {
        Self {
            cluster,
            session: cluster.session("postgres"),
            rounds: 0,
        }
    }

    fn status(&self, segment: &str, state: &str) -> PathBuf {
        self.cluster
            .data()
            .join(format!("pg_wal/archive_status/{segment}.{state}"))
    }

    /// Names in `archive_status` with this state, in order.
    pub(super) fn named(&self, state: &str) -> Vec<String> {
        let folder = self.cluster.data().join("pg_wal/archive_status");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                Some(name.strip_suffix(state)?.strip_suffix('.')?.to_owned())
            })
            .collect();
        names.sort();
        names
    }

    /// The archiver's process id. After it has ended, to change its library, the postmaster may
    /// take a minute until it starts another.
    pub(super) fn archiver(&mut self) -> i32 {
        let mut pid = None;
        process::wait_until("the archiver runs", Duration::from_secs(120), || {
            pid = self.archiver_now();
            pid.is_some()
        });
        pid.unwrap()
    }

    fn archiver_now(&mut self) -> Option<i32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'archiver';";
        self.session.query(sql).unwrap().trim().parse().ok()
    }

    /// The server's `archive_library` is `library` from now on, and an archiver that loads it runs.
    pub(super) fn use_library(&mut self, library: &str) {
        let before = self.session.query("SHOW archive_library;").unwrap();
        let old = self.archiver();
        self.set("", library);
        if before.trim() != library {
            process::wait_until("the old archiver ends", Duration::from_secs(120), || {
                self.archiver_now() != Some(old)
            });
        }
        self.archiver();
    }

    /// Nothing is archived from now on.
    pub(super) fn off(&mut self) {
        self.use_library("");
        std::thread::sleep(RELOAD);
    }

    /// From now on the server archives by `command`, or by `library`.
    pub(super) fn set(&mut self, command: &str, library: &str) {
        let command = command.replace('\'', "''");
        let sql = format!(
            "ALTER SYSTEM SET archive_command = '{command}';
             ALTER SYSTEM SET archive_library = '{library}'; SELECT pg_reload_conf();"
        );
        self.session.query(&sql).unwrap();
    }

    /// Whatever waits for being archived does so no longer.
    pub(super) fn forget(&self) {
        for name in self.named("ready") {
            let _ = std::fs::rename(self.status(&name, "ready"), self.status(&name, "done"));
        }
    }

    /// Makes `segments` wait for being archived.
    pub(super) fn make_ready(&self, segments: &[String]) {
        for name in segments {
            std::fs::rename(self.status(name, "done"), self.status(name, "ready")).unwrap();
        }
    }

    /// Waits until all `segments` are archived.
    pub(super) fn wait_done(&self, segments: &[String]) {
        let start = std::time::Instant::now();
        for name in segments.iter().rev() {
            while !self.status(name, "done").exists() {
                assert!(start.elapsed() < LIMIT, "{name} is never archived");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Writes until `count` full segments wait for being archived, and returns their names.
    pub(super) fn write_segments(&mut self, count: u32) -> Vec<String> {
        self.off();
        self.session.query("SELECT pg_switch_wal();").unwrap();
        self.forget();
        let dimension = "SELECT array_agg((random() * 2 - 1)::float4) FROM generate_series(1, 384)";
        loop {
            let ready: Vec<String> = self.named("ready");
            let full: Vec<String> = ready.into_iter().filter(|name| name.len() == 24).collect();
            if full.len() >= count as usize {
                let first: Vec<String> = full.into_iter().take(count as usize).collect();
                self.forget();
                return first;
            }
            // Segments are written more than once in a run: keys go on.
            let round = self.rounds;
            self.rounds += 1;
            self.session
                .query(&format!(
                    "INSERT INTO events SELECT 10000000 + {round}::bigint * 20000 + n, now(), 'kind-' || n % 12,
                         jsonb_build_object('user', n, 'session', md5((n * {round})::text), 'amount', n % 977)
                     FROM generate_series(1, 20000) n;
                     UPDATE documents SET metadata = metadata || jsonb_build_object('round', {round})
                     WHERE id % 97 = {round} % 97;
                     INSERT INTO embeddings SELECT 10000000 + {round}::bigint * 5000 + n, n, v
                     FROM generate_series(1, 5000) n, ({dimension}) v(v);"
                ))
                .unwrap();
        }
    }
}
