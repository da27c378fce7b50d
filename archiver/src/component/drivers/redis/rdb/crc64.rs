//! CRC-64 as Redis computes it: Jones's polynomial, reflected, from zero (Redis, `src/crc64.c`).

use std::sync::LazyLock;

const POLYNOMIAL: u64 = 0x95ac_9329_ac4b_c9b5;

/// Tables for eight bytes at a time.
type Tables = [[u64; 256]; 8];

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut tables = [[0; 256]; 8];
    let mut first = [0_u64; 256];
    for (byte, slot) in (0_u64..).zip(first.iter_mut()) {
        *slot = (0..8).fold(byte, |crc, _| match crc & 1 {
            1 => (crc >> 1) ^ POLYNOMIAL,
            _ => crc >> 1,
        });
    }
    let mut last = first;
    for table in &mut tables {
        *table = last;
        for slot in &mut last {
            *slot = at(&first, *slot) ^ (*slot >> 8);
        }
    }
    tables
});

fn at(table: &[u64; 256], crc: u64) -> u64 {
    let [low, ..] = crc.to_le_bytes();
    // Every value of a byte is in the table.
    table.get(usize::from(low)).copied().unwrap_or_default()
}

/// The checksum of what `crc` is the checksum of, followed by `bytes`.
#[must_use]
pub fn update(mut crc: u64, bytes: &[u8]) -> u64 {
    let [t0, t1, t2, t3, t4, t5, t6, t7] = &*TABLES;
    let (eights, rest) = bytes.as_chunks::<8>();
    for eight in eights {
        let word = crc ^ u64::from_le_bytes(*eight);
        crc = at(t7, word)
            ^ at(t6, word >> 8)
            ^ at(t5, word >> 16)
            ^ at(t4, word >> 24)
            ^ at(t3, word >> 32)
            ^ at(t2, word >> 40)
            ^ at(t1, word >> 48)
            ^ at(t0, word >> 56);
    }
    for byte in rest {
        crc = at(t0, crc ^ u64::from(*byte)) ^ (crc >> 8);
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_redis() {
        assert_eq!(update(0, b"123456789"), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn pieces_give_the_same_as_the_whole() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let whole = update(0, &bytes);
        for cut in [0, 1, 7, 8, 9, 500, 999] {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(update(update(0, head), tail), whole, "{cut}");
        }
    }
}
