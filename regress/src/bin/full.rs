//! `full [PART]`: runs a part of the full tier, by number or name, and writes its evidence. Without
//! a part it lists them.

use pgark_regress::evidence::{PARTS, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(wanted) = std::env::args().nth(1).filter(|part| !part.is_empty()) else {
        println!("make test-full PART=n, each at most 40 minutes:");
        for (n, part) in (1..).zip(PARTS) {
            println!("  {n}  {:<10} {}", part.name, part.about);
        }
        return ExitCode::SUCCESS;
    };
    let found = (1..)
        .zip(PARTS)
        .find(|(n, part): &(usize, _)| n.to_string() == wanted || part.name == wanted);
    let Some((_, part)) = found else {
        eprintln!("full: there is no part \"{wanted}\"");
        return ExitCode::from(2);
    };
    match run(part) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("full: part {}: {message}", part.name);
            ExitCode::FAILURE
        }
    }
}
