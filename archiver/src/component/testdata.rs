//! A component that lives in memory, for tests of what carries it.

use super::backup::{Options, Outcome, Taking};
use super::scratch::Scratch;
use super::*;
use crate::clock::SharedClock;
use crate::repository::Repository;
use crate::repository::format::component::ComponentLabel;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) const NAME: &str = "cache";

/// Bytes that do not compress.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Its entries, in the order in which they are handed over.
#[derive(Debug, Clone)]
pub(crate) struct Memory(pub(crate) Vec<(Entry, Vec<u8>)>);

pub(crate) fn entry(path: &[u8], kind: EntryKind) -> Entry {
    Entry {
        kind,
        mode: 0o640,
        uid: 1000,
        gid: 999,
        mtime_ns: -1_500_000_001,
        ..Entry::file(path)
    }
}

pub(crate) fn file(path: &[u8], token: &str, content: Vec<u8>) -> (Entry, Vec<u8>) {
    let entry = Entry {
        size: content.len() as u64,
        token: token.to_owned(),
        ..entry(path, EntryKind::File)
    };
    (entry, content)
}

impl Memory {
    /// Every kind of entry, small and large content, zeros, and names that are no text.
    pub(crate) fn of_everything() -> Self {
        let mut sparse = noise(70_000, 1);
        sparse.resize(3 << 20, 0);
        sparse.extend(noise(5_000, 2));
        let mut odd = file(b"z/\xff\xfe\nodd", "", noise(10, 3));
        odd.0.xattrs = vec![
            (b"user.a".to_vec(), b"\x00\xff".to_vec()),
            (b"user.b".to_vec(), Vec::new()),
        ];
        let target = b"../\xffsomewhere".to_vec();
        Self(vec![
            file(b"z/large", "t1", noise(6 << 20, 4)),
            (entry(b"z", EntryKind::Directory), Vec::new()),
            file(b"z/sparse", "t2", sparse),
            file(b"a", "t3", b"small".to_vec()),
            file(b"a-b", "t4", b"small".to_vec()),
            file(b"hex:61", "t5", noise(300_000, 5)),
            file(b"empty", "t6", Vec::new()),
            file(b"zeros", "t7", vec![0; 200_000]),
            odd,
            (entry(b"link", EntryKind::Symlink { target }), Vec::new()),
            (
                entry(b"hard", EntryKind::HardLink { to: b"a".to_vec() }),
                Vec::new(),
            ),
            (entry(b"fifo", EntryKind::Fifo), Vec::new()),
        ])
    }

    pub(crate) fn take(
        &self,
        repositories: &[Repository],
        clock: &SharedClock,
    ) -> crate::Result<Outcome> {
        self.take_with(repositories, clock, &Options::default())
    }

    pub(crate) fn take_with(
        &self,
        repositories: &[Repository],
        clock: &SharedClock,
        options: &Options,
    ) -> crate::Result<Outcome> {
        take(self, repositories, clock, options)
    }

    /// Into one repository; its label record.
    pub(crate) fn back_up(
        &self,
        repository: &Repository,
        clock: &SharedClock,
    ) -> crate::Result<ComponentLabel> {
        let outcome = self.take(std::slice::from_ref(repository), clock)?;
        Ok(outcome.label)
    }

    /// As a source lists it.
    pub(crate) fn sorted(&self) -> Vec<(Entry, Vec<u8>)> {
        let mut entries = self.0.clone();
        entries.sort_by(|a, b| a.0.path.cmp(&b.0.path));
        entries
    }
}

/// A backup through any driver.
pub(crate) fn take(
    driver: &dyn Driver,
    repositories: &[Repository],
    clock: &SharedClock,
    options: &Options,
) -> crate::Result<Outcome> {
    let directory = crate::backup::testdata::in_memory();
    let taking = Taking {
        name: NAME,
        driver,
        options,
        level: 1,
        scratch: &Scratch::within(directory.path())?,
        clock,
        cancel: &CancelToken::default(),
        bytes: &AtomicU64::new(0),
    };
    taking.run(repositories)
}

/// Everything that a source has.
pub(crate) fn all_of(source: &dyn Source) -> crate::Result<Vec<(Entry, Vec<u8>)>> {
    let mut all = Vec::new();
    for entry in source.entries() {
        let entry = entry?;
        let mut content = Vec::new();
        if entry.kind == EntryKind::File {
            let mut reader = source.read(&entry.path)?;
            reader
                .read_to_end(&mut content)
                .map_err(|e| content_error("could not read", e))?;
        }
        all.push((entry, content));
    }
    Ok(all)
}

impl Driver for Memory {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn stage(&self) -> Stage {
        Stage::Blob
    }

    fn check(&self, _: &Context<'_>) -> crate::Result<Vec<CheckLine>> {
        Ok(Vec::new())
    }

    fn capture(&self, _: &Context<'_>, sink: &dyn Sink) -> crate::Result<Point> {
        for (entry, content) in &self.0 {
            if entry.kind != EntryKind::File {
                sink.entry(entry.clone())?;
            } else if !sink.unchanged(entry)? {
                let stored = sink.file(entry.clone(), &mut content.as_slice())?;
                assert_eq!(stored.size, content.len() as u64);
            }
        }
        static NEXT: AtomicU64 = AtomicU64::new(1_790_000_000);
        let seconds = NEXT.fetch_add(1, Ordering::SeqCst);
        let at = chrono::DateTime::from_timestamp(i64::try_from(seconds).unwrap(), 0).unwrap();
        Ok(Point {
            consistency: Consistency::Fuzzy,
            from: at,
            until: at,
            clock_skew_seconds: Some(0.25),
            position: BTreeMap::new(),
            evidence: BTreeMap::new(),
            notes: vec!["a note".to_owned()],
            server_version: None,
        })
    }

    fn restore(&self, _: &Context<'_>, _: &dyn Source, _: &Request) -> crate::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn evidence(&self, _: &Context<'_>, _: &dyn Source, _: &Request) -> crate::Result<Evidence> {
        Ok(Evidence {
            ok: true,
            lines: Vec::new(),
        })
    }

    fn lever(&self, _: u64) -> Option<Lever> {
        None
    }

    fn hold(&self, _: &Context<'_>, _: &Lever) -> crate::Result<()> {
        Ok(())
    }

    fn release(&self, _: &Context<'_>, _: &Lever) -> crate::Result<()> {
        Ok(())
    }
}
