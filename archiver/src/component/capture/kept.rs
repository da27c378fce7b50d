//! Lines of the parent's entry table that the new backup has as they are. A mark is all that they cost: a
//! frame whose lines are all marked goes into the new table whole.

use super::sums::Sums;
use crate::repository::component::{Line, Located};
use crate::{Error, Result};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The marks of one frame.
struct Frame {
    /// One bit for each line.
    marks: Vec<AtomicU64>,
    lines: usize,
    /// Of all its lines.
    sums: Sums,
}

/// See the module.
pub(super) struct Kept {
    frames: Vec<OnceLock<Frame>>,
}

/// How much of a frame is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    None,
    Some,
    All,
}

/// The word and the bit of a line.
const fn place(at: usize) -> (usize, u64) {
    (at / 64, 1 << (at % 64))
}

impl Frame {
    fn of(lines: &[Line]) -> Self {
        let mut sums = Sums::default();
        for line in lines {
            sums.line(&line.line);
        }
        let words = lines.len().div_ceil(64);
        Self {
            marks: (0..words).map(|_| AtomicU64::new(0)).collect(),
            lines: lines.len(),
            sums,
        }
    }

    fn count(&self) -> usize {
        let words = self.marks.iter().map(|word| word.load(Ordering::Relaxed));
        words.map(|word| word.count_ones() as usize).sum()
    }
}

impl Kept {
    /// Nothing of a table of so many frames.
    pub(super) fn new(frames: usize) -> Self {
        Self {
            frames: (0..frames).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Marks a line.
    ///
    /// # Errors
    /// Kind Invalid, `entry_twice`, when it is marked already.
    pub(super) fn mark(&self, found: &Located) -> Result<()> {
        let frame = self.frames.get(found.frame);
        let frame = frame.map(|frame| frame.get_or_init(|| Frame::of(&found.lines)));
        let (word, bit) = place(found.at);
        let word = frame.and_then(|frame| frame.marks.get(word));
        let word = word.ok_or_else(|| {
            Error::internal("lost_line", "a line of the parent's table is nowhere in it")
        })?;
        match word.fetch_or(bit, Ordering::Relaxed) & bit {
            0 => Ok(()),
            _ => Err(entry_twice(found.path())),
        }
    }

    fn frame(&self, number: usize) -> Option<&Frame> {
        self.frames.get(number)?.get()
    }

    pub(super) fn share(&self, number: usize) -> Share {
        let Some(frame) = self.frame(number) else {
            return Share::None;
        };
        match frame.count() {
            0 => Share::None,
            count if count == frame.lines => Share::All,
            _ => Share::Some,
        }
    }

    /// Whether line `at` of frame `number` is kept.
    pub(super) fn has(&self, number: usize, at: usize) -> bool {
        let (word, bit) = place(at);
        let word = self.frame(number).and_then(|frame| frame.marks.get(word));
        word.is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// What all lines of a frame add up to.
    pub(super) fn sums(&self, number: usize) -> Option<&Sums> {
        self.frame(number).map(|frame| &frame.sums)
    }
}

/// The error of a path that came before.
pub(super) fn entry_twice(path: &[u8]) -> Error {
    Error::invalid(
        "entry_twice",
        format!(
            "the driver delivered {:?} twice",
            String::from_utf8_lossy(path)
        ),
    )
}
