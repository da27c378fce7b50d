//! The layer: one backup's pages of one relation segment file.

use ulid::Ulid;

/// The first bytes of a layer record.
pub const MAGIC: &[u8; 4] = b"PGLY";
/// Its version.
pub const VERSION: u16 = 1;

/// How the pages of a layer were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Method {
    /// Every page was read and stored.
    Full = 1,
    /// Every page was read; those whose digest differs from the parent's were stored.
    Digest = 2,
    /// The pages that WAL summaries name were read and stored.
    Summary = 3,
}

/// A run of pages within a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// The pack.
    pub object: Ulid,
    /// Where the frame begins in it.
    pub offset: u64,
    /// Length of the frame's payload.
    pub stored_len: u32,
    /// The run's first page within the frame.
    pub first: u8,
    /// How many pages it has.
    pub pages: u8,
}

/// One backup's pages of one relation segment file. Block numbers count from the segment's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Bytes per page.
    pub page_size: u32,
    /// Whole pages in the file.
    pub nblocks: u32,
    /// Pages at or above this that are not in the bitmap are zero, whatever older layers say.
    pub limit_block: u32,
    /// How the pages were chosen.
    pub method: Method,
    /// One bit a block: the page is in this layer.
    pub bitmap: Vec<u8>,
    /// One bit a block: the page is in this layer and all zero.
    pub zero_bitmap: Vec<u8>,
    /// Where the pages are that are in the layer and not zero, in block order.
    pub runs: Vec<PageRun>,
    /// Of each such page: keyed BLAKE3, the first eight bytes.
    pub digests: Vec<u64>,
    /// Of each such page: CRC-32C.
    pub checksums: Vec<u32>,
    /// The bytes behind the last whole page.
    pub tail: Vec<u8>,
}
