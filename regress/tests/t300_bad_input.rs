//! Bad input, case by case, through the real command line.
//!
//! What: a wrong configuration, path, label, target, server, directory, name or option. Trap: an
//! error that comes after something was written, that says what failed but not what to do, or that
//! exits with a code which a script or Postgres takes for something else. Expectation: the exit
//! code of the docs, one ERROR line with its code, a HINT where there is something to do, and not a
//! byte written to the repository or beside it.

use pgark_regress::recovery::{PATIENCE, archived};
use pgark_regress::{Cluster, Major, Output, Pgark, TestDirectory, account, pgark};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// How an error must look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `ERROR:` with a code, and a HINT.
    Hint,
    /// The same without a HINT: the message says it all.
    Plain,
    /// What the parser of the command line prints.
    Usage,
    /// A log line: archive-get talks to the server's log.
    Log,
}

struct Case {
    what: &'static str,
    config: PathBuf,
    arguments: Vec<String>,
    code: i32,
    form: Form,
    /// What the message must hold.
    says: Vec<String>,
}

struct Bench<'a> {
    directory: &'a TestDirectory,
    cases: Vec<Case>,
}

impl Bench<'_> {
    fn case(
        &mut self,
        what: &'static str,
        config: &Path,
        line: &str,
        code: i32,
        form: Form,
    ) -> &mut Case {
        self.cases.push(Case {
            what,
            config: config.to_path_buf(),
            arguments: line.split_whitespace().map(str::to_owned).collect(),
            code,
            form,
            says: Vec::new(),
        });
        self.cases.last_mut().unwrap()
    }

    /// A configuration of its own, from its text.
    fn config(&self, name: &str, text: &str) -> PathBuf {
        self.directory.file(&format!("{name}.toml"), text)
    }
}

impl Case {
    fn says(&mut self, text: impl Into<String>) -> &mut Self {
        self.says.push(text.into());
        self
    }

    fn argument(&mut self, argument: impl Into<String>) -> &mut Self {
        self.arguments.push(argument.into());
        self
    }

    fn run(&self) -> Output {
        let mut command = account::command(pgark::binary());
        command.arg("--config").arg(&self.config);
        command.args(&self.arguments);
        command.current_dir("/").stdin(Stdio::null());
        command.output().unwrap().into()
    }

    fn judge(&self) {
        let output = self.run();
        let what = self.what;
        let text = &output.stderr;
        assert_eq!(output.code, self.code, "{what}: {text}");
        let (error, hint) = match self.form {
            Form::Hint => (
                text.contains("ERROR:  ") && text.contains(" (code "),
                text.contains("HINT:  "),
            ),
            Form::Plain => (text.contains("ERROR:  ") && text.contains(" (code "), true),
            Form::Usage => (text.starts_with("error: "), true),
            Form::Log => (text.contains("ERROR"), true),
        };
        assert!(error, "{what}: no error line: {text}");
        assert!(hint, "{what}: no hint: {text}");
        for part in &self.says {
            assert!(
                text.contains(part),
                "{what}: nothing about {part:?}: {text}"
            );
        }
        assert!(!text.contains("panicked"), "{what}: {text}");
    }
}

/// Every name below the places that must not change; of files the length and the time of change.
fn snapshot(directory: &TestDirectory) -> BTreeMap<PathBuf, Option<(u64, std::time::SystemTime)>> {
    fn walk(at: &Path, found: &mut BTreeMap<PathBuf, Option<(u64, std::time::SystemTime)>>) {
        for entry in std::fs::read_dir(at).unwrap().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let path = entry.path();
            if meta.is_dir() {
                walk(&path, found);
            }
            // A directory's own time changes with a temporary file that came and went.
            let state = meta
                .is_file()
                .then(|| (meta.len(), meta.modified().unwrap()));
            found.insert(path, state);
        }
    }
    let mut found = BTreeMap::new();
    for name in ["repository", "targets", "p"] {
        walk(&directory.join(name), &mut found);
    }
    found
}

fn other_configs(bench: &mut Bench<'_>) {
    let repository = format!(
        "[repository.local]\nkind = \"posix\"\npath = \"{}\"\n",
        bench.directory.join("repository").display()
    );
    for (what, name, text, says) in [
        (
            "unknown key",
            "c1",
            format!("{repository}[wal]\ncompresion_level = 1\n"),
            "compresion_level",
        ),
        (
            "unknown section",
            "c2",
            format!("{repository}[backups]\nparallel = 1\n"),
            "backups",
        ),
        (
            "wrong type",
            "c3",
            format!("{repository}[wal]\npush_parallel = \"two\"\n"),
            "push_parallel",
        ),
        (
            "bad level",
            "c4",
            format!("{repository}[backup]\ncompression_level = 99\n"),
            "backup.compression_level",
        ),
        (
            "bad cluster name",
            "c5",
            format!("{repository}[cluster]\nname = \"a/b\"\n"),
            "a/b",
        ),
        (
            "relative path",
            "c6",
            "[repository.local]\nkind = \"posix\"\npath = \"backups\"\n".into(),
            "repository.local.path",
        ),
        (
            "no path",
            "c7",
            "[repository.local]\nkind = \"posix\"\n".into(),
            "repository.local.path",
        ),
        (
            "unknown kind",
            "c8",
            "[repository.local]\nkind = \"tape\"\n".into(),
            "tape",
        ),
        (
            "no repository",
            "c9",
            String::new(),
            "no required repository",
        ),
        (
            "none required",
            "c10",
            format!("{repository}required = false\n"),
            "no required repository",
        ),
        (
            "not TOML",
            "c11",
            "[repository\n".into(),
            "invalid configuration",
        ),
    ] {
        let config = bench.config(name, &text);
        bench.case(what, &config, "info", 10, Form::Hint).says(says);
    }
    let missing = bench.directory.join("missing.toml");
    bench
        .case("no configuration", &missing, "info", 10, Form::Hint)
        .says("missing.toml");
    let nowhere = bench.config(
        "nowhere",
        "[repository.local]\nkind = \"posix\"\npath = \"/nowhere/pgark\"\n",
    );
    for verb in ["info", "verify", "restore --target-dir /tmp/pgark-nowhere"] {
        bench
            .case("repository missing", &nowhere, verb, 20, Form::Hint)
            .says("/nowhere/pgark");
    }
    let slip = bench.config(
        "slip",
        &format!("{repository}[cluster]\nconninfo = \"hots=/run\"\n"),
    );
    bench
        .case("bad conninfo", &slip, "config check", 10, Form::Hint)
        .says("invalid_conninfo");
    for (n, (section, says)) in [
        (
            "kind = \"redis\"\nurl = \"redis://x\"\nredactt = 1",
            "redactt",
        ),
        ("kind = \"files\"\npaths = [\"/x\"]\nbogus = 1", "bogus"),
        ("kind = \"rediss\"\nurl = \"redis://x\"", "rediss"),
        (
            "kind = \"redis\"\nurl = \"redis://x\"\npassword = \"plaintext\"",
            "secret_in_config",
        ),
        ("kind = \"redis\"\nurl = \"http://x\"", "redis_url"),
        (
            "kind = \"grafana\"\nurl = \"ftp://x\"\ntoken = \"env:T\"",
            "http",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let config = bench.config(
            &format!("component-{n}"),
            &format!("{repository}[component.it]\n{section}\n"),
        );
        bench
            .case("a wrong component", &config, "config check", 10, Form::Hint)
            .says(says);
    }
    bench
        .case("no [cluster]", &nowhere, "backup", 10, Form::Hint)
        .says("[cluster]");
}

fn restores(bench: &mut Bench<'_>, config: &Path, cluster: &Cluster<'_>, targets: &Path) {
    let restore = "restore --target-dir";
    let full = targets.join("full");
    let fresh = targets.join("fresh");
    let original = bench.directory.join("space");
    let (full, fresh) = (full.display(), fresh.display());
    let into = |rest: &str| {
        format!(
            "{restore} {fresh} --tablespace-map {}={} {rest}",
            original.display(),
            targets.join("space").display()
        )
    };
    bench
        .case(
            "target not empty",
            config,
            &format!("{restore} {full}"),
            10,
            Form::Hint,
        )
        .says("not empty");
    bench
        .case(
            "delta over something else",
            config,
            &format!("{restore} {full} --delta"),
            10,
            Form::Hint,
        )
        .says("neither a data directory");
    let data = cluster.data().display();
    for delta in ["", "--delta"] {
        bench
            .case(
                "server running in the target",
                config,
                &format!("{restore} {data} {delta}"),
                10,
                Form::Hint,
            )
            .says("server is running");
    }
    bench
        .case(
            "tablespace in use",
            config,
            &format!("{restore} {fresh}"),
            10,
            Form::Hint,
        )
        .says("tablespace");
    bench
        .case(
            "unknown tablespace",
            config,
            &format!("{restore} {fresh} --tablespace-map /no=/x"),
            10,
            Form::Hint,
        )
        .says("/no");
    bench
        .case(
            "tablespace within the target",
            config,
            &format!(
                "{restore} {fresh} --tablespace-map {}={fresh}/x",
                original.display()
            ),
            10,
            Form::Hint,
        )
        .says("within the target");
    bench.case(
        "half a map",
        config,
        &format!("{restore} {fresh} --tablespace-map /a"),
        2,
        Form::Usage,
    );
    bench
        .case(
            "parent missing",
            config,
            &format!(
                "{restore} {fresh}/a/b --tablespace-map {}={}",
                original.display(),
                targets.join("space").display()
            ),
            10,
            Form::Hint,
        )
        .says("parent directory");
    bench
        .case(
            "unknown label",
            config,
            &into("--backup 20200101T000000Z-ABCD"),
            10,
            Form::Hint,
        )
        .says("20200101T000000Z-ABCD");
    bench
        .case(
            "malformed label",
            config,
            &into("--backup yesterday"),
            2,
            Form::Usage,
        )
        .says("yesterday");
    bench
        .case(
            "unknown component",
            config,
            &into("--component nope"),
            10,
            Form::Hint,
        )
        .says("nope");
    bench
        .case(
            "unknown repository",
            config,
            &into("--repository nope"),
            10,
            Form::Hint,
        )
        .says("nope");
    bench
        .case(
            "time without zone",
            config,
            &into("--target-time 2026-11-20T12:00:00"),
            10,
            Form::Hint,
        )
        .says("zone");
    bench
        .case(
            "no time at all",
            config,
            &into("--target-time noon"),
            10,
            Form::Hint,
        )
        .says("noon");
    for (what, target) in [
        (
            "time before the window",
            "--target-time 2001-01-01T00:00:00Z",
        ),
        (
            "time after the window",
            "--target-time 2101-01-01T00:00:00Z",
        ),
        ("LSN before the window", "--target-lsn 0/28"),
        ("LSN after the window", "--target-lsn FF/0"),
    ] {
        bench
            .case(what, config, &into(target), 10, Form::Hint)
            .says("code target_out_of_window")
            .says("The window ")
            .says("20");
    }
    bench.case(
        "malformed LSN",
        config,
        &into("--target-lsn 12345"),
        2,
        Form::Usage,
    );
    bench
        .case(
            "unknown xid",
            config,
            &into("--target-xid 4000000000"),
            10,
            Form::Hint,
        )
        .says("4000000000");
    bench
        .case(
            "unknown restore point",
            config,
            &into("--target-name nope"),
            10,
            Form::Hint,
        )
        .says("nope");
    bench.case(
        "two targets",
        config,
        &into("--target-name a --target-immediate"),
        2,
        Form::Usage,
    );
    bench
        .case(
            "unknown timeline",
            config,
            &into("--target-timeline 9"),
            10,
            Form::Hint,
        )
        .says("9");
    bench.case(
        "malformed timeline",
        config,
        &into("--target-timeline first"),
        2,
        Form::Usage,
    );
    bench.case("no target", config, "restore", 2, Form::Usage);
}

fn verbs(bench: &mut Bench<'_>, config: &Path) {
    bench.case("unknown verb", config, "bakcup", 2, Form::Usage);
    bench.case(
        "unknown option",
        config,
        "info --everything",
        2,
        Form::Usage,
    );
    bench
        .case("init twice", config, "init --no-encryption", 40, Form::Hint)
        .says("already");
    let fresh = bench.directory.join("fresh");
    let fresh = format!(
        "[repository.r]\nkind = \"posix\"\npath = \"{}\"\n",
        fresh.display()
    );
    let fresh = bench.config("fresh", &fresh);
    bench
        .case("init without a choice", &fresh, "init", 10, Form::Hint)
        .says("encrypted");
    bench
        .case(
            "init of an unknown repository",
            config,
            "init --no-encryption --repository nope",
            10,
            Form::Hint,
        )
        .says("nope");
    bench
        .case(
            "unknown component",
            config,
            "backup --component nope",
            10,
            Form::Hint,
        )
        .says("nope");
    bench
        .case(
            "unknown repository",
            config,
            "backup --repository nope",
            10,
            Form::Hint,
        )
        .says("nope");
    bench
        .case(
            "annotation given twice",
            config,
            "backup --annotate why=a --annotate why=b",
            10,
            Form::Hint,
        )
        .says("why");
    for slip in [
        "archive_get x y",
        "arhive-get x y",
        "000000010000000000000001 pg_wal/RECOVERYXLOG",
    ] {
        bench.case("misspelt archive-get", config, slip, 209, Form::Usage);
    }
    // Above 125 the archiver of a server would start anew again and again.
    for slip in [
        "archive-psh pg_wal/000000010000000000000001",
        "archive_push pg_wal/000000010000000000000001",
        "archive-push a 000000010000000000000001 b",
        "archive-push --fast 000000010000000000000001",
    ] {
        bench.case("misspelt archive-push", config, slip, 2, Form::Usage);
    }
    bench
        .case(
            "annotation without =",
            config,
            "backup --annotate why",
            2,
            Form::Usage,
        )
        .says("KEY=VALUE");
    bench
        .case(
            "annotation without a key",
            config,
            "backup --annotate =why",
            2,
            Form::Usage,
        )
        .says("KEY=VALUE");
    bench
        .case(
            "unknown label",
            config,
            "verify --backup 20200101T000000Z-ABCD",
            10,
            Form::Hint,
        )
        .says("20200101T000000Z-ABCD");
    let get = |bench: &mut Bench<'_>, what, line: &str| {
        bench.case(what, config, line, 209, Form::Log);
    };
    for (what, line) in [
        ("get without arguments", "archive-get"),
        ("get with one", "archive-get 000000010000000000000001"),
        ("get with an unknown option", "archive-get --fast a b"),
    ] {
        bench.case(what, config, line, 209, Form::Usage);
    }
    get(
        bench,
        "get of ..",
        "archive-get ../../etc/passwd pg_wal/RECOVERYXLOG",
    );
    get(
        bench,
        "get of an absolute path",
        "archive-get /etc/passwd pg_wal/RECOVERYXLOG",
    );
    get(
        bench,
        "get of a short name",
        "archive-get 00000001000000000000 pg_wal/RECOVERYXLOG",
    );
    let long = "0".repeat(5000);
    bench
        .case(
            "get of a very long name",
            config,
            "archive-get",
            209,
            Form::Log,
        )
        .argument(&long)
        .argument("x");
    bench
        .case("get of a line break", config, "archive-get", 209, Form::Log)
        .argument("000000010000000000000001\n")
        .argument("x");
    for (what, name) in [
        ("push of ..", "pg_wal/../../etc/passwd"),
        ("push of a directory", "pg_wal/.."),
        (
            "push of a lower-case name",
            "pg_wal/00000001000000000000000a",
        ),
        ("push of a temporary", "pg_wal/000000010000000000000001.tmp"),
        ("push of a long name", long.as_str()),
        ("push of a line break", "pg_wal/000000010000000000000001\n"),
    ] {
        bench
            .case(what, config, "archive-push", 10, Form::Hint)
            .argument(name)
            .says("WAL file");
    }
    bench
        .case(
            "push of a file that is not there",
            config,
            "archive-push /nowhere/pg_wal/000000010000000000000001",
            20,
            Form::Plain,
        )
        .says("/nowhere");
}

/// Servers that are not the one that the configuration, or the repository, knows.
fn servers(bench: &mut Bench<'_>, pgark: &Pgark, cluster: &Cluster<'_>, other: &Cluster<'_>) {
    let text = std::fs::read_to_string(pgark.config()).unwrap();
    let conninfo = |cluster: &Cluster<'_>| cluster.conninfo("postgres");
    let data = |cluster: &Cluster<'_>| cluster.data().display().to_string();
    let mixed = bench.config("mixed", &text.replace(&data(cluster), &data(other)));
    bench
        .case(
            "conninfo and data_directory of two servers",
            &mixed,
            "backup",
            10,
            Form::Hint,
        )
        .says("system identifier");
    let control = std::fs::read(cluster.data().join("global/pg_control")).unwrap();
    let copy = bench.directory.folder("copy");
    bench.directory.folder("copy/global");
    std::fs::write(copy.join("global/pg_control"), control).unwrap();
    let copy = bench.config(
        "copied",
        &text.replace(&data(cluster), &copy.display().to_string()),
    );
    bench
        .case(
            "a copy of the server's data directory",
            &copy,
            "backup",
            10,
            Form::Hint,
        )
        .says("the server runs in");
    let foreign = text
        .replace(&data(cluster), &data(other))
        .replace(&conninfo(cluster), &conninfo(other));
    let foreign = bench.config("foreign", &foreign);
    bench
        .case(
            "another server under this name",
            &foreign,
            "backup",
            40,
            Form::Hint,
        )
        .says("cluster upgrade");
    let segment = other.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    let path = other.data().join("pg_wal").join(segment);
    bench
        .case(
            "WAL of another server",
            &foreign,
            "archive-push",
            40,
            Form::Hint,
        )
        .argument(path.display().to_string())
        .says("cluster upgrade");
    let down = bench.config(
        "down",
        &text.replace(&conninfo(cluster), "host=/nowhere user=postgres"),
    );
    bench
        .case("server down", &down, "backup", 20, Form::Hint)
        .says("/nowhere");
    let inside = cluster.data().join("repository").display().to_string();
    let inside = text.replace(
        &bench.directory.join("repository").display().to_string(),
        &inside,
    );
    let inside = bench.config("inside", &inside);
    bench
        .case(
            "repository within the data directory",
            &inside,
            "init --no-encryption",
            10,
            Form::Hint,
        )
        .says("data directory");
    let repository = bench.directory.join("repository");
    bench
        .case(
            "a target within the repository",
            pgark.config(),
            &format!("restore --target-dir {}/new", repository.display()),
            10,
            Form::Hint,
        )
        .says("within a repository");
    let twice = format!(
        "{text}\n[repository.second]\nkind = \"posix\"\npath = \"{}/../repository\"\n",
        repository.display()
    );
    let twice = bench.config("twice", &twice);
    bench
        .case(
            "two repositories in one directory",
            &twice,
            "info",
            10,
            Form::Hint,
        )
        .says("one place");
}

#[test]
fn bad_input() {
    let directory = TestDirectory::new("t300_bad_input");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (cluster, pgark) = archived(&directory, builder);
    let space = directory.folder("space");
    cluster.psql(&format!(
        "CREATE TABLESPACE s LOCATION '{}'",
        space.display()
    ));
    cluster.psql("CREATE TABLE t TABLESPACE s AS SELECT 1 AS i");
    pgark.backup();
    cluster.archive_all();
    // Nothing more is to be archived while the cases run: the repository must not change.
    cluster.wait_for(
        "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'",
        "0",
        PATIENCE,
    );
    let other = Cluster::builder(&directory, Major::Pg15, "b")
        .wal_segment_mib(1)
        .setting("archive_mode = on")
        .setting("archive_command = '/bin/true'")
        .start();
    let targets = directory.folder("targets");
    directory.folder("targets/full");
    directory.file("targets/full/notes.txt", "mine");

    let mut bench = Bench {
        directory: &directory,
        cases: Vec::new(),
    };
    other_configs(&mut bench);
    restores(&mut bench, pgark.config(), &cluster, &targets);
    verbs(&mut bench, pgark.config());
    servers(&mut bench, &pgark, &cluster, &other);
    assert_eq!(bench.cases.len(), 90, "cases");
    let before = snapshot(&directory);
    let mut wrong = Vec::new();
    for case in &bench.cases {
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.judge()));
        let untouched =
            snapshot(&directory) == before && !cluster.data().join("repository").exists();
        if judged.is_err() || !untouched {
            wrong.push(format!("{} (written: {})", case.what, !untouched));
        }
    }
    println!("cases: bad input {}", bench.cases.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}
