//! Whether components are well.

use super::scratch::Scratch;
use super::{CheckLine, Context, Driver, Ground};
use crate::cancel::CancelToken;
use crate::clock::deadline;
use crate::config::Config;
use crate::{Error, Result};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(500);

/// What the driver says about its store.
///
/// # Errors
/// As [`Driver::check`], or no place for temporary files.
pub fn check(
    config: &Config,
    component: &str,
    driver: &dyn Driver,
    cancel: &CancelToken,
) -> Result<Vec<CheckLine>> {
    let scratch = Scratch::make(config)?;
    driver.check(&Context {
        component,
        cancel,
        scratch: scratch.path(),
    })
}

/// Waits until nothing is wrong with a store that was restored and started; what a restore has left beside it
/// stays until somebody removes it.
///
/// # Errors
/// Kind Unavailable: `not_ready`, `cancelled`.
pub fn wait(
    config: &Config,
    component: &str,
    driver: &dyn Driver,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<()> {
    let end = deadline(timeout);
    loop {
        cancel.check()?;
        let why = match check(config, component, driver, cancel) {
            Ok(lines) => match lines
                .into_iter()
                .find(|line| !line.ok && line.ground != Ground::Leftover)
            {
                None => return Ok(()),
                Some(line) => format!("{}: {}", line.name, line.detail),
            },
            Err(error) => error.to_string(),
        };
        if Instant::now() >= end {
            return Err(Error::unavailable(
                "not_ready",
                format!(
                    "\"{component}\" is restored, and does not get ready within {} s: {why}",
                    timeout.as_secs()
                ),
            ));
        }
        std::thread::sleep(POLL);
    }
}
