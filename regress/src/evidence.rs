//! The full tier: its parts, and the evidence that a part leaves in `regress/evidence/<part>.json`.
//!
//! Evidence holds for a commit and for later ones that touch nothing but evidence and docs. A part
//! passes when every test that it names ran: fewer than expected, or one that was ignored or skipped
//! itself ([`crate::tier::skip`]) and is not in `docs/untested.md`, is a failure.

use crate::Major;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// How a part is run.
#[derive(Debug, Clone, Copy)]
pub enum Run {
    /// The unit and in-process tests of types and archiver.
    Unit,
    /// The modules of end-to-end tests whose names begin with one of these.
    EndToEnd(&'static [&'static str]),
    /// The modules that need Postgres 18: in a chroot that nothing else needs.
    Postgres18(&'static [&'static str]),
    /// The storage conformance suite on every storage.
    Conformance,
    /// Every fuzz target, this many seconds in all, from this seed.
    Fuzz(u64, u64),
}

/// A part of `make test-full`, at most 40 minutes long.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Names its evidence.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// How.
    pub run: Run,
}

/// The fewest tests of the part `unit`: what it had once. They are spread over many binaries; those
/// of the other parts are counted in the sources.
const UNIT_TESTS_MIN: usize = 560;

/// The storages that `conformance` runs the suite on.
pub const CONFORMANCE_STORAGES: usize = 7;

/// All parts, in order: `make test-full PART=1` is the first.
pub const PARTS: &[Part] = &[
    Part {
        name: "unit",
        about: "bytes, storage, engine; crashes at every operation with 8 seeds; 18,000 flips",
        run: Run::Unit,
    },
    Part {
        name: "servers",
        about: "the harness, the extension, the archive module",
        run: Run::EndToEnd(&["t0"]),
    },
    Part {
        name: "recovery",
        about: "recovery targets, timelines, contents of clusters",
        run: Run::EndToEnd(&["t1"]),
    },
    Part {
        name: "archive",
        about: "archiving, outages of full length, conflicts, the socket, archive-get, standbys",
        run: Run::EndToEnd(&["t2"]),
    },
    Part {
        name: "damage",
        about: "bad input, 300 flips through the commands, full disks, panics and Ctrl-C",
        run: Run::EndToEnd(&["t300", "t320", "t330", "t340"]),
    },
    Part {
        name: "crashes",
        about: "SIGKILL at every fault point, and 100 rounds at any time",
        run: Run::EndToEnd(&["t310"]),
    },
    Part {
        name: "fuzz-1",
        about: "every fuzz target, 30 minutes in all",
        run: Run::Fuzz(1800, 1),
    },
    Part {
        name: "fuzz-2",
        about: "the same from another seed",
        run: Run::Fuzz(1800, 2),
    },
    Part {
        name: "postgres-18",
        about: "the core of all this on Postgres 18",
        run: Run::Postgres18(&["t400"]),
    },
    Part {
        name: "s3",
        about: "a repository in a bucket: recovery, agent, faults on the way, bad input",
        run: Run::EndToEnd(&["t43"]),
    },
    Part {
        name: "retention",
        about: "expire, undelete, gc killed in mid-sweep, a window, a recovery to the past",
        run: Run::EndToEnd(&["t42"]),
    },
    Part {
        name: "encryption",
        about: "an encrypted repository: recovery, keys, a writer that cannot read, memory",
        run: Run::EndToEnd(&["t41"]),
    },
    Part {
        name: "repositories",
        about: "several repositories: backups into all, catch-up, failover",
        run: Run::EndToEnd(&["t44"]),
    },
    Part {
        name: "extension",
        about: "SQL: goldens, rights, bad input, the queue, schedules, a catalog of 100,000 rows",
        run: Run::EndToEnd(&["t60"]),
    },
    Part {
        name: "stores",
        about: "Redis, Chroma, logical dumps, Elasticsearch, Prometheus, Grafana: real servers where there are any; restores in place",
        run: Run::EndToEnd(&["t52", "t53", "t54", "t55", "t56", "t57", "t58"]),
    },
    Part {
        name: "files",
        about: "files, and backup sets of several components: capture, quiesce, restore to one moment",
        run: Run::EndToEnd(&["t50", "t510", "t513", "t514"]),
    },
    Part {
        name: "sftp",
        about: "a repository on an SSH server: recovery, connections that break, bad input",
        run: Run::EndToEnd(&["t45"]),
    },
    Part {
        name: "jobs",
        about: "jobs, the catalog, schedules; 100 occurrences through kills of agent and server, and 100 by the clock",
        run: Run::EndToEnd(&["t61"]),
    },
    Part {
        name: "places",
        about: "every scene of recovery on moto, radosgw and sshd, encrypted and not, on 15 and 17",
        run: Run::EndToEnd(&["t46"]),
    },
    Part {
        name: "conformance",
        about: "the storage conformance suite on memory, a directory, sshd, moto and radosgw",
        run: Run::Conformance,
    },
    Part {
        name: "moment",
        about: "50 sets of Postgres, Chroma, Redis, OpenSearch and files, each restored; agents killed while all is held",
        run: Run::EndToEnd(&["t511", "t512"]),
    },
];

impl Part {
    /// The fewest tests (fuzz targets) that must have run: all that there are.
    pub fn tests_min(&self) -> usize {
        match self.run {
            Run::Unit => UNIT_TESTS_MIN,
            Run::Conformance => CONFORMANCE_STORAGES,
            Run::Fuzz(..) => crate::fuzz::TARGETS.len(),
            Run::EndToEnd(modules) | Run::Postgres18(modules) => declared(modules),
        }
    }
}

/// How many tests the end-to-end modules have whose names begin with one of `prefixes`.
fn declared(prefixes: &[&str]) -> usize {
    let sources = end_to_end_modules().into_iter();
    let wanted = sources.filter(|module| prefixes.iter().any(|p| module.starts_with(p)));
    wanted
        .map(|module| {
            let path = root().join(format!("regress/tests/{module}.rs"));
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().filter(|line| *line == "#[test]").count()
        })
        .sum()
}

/// The modules of the end-to-end binary.
fn end_to_end_modules() -> Vec<String> {
    let main = root().join("regress/tests/main.rs");
    let text = std::fs::read_to_string(main).unwrap();
    let names = text
        .lines()
        .filter_map(|line| line.strip_prefix("mod t")?.strip_suffix(';'));
    names.map(|name| format!("t{name}")).collect()
}

/// What a run of tests printed, counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed, by name.
    pub passed: Vec<String>,
    /// Tests that failed.
    pub failed: Vec<String>,
    /// Tests that were not run, or that did nothing and said so.
    pub ignored: Vec<String>,
    /// Cases that tests counted themselves, from lines `cases: <what> <number>`.
    pub cases: BTreeMap<String, u64>,
}

impl Tally {
    /// Reads what `cargo test -- --nocapture` or `fuzz` printed.
    pub fn read(output: &str) -> Self {
        let mut tally = Self::default();
        let mut skipped = Vec::new();
        for line in output.lines() {
            // Output of a test may stand before its verdict, on the same line.
            if let Some((_, rest)) = line.split_once("cases: ")
                && let Some((what, number)) = rest.rsplit_once(' ')
                && let Ok(number) = number.parse::<u64>()
            {
                *tally.cases.entry(what.to_owned()).or_default() += number;
            }
            if let Some((_, rest)) = line.split_once(crate::tier::SKIPPED) {
                skipped.extend(rest.split(' ').next().map(str::to_owned));
            }
            let Some((name, verdict)) = line
                .strip_prefix("test ")
                .and_then(|line| line.split_once(" ... "))
            else {
                continue;
            };
            match verdict.split([',', ' ']).next() {
                Some("ok") => tally.passed.push(name.to_owned()),
                Some("ignored") => tally.ignored.push(name.to_owned()),
                Some("FAILED") => tally.failed.push(name.to_owned()),
                _ => {}
            }
        }
        tally.passed.retain(|name| !skipped.contains(name));
        tally.ignored.extend(skipped);
        tally
    }

    /// Why this does not show what a part of `least` tests is to show; `untested` is
    /// `docs/untested.md`.
    pub fn objection(&self, least: usize, untested: &str) -> Option<String> {
        if let Some(name) = self.failed.first() {
            return Some(format!("{name} failed"));
        }
        let unlisted = |name: &&String| !untested.contains(&format!("`{name}`"));
        if let Some(name) = self.ignored.iter().find(unlisted) {
            return Some(format!("{name} was skipped and is not in docs/untested.md"));
        }
        let (ran, skipped) = (self.passed.len(), self.ignored.len());
        (ran + skipped < least).then(|| {
            format!("{ran} tests ran, {skipped} were skipped, at least {least} were expected")
        })
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

impl Run {
    /// The commands of the run.
    fn commands(self) -> Vec<Command> {
        let cargo = |arguments: &[&str]| {
            let mut command = Command::new("cargo");
            command
                .args(arguments)
                .current_dir(root())
                .env("PGARK_TEST_TIER", "full");
            command
        };
        match self {
            // One thread prints one line at a time, so that every verdict can be read.
            Self::Unit => vec![cargo(&[
                "test",
                "--locked",
                "-p",
                "pgark-types",
                "-p",
                "pgark-archiver",
                "--features",
                "pgark-archiver/fault-injection",
                "--",
                "--nocapture",
                "--test-threads=1",
            ])],
            Self::EndToEnd(modules) => vec![end_to_end(cargo, &[], modules)],
            Self::Conformance => vec![cargo(&[
                "run",
                "--locked",
                "-p",
                "pgark-regress",
                "--bin",
                "conformance",
            ])],
            Self::Postgres18(modules) => {
                let mut chroot = Command::new(root().join("regress/setup/chroot.sh"));
                chroot.arg("18");
                vec![chroot, end_to_end(cargo, &["--features", "pg18"], modules)]
            }
            Self::Fuzz(seconds, seed) => {
                // Not in release: there, arithmetic that overflows goes on with a wrong number.
                let mut command = cargo(&[
                    "run",
                    "--locked",
                    "-p",
                    "pgark-regress",
                    "--bin",
                    "fuzz",
                    "--",
                    "--all",
                ]);
                command.args([
                    "--seconds",
                    &seconds.to_string(),
                    "--seed",
                    &seed.to_string(),
                ]);
                vec![command]
            }
        }
    }

    fn seed(self) -> u64 {
        match self {
            Self::Fuzz(_, seed) => seed,
            // The seeds of the other suites are constants in their sources.
            Self::Unit | Self::EndToEnd(_) | Self::Postgres18(_) | Self::Conformance => 0,
        }
    }
}

fn end_to_end(cargo: impl Fn(&[&str]) -> Command, features: &[&str], modules: &[&str]) -> Command {
    let mut command = cargo(&["test", "--locked", "-p", "pgark-regress", "--test", "main"]);
    command.args(features).arg("--");
    command
        .args(["--show-output", "--test-threads=2"])
        .args(modules);
    command
}

/// Runs a part and writes its evidence.
///
/// # Errors
/// What the part did not show.
pub fn run(part: &Part) -> Result<(), String> {
    let started = Instant::now();
    let mut output = String::new();
    for mut command in part.run.commands() {
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        let ended = child.wait_with_output().unwrap();
        output.push_str(&String::from_utf8_lossy(&ended.stdout));
        if !ended.status.success() {
            println!("{output}");
            return Err(format!("{command:?}: {}", ended.status));
        }
    }
    let mut tally = Tally::read(&output);
    if let Run::Fuzz(..) = part.run {
        let targets = output.lines().filter(|line| line.contains(" inputs, "));
        let names = targets.filter_map(|line| line.split_whitespace().next());
        tally.passed.extend(names.map(str::to_owned));
    }
    if let Run::Conformance = part.run {
        tally.passed.extend(tally.cases.keys().cloned());
    }
    let untested = std::fs::read_to_string(root().join("docs/untested.md")).unwrap_or_default();
    if let Some(objection) = tally.objection(part.tests_min(), &untested) {
        return Err(objection);
    }
    let cases: u64 = tally.cases.values().sum();
    let evidence = json!({
        "part": part.name,
        "about": part.about,
        "commit": commit(),
        "tests": tally.passed,
        "skipped": tally.ignored,
        "case_count": tally.passed.len() as u64 + cases,
        "cases": tally.cases,
        "seed": part.run.seed(),
        "duration_seconds": started.elapsed().as_secs(),
        "versions": versions(part.run),
        "finished_at": chrono::Utc::now().to_rfc3339(),
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("evidence");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{}.json", part.name));
    std::fs::write(&path, format!("{evidence:#}\n")).unwrap();
    println!("{}", path.display());
    Ok(())
}

/// The first line that a command prints; nothing when there is no such command.
fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

/// The commit, marked when the tree differs from it.
fn commit() -> String {
    let commit = first_line("git", &["rev-parse", "HEAD"]).unwrap_or_default();
    let changed = first_line(
        "git",
        &[
            "status",
            "--porcelain",
            "--",
            ".",
            ":!regress/evidence",
            ":!docs",
        ],
    );
    match changed {
        Some(_) => format!("{commit}-changed"),
        None => commit,
    }
}

fn versions(run: Run) -> Value {
    let majors: &[Major] = match run {
        Run::Postgres18(_) => &[Major::Pg18],
        Run::Conformance => &[],
        Run::Unit | Run::EndToEnd(_) | Run::Fuzz(..) => &Major::ALL,
    };
    let version = |major: &Major| {
        let mut command = major.command("postgres");
        let output = command.arg("--version").output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    json!({
        "postgres": majors.iter().map(version).collect::<Vec<_>>(),
        "rustc": first_line("rustc", &["--version"]),
        "kernel": first_line("uname", &["-r"]),
        "pgbackrest": first_line("pgbackrest", &["version"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
test a::one ... ok
test a::two ... noise
cases: flips 2332
ok
test a::three ... ignored, run by others
test a::four ... cases: flips 8
test a::five ... FAILED
";

    #[test]
    fn output_is_counted() {
        let tally = Tally::read(OUTPUT);
        assert_eq!(tally.passed, ["a::one"]);
        assert_eq!(tally.ignored, ["a::three"]);
        assert_eq!(tally.failed, ["a::five"]);
        assert_eq!(tally.cases["flips"], 2340);
    }

    #[test]
    fn a_skip_needs_an_entry() {
        let mut tally = Tally::read(OUTPUT);
        assert_eq!(tally.objection(2, "").unwrap(), "a::five failed");
        tally.failed.clear();
        assert!(tally.objection(2, "").unwrap().contains("a::three"));
        let fewer = tally.objection(3, "- `a::three`: why").unwrap();
        assert!(fewer.contains("1 tests ran, 1 were skipped"), "{fewer}");
        assert_eq!(tally.objection(2, "- `a::three`: why"), None);
    }

    /// A test that returns without having done anything has passed, for Cargo.
    #[test]
    fn a_test_that_skips_itself_is_no_passed_one() {
        let output = "\
test a::one ... ok
test a::two ... ok

successes:

---- a::two stdout ----
skipped test: a::two it needs root
";
        let tally = Tally::read(output);
        assert_eq!(tally.passed, ["a::one"]);
        assert_eq!(tally.ignored, ["a::two"]);
        assert!(tally.objection(2, "`a`").unwrap().contains("a::two"));
    }

    /// A module of end-to-end tests that no part runs would never count as evidence.
    #[test]
    fn every_end_to_end_module_is_in_one_part() {
        for module in end_to_end_modules() {
            let holds = |part: &&Part| match part.run {
                Run::EndToEnd(modules) | Run::Postgres18(modules) => {
                    modules.iter().any(|prefix| module.starts_with(prefix))
                }
                Run::Unit | Run::Fuzz(..) | Run::Conformance => false,
            };
            assert_eq!(PARTS.iter().filter(holds).count(), 1, "{module}");
            assert!(declared(&[module.as_str()]) > 0, "{module} has no tests");
        }
    }

    /// What a part expects is what the sources have; a number that falls is looked into.
    #[test]
    fn parts_expect_every_test() {
        let least = [225, 11, 17, 25, 8, 3, 19, 19, 7, 9, 2, 5, 8];
        for (part, least) in PARTS.iter().zip(least) {
            let expected = part.tests_min();
            assert!(expected >= least, "{}: {expected}", part.name);
        }
    }
}
