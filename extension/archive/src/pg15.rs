//! The archive module ABI of Postgres 15 (`src/include/postmaster/pgarch.h`): the server owns the
//! struct of callbacks and the module fills it.

use crate::archive;
use std::ffi::c_char;

/// `ArchiveModuleCallbacks`.
#[repr(C)]
pub(crate) struct ArchiveModuleCallbacks {
    check_configured_cb: Option<unsafe extern "C-unwind" fn() -> bool>,
    archive_file_cb: Option<unsafe extern "C-unwind" fn(*const c_char, *const c_char) -> bool>,
    shutdown_cb: Option<unsafe extern "C-unwind" fn()>,
}

unsafe extern "C-unwind" fn check_configured() -> bool {
    archive::check_configured()
}

unsafe extern "C-unwind" fn archive_file(file: *const c_char, _path: *const c_char) -> bool {
    // SAFETY: Postgres passes a NUL-terminated name.
    unsafe { archive::archive_file(file) }
}

/// The symbol that Postgres looks up in an `archive_library`.
///
/// # Safety
/// `callbacks` points to the server's zeroed struct.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn _PG_archive_module_init(
    callbacks: *mut ArchiveModuleCallbacks,
) {
    // SAFETY: by this function's contract.
    unsafe {
        callbacks.write(ArchiveModuleCallbacks {
            check_configured_cb: Some(check_configured),
            archive_file_cb: Some(archive_file),
            shutdown_cb: None,
        });
    }
}
