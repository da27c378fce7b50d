//! A cluster whose configuration lies outside the data directory, as Debian has it.
//!
//! Trap: the captured `postgresql.conf` names the original's data directory and files: a server started
//! with it as it is would be the original, or would obey files that are not restored. Debian's
//! `include_dir = 'conf.d'` is an error when the directory is missing, and it is empty at first.
//! Expectation: the files are below `pgark_config` to the byte, the originals are untouched, and the
//! start command that restore prints, run as it is, starts the restored cluster with its own files.

use pgark_regress::process::wait_until;
use pgark_regress::recovery::{PATIENCE, install};
use pgark_regress::{Cluster, Major, StopMode, TestDirectory, tools};
use std::path::Path;

fn outside_configuration(major: Major) {
    let directory = TestDirectory::new(&format!("t105_debian_{major}"));
    let mut cluster = Cluster::builder(&directory, major, "a")
        .wal_segment_mib(1)
        .init();
    let pgark = install(&directory, &cluster);
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

    let mut restored = Cluster::over(&directory, major, "b");
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
    let start = report["start_command"].as_str().unwrap();
    println!("{start}");
    let file = below(&etc.join("postgresql.conf"));
    let text = format!(
        "{conf}listen_addresses = ''\nunix_socket_directories = '{}'\n",
        restored.sockets().display()
    );
    std::fs::write(&file, text).unwrap();
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
    outside_configuration(Major::Pg15);
}

#[test]
fn outside_configuration_17() {
    outside_configuration(Major::Pg17);
}
