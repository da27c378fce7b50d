//! `make demo`, without the part that installs: the main job as the README shows it.
//!
//! Trap: a demo that leaves a server or an agent behind, or that prints that all is well whatever happens.
//! Expectation: the table is found in the commit index, the rows that come back are the rows that were
//! lost, and neither a process nor a file is left.

use pgark_regress::{Major, Output, TestDirectory, account};
use std::path::Path;

/// Command lines of all processes that name `path`.
fn processes(path: &Path) -> Vec<String> {
    let path = path.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(path)).collect()
}

#[test]
fn the_demo() {
    let directory = TestDirectory::new("t011_demo");
    let place = directory.folder("tmp");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo.sh");
    let demo = directory.file("demo.sh", &std::fs::read_to_string(demo).unwrap());
    let mut script = account::command("/bin/bash");
    script.arg(&demo).arg(pgark_regress::pgark::binary());
    script.arg(Major::Pg15.host_path("/usr/lib/postgresql/15/lib/pgark_archive.so"));
    script.env("TMPDIR", &place).current_dir("/");
    let output = Output::from(script.output().unwrap()).expect(0);
    let shown = |what: &str| {
        output
            .stdout
            .lines()
            .filter(|line| line.starts_with(what))
            .count()
    };
    assert!(
        output.stdout.contains("== the 75000 rows are back"),
        "{output:?}"
    );
    assert_eq!(shown("$ pgark wal find --relation public.orders"), 1);
    let rows: Vec<&str> = output
        .stdout
        .lines()
        .filter(|line| line.starts_with("orders holds: 75000|"))
        .collect();
    assert_eq!(rows.len(), 2, "{output:?}");
    assert_eq!(rows[0], rows[1]);
    assert_eq!(processes(&place), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
}
