//! What the server can do, found out by doing it.

use super::Inner;
use super::failure::{Failure, Fault};
use super::naming::{Naming, give_name, random_name};
use crate::storage::{Capabilities, Key, Put};
use crate::{Error, Result};
use std::sync::Barrier;

/// Rounds of the race for one name. A server that looks before it renames loses within the first few.
const RACE_ROUNDS: u32 = 8;
/// Who races, each over a connection of its own: a server does the requests of one in turn.
const RACERS: u8 = 4;

impl Inner {
    /// Works below `tmp` and cleans up.
    pub(super) fn probe(&self) -> Result<Capabilities> {
        let naming = self.naming()?;
        let operation = self.operation("probe", "", 0);
        let durable_put = self.block(&operation, async |connection, _| {
            self.learn_syncs(connection).await
        })?;
        Ok(Capabilities {
            exclusive_put: naming != Naming::Unsafe && self.race(naming)?,
            durable_put,
        })
    }

    /// Whether a name that is taken is refused, and of several racers to one name exactly one gets it.
    pub(super) fn race(&self, naming: Naming) -> Result<bool> {
        let directory = format!("tmp/probe-{}", random_name()?);
        let made = self.operation("create", &directory, 0);
        self.block(&made, async |connection, _| {
            let below = format!("{directory}/x");
            self.make_directories(connection, &below).await
        })?;
        let mut result = Ok(true);
        for round in 0..RACE_ROUNDS {
            result = self.race_once(naming, &format!("{directory}/{round}"));
            if !matches!(result, Ok(true)) {
                break;
            }
        }
        let cleaned = self.operation("remove", &directory, 0);
        // Best effort: what stays behind is in `tmp`, where it is in nobody's way.
        let _ = self.block(&cleaned, async |connection, _| {
            let path = self.path(&directory);
            if let Ok(Some(names)) = connection.names(&path).await {
                for (name, _) in names {
                    let _ = connection.remove(&format!("{path}/{name}")).await;
                }
            }
            let _ = connection.remove_directory(&path).await;
            Ok(())
        });
        result
    }

    fn race_once(&self, naming: Naming, name: &str) -> Result<bool> {
        let start = Barrier::new(RACERS.into());
        let run = |racer: u8| {
            let own = self.racer_file(name, racer);
            start.wait();
            own.and_then(|own| self.racer_name(naming, &own, name))
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
        // One who comes late, too, must be told.
        let late = self.racer_file(name, RACERS)?;
        let late = self.racer_name(naming, &late, name)?;
        let key = Key::new(name)?;
        Ok(late == Put::Exists && self.get(&key, 1024)? == vec![*winner; 64])
    }

    fn racer_file(&self, name: &str, racer: u8) -> Result<String> {
        let own = format!("{name}-{racer}");
        let operation = self.operation("put", &own, 0);
        self.block(&operation, async |connection, _| {
            let path = self.path(&own);
            let _ = connection.remove(&path).await;
            match connection.create(&path, &[racer; 64], &self.upload).await {
                Ok(()) => Ok(()),
                Err(fault) => {
                    let what = "could not write file";
                    Err(self.explain(connection, what, &own, 64, fault).await)
                }
            }
        })?;
        Ok(own)
    }

    fn racer_name(&self, naming: Naming, own: &str, name: &str) -> Result<Put> {
        let operation = self.operation("name", name, 0);
        self.block(&operation, async |connection, _| {
            let (from, to) = (self.path(own), self.path(name));
            match give_name(connection, naming, &from, &to).await {
                Ok(()) => Ok(Put::Created),
                Err(Fault::Refused(_)) => Ok(Put::Exists),
                Err(Fault::Lost(text)) => Err(Failure::broken(text)),
            }
        })
    }
}
