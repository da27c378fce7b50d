//! `files_first`, `files_unchanged`, `files_restore`: many small files of text, backed up by pgark and by
//! restic, again while nothing has changed, and restored with owners and times. Caches are dropped before each.
//!
//! The first backup and the restore are made once, the unchanged one as often as everything else. restic
//! encrypts always; so does pgark here.

use super::dataset::{Random, words};
use super::measure::{Cost, Watch, drop_caches, measure};
use super::record::Run;
use super::tool::disk_bytes;
use super::{Settings, complete};
use crate::pgark::binary;
use crate::{Pgark, TestDirectory};
use serde_json::{Value, json};
use std::fs::{File, FileTimes, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FIRST: &str = "files_first";
const UNCHANGED: &str = "files_unchanged";
const RESTORE: &str = "files_restore";
/// What is measured here.
pub(super) const OPERATIONS: [&str; 3] = [FIRST, UNCHANGED, RESTORE];

const FILES_IN_A_FOLDER: u32 = 1000;
/// One letter is a byte, in words of the generator.
const BYTES: std::ops::Range<u64> = 1024..4097;

/// A tool, run by whoever runs the bench: owners need root.
enum Tool {
    Pgark(Pgark),
    Restic(PathBuf),
}

impl Tool {
    fn name(&self) -> &'static str {
        match self {
            Self::Pgark(_) => "pgark",
            Self::Restic(_) => "restic",
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self {
            Self::Pgark(pgark) => {
                let mut command = Command::new(binary());
                command.arg("--config").arg(pgark.config());
                command
            }
            Self::Restic(home) => {
                let mut command = Command::new("/usr/bin/restic");
                for (option, name) in [
                    ("--repo", "repository"),
                    ("--cache-dir", "cache"),
                    ("--password-file", "password"),
                ] {
                    command.arg(option).arg(home.join(name));
                }
                command.arg("--quiet");
                command
            }
        };
        command.args(arguments).current_dir("/");
        command
    }

    fn init(&self, directory: &TestDirectory) {
        let mut command = match self {
            Self::Pgark(_) => {
                let mut command = self.command(&["init", "--recovery-kit"]);
                command.arg(directory.join("kit"));
                command
            }
            // The format that compresses.
            Self::Restic(_) => self.command(&["init", "--repository-version", "2"]),
        };
        let _ = complete(&mut command);
    }

    fn backup(&self, source: &Path) -> Command {
        match self {
            Self::Pgark(_) => self.command(&["backup", "--component", "documents"]),
            Self::Restic(_) => self.command(&["backup", source.to_str().unwrap()]),
        }
    }

    fn restore(&self, target: &Path) -> Command {
        let target = target.to_str().unwrap();
        match self {
            Self::Pgark(_) => {
                self.command(&["restore", "--component", "documents", "--to", target])
            }
            // As pgark does after every restore.
            Self::Restic(_) => self.command(&["restore", "latest", "--verify", "--target", target]),
        }
    }

    fn repository(&self, directory: &TestDirectory) -> PathBuf {
        match self {
            Self::Pgark(_) => directory.join("repository"),
            Self::Restic(home) => home.join("repository"),
        }
    }

    fn config(&self) -> String {
        match self {
            Self::Pgark(pgark) => std::fs::read_to_string(pgark.config()).unwrap(),
            Self::Restic(_) => String::new(),
        }
    }

    fn version(&self) -> String {
        let mut command = match self {
            Self::Pgark(_) => self.command(&["--version"]),
            Self::Restic(_) => self.command(&["version"]),
        };
        crate::cluster::run(&mut command).trim().to_owned()
    }

    fn info(&self) -> Value {
        let mut command = match self {
            Self::Pgark(_) => self.command(&["--output", "json", "info"]),
            Self::Restic(_) => self.command(&["snapshots", "--json"]),
        };
        serde_json::from_str(&crate::cluster::run(&mut command)).unwrap()
    }
}

struct Bench<'a> {
    settings: &'a Settings,
    directory: &'a TestDirectory,
    source: PathBuf,
    /// Of names, owners, modes, times and contents.
    digest: String,
    runs: Vec<Run>,
}

/// All runs.
pub(super) fn runs(settings: &Settings) -> Vec<Run> {
    let directory = TestDirectory::new("bench_files");
    let source = directory.join("documents");
    eprintln!("bench: writing {} files", settings.files);
    fill(&source, settings);
    let mut bench = Bench {
        settings,
        directory: &directory,
        digest: tree(&source),
        source,
        runs: Vec::new(),
    };
    let tools = [pgark(&directory, &bench.source), restic(&directory)];
    for tool in &tools {
        tool.init(&directory);
        bench.backup(FIRST, tool, 1);
    }
    for run in 1..=settings.runs {
        // Each of them is first as often as the other.
        let first = run as usize % 2;
        for at in [first, 1 - first] {
            if settings.wants(UNCHANGED) {
                bench.backup(UNCHANGED, &tools[at], run);
            }
        }
    }
    if settings.wants(RESTORE) {
        for tool in &tools {
            bench.restore(tool);
        }
    }
    bench.runs
}

fn pgark(directory: &TestDirectory, source: &Path) -> Tool {
    let mut pgark = Pgark::new(directory, "pgark", None);
    pgark.configure(&format!(
        "[repository.local.encryption]\nmode = \"key-file\"\nkey_file = \"{}\"\n\
         [component.documents]\nkind = \"files\"\npaths = [\"{}\"]\n",
        directory.join("key").display(),
        source.display()
    ));
    Tool::Pgark(pgark)
}

fn restic(directory: &TestDirectory) -> Tool {
    let home = directory.folder("restic");
    directory.file("restic/password", "secret\n");
    Tool::Restic(home)
}

impl Bench<'_> {
    fn backup(&mut self, operation: &'static str, tool: &Tool, run: u32) {
        let mut command = tool.backup(&self.source);
        let (argv, cost) = self.measured(tool, &mut command);
        if self.settings.wants(operation) {
            self.record(operation, tool, run, argv, cost);
        }
    }

    fn restore(&mut self, tool: &Tool) {
        let target = self.directory.join(&format!("restored-{}", tool.name()));
        let mut command = tool.restore(&target);
        let (argv, cost) = self.measured(tool, &mut command);
        // Either puts the whole path below its target.
        let restored = target.join(self.source.strip_prefix("/").unwrap());
        assert_eq!(tree(&restored), self.digest, "{}", tool.name());
        std::fs::remove_dir_all(&target).unwrap();
        self.record(RESTORE, tool, 1, argv, cost);
    }

    fn measured(&self, tool: &Tool, command: &mut Command) -> (Vec<String>, Cost) {
        let watch = Watch::default();
        let _ = drop_caches();
        measure(watch, tool.name(), self.directory.path(), || {
            (complete(command), watch)
        })
    }

    fn record(
        &mut self,
        operation: &'static str,
        tool: &Tool,
        run: u32,
        argv: Vec<String>,
        cost: Cost,
    ) {
        eprintln!(
            "bench: {operation} {}, run {run}: {:.2} s, cpu {:.2} s, {} MiB",
            tool.name(),
            cost.seconds,
            cost.cpu_seconds,
            cost.max_rss_bytes >> 20
        );
        let run = Run {
            operation,
            tool: tool.name(),
            variant: "default".to_owned(),
            run,
            seconds: cost.seconds,
            cpu_seconds: cost.cpu_seconds,
            max_rss_bytes: cost.max_rss_bytes,
            stored_bytes: disk_bytes(&tool.repository(self.directory)),
            stored_bytes_told: None,
            segments: 0,
            argv,
            config: tool.config(),
            version: tool.version(),
            seed: self.settings.seed,
            digest: self.digest.clone(),
            info: json!({"files": self.settings.files, "tool": tool.info()}),
        };
        super::record::keep(&run);
        self.runs.push(run);
    }
}

/// Writes the files: text of 1 to 4 KB, several owners, modes and times.
fn fill(root: &Path, settings: &Settings) {
    let mut random = Random::new(settings.seed);
    let is_root = rustix::process::geteuid().is_root();
    let mut folder = PathBuf::new();
    for n in 0..settings.files {
        if n.is_multiple_of(FILES_IN_A_FOLDER) {
            folder = root.join(format!("{:04}", n / FILES_IN_A_FOLDER));
            std::fs::create_dir_all(&folder).unwrap();
        }
        let length = BYTES.start + random.below(BYTES.end - BYTES.start);
        // A word and its space are more than four letters.
        let mut text = words(&mut random, length / 4);
        text.truncate(length as usize);
        let path = folder.join(format!("document-{n:07}.txt"));
        let mut file = File::create_new(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        if is_root {
            std::os::unix::fs::chown(&path, Some(1000 + n % 7), Some(1000 + n % 3)).unwrap();
        }
        let mode = [0o644, 0o640, 0o600][n as usize % 3];
        file.set_permissions(Permissions::from_mode(mode)).unwrap();
        file.set_times(FileTimes::new().set_modified(time(n)))
            .unwrap();
    }
    for (n, folder) in std::fs::read_dir(root).unwrap().enumerate() {
        let folder = File::open(folder.unwrap().path()).unwrap();
        let times = FileTimes::new().set_modified(time(u32::try_from(n).unwrap()));
        folder.set_times(times).unwrap();
    }
    // Files that changed a moment ago are read again.
    std::thread::sleep(Duration::from_secs(3));
}

fn time(n: u32) -> SystemTime {
    UNIX_EPOCH + Duration::new(1_600_000_000 + u64::from(n), n % 1_000_000_000)
}

/// BLAKE3 over what is below a folder, in the order of names: path, owner, mode, time and content.
fn tree(root: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        let entries = std::fs::read_dir(&folder).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let about = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().display();
            let line = format!(
                "{name} {} {} {:o} {}.{}\n",
                about.uid(),
                about.gid(),
                about.mode(),
                about.mtime(),
                about.mtime_nsec()
            );
            hasher.update(line.as_bytes());
            if about.is_dir() {
                pending.push(path);
            } else {
                hasher.update(&std::fs::read(&path).unwrap());
            }
        }
    }
    hasher.finalize().to_hex().to_string()
}
