//! WAL page headers (`src/include/access/xlog_internal.h`, `XLogPageHeaderData` and
//! `XLogLongPageHeaderData`) and the checks that a file must pass to be a WAL segment.

use crate::{Error, Result};
use pgark_types::{Lsn, SegmentName, SegmentSize, SystemId, TimelineId};

/// `XLOG_BLCKSZ`: the one WAL page size pgark supports.
pub const PAGE_BYTES: usize = 8192;
/// `SizeOfXLogShortPHD`.
pub const SHORT_HEADER_BYTES: usize = 24;
/// `SizeOfXLogLongPHD`: the header of a segment's first page.
pub const LONG_HEADER_BYTES: usize = 40;

/// `XLP_FIRST_IS_CONTRECORD`: the page begins with the rest of a record.
pub const FIRST_IS_CONTRECORD: u16 = 0x0001;
/// `XLP_LONG_HEADER`: the header is of the long form.
pub const LONG_HEADER: u16 = 0x0002;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the record that should go on here was given up.
pub const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
/// Every flag that PG15 to 18 may set.
const ALL_FLAGS: u16 = 0x000F;

/// The page header that every WAL page begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// `xlp_magic`.
    pub magic: u16,
    /// `xlp_info`.
    pub info: u16,
    /// `xlp_tli`, as it stands (0 in a zeroed page).
    pub timeline: u32,
    /// `xlp_pageaddr`.
    pub address: Lsn,
    /// `xlp_rem_len`: bytes of the continued record that are still to come, this page's included.
    pub remaining: u32,
}

impl PageHeader {
    /// Reads the header of a page; `None` when `page` is shorter than a header. Checks nothing.
    #[must_use]
    pub fn parse(page: &[u8]) -> Option<Self> {
        Some(Self {
            magic: u16_at(page, 0)?,
            info: u16_at(page, 2)?,
            timeline: u32_at(page, 4)?,
            address: Lsn(u64_at(page, 8)?),
            remaining: u32_at(page, 16)?,
        })
    }

    /// The length of this header in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        if self.info & LONG_HEADER == 0 {
            SHORT_HEADER_BYTES
        } else {
            LONG_HEADER_BYTES
        }
    }

    /// Whether all flags are ones that Postgres knows.
    #[must_use]
    pub const fn flags_known(self) -> bool {
        self.info & !ALL_FLAGS == 0
    }
}

/// The long header of a segment's first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// `xlp_sysid`.
    pub system_identifier: SystemId,
    /// `xlp_tli`. In the first segment of a timeline this is the parent's: Postgres copies the
    /// pages before the switch.
    pub timeline: TimelineId,
    /// `xlp_seg_size`.
    pub segment_size: SegmentSize,
    /// `xlp_pageaddr`: the segment's first LSN.
    pub page_address: Lsn,
    /// `xlp_magic`, which tells the major version.
    pub magic: u16,
}

impl SegmentHeader {
    /// The major version of the Postgres that wrote the segment.
    #[must_use]
    pub const fn major(self) -> Option<u32> {
        major_of_magic(self.magic)
    }
}

/// The major version that `magic` (`XLOG_PAGE_MAGIC`) stands for; `None` outside 15 to 18.
#[must_use]
pub const fn major_of_magic(magic: u16) -> Option<u32> {
    match magic {
        0xD110 => Some(15),
        0xD113 => Some(16),
        0xD116 => Some(17),
        0xD118 => Some(18),
        _ => None,
    }
}

/// Reads the long header at the start of `bytes`, a WAL segment or the beginning of one.
///
/// # Errors
/// Kind Data: `wal_header` when this is no WAL segment, `wal_magic` when it is of a Postgres that
/// pgark does not know, `wal_block_size` when its page size is not 8192.
pub fn parse_segment_header(bytes: &[u8]) -> Result<SegmentHeader> {
    let bad = |why: String| Error::data("wal_header", format!("not a WAL segment: {why}"));
    let page = PageHeader::parse(bytes);
    let (Some(page), Some(system_id), Some(segment_size), Some(block_size)) = (
        page,
        u64_at(bytes, 24),
        u32_at(bytes, 32),
        u32_at(bytes, 36),
    ) else {
        return Err(bad(format!("it is {} bytes long", bytes.len())));
    };
    if major_of_magic(page.magic).is_none() {
        return Err(Error::data(
            "wal_magic",
            format!(
                "WAL page magic {:04X} is none of PostgreSQL 15 to 18",
                page.magic
            ),
        ));
    }
    if !page.flags_known() || page.info & LONG_HEADER == 0 {
        return Err(bad(format!("page header flags {:04X}", page.info)));
    }
    if page.timeline == 0 {
        return Err(bad("timeline 0".to_owned()));
    }
    if usize::try_from(block_size) != Ok(PAGE_BYTES) {
        return Err(Error::data(
            "wal_block_size",
            format!("WAL page size {block_size} is not supported"),
        )
        .with_hint("pgark supports servers built with the default WAL page size, 8192."));
    }
    Ok(SegmentHeader {
        system_identifier: SystemId(system_id),
        timeline: TimelineId(page.timeline),
        segment_size: SegmentSize::new(u64::from(segment_size))
            .map_err(|_| bad(format!("segment size {segment_size}")))?,
        page_address: page.address,
        magic: page.magic,
    })
}

/// Checks that `bytes` can be the complete WAL segment `segment`: length, header, position and
/// timeline agree with the name. The system identifier is the caller's to compare.
///
/// # Errors
/// Kind Data: those of [`parse_segment_header`], and `wal_size`, `wal_address`, `wal_timeline`.
pub fn validate_segment(bytes: &[u8], segment: SegmentName) -> Result<SegmentHeader> {
    validate_start(bytes, bytes.len() as u64, segment)
}

/// As [`validate_segment`], of a file of `length` bytes that begins with `bytes`: its first
/// [`LONG_HEADER_BYTES`] will do.
///
/// # Errors
/// As [`validate_segment`].
pub fn validate_start(bytes: &[u8], length: u64, segment: SegmentName) -> Result<SegmentHeader> {
    let of = |e: Error| e.context(format!("WAL file \"{segment}\""));
    let header = parse_segment_header(bytes).map_err(of)?;
    let size = header.segment_size;
    if length != size.bytes() {
        return Err(of(Error::data(
            "wal_size",
            format!("{length} bytes long instead of {}", size.bytes()),
        )));
    }
    let start = segment
        .start_lsn(size)
        .map_err(|e| of(Error::data("wal_address", e.to_string())))?;
    if header.page_address != start {
        return Err(of(Error::data(
            "wal_address",
            format!("holds WAL from {} instead of {start}", header.page_address),
        )));
    }
    if header.timeline > segment.timeline {
        return Err(of(Error::data(
            "wal_timeline",
            format!(
                "holds WAL of timeline {}, which is above its own",
                header.timeline
            ),
        )));
    }
    Ok(header)
}

/// The same place in WAL without the page header that an insert position steps over: after a
/// segment switch the server says `0/2000028` where the last record ends at `0/2000000`.
#[must_use]
pub fn before_page_header(lsn: Lsn) -> Lsn {
    let within = lsn.0 % PAGE_BYTES as u64;
    if within == SHORT_HEADER_BYTES as u64 || within == LONG_HEADER_BYTES as u64 {
        Lsn(lsn.0 - within)
    } else {
        lsn
    }
}

/// The little-endian number at `at`; `None` past the end.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The little-endian number at `at`; `None` past the end.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The little-endian number at `at`; `None` past the end.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        bytes[0..2].copy_from_slice(&0xD110_u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&LONG_HEADER.to_le_bytes());
        bytes[4..8].copy_from_slice(&2_u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&(3_u64 << 20).to_le_bytes());
        bytes[24..32].copy_from_slice(&77_u64.to_le_bytes());
        bytes[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        bytes
    }

    fn code(bytes: &[u8], name: &str) -> &'static str {
        match validate_segment(bytes, name.parse().unwrap()) {
            Ok(_) => "ok",
            Err(e) => e.code(),
        }
    }

    #[test]
    fn a_segment_must_match_its_name() {
        let bytes = segment();
        let header = validate_segment(&bytes, "000000020000000000000003".parse().unwrap()).unwrap();
        assert_eq!(header.system_identifier, SystemId(77));
        assert_eq!(header.major(), Some(15));
        // The first segment of timeline 3 begins with pages of timeline 2.
        assert_eq!(code(&bytes, "000000030000000000000003"), "ok");
        assert_eq!(code(&bytes, "000000010000000000000003"), "wal_timeline");
        assert_eq!(code(&bytes, "000000020000000000000004"), "wal_address");
        assert_eq!(code(&bytes, "000000020000000000001003"), "wal_address");
        assert_eq!(code(&bytes[..8192], "000000020000000000000003"), "wal_size");
    }

    #[test]
    fn every_header_field_is_checked() {
        let name = "000000020000000000000003";
        for (at, value, expected) in [
            (0, 0x0D, "wal_magic"),
            (2, 0x00, "wal_header"),
            (2, 0x12, "wal_header"),
            (4, 0x00, "wal_header"),
            (9, 0x20, "wal_address"),
            (34, 0x20, "wal_size"),
            (33, 0x01, "wal_header"),
            (37, 0x40, "wal_block_size"),
        ] {
            let mut bytes = segment();
            bytes[at] = value;
            assert_eq!(code(&bytes, name), expected, "byte {at} = {value}");
        }
        for len in 0..LONG_HEADER_BYTES {
            assert_eq!(code(&segment()[..len], name), "wal_header");
        }
    }
}
