//! The extension: it installs, answers, and its SQL declares exactly the symbols that its shared
//! library exports. A symbol that a released script declares stays in the library for good.

use pgark_regress::{Cluster, Major, TestDirectory};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Declared by scripts of earlier versions alone: the functions are gone, and their symbols stay, since a
/// database that was not updated yet still calls them. Each raises an error that says how to update
/// (CONTRIBUTING.md, "The SQL contract").
const REMOVED: [&str; 0] = [];

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

/// The symbols that a script declares.
fn symbols(script: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(script).unwrap();
    text.split("'MODULE_PATHNAME', '")
        .skip(1)
        .map(|rest| rest.split('\'').next().unwrap().to_owned())
        .collect()
}

/// Every script that was or will be released, and what each declares.
fn declared() -> BTreeMap<PathBuf, BTreeSet<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql");
    let files = std::fs::read_dir(folder).unwrap();
    let files = files.map(|file| file.unwrap().path());
    files.map(|file| (file.clone(), symbols(&file))).collect()
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
    let scripts = declared();
    let whole = format!("pgark--{}.sql", env!("CARGO_PKG_VERSION"));
    let newest = scripts.iter().find(|(file, _)| file.ends_with(&whole));
    let mut wanted = newest.unwrap().1.clone();
    assert!(!wanted.is_empty());
    for removed in REMOVED {
        assert!(wanted.insert(removed.to_owned()), "{removed} is declared");
    }
    for major in Major::ALL {
        assert_eq!(wanted, exported(major), "Postgres {major}");
        // Old SQL with the new library: between an upgrade of the package and ALTER EXTENSION.
        for (script, symbols) in &scripts {
            let lost: Vec<_> = symbols.difference(&wanted).collect();
            assert!(lost.is_empty(), "{}: {lost:?}", script.display());
        }
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
