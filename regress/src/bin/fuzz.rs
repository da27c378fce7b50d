//! `fuzz --target T | --all  [--seconds N] [--seed S]`: runs the fuzz targets, N seconds in all, by weight.
//! Exit 1 when one found something; the inputs stay in `regress/fuzz/<target>`.

use pgark_regress::fuzz::{TARGETS, Target, find, run, weight};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

struct Arguments {
    targets: Vec<&'static Target>,
    seconds: u64,
    seed: u64,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments {
        targets: Vec::new(),
        seconds: 10,
        seed: 1,
    };
    while let Some(flag) = words.next() {
        if flag == "--all" {
            arguments.targets = TARGETS.iter().collect();
            continue;
        }
        let value = words
            .next()
            .ok_or_else(|| format!("{flag} needs a value"))?;
        let number = || {
            value
                .parse()
                .map_err(|_| format!("invalid number \"{value}\""))
        };
        match flag.as_str() {
            "--target" => arguments
                .targets
                .push(find(&value).ok_or_else(|| format!("no target \"{value}\""))?),
            "--seconds" => arguments.seconds = number()?,
            "--seed" => arguments.seed = number()?,
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    if arguments.targets.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        return Err(format!("name a --target ({}) or --all", names.join(", ")));
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("fuzz: {message}");
            return ExitCode::from(2);
        }
    };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut clean = true;
    let weights: u64 = arguments
        .targets
        .iter()
        .map(|target| weight(target.0))
        .sum();
    for target in arguments.targets {
        let share = arguments.seconds * 1000 * weight(target.0) / weights.max(1);
        let duration = Duration::from_millis(share);
        match run(target, &corpus.join(target.0), arguments.seed, duration) {
            Ok(outcome) => {
                let (runs, slowest) = (outcome.runs, outcome.slowest);
                println!("{:<16} {runs:>10} inputs, slowest {slowest:?}", target.0);
                for path in &outcome.findings {
                    clean = false;
                    println!("  FOUND {}", path.display());
                }
            }
            Err(error) => {
                clean = false;
                println!("{:<16} {error}", target.0);
            }
        }
    }
    ExitCode::from(u8::from(!clean))
}
