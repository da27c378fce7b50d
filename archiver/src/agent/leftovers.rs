//! Undoes what a pgark that died on this host has left held back or stopped: at the agent's start, and
//! whenever it happens while the agent runs.

use super::spawn;
use crate::Result;
use crate::component::levers;
use crate::component::scratch::Scratch;
use crate::config::Config;
use std::sync::Arc;
use std::time::Duration;

/// Writers wait meanwhile.
const EVERY: Duration = Duration::from_secs(2);
/// After something could not be undone, which is logged every time.
const EVERY_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Starts looking. Only ledgers whose run is dead are touched.
pub(super) fn start(config: &Arc<Config>) -> Result<()> {
    let config = Arc::clone(config);
    spawn("leftovers", move || {
        // Writers first.
        levers::recover(&config);
        Scratch::sweep(&config);
        loop {
            let failures = levers::recover(&config);
            std::thread::sleep(match failures.is_empty() {
                true => EVERY,
                false => EVERY_AFTER_FAILURE,
            });
        }
    })
}
