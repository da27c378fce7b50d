//! Fuzzing without nightly: seeded mutation of a kept corpus, no coverage feedback. Every parser of
//! bytes that pgark did not write itself has a target here.
//!
//! A target panics to report a finding; what it returns does not matter. Where a format has a
//! checksum, its target repairs it, so that mutations get past it.

mod mutate;
mod targets;

pub use targets::TARGETS;

use self::mutate::{Random, mutate};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A name, which is also its directory below `regress/fuzz`, and the function under test.
pub type Target = (&'static str, fn(&[u8]));

/// One input may take this much of the processor's time; beyond it is a finding too (quadratic work). Not
/// by the clock: other work of the machine is none of the parser's.
const INPUT_TIME_MAX: Duration = Duration::from_secs(1);
/// A run stops after this many findings: they are mostly the same one.
const FINDINGS_MAX: usize = 5;
/// Inputs grow no further than this, in bytes.
const INPUT_BYTES_MAX: usize = 256 << 10;

/// What a run did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Inputs tried.
    pub runs: u64,
    /// Inputs that panicked or took too long, saved for the regression test.
    pub findings: Vec<PathBuf>,
    /// The longest that one input took.
    pub slowest: Duration,
}

/// Runs `target` on every file of `corpus_dir` and then, until `duration` is over, on mutations of
/// them. The same seed gives the same inputs in the same order. Findings are written to `corpus_dir` as
/// `crash-<digest>`, and so run first the next time.
///
/// # Errors
/// The corpus cannot be read, or a finding cannot be written.
pub fn run(
    target: &Target,
    corpus_dir: &Path,
    seed: u64,
    duration: Duration,
) -> io::Result<Outcome> {
    let mut corpus = read_corpus(corpus_dir)?;
    let mut outcome = Outcome::default();
    for input in &corpus {
        try_input(target, input, corpus_dir, &mut outcome)?;
    }
    corpus.push(Vec::new());
    let mut random = Random::new(seed);
    let since = Instant::now();
    while since.elapsed() < duration && outcome.findings.len() < FINDINGS_MAX {
        let mut input = random.pick(&corpus).cloned().unwrap_or_default();
        for _ in 0..=random.below(6) {
            mutate(&mut input, &corpus, &mut random);
        }
        input.truncate(INPUT_BYTES_MAX);
        try_input(target, &input, corpus_dir, &mut outcome)?;
    }
    Ok(outcome)
}

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|(known, _)| *known == name)
}

/// How much of a common time a target gets, in parts: WAL, records and frames are what a recovery lives
/// by, and the largest formats.
#[must_use]
pub fn weight(name: &str) -> u64 {
    match name {
        "wal_segment" | "wal_record" | "wal_container" | "record" | "frame" | "object" => 4,
        "layer" | "control_file" | "commit_index" | "file_table" => 2,
        _ => 1,
    }
}

/// In the order of their names, so that a seed means the same on every machine.
fn read_corpus(directory: &Path) -> io::Result<Vec<Vec<u8>>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry?.path());
    }
    paths.sort();
    paths
        .iter()
        .filter(|path| path.is_file())
        .map(std::fs::read)
        .collect()
}

/// What this thread has used.
fn processor_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(used.tv_sec).unwrap_or(0),
        u32::try_from(used.tv_nsec).unwrap_or(0),
    )
}

fn try_input(
    target: &Target,
    input: &[u8],
    directory: &Path,
    outcome: &mut Outcome,
) -> io::Result<()> {
    let since = processor_time();
    let panicked = catch_unwind(AssertUnwindSafe(|| (target.1)(input))).is_err();
    let took = processor_time().saturating_sub(since);
    outcome.runs += 1;
    outcome.slowest = outcome.slowest.max(took);
    if panicked || took > INPUT_TIME_MAX {
        std::fs::create_dir_all(directory)?;
        let digest = blake3::hash(input).to_hex();
        let path = directory.join(format!("crash-{}", digest.get(..16).unwrap_or_default()));
        std::fs::write(&path, input)?;
        if !outcome.findings.contains(&path) {
            outcome.findings.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz")
            .join(name)
    }

    /// Every kept input, and a breath of mutation, on every target.
    #[test]
    fn the_corpus_passes() {
        for target in TARGETS {
            let outcome = run(target, &corpus(target.0), 1, Duration::from_millis(50)).unwrap();
            assert!(outcome.findings.is_empty(), "{}: {outcome:?}", target.0);
            assert!(outcome.runs > 1);
        }
    }

    #[test]
    fn the_driver_finds_a_panic() {
        let target: Target = ("planted", |input| assert!(!input.starts_with(b"ab\xFF")));
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("seed"), b"abc").unwrap();
        let outcome = run(&target, directory.path(), 7, Duration::from_secs(20)).unwrap();
        assert_eq!(outcome.findings.len(), FINDINGS_MAX);
        let again = run(&target, directory.path(), 7, Duration::ZERO).unwrap();
        assert_eq!(again.findings.len(), FINDINGS_MAX);
    }

    #[test]
    fn a_seed_repeats() {
        let inputs = |seed| {
            let mut random = Random::new(seed);
            let corpus = [b"0/4000028".to_vec(), vec![0; 64]];
            let mut input = corpus[0].clone();
            for _ in 0..200 {
                mutate(&mut input, &corpus, &mut random);
            }
            input
        };
        assert_eq!(inputs(3), inputs(3));
        assert_ne!(inputs(3), inputs(4));
    }
}
