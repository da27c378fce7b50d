#![cfg(any(test, feature = "fault-injection"))]
//! A storage with faults, for tests; never in a release build.
//!
//! [`Faults::parse`] reads what `PGARK_FAULT_STORAGE` holds: comma-separated, `n` counting calls of
//! the wrapped storage from 1 (`write` and `publish` of a writer are calls of their own):
//!
//! - `fail`, `fail-at:n`, `fail-after:n` (the first n calls work), `fail-if-exists:/path`:
//!   error `io`, kind Unavailable, and nothing is done.
//! - `full-if-exists:/path`: error `disk_full` from the calls that write.
//! - `hang`, `hang-at:n`, `hang-if-exists:/path` (until the file is removed): no answer.
//! - `latency-ms:n`: every call takes that much longer.
//! - `lost-reply:n`: call n is done and then answered with an error.
//! - `torn-put:n`: if call n is a put, half of the bytes are stored and the answer is an error: a
//!   storage that breaks its promise, for the readers' checks.
//! - `crash-after:n`: call n is done, then this process gets SIGKILL.

use super::{
    Bucket, Capabilities, Key, ObjectMeta, ObjectWriter, Put, SharedStorage, Storage, Stranger,
};
use crate::fault::injected;
use crate::{Error, Result};
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    FailFrom(u64),
    FailAt(u64),
    FailIfExists(PathBuf),
    FullIfExists(PathBuf),
    HangFrom(u64),
    HangAt(u64),
    HangIfExists(PathBuf),
    Latency(Duration),
    LostReply(u64),
    TornPut(u64),
    CrashAfter(u64),
}

/// The faults of a storage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// No faults.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Parses the grammar above; an empty text is no faults.
    ///
    /// # Errors
    /// Kind Invalid, code `bad_fault`.
    pub fn parse(text: &str) -> Result<Self> {
        let words = text.split(',').filter(|word| !word.is_empty());
        words.map(Fault::from_str).collect::<Result<_>>().map(Self)
    }
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let (name, argument) = word.split_once(':').unwrap_or((word, ""));
        let bad = || Error::invalid("bad_fault", format!("unknown fault {word:?}"));
        let n = || argument.parse::<u64>().map_err(|_| bad());
        let path = || PathBuf::from(argument);
        let takes_no_argument = matches!(name, "fail" | "hang");
        if takes_no_argument != argument.is_empty() {
            return Err(bad());
        }
        Ok(match name {
            "fail" => Self::FailFrom(1),
            "fail-after" => Self::FailFrom(n()?.saturating_add(1)),
            "fail-at" => Self::FailAt(n()?),
            "fail-if-exists" => Self::FailIfExists(path()),
            "full-if-exists" => Self::FullIfExists(path()),
            "hang" => Self::HangFrom(1),
            "hang-at" => Self::HangAt(n()?),
            "hang-if-exists" => Self::HangIfExists(path()),
            "latency-ms" => Self::Latency(Duration::from_millis(n()?)),
            "lost-reply" => Self::LostReply(n()?),
            "torn-put" => Self::TornPut(n()?),
            "crash-after" => Self::CrashAfter(n()?),
            _ => return Err(bad()),
        })
    }
}

/// A storage with faults before it.
#[derive(Debug, Clone)]
pub struct FaultyStorage {
    inner: SharedStorage,
    control: Arc<Control>,
}

#[derive(Debug)]
struct Control {
    faults: Faults,
    calls: AtomicU64,
}

impl FaultyStorage {
    /// `inner` with `faults`.
    #[must_use]
    pub fn new(inner: SharedStorage, faults: Faults) -> Self {
        let control = Control {
            faults,
            calls: AtomicU64::new(0),
        };
        Self {
            inner,
            control: Arc::new(control),
        }
    }

    /// How many calls there were.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.control.calls.load(Ordering::SeqCst)
    }

    fn call<T>(&self, name: &'static str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let n = self.control.begin(name, false)?;
        self.control.end(n, name, run())
    }
}

fn injected_error(name: &str) -> Error {
    Error::io(
        format!("could not {name}"),
        io::Error::other("injected fault"),
    )
}

fn hang_while(condition: impl Fn() -> bool) {
    while condition() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Control {
    /// Counts the call and applies what comes before it. Returns its number.
    fn begin(&self, name: &'static str, writes: bool) -> Result<u64> {
        let n = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        injected::count("storage", name);
        for fault in &self.faults.0 {
            match fault {
                Fault::Latency(duration) => std::thread::sleep(*duration),
                Fault::HangFrom(first) if n >= *first => hang_while(|| true),
                Fault::HangAt(at) if n == *at => hang_while(|| true),
                Fault::HangIfExists(path) => hang_while(|| path.exists()),
                Fault::FailFrom(first) if n >= *first => return Err(injected_error(name)),
                Fault::FailAt(at) if n == *at => return Err(injected_error(name)),
                Fault::FailIfExists(path) if path.exists() => return Err(injected_error(name)),
                Fault::FullIfExists(path) if writes && path.exists() => {
                    let full = io::Error::from(io::ErrorKind::StorageFull);
                    return Err(Error::io(format!("could not {name}"), full));
                }
                _ => {}
            }
        }
        Ok(n)
    }

    /// Applies what comes after call `n`.
    fn end<T>(&self, n: u64, name: &'static str, result: Result<T>) -> Result<T> {
        for fault in &self.faults.0 {
            match fault {
                Fault::CrashAfter(at) if n == *at => injected::kill_self(),
                Fault::LostReply(at) if n == *at => return Err(injected_error(name)),
                _ => {}
            }
        }
        result
    }

    fn tears(&self, n: u64) -> bool {
        self.faults.0.contains(&Fault::TornPut(n))
    }
}

impl Storage for FaultyStorage {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn probe(&self) -> Result<Capabilities> {
        self.inner.probe()
    }

    fn put_if_absent(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        let n = self.control.begin("put_if_absent", true)?;
        if self.control.tears(n) {
            let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
            let _ = self.inner.put_if_absent(key, half)?;
            return Err(injected_error("put_if_absent"));
        }
        let result = self.inner.put_if_absent(key, bytes);
        self.control.end(n, "put_if_absent", result)
    }

    fn start_object(&self) -> Result<Box<dyn ObjectWriter>> {
        let n = self.control.begin("start_object", true)?;
        let writer = FaultyWriter {
            inner: self.inner.start_object()?,
            control: Arc::clone(&self.control),
        };
        self.control.end(n, "start_object", Ok(Box::new(writer)))
    }

    fn object_writers_max(&self) -> usize {
        self.inner.object_writers_max()
    }

    fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        self.call("get", || self.inner.get(key, size_max))
    }

    fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.call("get_range", || self.inner.get_range(key, offset, length))
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectMeta>> {
        self.call("head", || self.inner.head(key))
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.call("list", || self.inner.list(prefix))
    }

    fn strangers(&self) -> Result<Vec<Stranger>> {
        self.call("strangers", || self.inner.strangers())
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.call("delete", || self.inner.delete(key))
    }

    fn make_durable(&self, key: &Key) -> Result<()> {
        self.call("make_durable", || self.inner.make_durable(key))
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    fn bucket(&self) -> Option<&dyn Bucket> {
        self.inner.bucket()
    }
}

struct FaultyWriter {
    inner: Box<dyn ObjectWriter>,
    control: Arc<Control>,
}

impl ObjectWriter for FaultyWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let n = self.control.begin("write", true)?;
        let result = self.inner.write(bytes);
        self.control.end(n, "write", result)
    }

    fn publish(self: Box<Self>, key: &Key) -> Result<Put> {
        let Self { inner, control } = *self;
        let n = control.begin("publish", true)?;
        let result = inner.publish(key);
        control.end(n, "publish", result)
    }
}

#[cfg(test)]
mod tests;
