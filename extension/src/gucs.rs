//! Settings `pgark.*`. They exist in a session once the library is loaded.

use crate::{error, server};
use pgrx::PgSqlErrorCode;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::prelude::*;
use std::ffi::CString;

static DATABASE: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"postgres"));
static WORKER: GucSetting<bool> = GucSetting::<bool>::new(true);
static WORKER_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(15);
static JOB_LEASE: GucSetting<i32> = GucSetting::<i32>::new(60);
static JOB_ATTEMPTS_MAX: GucSetting<i32> = GucSetting::<i32>::new(3);
static JOB_KEEP: GucSetting<i32> = GucSetting::<i32>::new(90 * 1440);
static MISSED_AFTER: GucSetting<i32> = GucSetting::<i32>::new(300);

pub(crate) fn define() {
    // None of them is PGC_POSTMASTER: those cannot be made after the server's start, and the library
    // need not be in shared_preload_libraries.
    GucRegistry::define_string_guc(
        c"pgark.database",
        c"The database of this server that holds the extension pgark.",
        c"Jobs and schedules work there alone. The background worker connects to it, anew after a change.",
        &DATABASE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"pgark.worker",
        c"Lets pgark's background worker evaluate the schedules.",
        c"There is a worker only with pgark in shared_preload_libraries. It leaves the schedules to pg_cron while pg_cron evaluates them.",
        &WORKER,
        GucContext::Sighup,
        GucFlags::default(),
    );
    let int = |name, short, long, setting, min, max, unit| {
        GucRegistry::define_int_guc(
            name,
            short,
            long,
            setting,
            min,
            max,
            GucContext::Sighup,
            unit,
        );
    };
    int(
        c"pgark.worker_interval",
        c"How often the background worker looks whether a schedule is due.",
        c"An occurrence starts at most so much later than it is due.",
        &WORKER_INTERVAL,
        1,
        60,
        GucFlags::UNIT_S,
    );
    int(
        c"pgark.job_lease",
        c"How long a claimed job stays its agent's without a heartbeat.",
        c"Then the attempt counts as failed, and another one may begin.",
        &JOB_LEASE,
        1,
        3600,
        GucFlags::UNIT_S,
    );
    int(
        c"pgark.job_attempts_max",
        c"How often a job is tried before it has failed.",
        c"Errors that another attempt cannot mend end it at once.",
        &JOB_ATTEMPTS_MAX,
        1,
        100,
        GucFlags::default(),
    );
    int(
        c"pgark.job_keep",
        c"How long finished jobs and occurrences of schedules stay in the tables.",
        c"What jobs made is in the repository.",
        &JOB_KEEP,
        60,
        5_256_000,
        GucFlags::UNIT_MIN,
    );
    int(
        c"pgark.missed_after",
        c"How late an occurrence of a schedule may be found due before it counts as missed.",
        c"A schedule with the option missed = skip does not run missed occurrences.",
        &MISSED_AFTER,
        60,
        86_400,
        GucFlags::UNIT_S,
    );
    server::reserve_prefix(c"pgark");
}

/// The database that holds the extension.
pub(crate) fn database() -> String {
    let name = DATABASE.get().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Whether the worker is to evaluate schedules, and how often, in seconds.
pub(crate) fn worker() -> (bool, u64) {
    (
        WORKER.get(),
        u64::try_from(WORKER_INTERVAL.get()).unwrap_or(1).max(1),
    )
}

#[pg_extern(sql = false)]
fn check_database() {
    let (here, wanted) = (server::database_name().unwrap_or_default(), database());
    if here == wanted {
        return check_encoding(&here);
    }
    error::raise(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("pgark works in database \"{wanted}\" of this server, not in \"{here}\""),
        "Jobs and schedules live in one database, so that nothing is done twice.".to_owned(),
        format!(
            "Connect to \"{wanted}\", or set pgark.database = '{here}' in postgresql.conf and reload."
        ),
    )
}

/// Text comes to Rust as it lies in the database, and must be UTF-8 there.
fn check_encoding(here: &str) {
    let (encoding, is_known) = server::encoding();
    if is_known {
        return;
    }
    error::raise(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("pgark does not work in a database with encoding {encoding}"),
        format!("The encoding of \"{here}\" is {encoding}; pgark needs UTF8 or SQL_ASCII. What it backs up is the whole server, whatever the encodings of its databases."),
        "Make a database for it: CREATE DATABASE pgark ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0; and set pgark.database = 'pgark' in postgresql.conf and reload.".to_owned(),
    )
}
