//! What an operator should know of a capture: a few names of each kind, and how many there were.

use std::sync::{Mutex, PoisonError};

/// Names that are told; more are counted.
const NAMES_MAX: usize = 20;

/// See the module.
#[derive(Default)]
pub(in crate::component::drivers) struct Notes(Mutex<Vec<Kind>>);

struct Kind {
    what: &'static str,
    names: Vec<String>,
    count: u64,
}

impl Notes {
    /// Notes that `what` is true of `path`.
    pub(in crate::component::drivers) fn add(&self, what: &'static str, path: &[u8]) {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kinds.iter().position(|kind| kind.what == what);
        let at = at.unwrap_or_else(|| {
            kinds.push(Kind {
                what,
                names: Vec::new(),
                count: 0,
            });
            kinds.len().saturating_sub(1)
        });
        if let Some(kind) = kinds.get_mut(at) {
            kind.count += 1;
            if kind.names.len() < NAMES_MAX {
                // Quoted: a name may hold a line feed.
                kind.names
                    .push(format!("{:?}", String::from_utf8_lossy(path)));
            }
        }
    }

    /// One line for each kind.
    pub(in crate::component::drivers) fn lines(self) -> Vec<String> {
        let kinds = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let lines = kinds.into_iter().map(|mut kind| {
            kind.names.sort();
            let more = kind.count.saturating_sub(kind.names.len() as u64);
            let more = match more {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{}: {}{more}", kind.what, kind.names.join(", "))
        });
        lines.collect()
    }
}
