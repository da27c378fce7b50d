//! A cluster whose configuration lies outside the data directory, as Debian has it.
//!
//! Trap: the captured `postgresql.conf` names the original's data directory and files: a server started
//! with it as it is would be the original, or would obey files that are not restored. Debian's
//! `include_dir = 'conf.d'` is an error when the directory is missing, and it is empty at first.
//! Expectation: the files are below `pgark_config` to the byte, the originals are untouched, and the
//! start command that restore prints, run as it is, starts the restored cluster with its own files.

use pgark_regress::process::wait_until;
use pgark_regress::recovery::{PATIENCE, beside, install};
use pgark_regress::{Cluster, Major, StopMode, TestDirectory, tools};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Starts `restored` with the command that the restore printed, run as it is; sockets apart, which
/// `file`, the main configuration file, gets.
fn start_as_printed(restored: &Cluster<'_>, report: &Value, file: &Path) {
    let start = report["start_command"].as_str().unwrap();
    println!("{start}");
    let text = format!(
        "{}listen_addresses = ''\nunix_socket_directories = '{}'\n",
        std::fs::read_to_string(file).unwrap(),
        restored.sockets().display()
    );
    std::fs::write(file, text).unwrap();
    let major = restored.major();
    let bin = format!("/usr/lib/postgresql/{major}/bin");
    let shell = format!(
        "PATH={bin}:$PATH; export PATH; exec {start} -l {}",
        restored.log().path().display()
    );
    let started = major.run("/bin/sh").args(["-c", &shell]).output().unwrap();
    assert!(
        started.status.success(),
        "{start}: {}",
        restored.log().tail(20)
    );
    wait_until("recovery ends", PATIENCE, || {
        restored.try_psql("postgres", "SELECT pg_is_in_recovery()") == Ok("f".to_owned())
    });
}

/// The plan, with what was in use, of `name` below the configuration that restores of `cluster` brought.
fn in_pgark_config(cluster: &Cluster<'_>, path: &Path) -> PathBuf {
    let path = path.strip_prefix("/").unwrap();
    cluster.data().join("pgark_config").join(path)
}

/// Backups of clusters that were restored themselves: in place, started as ever with the configuration
/// outside, beside which the captured copy lies; and beside it, started with that copy.
pub(crate) fn restored_and_backed_up_again(directory: &TestDirectory, major: Major) {
    let mut cluster = Cluster::builder(directory, major, "a")
        .wal_segment_mib(1)
        .init();
    let pgark = install(directory, &cluster);
    let etc = directory.folder("etc");
    let conf = etc.join("postgresql.conf");
    let text = std::fs::read_to_string(cluster.data().join("postgresql.conf")).unwrap();
    std::fs::remove_file(cluster.data().join("postgresql.conf")).unwrap();
    let set = |work_mem: &str| {
        let text = format!(
            "{text}data_directory = '{}'\nwork_mem = '{work_mem}'\n",
            cluster.data().display()
        );
        directory.file("etc/postgresql.conf", &text);
    };
    set("7MB");
    cluster.option(&format!("-c config_file='{}'", conf.display()));
    cluster.start();
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 100) AS i");
    pgark.backup();
    cluster.archive_all();
    cluster.stop(StopMode::Fast);
    pgark.restore(&cluster, &["--delta", "--archive", "keep"]);
    let left = in_pgark_config(&cluster, &conf);
    assert!(left.exists());

    cluster.recover();
    set_again(directory, &conf, "9MB");
    pgark.backup();
    cluster.archive_all();
    cluster.stop(StopMode::Fast);
    let mut second = Cluster::over(directory, major, "b");
    let report = pgark.restore(&second, &["--archive", "keep"]);
    let file = in_pgark_config(&second, &conf);
    start_as_printed(&second, &report, &file);
    assert_eq!(second.psql("SHOW work_mem"), "9MB");
    assert_eq!(second.psql("SHOW config_file"), file.display().to_string());
    assert_eq!(second.psql("SELECT count(*) FROM t"), "100");

    // It runs with what is in its own data directory, which the next restore has to find there.
    let beside = beside(directory, "q", &second);
    set_again(directory, &file, "11MB");
    second.psql("SELECT pg_reload_conf()");
    beside.backup();
    second.psql("CREATE TABLE u AS SELECT 1 AS i");
    second.archive_all();
    second.stop(StopMode::Fast);
    let mut third = Cluster::over(directory, major, "c");
    let report = beside.restore(&third, &[]);
    let file = in_pgark_config(&third, &conf);
    start_as_printed(&third, &report, &file);
    assert_eq!(third.psql("SHOW work_mem"), "11MB");
    assert_eq!(third.psql("SHOW config_file"), file.display().to_string());
    let own = third.data().display().to_string();
    assert_eq!(third.psql("SHOW data_directory"), own);
    assert_eq!(third.psql("SELECT count(*) FROM u"), "1");
    tools::check_running(&third, "postgres");
    third.stop(StopMode::Fast);
}

fn set_again(directory: &TestDirectory, file: &Path, work_mem: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    let text = format!("{text}work_mem = '{work_mem}'\n");
    let within = file.strip_prefix(directory.path()).unwrap();
    directory.file(within.to_str().unwrap(), &text);
}

#[test]
fn restored_and_backed_up_again_15() {
    restored_and_backed_up_again(&TestDirectory::new("t105_again_15"), Major::Pg15);
}

#[test]
fn restored_and_backed_up_again_17() {
    restored_and_backed_up_again(&TestDirectory::new("t105_again_17"), Major::Pg17);
}

/// pgark knows the data directory by another name than the server: its files are not outside for that.
#[test]
fn another_name_of_the_data_directory_15() {
    another_name_of_the_data_directory(&TestDirectory::new("t105_name"), Major::Pg15);
}

pub(crate) fn another_name_of_the_data_directory(directory: &TestDirectory, major: Major) {
    let mut cluster = Cluster::builder(directory, major, "a")
        .wal_segment_mib(1)
        .init();
    let pgark = install(directory, &cluster);
    let other = directory.join("other");
    std::os::unix::fs::symlink(cluster.data(), &other).unwrap();
    let text = std::fs::read_to_string(pgark.config()).unwrap();
    let text = text.replace(
        &format!("data_directory = \"{}\"", cluster.data().display()),
        &format!("data_directory = \"{}\"", other.display()),
    );
    assert!(text.contains("/other\""));
    std::fs::write(pgark.config(), text).unwrap();
    cluster.start();
    pgark.backup();
    cluster.archive_all();
    cluster.stop(StopMode::Fast);
    let mut restored = Cluster::over(directory, major, "b");
    let report = pgark.restore(&restored, &[]);
    let start = report["start_command"].as_str().unwrap();
    assert!(!start.contains("pgark_config"), "{start}");
    assert!(!restored.data().join("pgark_config").exists());
    restored.recover();
    restored.stop(StopMode::Fast);
}

/// Configuration that the data directory has as links, the file and the directory it includes.
#[test]
fn linked_configuration_15() {
    linked_configuration(&TestDirectory::new("t105_linked"), Major::Pg15);
}

pub(crate) fn linked_configuration(directory: &TestDirectory, major: Major) {
    let mut cluster = Cluster::builder(directory, major, "a")
        .wal_segment_mib(1)
        .init();
    let pgark = install(directory, &cluster);
    directory.folder("etc");
    directory.folder("etc/conf.d");
    let own = cluster.data().join("postgresql.conf");
    let text = std::fs::read_to_string(&own).unwrap() + "include_dir = 'conf.d'\n";
    let outside = directory.file("etc/postgresql.conf", &text);
    directory.file("etc/conf.d/more.conf", "work_mem = '7MB'\n");
    std::fs::remove_file(&own).unwrap();
    std::os::unix::fs::symlink(&outside, &own).unwrap();
    std::os::unix::fs::symlink(directory.join("etc/conf.d"), cluster.data().join("conf.d"))
        .unwrap();
    cluster.start();
    assert_eq!(cluster.psql("SHOW work_mem"), "7MB");
    pgark.backup();
    cluster.archive_all();
    cluster.stop(StopMode::Fast);
    std::fs::rename(directory.join("etc"), directory.join("etc.gone")).unwrap();

    let mut restored = Cluster::over(directory, major, "b");
    let report = pgark.restore(&restored, &[]);
    let file = restored.data().join("postgresql.conf");
    assert!(!file.symlink_metadata().unwrap().is_symlink());
    start_as_printed(&restored, &report, &file);
    assert_eq!(restored.psql("SHOW work_mem"), "7MB");
    restored.stop(StopMode::Fast);
}

/// The same wherever the repository is.
pub(crate) fn outside_configuration(directory: &TestDirectory, major: Major) {
    let mut cluster = Cluster::builder(directory, major, "a")
        .wal_segment_mib(1)
        .init();
    let pgark = install(directory, &cluster);
    let etc = directory.folder("etc main");
    directory.folder("etc main/conf.d");
    let access = directory.folder("access");
    let move_to = |name: &str, folder: &Path| {
        let text = std::fs::read_to_string(cluster.data().join(name)).unwrap();
        std::fs::remove_file(cluster.data().join(name)).unwrap();
        text + &format!("# {} of the test\n", folder.join(name).display())
    };
    let hba = move_to("pg_hba.conf", &access);
    directory.file("access/pg_hba.conf", &hba);
    let ident = move_to("pg_ident.conf", &etc);
    directory.file("etc main/pg_ident.conf", &ident);
    let conf = move_to("postgresql.conf", &etc)
        + &format!(
            "data_directory = '{}'\nhba_file = '{}/pg_hba.conf'\nident_file = '{}/pg_ident.conf'\n\
             include_dir = 'conf.d'\ninclude 'more.conf'\n",
            cluster.data().display(),
            access.display(),
            etc.display()
        );
    directory.file("etc main/postgresql.conf", &conf);
    directory.file("etc main/more.conf", "work_mem = '7MB'\n");
    cluster.option(&format!(
        "-c config_file='{}/postgresql.conf'",
        etc.display()
    ));
    cluster.start();
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 100) AS i");
    cluster.psql("ALTER SYSTEM SET maintenance_work_mem = '11MB'");
    pgark.backup();
    cluster.psql("INSERT INTO t SELECT generate_series(101, 200)");
    cluster.archive_all();
    cluster.stop(StopMode::Fast);

    let mut restored = Cluster::over(directory, major, "b");
    let report = pgark.restore(&restored, &[]);
    let below = |path: &Path| {
        let path = path.strip_prefix("/").unwrap();
        restored.data().join("pgark_config").join(path)
    };
    let captured = |path: &Path| std::fs::read_to_string(below(path)).unwrap();
    assert_eq!(captured(&etc.join("postgresql.conf")), conf);
    assert_eq!(captured(&etc.join("more.conf")), "work_mem = '7MB'\n");
    assert_eq!(captured(&etc.join("pg_ident.conf")), ident);
    assert_eq!(captured(&access.join("pg_hba.conf")), hba);

    // Without the originals, so that nothing can lean on them; sockets apart, run as printed.
    for gone in [&etc, &access] {
        std::fs::rename(gone, gone.with_extension("gone")).unwrap();
    }
    std::fs::rename(cluster.data(), directory.join("original")).unwrap();
    let file = below(&etc.join("postgresql.conf"));
    start_as_printed(&restored, &report, &file);
    let settings = "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN
        ('config_file', 'data_directory', 'hba_file', 'ident_file')";
    let own = [
        file,
        restored.data().to_path_buf(),
        below(&access.join("pg_hba.conf")),
        below(&etc.join("pg_ident.conf")),
    ];
    let own: Vec<String> = own.iter().map(|path| path.display().to_string()).collect();
    assert_eq!(restored.psql(settings), own.join(" "));
    assert_eq!(restored.psql("SHOW work_mem"), "7MB");
    assert_eq!(restored.psql("SHOW maintenance_work_mem"), "11MB");
    assert_eq!(restored.psql("SELECT count(*) FROM t"), "200");
    tools::check_running(&restored, "postgres");
    restored.stop(StopMode::Fast);
}

#[test]
fn outside_configuration_15() {
    outside_configuration(&TestDirectory::new("t105_debian_15"), Major::Pg15);
}

#[test]
fn outside_configuration_17() {
    outside_configuration(&TestDirectory::new("t105_debian_17"), Major::Pg17);
}
