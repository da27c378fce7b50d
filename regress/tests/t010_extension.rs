//! The extension: it installs, answers, and its SQL declares exactly the symbols that its shared
//! library exports.

use pgark_regress::{Cluster, Major, TestDirectory};
use std::collections::BTreeSet;
use std::process::Command;

const SQL: &str = include_str!("../../sql/pgark--0.1.0.sql");

fn installs(major: Major) {
    let directory = TestDirectory::new(&format!("t010_extension_{major}"));
    let mut cluster = Cluster::builder(&directory, major, "a").start();
    cluster.psql("CREATE EXTENSION pgark");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(cluster.psql("SELECT pgark.version()"), version);
    let installed = "SELECT extversion, extrelocatable FROM pg_extension WHERE extname = 'pgark'";
    assert_eq!(cluster.psql(installed), format!("{version}|f"));
    // Who has none of its roles can do nothing, and nobody but a superuser may install.
    cluster.psql("CREATE ROLE nobody_special");
    let ask = "SET ROLE nobody_special; SELECT pgark.version()";
    let refused = cluster.try_psql("postgres", ask).unwrap_err();
    assert!(refused.contains("permission denied for schema pgark"));
    cluster
        .log_mut()
        .allow("permission denied for schema pgark");
    let uncommented = "SELECT p.oid::regprocedure FROM pg_proc p
        JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
        JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pgark'
        WHERE obj_description(p.oid, 'pg_proc') IS NULL";
    assert_eq!(cluster.psql(uncommented), "", "functions without a comment");
    cluster.psql("DROP EXTENSION pgark");
    assert_eq!(cluster.psql("SELECT to_regnamespace('pgark') IS NULL"), "t");
    // A schema that someone made before is not adopted, since its owner could plant objects in it.
    cluster.psql("CREATE SCHEMA pgark AUTHORIZATION nobody_special");
    let planted = cluster.try_psql("postgres", "CREATE EXTENSION pgark");
    assert!(
        planted
            .unwrap_err()
            .contains("schema \"pgark\" already exists")
    );
    cluster.log_mut().allow("schema \"pgark\" already exists");
    // The right to create, by way of a trusted extension, is not enough.
    cluster.psql("DROP SCHEMA pgark");
    let refused = cluster.try_psql(
        "postgres",
        "GRANT CREATE ON DATABASE postgres TO nobody_special;
         SET ROLE nobody_special; CREATE EXTENSION pgark",
    );
    assert!(
        refused
            .unwrap_err()
            .contains("permission denied to create extension")
    );
    cluster
        .log_mut()
        .allow("permission denied to create extension");
}

#[test]
fn installs_15() {
    installs(Major::Pg15);
}

#[test]
fn installs_17() {
    installs(Major::Pg17);
}

fn declared() -> BTreeSet<String> {
    SQL.split("'MODULE_PATHNAME', '")
        .skip(1)
        .map(|rest| rest.split('\'').next().unwrap().to_owned())
        .collect()
}

fn exported(major: Major) -> BTreeSet<String> {
    let library = format!("/usr/lib/postgresql/{major}/lib/pgark.so");
    let library = major.host_path(&library);
    let output = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(&library)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "nm {}: {output:?}",
        library.display()
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .filter_map(|line| line.split(' ').nth(2)?.strip_prefix("pg_finfo_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn sql_declares_what_the_library_exports() {
    assert!(!declared().is_empty());
    for major in Major::ALL {
        assert_eq!(declared(), exported(major), "Postgres {major}");
    }
}

/// The library of a backend brings no threads, no runtime and no TLS into it.
#[test]
fn library_links_no_runtime() {
    let library = Major::Pg15.host_path("/usr/lib/postgresql/15/lib/pgark.so");
    let output = Command::new("nm").arg("-C").arg(&library).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("pgark_types::"), "the symbols are there");
    for word in ["tokio::", "rustls::", "aws_lc", "hyper::", "SSL_"] {
        let found = text.lines().find(|line| line.contains(word));
        assert_eq!(found, None, "{word}");
    }
}
