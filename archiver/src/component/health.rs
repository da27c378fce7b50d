//! Whether components are well.

use super::scratch::Scratch;
use super::{CheckLine, Context, Driver};
use crate::Result;
use crate::cancel::CancelToken;
use crate::config::Config;

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
