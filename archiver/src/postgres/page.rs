//! Heap and index pages: header and checksum (`src/include/storage/bufpage.h`,
//! `checksum_impl.h`). Only `BLCKSZ` 8192.

use pgark_types::Lsn;

/// Bytes in a page.
pub const BLOCK_SIZE: usize = 8192;

/// A page's bytes.
pub type Page = [u8; BLOCK_SIZE];

const SUMS: usize = 32;
const PRIME: u32 = 16_777_619;

/// `checksumBaseOffsets`: 32 random numbers, so that the sums differ from the first round on.
const BASE: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

#[inline(always)]
fn mix(sum: u32, value: u32) -> u32 {
    let t = sum ^ value;
    t.wrapping_mul(PRIME) ^ (t >> 17)
}

#[inline(always)]
fn absorb(sums: &mut [u32; SUMS], row: &[u8; SUMS * 4]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        *sum = mix(*sum, u32::from_le_bytes(*word));
    }
}

/// The checksum that the page must carry as block `block_no` of its relation fork (counted over
/// all segment files). What stands in the page's own checksum field does not matter.
///
/// 32 independent sums over rows of 32 words: the compiler makes vector code of it.
#[must_use]
pub fn checksum(page: &Page, block_no: u32) -> u16 {
    let (rows, _) = page.as_chunks::<{ SUMS * 4 }>();
    let mut sums = BASE;
    if let Some((first, rest)) = rows.split_first() {
        let mut first = *first;
        if let Some(field) = first.get_mut(8..10) {
            field.fill(0);
        }
        absorb(&mut sums, &first);
        for row in rest {
            absorb(&mut sums, row);
        }
    }
    for _ in 0..2 {
        absorb(&mut sums, &[0; SUMS * 4]);
    }
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block_no;
    // At most 65535 after the addition, so the conversion cannot fail.
    u16::try_from(folded % 65_535 + 1).unwrap_or(u16::MAX)
}

/// The first 20 bytes of a page (`PageHeaderData`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// The end of the WAL record that last changed the page.
    pub lsn: Lsn,
    /// The checksum; 0 where checksums are off.
    pub checksum: u16,
    /// `pd_flags`.
    pub flags: u16,
    /// Where the free space begins.
    pub lower: u16,
    /// Where the free space ends; 0 on a new page.
    pub upper: u16,
    /// Where the access method's own area begins.
    pub special: u16,
    /// Page size and layout version, as one number: 0x2004 for 8 KiB and version 4.
    pub pagesize_version: u16,
}

impl PageHeader {
    /// Reads the header. Any bytes make one: whether they make sense is for the caller.
    #[must_use]
    pub fn parse(page: &Page) -> Self {
        let half = |offset: usize| {
            let bytes = page.get(offset..).and_then(|rest| rest.first_chunk());
            u16::from_le_bytes(bytes.copied().unwrap_or_default())
        };
        let word = |offset| (u64::from(half(offset + 2)) << 16) | u64::from(half(offset));
        Self {
            lsn: Lsn((word(0) << 32) | word(4)),
            checksum: half(8),
            flags: half(10),
            lower: half(12),
            upper: half(14),
            special: half(16),
            pagesize_version: half(18),
        }
    }
}

/// Whether the page was never initialized (`PageIsNew`). Such a page has no checksum; Postgres
/// takes it as it is, whatever else it holds.
#[must_use]
pub fn is_new(page: &Page) -> bool {
    PageHeader::parse(page).upper == 0
}

/// Whether every byte is 0.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    // Row by row: a plain `all` over bytes leaves at the first difference and cannot be vectorised.
    let (rows, _) = page.as_chunks::<64>();
    rows.iter()
        .all(|row| row.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Whether the page's checksum is right, for a cluster that has checksums on. A new page counts as
/// right, as it does for Postgres's base backup.
#[must_use]
pub fn verify(page: &Page, block_no: u32) -> bool {
    let header = PageHeader::parse(page);
    header.upper == 0 || header.checksum == checksum(page, block_no)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Blocks 0 to 3 of `pg_class`, written by a 15.20 with data checksums.
    const PAGES: &[u8] = include_bytes!("../../tests/fixtures/pages.15");

    fn pages() -> Vec<Page> {
        PAGES
            .chunks(BLOCK_SIZE)
            .map(|p| p.try_into().unwrap())
            .collect()
    }

    /// `checksum_impl.h`, word by word.
    fn reference(page: &Page, block_no: u32) -> u16 {
        let mut page = *page;
        page[8] = 0;
        page[9] = 0;
        let mut sums = BASE;
        for i in 0..64 {
            for (j, sum) in sums.iter_mut().enumerate() {
                let at = (i * 32 + j) * 4;
                *sum = mix(
                    *sum,
                    u32::from_le_bytes(page[at..at + 4].try_into().unwrap()),
                );
            }
        }
        for _ in 0..2 {
            for sum in &mut sums {
                *sum = mix(*sum, 0);
            }
        }
        let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block_no;
        u16::try_from(folded % 65_535 + 1).unwrap()
    }

    #[test]
    fn postgres_agrees() {
        for (block_no, page) in (0..).zip(pages()) {
            let header = PageHeader::parse(&page);
            assert_eq!(checksum(&page, block_no), header.checksum);
            assert!(verify(&page, block_no) && !verify(&page, block_no + 7));
            assert_eq!(header.pagesize_version, 0x2004);
            assert!(header.lsn.is_valid() && header.lower <= header.upper);
            assert!(!is_new(&page) && !is_zero(&page));
        }
    }

    #[test]
    fn every_flip_is_found() {
        let page = pages()[0];
        for bit in (0..BLOCK_SIZE * 8).step_by(7) {
            let mut bad = page;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(is_new(&bad) || !verify(&bad, 0), "bit {bit}");
        }
    }

    #[test]
    fn zero_and_new_pages_pass() {
        let mut page = [0; BLOCK_SIZE];
        assert!(is_zero(&page) && is_new(&page) && verify(&page, 3));
        page[BLOCK_SIZE - 1] = 1;
        assert!(!is_zero(&page) && is_new(&page) && verify(&page, 3));
    }

    #[test]
    fn the_header_holds_the_high_word_first() {
        let mut page = [0; BLOCK_SIZE];
        page[0] = 1;
        page[4..8].copy_from_slice(&0xABCD_EF01_u32.to_le_bytes());
        assert_eq!(PageHeader::parse(&page).lsn.to_string(), "1/ABCDEF01");
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(seed in any::<[u8; 32]>(), block_no in any::<u32>()) {
            let mut page = [0; BLOCK_SIZE];
            blake3::Hasher::new_keyed(&seed).finalize_xof().fill(&mut page);
            prop_assert_eq!(checksum(&page, block_no), reference(&page, block_no));
            let _ = verify(&page, block_no);
        }
    }
}
