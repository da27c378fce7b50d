//! The tree of a volume as the `files` driver knows it, under paths of the host, and as it is in a backup,
//! under the volume's name.

use crate::Result;
use crate::component::{Entry, EntryKind, Point, Sink, Source, Stored};
use std::io::Read;

/// Two names of one directory.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// In a backup: the volume's name.
    pub(super) stored: Vec<u8>,
    /// On the host, without the first slash.
    pub(super) host: Vec<u8>,
}

/// What lies in `from`, under `to`. `None`: it does not lie there.
fn moved(path: &[u8], from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let rest = path.strip_prefix(from)?;
    (rest.is_empty() || rest.starts_with(b"/")).then(|| [to, rest].concat())
}

impl Names {
    fn to_stored(&self, path: &[u8]) -> Vec<u8> {
        moved(path, &self.host, &self.stored).unwrap_or_else(|| path.to_vec())
    }

    /// `None`: it is another volume's.
    pub(super) fn to_host(&self, path: &[u8]) -> Option<Vec<u8>> {
        moved(path, &self.stored, &self.host)
    }

    fn entry_to_stored(&self, mut entry: Entry) -> Entry {
        entry.path = self.to_stored(&entry.path);
        if let EntryKind::HardLink { to } = &mut entry.kind {
            *to = self.to_stored(to);
        }
        entry
    }

    fn entry_to_host(&self, mut entry: Entry) -> Option<Entry> {
        entry.path = self.to_host(&entry.path)?;
        if let EntryKind::HardLink { to } = &mut entry.kind {
            *to = self.to_host(to)?;
        }
        Some(entry)
    }
}

/// A sink that takes paths of the host.
pub(super) struct MappedSink<'a> {
    pub(super) names: Names,
    pub(super) sink: &'a dyn Sink,
}

impl Sink for MappedSink<'_> {
    fn entry(&self, entry: Entry) -> Result<()> {
        self.sink.entry(self.names.entry_to_stored(entry))
    }

    fn file(&self, entry: Entry, content: &mut dyn Read) -> Result<Stored> {
        self.sink.file(self.names.entry_to_stored(entry), content)
    }

    fn unchanged(&self, entry: &Entry) -> Result<bool> {
        self.sink
            .unchanged(&self.names.entry_to_stored(entry.clone()))
    }

    fn before(&self, path: &[u8]) -> Option<Entry> {
        let entry = self.sink.before(&self.names.to_stored(path))?;
        self.names.entry_to_host(entry)
    }

    fn parent(&self) -> Option<&Point> {
        self.sink.parent()
    }
}

/// A backup of one volume, with paths of the host.
pub(super) struct MappedSource<'a> {
    pub(super) names: Names,
    pub(super) source: &'a dyn Source,
}

impl Source for MappedSource<'_> {
    fn point(&self) -> &Point {
        self.source.point()
    }

    fn entries(&self) -> Box<dyn Iterator<Item = Result<Entry>> + '_> {
        // In order still: all of them change in the same way.
        Box::new(self.source.entries().filter_map(|entry| match entry {
            Ok(entry) => self.names.entry_to_host(entry).map(Ok),
            Err(error) => Some(Err(error)),
        }))
    }

    fn read(&self, path: &[u8]) -> Result<Box<dyn Read + Send + '_>> {
        self.source.read(&self.names.to_stored(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_within_is_moved() {
        let names = Names {
            stored: b"app".to_vec(),
            host: b"v/app/_data".to_vec(),
        };
        assert_eq!(names.to_host(b"app").unwrap(), b"v/app/_data");
        assert_eq!(names.to_host(b"app/a/app").unwrap(), b"v/app/_data/a/app");
        assert_eq!(names.to_host(b"app2/a"), None);
        assert_eq!(names.to_host(b".pgark-volumes.json"), None);
        let link = Entry {
            kind: EntryKind::HardLink {
                to: b"app/first".to_vec(),
            },
            ..Entry::file("app/second")
        };
        let host = names.entry_to_host(link.clone()).unwrap();
        assert_eq!(host.path, b"v/app/_data/second");
        assert_eq!(names.entry_to_stored(host), link);
        // A link that leads out of its volume is in no backup of ours.
        let out = Entry {
            kind: EntryKind::HardLink {
                to: b"other/first".to_vec(),
            },
            ..Entry::file("app/second")
        };
        assert!(names.entry_to_host(out).is_none());
    }
}
