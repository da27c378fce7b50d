//! The archive module ABI of Postgres 16 and later (`src/include/archive/archive_module.h`): the
//! module owns the struct of callbacks, and each gets the module's state first.

use crate::archive;
use std::ffi::{c_char, c_void};

/// `ArchiveModuleState`. The module keeps none.
#[repr(C)]
pub(crate) struct ArchiveModuleState {
    private_data: *mut c_void,
}

type State = *mut ArchiveModuleState;

/// `ArchiveModuleCallbacks`.
#[repr(C)]
pub(crate) struct ArchiveModuleCallbacks {
    startup_cb: Option<unsafe extern "C-unwind" fn(State)>,
    check_configured_cb: Option<unsafe extern "C-unwind" fn(State) -> bool>,
    archive_file_cb:
        Option<unsafe extern "C-unwind" fn(State, *const c_char, *const c_char) -> bool>,
    shutdown_cb: Option<unsafe extern "C-unwind" fn(State)>,
}

unsafe extern "C-unwind" fn check_configured(_state: State) -> bool {
    archive::check_configured()
}

unsafe extern "C-unwind" fn archive_file(
    _state: State,
    file: *const c_char,
    _path: *const c_char,
) -> bool {
    // SAFETY: Postgres passes a NUL-terminated name.
    unsafe { archive::archive_file(file) }
}

static CALLBACKS: ArchiveModuleCallbacks = ArchiveModuleCallbacks {
    startup_cb: None,
    check_configured_cb: Some(check_configured),
    archive_file_cb: Some(archive_file),
    shutdown_cb: None,
};

/// The symbol that Postgres looks up in an `archive_library`.
#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn _PG_archive_module_init() -> *const ArchiveModuleCallbacks {
    &raw const CALLBACKS
}
