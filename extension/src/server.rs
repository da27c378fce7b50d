//! Everything unsafe of the extension: what it takes from the backend beside pgrx's safe calls.

use pgrx::lwlock::PgLwLock;
use pgrx::pg_sys;
use pgrx::shmem::AssertPGRXSharedMemory;
use std::ffi::CStr;

/// Whether the postmaster loads the library now, from shared_preload_libraries.
pub(crate) fn is_preloading() -> bool {
    // SAFETY: a global that the postmaster writes before anything else runs.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether the procedure that asks cannot commit: the session is between BEGIN and COMMIT, or a function
/// has called the procedure.
pub(crate) fn in_transaction_block() -> bool {
    // SAFETY: reads the backend's own transaction state, and that of the procedure that runs now.
    unsafe { pg_sys::IsTransactionBlock() || !pg_sys::SPI_inside_nonatomic_context() }
}

/// Microseconds since 2000-01-01.
pub(crate) fn now() -> pg_sys::TimestampTz {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// The name of the database that the session is connected to.
pub(crate) fn database_name() -> Option<String> {
    // SAFETY: within a transaction, as every function call is; the result is palloc'd or null.
    unsafe {
        let name = pg_sys::get_database_name(pg_sys::MyDatabaseId);
        if name.is_null() {
            return None;
        }
        Some(CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

/// Random bytes from the operating system.
pub(crate) fn random() -> Option<[u8; 16]> {
    let mut bytes = [0_u8; 16];
    // SAFETY: writes as many bytes as it is told that there are.
    let filled = unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) };
    filled.then_some(bytes)
}

/// Reads the configuration files again. The handler of SIGHUP only notes that there is news; a worker takes
/// it when it has no transaction.
pub(crate) fn reload_settings() {
    // SAFETY: between transactions of the worker's own process, as the server's own workers do it.
    unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) }
}

/// Ends the worker's process in such a way that the server starts it again: it takes status 0 for "done".
pub(crate) fn exit_to_restart() -> ! {
    // SAFETY: the backend's own way out, between transactions; nothing here waits to be dropped.
    unsafe { pg_sys::proc_exit(1) }
}

/// The name of the database's encoding, and whether text of it can be passed to Rust.
pub(crate) fn encoding() -> (String, bool) {
    // SAFETY: reads the backend's own state; the name is a constant of the server.
    unsafe {
        let encoding = pg_sys::GetDatabaseEncoding();
        let name = CStr::from_ptr(pg_sys::GetDatabaseEncodingName());
        let known = [pg_sys::pg_enc::PG_UTF8, pg_sys::pg_enc::PG_SQL_ASCII];
        let is_known = known
            .iter()
            .any(|one| i64::from(*one) == i64::from(encoding));
        (name.to_string_lossy().into_owned(), is_known)
    }
}

/// Refuses settings pgark.* that nobody defined.
pub(crate) fn reserve_prefix(prefix: &'static CStr) {
    // SAFETY: takes a C string that lives as long as the process.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) }
}

/// A place in shared memory behind a lightweight lock.
///
/// `T` must be plain data: no pointers, and valid in every process of the server.
pub(crate) const fn shared<T: Copy>(name: &'static CStr) -> PgLwLock<AssertPGRXSharedMemory<T>> {
    // SAFETY: names are unique within this library, which is the only one to use them.
    unsafe { PgLwLock::new(name) }
}

/// Vouches for a value that goes into shared memory.
pub(crate) const fn plain<T: Copy>(value: T) -> AssertPGRXSharedMemory<T> {
    // SAFETY: callers keep numbers and bytes there alone (see `shared`).
    unsafe { AssertPGRXSharedMemory::new(value) }
}
