//! What the module takes from the Postgres backend that loads it.
//!
//! Every symbol here exists in Postgres 15 to 18 with the same meaning, unless said otherwise.
//! None of the functions called after start-up can raise an ERROR, memory exhaustion apart: in
//! Postgres 15 an ERROR in the archiver ends the process.

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;

// src/include/utils/elog.h
const DEBUG1: c_int = 14;
const LOG: c_int = 15;
// GucContext, src/include/utils/guc.h
const PGC_SIGHUP: c_int = 2;

unsafe extern "C-unwind" {
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errmsg_internal(format: *const c_char, ...) -> c_int;
    fn errdetail_internal(format: *const c_char, ...) -> c_int;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
    fn DefineCustomStringVariable(
        name: *const c_char,
        short_description: *const c_char,
        long_description: *const c_char,
        value: *mut *mut c_char,
        boot_value: *const c_char,
        context: c_int,
        flags: c_int,
        check_hook: *const c_void,
        assign_hook: *const c_void,
        show_hook: *const c_void,
    );
    fn MarkGUCPrefixReserved(prefix: *const c_char);
}

// `volatile sig_atomic_t`, set by signal handlers. InterruptPending is deliberately not among
// them: a barrier sets it too, but the archiver never clears it, so that after the first DROP
// DATABASE nothing would be archived any more.
unsafe extern "C" {
    static ProcSignalBarrierPending: c_int;
    static ShutdownRequestPending: c_int;
    static ConfigReloadPending: c_int;
}

#[cfg(any(feature = "pg17", feature = "pg18"))]
unsafe extern "C" {
    static mut arch_module_check_errdetail_string: *const c_char;
}

/// `pgark_archive.socket`; Postgres owns what it points to.
static mut SOCKET: *mut c_char = ptr::null_mut();

/// Declares the module's settings. Postgres calls it once, when it loads the library.
#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn _PG_init() {
    // SAFETY: called by Postgres in a single-threaded process; all strings are static, and the
    // variable that the setting's value is kept in lives as long as the process.
    unsafe {
        DefineCustomStringVariable(
            c"pgark_archive.socket".as_ptr(),
            c"Sets the path of the pgark agent's socket.".as_ptr(),
            c"The same path stands as \"socket\" under [agent] in pgark.toml.".as_ptr(),
            &raw mut SOCKET,
            c"/run/pgark/agent.sock".as_ptr(),
            PGC_SIGHUP,
            0,
            ptr::null(),
            ptr::null(),
            ptr::null(),
        );
        MarkGUCPrefixReserved(c"pgark_archive".as_ptr());
    }
}

/// The setting `pgark_archive.socket`, or `None` when it is empty.
pub(crate) fn socket() -> Option<PathBuf> {
    // SAFETY: written by Postgres alone, in this same thread; a NUL-terminated string or null.
    let value = unsafe {
        let value = SOCKET;
        if value.is_null() {
            return None;
        }
        CStr::from_ptr(value)
    };
    let path = PathBuf::from(OsStr::from_bytes(value.to_bytes()));
    (!path.as_os_str().is_empty()).then_some(path)
}

/// What the server wants of this process that it cannot do while the module waits.
pub(crate) fn pending() -> Option<&'static str> {
    // SAFETY: plain ints of the backend, which signal handlers of this thread write.
    unsafe {
        if ptr::read_volatile(&raw const ProcSignalBarrierPending) != 0 {
            Some("a barrier that another session waits for")
        } else if ptr::read_volatile(&raw const ShutdownRequestPending) != 0 {
            Some("a request to shut down")
        } else if ptr::read_volatile(&raw const ConfigReloadPending) != 0 {
            Some("a reload of the configuration")
        } else {
            None
        }
    }
}

/// Says why the module is not ready, as the DETAIL of the server's warning (17 and later).
#[cfg(any(feature = "pg17", feature = "pg18"))]
pub(crate) fn set_not_ready(why: &'static CStr) {
    // SAFETY: the archiver reads it right after the callback, in this thread, and only prints it.
    unsafe { arch_module_check_errdetail_string = why.as_ptr() };
}

/// Before 17 the server's warning has no place for a reason: it goes to the log by itself.
#[cfg(not(any(feature = "pg17", feature = "pg18")))]
pub(crate) fn set_not_ready(why: &'static CStr) {
    report(
        LOG,
        "WAL archiving through pgark is not ready",
        &why.to_string_lossy(),
    );
}

/// Writes `message` with its DETAIL to the server's log.
pub(crate) fn log(message: &str, detail: &str) {
    report(LOG, message, detail);
}

/// As [`log`], but only for those who debug.
pub(crate) fn debug(message: &str, detail: &str) {
    report(DEBUG1, message, detail);
}

fn report(level: c_int, message: &str, detail: &str) {
    // Never as a format: the text holds names and answers from outside.
    let (Ok(message), Ok(detail)) = (CString::new(message), CString::new(detail)) else {
        return;
    };
    // SAFETY: the sequence that ereport() expands to, for a level that returns; all pointers
    // outlive the calls.
    unsafe {
        if errstart(level, ptr::null()) {
            errmsg_internal(c"%s".as_ptr(), message.as_ptr());
            errdetail_internal(c"%s".as_ptr(), detail.as_ptr());
            errfinish(c"pgark_archive".as_ptr(), 0, c"archive".as_ptr());
        }
    }
}

#[repr(C)]
struct AbiValues {
    version: c_int,
    function_arguments_max: c_int,
    index_keys_max: c_int,
    name_data_length: c_int,
    float8_by_value: c_int,
    extra: [u8; 32],
}

/// `Pg_magic_struct`, `src/include/fmgr.h`: how Postgres knows that a library was built for it.
#[repr(C)]
pub(crate) struct Magic {
    length: c_int,
    abi: AbiValues,
    #[cfg(feature = "pg18")]
    name: *const c_char,
    #[cfg(feature = "pg18")]
    module_version: *const c_char,
}

// SAFETY: holds pointers to static strings alone.
unsafe impl Sync for Magic {}

const MAJOR: c_int = if cfg!(feature = "pg15") {
    15
} else if cfg!(feature = "pg16") {
    16
} else if cfg!(feature = "pg17") {
    17
} else {
    18
};

const ABI_EXTRA: [u8; 32] = {
    let mut extra = [0; 32];
    let (head, _) = extra.split_at_mut(10);
    head.copy_from_slice(b"PostgreSQL");
    extra
};

static MAGIC: Magic = Magic {
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    length: size_of::<Magic>() as c_int,
    abi: AbiValues {
        version: MAJOR * 100,
        function_arguments_max: 100,
        index_keys_max: 32,
        name_data_length: 64,
        float8_by_value: 1,
        extra: ABI_EXTRA,
    },
    #[cfg(feature = "pg18")]
    name: c"pgark_archive".as_ptr(),
    #[cfg(feature = "pg18")]
    module_version: MODULE_VERSION.as_ptr(),
};

#[cfg(feature = "pg18")]
const MODULE_VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("the version holds a NUL"),
    };

/// What `PG_MODULE_MAGIC` defines in C.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn Pg_magic_func() -> *const Magic {
    &raw const MAGIC
}
