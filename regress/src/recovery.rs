//! The way of every recovery test: a cluster that archives, a restore beside it, a recovery that is
//! judged.

use crate::cluster::{Cluster, ClusterBuilder};
use crate::directory::TestDirectory;
use crate::pgark::Pgark;
use crate::tools;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// How long archiving or a recovery may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Doubt is cut short, so that a recovery that meets it fails instead of outlasting the test.
pub const SHORT_WAITS: &str = "[wal]\nget_retry_seconds = 2\nstandby_retry_seconds = 1\n\
                           inflight_wait_seconds = 1\ncovered_sample_seconds = 1\n";

/// Makes the cluster, its repository and its installation of pgark, and starts it archiving by
/// `archive_command`.
#[track_caller]
pub fn archived<'a>(
    directory: &'a TestDirectory,
    builder: ClusterBuilder<'a>,
) -> (Cluster<'a>, Pgark) {
    let mut cluster = builder.init();
    let pgark = install(directory, &cluster);
    cluster.start();
    (cluster, pgark)
}

/// As [`archived`], encrypted by the key file `local.key` in the test's directory.
#[track_caller]
pub fn archived_encrypted<'a>(
    directory: &'a TestDirectory,
    builder: ClusterBuilder<'a>,
) -> (Cluster<'a>, Pgark) {
    let mut cluster = builder.init();
    let pgark = install_encrypted(directory, &cluster);
    cluster.start();
    (cluster, pgark)
}

/// As [`archived`], without starting the cluster. Where the test's directory says so, or
/// `PGARK_TEST_ENCRYPTED` in the environment, it is encrypted: so every test of recovery runs on either.
#[track_caller]
pub fn install(directory: &TestDirectory, cluster: &Cluster<'_>) -> Pgark {
    if directory.is_encrypted() {
        return install_encrypted(directory, cluster);
    }
    let pgark = Pgark::new(directory, "p", Some(cluster));
    init(pgark, cluster, &["init", "--no-encryption"])
}

/// As [`install`], encrypted by the key file `local.key` in the test's directory.
#[track_caller]
pub fn install_encrypted(directory: &TestDirectory, cluster: &Cluster<'_>) -> Pgark {
    let pgark = with_key(directory, "p", cluster);
    let kit = directory.join("local.kit");
    let arguments = ["init", "--recovery-kit", kit.to_str().unwrap()];
    init(pgark, cluster, &arguments)
}

/// Another installation `name`, over the repository that [`install`] made, with the key where that has one.
pub fn beside(directory: &TestDirectory, name: &str, cluster: &Cluster<'_>) -> Pgark {
    match directory.is_encrypted() {
        true => with_key(directory, name, cluster),
        false => Pgark::new(directory, name, Some(cluster)),
    }
}

fn with_key(directory: &TestDirectory, name: &str, cluster: &Cluster<'_>) -> Pgark {
    let mut pgark = Pgark::new(directory, name, Some(cluster));
    pgark.configure(&format!(
        "[repository.local.encryption]\nmode = \"key-file\"\nkey_file = \"{}\"\n",
        directory.join("local.key").display()
    ));
    pgark
}

#[track_caller]
fn init(mut pgark: Pgark, cluster: &Cluster<'_>, arguments: &[&str]) -> Pgark {
    pgark.configure(SHORT_WAITS);
    pgark.run(arguments).expect(0);
    cluster.configure(&format!(
        "archive_mode = on\narchive_command = '{}'\n",
        pgark.shell("archive-push %p")
    ));
    pgark
}

impl Pgark {
    /// Takes a backup; what it says in JSON.
    #[track_caller]
    pub fn backup(&self) -> Value {
        self.run(&["--output", "json", "backup"]).expect(0).json()
    }

    /// Plans a restore that writes nothing; the plan in JSON.
    #[track_caller]
    pub fn plan(&self, target: &Path, arguments: &[&str]) -> Value {
        let mut all = vec!["--output", "json", "restore", "--dry-run", "--target-dir"];
        all.push(target.to_str().unwrap());
        all.extend(arguments);
        self.run(&all).expect(0).json()
    }

    /// Restores into the data directory of `cluster`, where `pg_verifybackup` must find nothing
    /// wrong; what the restore says in JSON.
    #[track_caller]
    pub fn restore(&self, cluster: &Cluster<'_>, arguments: &[&str]) -> Value {
        let mut all = vec!["--output", "json", "restore", "--target-dir"];
        all.push(cluster.data().to_str().unwrap());
        all.extend(arguments);
        let output = self.run(&all).expect(0);
        tools::verify_backup(cluster.major(), cluster.data());
        output.json()
    }

    /// Restores into a fresh cluster `name` and recovers it.
    #[track_caller]
    pub fn recovered<'a>(
        &self,
        directory: &'a TestDirectory,
        major: crate::Major,
        name: &str,
        arguments: &[&str],
    ) -> Cluster<'a> {
        let mut cluster = Cluster::over(directory, major, name);
        self.restore(&cluster, arguments);
        cluster.recover();
        cluster
    }
}

impl Cluster<'_> {
    /// Starts the cluster and waits for the end of its recovery.
    #[track_caller]
    pub fn recover(&mut self) {
        self.start();
        self.wait_for("SELECT pg_is_in_recovery()", "f", PATIENCE);
    }

    /// Ends the current segment and waits until it is archived; its name.
    #[track_caller]
    pub fn archive_all(&self) -> String {
        self.psql("SELECT pg_logical_emit_message(false, 'test', 'x')");
        let segment = self.psql("SELECT pg_walfile_name(pg_switch_wal())");
        self.wait_archived(&segment, PATIENCE);
        segment
    }
}
