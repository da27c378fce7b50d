//! Postgres's own `backup_manifest` (`src/backend/backup/backup_manifest.c`,
//! `src/common/parse_manifest.c`): what `pg_verifybackup` reads. Not pgark's manifest.

use crate::{Error, Result};
use chrono::{DateTime, NaiveDateTime, Utc};
use pgark_types::{Lsn, SystemId, TimelineId};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write;

const TIME_FORMAT: &str = "%Y-%m-%d %H:%M:%S GMT";

/// Writes a manifest file by file; the list is never held in memory.
#[derive(Debug)]
pub struct ManifestWriter<W: Write> {
    inner: W,
    digest: Sha256,
    first: bool,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins a manifest. `version` is 1 for Postgres 15 and 16, 2 from 17 on, which adds the
    /// system identifier.
    ///
    /// # Errors
    /// Kind Invalid, code `manifest_version`; kind Unavailable when writing fails.
    pub fn new(inner: W, version: u32, system_identifier: SystemId) -> Result<Self> {
        let mut writer = Self {
            inner,
            digest: Sha256::new(),
            first: true,
        };
        let mut head = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n");
        match version {
            1 => {}
            2 => head.push_str(&format!("\"System-Identifier\": {system_identifier},\n")),
            _ => {
                return Err(Error::invalid(
                    "manifest_version",
                    format!("backup manifest version {version} is not supported"),
                ));
            }
        }
        head.push_str("\"Files\": [");
        writer.put(&head)?;
        Ok(writer)
    }

    /// Adds a file: its path relative to the data directory (`pg_tblspc/<oid>/…` for a
    /// tablespace's), its size in bytes and the CRC32C of its content.
    ///
    /// # Errors
    /// Kind Unavailable when writing fails.
    pub fn file(
        &mut self,
        path: &[u8],
        size: u64,
        modified: DateTime<Utc>,
        crc32c: u32,
    ) -> Result<()> {
        let mut line = String::from(if self.first { "\n{ " } else { ",\n{ " });
        self.first = false;
        match std::str::from_utf8(path) {
            Ok(path) => {
                line.push_str("\"Path\": ");
                push_json_string(&mut line, path);
            }
            Err(_) => {
                line.push_str("\"Encoded-Path\": \"");
                push_hex(&mut line, path);
                line.push('"');
            }
        }
        let modified = modified.format(TIME_FORMAT);
        // Writing to a String cannot fail.
        let _ = write!(
            line,
            ", \"Size\": {size}, \"Last-Modified\": \"{modified}\""
        );
        line.push_str(", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"");
        // Postgres prints the number's bytes as they stand in memory.
        push_hex(&mut line, &crc32c.to_le_bytes());
        line.push_str("\" }");
        self.put(&line)
    }

    /// Ends the manifest: the WAL that the backup needs to become consistent (timeline, start, end;
    /// the newest timeline first), then the manifest's own checksum. Nothing is flushed.
    ///
    /// # Errors
    /// Kind Unavailable when writing fails.
    pub fn finish(mut self, wal_ranges: &[(TimelineId, Lsn, Lsn)]) -> Result<W> {
        let mut tail = String::from("\n],\n\"WAL-Ranges\": [");
        for (nth, (timeline, start, end)) in wal_ranges.iter().enumerate() {
            tail.push_str(if nth == 0 { "\n" } else { ",\n" });
            let _ = write!(
                tail,
                "{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}"
            );
        }
        tail.push_str("\n],\n");
        self.put(&tail)?;
        let mut last = String::from("\"Manifest-Checksum\": \"");
        push_hex(&mut last, &self.digest.finalize_reset());
        last.push_str("\"}\n");
        self.put(&last)?;
        Ok(self.inner)
    }

    fn put(&mut self, text: &str) -> Result<()> {
        self.digest.update(text.as_bytes());
        self.inner
            .write_all(text.as_bytes())
            .map_err(|e| Error::io("could not write the backup manifest", e))
    }
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
}

fn push_json_string(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c < ' ' => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

/// A parsed manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// 1, or 2 from Postgres 17 on.
    pub version: u32,
    /// The cluster, in version 2.
    pub system_identifier: Option<SystemId>,
    /// The files, in the manifest's order.
    pub files: Vec<ManifestFile>,
    /// The WAL that the backup needs: timeline, start, end.
    pub wal_ranges: Vec<(TimelineId, Lsn, Lsn)>,
}

/// One file of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the data directory.
    pub path: Vec<u8>,
    /// In bytes.
    pub size: u64,
    /// To the second.
    pub modified: DateTime<Utc>,
    /// Algorithm (`CRC32C`, `SHA256`, …) and value in hex as they stand; `None` without checksums.
    pub checksum: Option<(String, String)>,
}

impl ManifestFile {
    /// The CRC32C, when that is the algorithm.
    #[must_use]
    pub fn crc32c(&self) -> Option<u32> {
        let (algorithm, value) = self.checksum.as_ref()?;
        let bytes = parse_hex(value).filter(|_| algorithm == "CRC32C")?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct RawManifest {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u32,
    #[serde(rename = "System-Identifier")]
    system_identifier: Option<u64>,
    files: Vec<RawFile>,
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<RawRange>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct RawFile {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Last-Modified")]
    modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    checksum: Option<String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct RawRange {
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

fn unreadable(detail: impl std::fmt::Display) -> Error {
    Error::data("backup_manifest_unreadable", "backup_manifest is not valid")
        .with_detail(format!("{detail}."))
}

/// Parses a `backup_manifest` and checks its own checksum.
///
/// # Errors
/// Kind Data: `backup_manifest_checksum`, `backup_manifest_unreadable`.
pub fn parse(bytes: &[u8]) -> Result<Manifest> {
    let raw: RawManifest = serde_json::from_slice(bytes)
        .map_err(|e| unreadable(format_args!("The JSON parser says: {e}")))?;
    check_checksum(bytes, &raw.checksum)?;
    if !matches!(
        (raw.version, raw.system_identifier),
        (1, None) | (2, Some(_))
    ) {
        return Err(unreadable("Its version is unknown"));
    }
    let wal_ranges = raw
        .wal_ranges
        .into_iter()
        .map(|range| match range.timeline {
            0 => Err(unreadable("A timeline is 0")),
            id => Ok((TimelineId(id), range.start, range.end)),
        });
    Ok(Manifest {
        version: raw.version,
        system_identifier: raw.system_identifier.map(SystemId),
        files: raw
            .files
            .into_iter()
            .map(parse_file)
            .collect::<Result<_>>()?,
        wal_ranges: wal_ranges.collect::<Result<_>>()?,
    })
}

/// The value of `Manifest-Checksum` for a manifest whose lines before the last one are `covered`.
#[must_use]
pub fn digest(covered: &[u8]) -> String {
    let mut text = String::new();
    push_hex(&mut text, &Sha256::digest(covered));
    text
}

/// The checksum covers every line but the last (`verify_manifest_checksum`).
fn check_checksum(bytes: &[u8], expected: &str) -> Result<()> {
    let lines = bytes
        .strip_suffix(b"\n")
        .ok_or_else(|| unreadable("Its last line has no end"))?;
    let last = lines.iter().rposition(|b| *b == b'\n');
    let covered = last.and_then(|last| bytes.get(..=last)).unwrap_or_default();
    if digest(covered) == expected {
        return Ok(());
    }
    Err(Error::data(
        "backup_manifest_checksum",
        "backup_manifest does not match its checksum",
    ))
}

fn parse_file(raw: RawFile) -> Result<ManifestFile> {
    let path = match (raw.path, raw.encoded_path) {
        (Some(path), None) => path.into_bytes(),
        (None, Some(hex)) => {
            parse_hex(&hex).ok_or_else(|| unreadable("An encoded path is not in hex"))?
        }
        _ => return Err(unreadable("A file has no path or two")),
    };
    let modified = NaiveDateTime::parse_from_str(&raw.modified, TIME_FORMAT)
        .map_err(|_| unreadable(format_args!("A file's time is {:?}", raw.modified)))?;
    Ok(ManifestFile {
        path,
        size: raw.size,
        modified: modified.and_utc(),
        checksum: match (raw.algorithm, raw.checksum) {
            (Some(algorithm), Some(value)) => Some((algorithm, value)),
            (None, None) => None,
            _ => return Err(unreadable("A file's checksum is incomplete")),
        },
    })
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn time(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn sample(version: u32) -> Vec<u8> {
        let mut writer = ManifestWriter::new(Vec::new(), version, SystemId(u64::MAX)).unwrap();
        writer
            .file(b"backup_label", 225, time(1_795_202_484), 0xD480_A8AB)
            .unwrap();
        writer.file(b"a\"\\\n\x01\xC3\xA4", 0, time(0), 0).unwrap();
        writer.file(b"\xFF\x00", u64::MAX, time(1), 1).unwrap();
        let ranges = [
            (TimelineId(2), Lsn(5), Lsn(6)),
            (TimelineId(1), Lsn(0x200_0028), Lsn(5)),
        ];
        writer.finish(&ranges).unwrap()
    }

    /// The text a 15.20 wrote for the same file.
    #[test]
    fn postgres_writes_the_same() {
        let text = String::from_utf8(sample(1)).unwrap();
        assert!(text.starts_with(
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
            { \"Path\": \"backup_label\", \"Size\": 225, \"Last-Modified\": \"2026-11-20 19:21:24 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"aba880d4\" },\n"
        ), "{text}");
        assert!(text.contains("{ \"Encoded-Path\": \"ff00\", "));
        assert!(
            text.contains("\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 2, \"Start-LSN\": \"0/5\", ")
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = parse(&sample(2)).unwrap();
        assert_eq!(manifest.system_identifier, Some(SystemId(u64::MAX)));
        assert_eq!(parse(&sample(1)).unwrap().system_identifier, None);
        let [label, odd, raw] = &manifest.files[..] else {
            panic!()
        };
        assert_eq!(
            (label.crc32c(), label.modified),
            (Some(0xD480_A8AB), time(1_795_202_484))
        );
        assert_eq!(odd.path, b"a\"\\\n\x01\xC3\xA4");
        assert_eq!((&raw.path[..], raw.size), (&b"\xFF\x00"[..], u64::MAX));
        assert_eq!(manifest.wal_ranges.len(), 2);
        assert!(ManifestWriter::new(Vec::new(), 3, SystemId(1)).is_err());
    }

    #[test]
    fn every_flip_is_found() {
        let good = sample(2);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(parse(&good[..len]).is_err());
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in any::<Vec<u8>>()) {
            let _ = parse(&bytes);
        }

        #[test]
        fn round_trips(path in proptest::collection::vec(any::<u8>(), 0..30), text in any::<String>(),
            size: u64, seconds in 0_i64..4_000_000_000, crc: u32, start: u64, end: u64)
        {
            let mut writer = ManifestWriter::new(Vec::new(), 2, SystemId(size)).unwrap();
            writer.file(&path, size, time(seconds), crc).unwrap();
            writer.file(text.as_bytes(), 0, time(0), 0).unwrap();
            let ranges = [(TimelineId(7), Lsn(start), Lsn(end))];
            let manifest = parse(&writer.finish(&ranges).unwrap()).unwrap();
            prop_assert_eq!(&manifest.files[0].path, &path);
            prop_assert_eq!(&manifest.files[1].path, text.as_bytes());
            prop_assert_eq!(manifest.files[0].crc32c(), Some(crc));
            prop_assert_eq!(manifest.files[0].modified, time(seconds));
            prop_assert_eq!(&manifest.wal_ranges[..], &ranges[..]);
        }
    }
}
