//! `global/pg_control` of Postgres 15 to 18 (`src/include/catalog/pg_control.h`, `ControlFileData`).
//!
//! Little-endian, 8-byte alignment: the layout of x86-64 and aarch64 Linux.

use crate::{Error, Result};
use pgark_types::{Lsn, SegmentSize, SystemId, TimelineId};
use std::path::Path;
use std::time::Duration;

/// The file's size in bytes (`PG_CONTROL_FILE_SIZE`); all but the first 300 are zero.
pub const CONTROL_FILE_BYTES: usize = 8192;

/// The server rewrites the file in place and a reader may see half of it: try this often.
const READ_ATTEMPTS: u32 = 10;
const READ_PAUSE: Duration = Duration::from_millis(10);

/// What the cluster was doing when it last wrote the file (`DBState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// `initdb` has not finished.
    StartingUp,
    /// Shut down cleanly.
    ShutDown,
    /// A standby that was shut down cleanly.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// In crash recovery.
    InCrashRecovery,
    /// In archive recovery, or a running standby.
    InArchiveRecovery,
    /// Running as a primary, or crashed as one.
    InProduction,
}

impl ClusterState {
    fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::StartingUp,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }

    /// The words of `pg_controldata`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        }
    }
}

/// The fields of the control file that pgark uses; names follow Postgres's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's identity.
    pub system_identifier: SystemId,
    /// `pg_control_version`: 1300 (15, 16), 1700, 1800.
    pub control_version: u32,
    /// `catalog_version_no`.
    pub catalog_version: u32,
    /// What the cluster was doing.
    pub state: ClusterState,
    /// Where the latest checkpoint record stands.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of the latest checkpoint.
    pub timeline: TimelineId,
    /// The timeline before it; the same unless the checkpoint began a timeline.
    pub prev_timeline: TimelineId,
    /// `full_page_writes` at the latest checkpoint.
    pub full_page_writes: bool,
    /// When the latest checkpoint was made, in seconds since 1970.
    pub checkpoint_time: i64,
    /// How far replay must go before a standby is consistent; invalid on a primary.
    pub min_recovery_point: Lsn,
    /// The timeline of `min_recovery_point`; 0 when that is invalid.
    pub min_recovery_timeline: u32,
    /// The redo location of the base backup under recovery; else invalid.
    pub backup_start_point: Lsn,
    /// The end of a base backup taken from a standby, under recovery; else invalid.
    pub backup_end_point: Lsn,
    /// Recovery must still see the backup's end record.
    pub backup_end_required: bool,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `max_connections`; a standby needs at least as many. So for the next four.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_xacts: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_xact: i32,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// `BLCKSZ` in bytes.
    pub block_size: u32,
    /// `RELSEG_SIZE`: blocks per relation segment file.
    pub segment_blocks: u32,
    /// `XLOG_BLCKSZ` in bytes.
    pub wal_block_size: u32,
    /// `wal_segment_size`.
    pub wal_segment_size: SegmentSize,
    /// 0: no data checksums; 1: pages carry them.
    pub data_checksum_version: u32,
}

/// Reads fields at fixed offsets, all of which lie within the array.
struct Fields<'a>(&'a [u8; CONTROL_FILE_BYTES]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.0
            .get(offset..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .unwrap_or([0; N])
    }
    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }
    fn i32(&self, offset: usize) -> i32 {
        i32::from_le_bytes(self.bytes(offset))
    }
    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }
    fn lsn(&self, offset: usize) -> Lsn {
        Lsn(self.u64(offset))
    }
    fn flag(&self, offset: usize) -> bool {
        self.bytes::<1>(offset) != [0]
    }
    fn timeline(&self, offset: usize) -> Result<TimelineId> {
        match self.u32(offset) {
            0 => Err(unreadable("its timeline is 0")),
            id => Ok(TimelineId(id)),
        }
    }
}

fn unreadable(detail: &str) -> Error {
    Error::data("control_file_unreadable", "pg_control is not valid")
        .with_detail(format!("In the file, {detail}."))
        .with_hint("Compare the output of pg_controldata.")
}

impl ControlFile {
    /// Parses the file's 8192 bytes.
    ///
    /// # Errors
    /// Kind Data: `control_file_crc` (torn or damaged), `control_file_unreadable`. Kind Invalid:
    /// `control_file_version`, a server that pgark does not support.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let array: &[u8; CONTROL_FILE_BYTES] = bytes.try_into().map_err(|_| {
            Error::data("control_file_crc", "pg_control has the wrong size").with_detail(format!(
                "It has {} bytes instead of {CONTROL_FILE_BYTES}.",
                bytes.len()
            ))
        })?;
        let fields = Fields(array);
        check_crc(&fields)?;
        // maxAlign and floatFormat: what pg_control itself offers to tell architectures apart.
        if fields.u32(204) != 8 || f64::from_bits(fields.u64(208)) != 1_234_567.0 {
            return Err(unreadable("the architecture is another one"));
        }
        let state = ClusterState::from_raw(fields.u32(16));
        let wal_segment_size = SegmentSize::new(fields.u32(228).into());
        Ok(Self {
            system_identifier: SystemId(fields.u64(0)),
            control_version: fields.u32(8),
            catalog_version: fields.u32(12),
            state: state.ok_or_else(|| unreadable("the state is unknown"))?,
            checkpoint: fields.lsn(32),
            redo: fields.lsn(40),
            timeline: fields.timeline(48)?,
            prev_timeline: fields.timeline(52)?,
            full_page_writes: fields.flag(56),
            checkpoint_time: i64::from_le_bytes(fields.bytes(104)),
            min_recovery_point: fields.lsn(136),
            min_recovery_timeline: fields.u32(144),
            backup_start_point: fields.lsn(152),
            backup_end_point: fields.lsn(160),
            backup_end_required: fields.flag(168),
            wal_level: fields.i32(172),
            wal_log_hints: fields.flag(176),
            max_connections: fields.i32(180),
            max_worker_processes: fields.i32(184),
            max_wal_senders: fields.i32(188),
            max_prepared_xacts: fields.i32(192),
            max_locks_per_xact: fields.i32(196),
            track_commit_timestamp: fields.flag(200),
            block_size: fields.u32(216),
            segment_blocks: fields.u32(220),
            wal_block_size: fields.u32(224),
            wal_segment_size: wal_segment_size
                .map_err(|_| unreadable("the WAL segment size is out of range"))?,
            data_checksum_version: fields.u32(252),
        })
    }

    /// Reads `global/pg_control` below `data_directory`; again when it catches a write half done.
    /// Returns the 8192 bytes too, as they were parsed.
    ///
    /// # Errors
    /// As [`ControlFile::parse`]; kind Unavailable when the file cannot be read.
    pub fn read(data_directory: &Path) -> Result<(Self, Vec<u8>)> {
        let path = data_directory.join("global/pg_control");
        let mut attempt = 1;
        loop {
            let bytes = std::fs::read(&path)
                .map_err(|e| Error::io(format!("could not read file \"{}\"", path.display()), e))?;
            match Self::parse(&bytes) {
                Ok(control) => return Ok((control, bytes)),
                Err(e) if e.code() == "control_file_crc" && attempt < READ_ATTEMPTS => {
                    attempt += 1;
                    std::thread::sleep(READ_PAUSE);
                }
                Err(e) => return Err(e.context(path.display())),
            }
        }
    }

    /// The major version: 15 to 18. `None` for a development version of 15 or 16, or for 13 and
    /// 14, which share their control version.
    #[must_use]
    pub const fn major(&self) -> Option<u32> {
        match (self.control_version, self.catalog_version) {
            (1300, 202_209_061) => Some(15),
            (1300, 202_307_071) => Some(16),
            (1700, _) => Some(17),
            (1800, _) => Some(18),
            _ => None,
        }
    }
}

fn check_crc(fields: &Fields<'_>) -> Result<()> {
    let offset = match fields.u32(8) {
        1300 | 1700 => 288,
        1800 => 292,
        // A zeroed file is damage, not a foreign version.
        0 => return Err(Error::data("control_file_crc", "pg_control is empty")),
        version => {
            return Err(Error::invalid(
                "control_file_version",
                format!("pg_control has version {version}, which pgark does not support"),
            )
            .with_hint("pgark supports Postgres 15 to 18."));
        }
    };
    let covered = fields.0.get(..offset).unwrap_or_default();
    if crc32c::crc32c(covered) != fields.u32(offset) {
        return Err(Error::data(
            "control_file_crc",
            "pg_control does not match its checksum",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of a running 15.20 with data checksums, `initdb` defaults.
    const PG15: &[u8] = include_bytes!("../../tests/fixtures/pg_control.15");

    fn reseal(bytes: &mut [u8], offset: usize) {
        let crc = crc32c::crc32c(&bytes[..offset]);
        bytes[offset..offset + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Against what `pg_controldata` printed for the same file.
    #[test]
    fn postgres_agrees() {
        let control = ControlFile::parse(PG15).unwrap();
        let expected = ControlFile {
            system_identifier: SystemId(7_710_335_958_631_591_168),
            control_version: 1300,
            catalog_version: 202_209_061,
            state: ClusterState::InProduction,
            checkpoint: Lsn(0x500_0098),
            redo: Lsn(0x500_0060),
            timeline: TimelineId(1),
            prev_timeline: TimelineId(1),
            full_page_writes: true,
            checkpoint_time: 1_795_202_835,
            min_recovery_point: Lsn::INVALID,
            min_recovery_timeline: 0,
            backup_start_point: Lsn::INVALID,
            backup_end_point: Lsn::INVALID,
            backup_end_required: false,
            wal_level: 1,
            wal_log_hints: false,
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_xacts: 0,
            max_locks_per_xact: 64,
            track_commit_timestamp: false,
            block_size: 8192,
            segment_blocks: 131_072,
            wal_block_size: 8192,
            wal_segment_size: SegmentSize::DEFAULT,
            data_checksum_version: 1,
        };
        assert_eq!(control, expected);
        assert_eq!(control.major(), Some(15));
    }

    #[test]
    fn every_flip_of_a_covered_bit_is_found() {
        for bit in 0..292 * 8 {
            let mut bad = PG15.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ControlFile::parse(&bad).is_err(), "bit {bit}");
        }
        assert!(ControlFile::parse(&PG15[..8191]).is_err());
        assert!(ControlFile::parse(&[0; 8192]).is_err());
    }

    #[test]
    fn the_checksum_of_18_stands_four_bytes_later() {
        let mut bytes = PG15.to_vec();
        bytes[8..12].copy_from_slice(&1800_u32.to_le_bytes());
        reseal(&mut bytes, 292);
        let control = ControlFile::parse(&bytes).unwrap();
        assert_eq!(control.major(), Some(18));
    }

    #[test]
    fn values_out_of_range_are_errors() {
        for (offset, value) in [(16, 7), (48, 0), (228, 12_345), (204, 4)] {
            let mut bytes = PG15.to_vec();
            bytes[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
            reseal(&mut bytes, 288);
            let error = ControlFile::parse(&bytes).unwrap_err();
            assert_eq!(error.code(), "control_file_unreadable");
        }
        let mut bytes = PG15.to_vec();
        bytes[8..12].copy_from_slice(&1201_u32.to_le_bytes());
        assert_eq!(
            ControlFile::parse(&bytes).unwrap_err().code(),
            "control_file_version"
        );
    }

    #[test]
    fn a_torn_file_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("global")).unwrap();
        let path = directory.path().join("global/pg_control");
        std::fs::write(&path, &PG15[..100]).unwrap();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(25));
            std::fs::write(path, PG15).unwrap();
        });
        let (control, bytes) = ControlFile::read(directory.path()).unwrap();
        writer.join().unwrap();
        assert_eq!((control.major(), &bytes[..]), (Some(15), PG15));
        std::fs::remove_file(directory.path().join("global/pg_control")).unwrap();
        assert_eq!(
            ControlFile::read(directory.path()).unwrap_err().code(),
            "not_found"
        );
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), version in 0..4_usize) {
            let mut file = vec![0; CONTROL_FILE_BYTES];
            file[..bytes.len()].copy_from_slice(&bytes);
            let version = [0_u32, 1300, 1700, 1800][version];
            file[8..12].copy_from_slice(&version.to_le_bytes());
            reseal(&mut file, if version == 1800 { 292 } else { 288 });
            let _ = ControlFile::parse(&file);
            let _ = ControlFile::parse(&bytes);
        }
    }
}
