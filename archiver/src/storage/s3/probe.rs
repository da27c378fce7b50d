//! What the server can do, found out by doing it.

use super::exclusive::Exclusiveness;
use super::{Inner, TEMPORARY, nonce};
use crate::storage::{Capabilities, Put};
use crate::{Error, Result};
use bytes::Bytes;
use std::sync::Barrier;

/// Rounds of the race for one name. A server that looks before it stores loses within the first few.
const RACE_ROUNDS: u32 = 8;
/// Who races.
const RACERS: u8 = 4;

impl Inner {
    /// Works below `tmp/` and cleans up.
    pub(super) fn probe(&self) -> Result<Capabilities> {
        let exclusiveness = self.exclusiveness()?;
        let directory = format!("{TEMPORARY}probe-{}", nonce()?);
        let result = self.probe_below(&directory, exclusiveness);
        for round in 0..RACE_ROUNDS {
            // Best effort: what stays behind is in `tmp/`, in nobody's way. A server that has gone is not
            // waited for at every name.
            if self.delete(&format!("{directory}/{round}")).is_err() {
                break;
            }
        }
        let exclusive_put = result?;
        if !exclusive_put && exclusiveness == Exclusiveness::Native {
            tracing::warn!(
                code = "s3_conditional_put_races",
                "{} honours If-None-Match, but of several puts at once more than one wins: set conditional_put = \"emulated\"",
                self.place
            );
        }
        Ok(Capabilities {
            exclusive_put,
            // What S3 promises; it cannot be tried from here.
            durable_put: true,
        })
    }

    /// Whether in every round exactly one of several puts won, and its bytes are there at once.
    fn probe_below(&self, directory: &str, exclusiveness: Exclusiveness) -> Result<bool> {
        // Claims cost six requests each: fewer rounds.
        let rounds = match exclusiveness {
            Exclusiveness::Native => RACE_ROUNDS,
            Exclusiveness::Claims => 2,
        };
        for round in 0..rounds {
            if !self.race(&format!("{directory}/{round}"))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn race(&self, name: &str) -> Result<bool> {
        let start = Barrier::new(RACERS.into());
        let run = |racer: u8| {
            start.wait();
            self.put_exclusively(name, &Bytes::from(vec![racer; 64]))
        };
        let answers: Vec<Result<Put>> = std::thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> = (0..RACERS)
                .map(|racer| scope.spawn(move || run(racer)))
                .collect();
            let panicked = || Err(Error::internal("panic", "a probing thread panicked"));
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| panicked()))
                .collect()
        });
        let mut winners = Vec::new();
        for (racer, answer) in (0..RACERS).zip(answers) {
            if answer? == Put::Created {
                winners.push(racer);
            }
        }
        let [winner] = winners.as_slice() else {
            return Ok(false);
        };
        let key = crate::storage::Key::new(name)?;
        Ok(self.get(&key, 1024)? == vec![*winner; 64])
    }
}
