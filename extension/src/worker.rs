//! The background worker: evaluates the schedules where pg_cron does not. One short transaction at a
//! time; it opens no socket and does no work of a backup.

use crate::{gucs, progress, server};
use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags,
};
use pgrx::prelude::*;
use std::time::Duration;

/// After a crash of the worker. Its database may not exist yet: not more often.
const RESTART: Duration = Duration::from_secs(10);

/// Registers the worker; in the postmaster alone.
pub(crate) fn register() {
    BackgroundWorkerBuilder::new("pgark schedules")
        .set_type("pgark schedules")
        .set_library("pgark")
        .set_function("pgark_worker_main")
        .enable_spi_access()
        // A standby has no queue to write to.
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(RESTART))
        .load();
}

/// What the server calls in the worker's process.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgark_worker_main(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let database = gucs::database();
    BackgroundWorker::connect_worker_to_spi(Some(&database), None);
    loop {
        let (on, seconds) = gucs::worker();
        if !BackgroundWorker::wait_latch(Some(Duration::from_secs(seconds))) {
            return;
        }
        if BackgroundWorker::sighup_received() {
            server::reload_settings();
            // A worker stays in its database for good. The server starts another one, in the new one.
            if gucs::database() != database {
                server::exit_to_restart();
            }
            continue;
        }
        if on {
            BackgroundWorker::transaction(evaluate);
        }
    }
}

fn evaluate() {
    // The extension may not be there, or be an older version without schedules.
    let ready = Spi::get_one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'pgark')
            AND pg_catalog.to_regprocedure('pgark.tick(text)') IS NOT NULL",
    );
    if !matches!(ready, Ok(Some(true))) {
        return;
    }
    progress::tick("worker");
    // An error ends the worker, and with it the transaction; the server starts it again.
    if let Err(error) = Spi::run("SELECT pgark.tick('worker')") {
        warning!("pgark could not evaluate its schedules: {error}");
    }
}
