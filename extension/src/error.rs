//! Errors, as Postgres reports them.

use pgark_types::schedule::ScheduleError;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// Ends the statement with an error.
pub(crate) fn raise(code: PgSqlErrorCode, message: String, detail: String, hint: String) -> ! {
    ErrorReport::new(code, message, "pgark")
        .set_detail(detail)
        .set_hint(hint)
        .report(PgLogLevel::ERROR);
    // Postgres unwinds at ERROR; the signature of report() does not say so.
    unreachable!("an ERROR does not return")
}

/// Ends the statement with an error about a parameter.
pub(crate) fn invalid(error: ScheduleError) -> ! {
    raise(
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        error.message,
        error.detail,
        error.hint,
    )
}
