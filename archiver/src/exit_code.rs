//! Process exit codes: stable, documented in `docs/reference/exit-codes.md`, never reused.

use crate::{Error, ErrorKind};

/// Done.
pub const DONE: u8 = 0;
/// archive-get: the file is proven absent.
pub const ABSENT: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// check, verify and the like found something.
pub const FINDINGS: u8 = 3;
/// archive-get: the command line is wrong.
pub const GET_USAGE: u8 = 209;

/// The exit code of an error, for every verb but archive-get. Below 126, so that Postgres's
/// archiver tries again instead of restarting.
#[must_use]
pub fn of(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::Invalid => 10,
        ErrorKind::Unavailable => 20,
        ErrorKind::Data => 30,
        ErrorKind::Conflict => 40,
        ErrorKind::Fenced => 50,
        ErrorKind::Internal => 70,
    }
}

/// The exit code of an error in archive-get. Above 125: Postgres takes anything from 1 to 125 for
/// "the end of WAL" and would promote (`RestoreArchivedFile`, `xlogarchive.c`).
#[must_use]
pub fn of_archive_get(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::Invalid => 201,
        ErrorKind::Unavailable => 202,
        ErrorKind::Data => 203,
        ErrorKind::Conflict => 204,
        ErrorKind::Fenced => 205,
        ErrorKind::Internal => 207,
    }
}
