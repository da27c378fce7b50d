//! What the tests of drivers share: a driver without a repository.

use pgark_archiver::cancel::CancelToken;
use pgark_archiver::component::memory::{MemorySink, MemorySource};
use pgark_archiver::component::{
    Context, Driver, Entry, Evidence, Point, Request, Sink, Stored, drivers,
};
use pgark_archiver::{Error, Result};
use pgark_regress::TestDirectory;
use std::path::PathBuf;

/// Opens the driver of a component whose section is `settings`, without `kind`.
pub(crate) fn driver(kind: &str, settings: &str) -> Box<dyn Driver> {
    drivers::open("it", kind, &settings.parse().unwrap()).unwrap_or_else(|e| panic!("{}", text(&e)))
}

/// Everything that an error says.
pub(crate) fn text(error: &Error) -> String {
    format!(
        "{error}\n{}\n{}\n{}",
        error.code(),
        error.detail().unwrap_or_default(),
        error.hint().unwrap_or_default()
    )
}

/// A test's directory, and what drivers are called with.
pub(crate) struct Bench {
    pub(crate) directory: TestDirectory,
    pub(crate) cancel: CancelToken,
    scratch: PathBuf,
}

impl Bench {
    pub(crate) fn new(test: &str) -> Self {
        let directory = TestDirectory::new(test);
        Self {
            scratch: directory.folder("scratch"),
            cancel: CancelToken::default(),
            directory,
        }
    }

    pub(crate) fn context(&self) -> Context<'_> {
        Context {
            component: "it",
            cancel: &self.cancel,
            scratch: &self.scratch,
        }
    }

    pub(crate) fn try_capture(&self, driver: &dyn Driver) -> Result<MemorySource> {
        let sink = MemorySink::new();
        let point = driver.capture(&self.context(), &sink)?;
        Ok(sink.finish(point))
    }

    #[track_caller]
    pub(crate) fn capture_after(&self, driver: &dyn Driver, parent: MemorySource) -> MemorySource {
        let sink = MemorySink::with_parent(parent);
        let point = driver.capture(&self.context(), &sink);
        sink.finish(point.unwrap_or_else(|e| panic!("{}", text(&e))))
    }

    #[track_caller]
    pub(crate) fn capture(&self, driver: &dyn Driver) -> MemorySource {
        self.try_capture(driver)
            .unwrap_or_else(|e| panic!("{}", text(&e)))
    }

    pub(crate) fn try_restore(
        &self,
        driver: &dyn Driver,
        backup: &MemorySource,
        request: &Request,
    ) -> Result<Vec<String>> {
        driver.restore(&self.context(), backup, request)
    }

    #[track_caller]
    pub(crate) fn restore(
        &self,
        driver: &dyn Driver,
        backup: &MemorySource,
        request: &Request,
    ) -> Vec<String> {
        let done = self.try_restore(driver, backup, request);
        done.unwrap_or_else(|e| panic!("{}", text(&e)))
    }

    #[track_caller]
    pub(crate) fn evidence(
        &self,
        driver: &dyn Driver,
        backup: &MemorySource,
        request: &Request,
    ) -> Evidence {
        let found = driver.evidence(&self.context(), backup, request);
        found.unwrap_or_else(|e| panic!("{}", text(&e)))
    }
}

/// A sink that calls back once some bytes of the content have arrived.
pub(crate) struct Midway<'f> {
    pub(crate) inner: MemorySink,
    pub(crate) after: u64,
    pub(crate) call: &'f (dyn Fn() + Sync),
}

impl Sink for Midway<'_> {
    fn entry(&self, entry: Entry) -> Result<()> {
        self.inner.entry(entry)
    }

    fn file(&self, entry: Entry, content: &mut dyn std::io::Read) -> Result<Stored> {
        struct Reader<'r> {
            inner: &'r mut dyn std::io::Read,
            left: u64,
            call: &'r (dyn Fn() + Sync),
        }
        impl std::io::Read for Reader<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let read = self.inner.read(buffer)?;
                let before = self.left;
                self.left = self.left.saturating_sub(read as u64);
                if before > 0 && self.left == 0 {
                    (self.call)();
                }
                Ok(read)
            }
        }
        let mut reader = Reader {
            inner: content,
            left: self.after,
            call: self.call,
        };
        self.inner.file(entry, &mut reader)
    }

    fn unchanged(&self, entry: &Entry) -> Result<bool> {
        self.inner.unchanged(entry)
    }

    fn parent(&self) -> Option<&Point> {
        self.inner.parent()
    }
}
