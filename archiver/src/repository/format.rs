//! On-disk constants and types of format v1, without logic. `docs/formats/repository-v1.md` is
//! normative; this module follows it.

pub mod component;
pub mod layer;
pub mod manifest;

/// The repository format this pgark writes and reads.
pub const VERSION: u32 = 1;

/// Length of the header of an object of version 1, and of every object's footer.
pub const HEADER_BYTES: usize = 64;
/// Length of the header of an object of version 2.
pub const HEADER_2_BYTES: usize = 96;
/// Length of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 40;
/// What a frame takes beyond its payload: header and trailing checksum.
pub const FRAME_OVERHEAD_BYTES: u64 = 44;
/// Length of one entry of the table of contents.
pub const TOC_ENTRY_BYTES: usize = 24;
/// The version number in the headers of objects that this pgark writes. It reads 1 too.
pub const OBJECT_VERSION: u16 = 2;
/// A pack is closed once it has grown to this.
pub const PACK_BYTES_TARGET: u64 = 64 << 20;
/// The most plain bytes in one frame.
pub const FRAME_PLAIN_BYTES_MAX: usize = 16 << 20;
/// Pages in a full page frame.
pub const FRAME_PAGES: usize = 32;

/// What an object of frames holds; decides its magic and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// Data: pages and chunks.
    Pack,
    /// Metadata: layers and file tables.
    Meta,
    /// A backup's manifest.
    Manifest,
}

/// The first eight bytes of an object, and the last eight.
#[must_use]
pub const fn magic(kind: ObjectKind) -> &'static [u8; 8] {
    match kind {
        ObjectKind::Pack => b"PGARKPK1",
        ObjectKind::Meta => b"PGARKMT1",
        ObjectKind::Manifest => b"PGARKMF1",
    }
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameClass {
    /// Pages of relation files.
    Pages = 1,
    /// Pieces of other files.
    Chunks = 2,
    /// Layer records.
    Layers = 3,
    /// Lines of a file table.
    FileTable = 4,
    /// A manifest.
    Manifest = 5,
}

/// How a frame's payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Not at all.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

/// Lower-case hex.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// The bytes of exactly `2 * N` lower-case hex digits.
#[must_use]
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}
