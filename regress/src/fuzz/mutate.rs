//! The mutations, and the random numbers behind them.

/// SplitMix64: small, and the same everywhere for a seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 when `end` is 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % end).unwrap_or(0)
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A range of `bytes`, mostly short.
    fn range(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let begin = self.below(bytes.len() + 1);
        let longest = bytes.len() - begin;
        let limit = if self.below(4) == 0 {
            longest
        } else {
            longest.min(16)
        };
        begin..begin + self.below(limit + 1)
    }
}

/// Edges of integer types, and the sizes and counts of the formats here.
const INTERESTING: [u64; 20] = [
    0,
    1,
    2,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x1FFF,
    0x2000,
    0x7FFF,
    0xFFFF,
    0x10_0000,
    0x4000_0000,
    0x7FFF_FFFF,
    0xFFFF_FFFF,
    0x1_0000_0000,
    0x7FFF_FFFF_FFFF_FFFF,
    u64::MAX,
];

/// What text formats break at.
const TOKENS: [&[u8]; 24] = [
    b"\n",
    b"\r\n",
    b"\0",
    b"\t",
    b" ",
    b"/",
    b"../",
    b".",
    b"\\",
    b"\"",
    b":",
    b": ",
    b"-",
    b"+",
    b"0",
    b"FFFFFFFF",
    b"ffffffff",
    b"4294967296",
    b"18446744073709551616",
    b"{",
    b"[",
    b"}",
    b"\xC3",
    b"\xF0\x9F\x92\xBE",
];

/// Changes `input` once.
pub(super) fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    match random.below(9) {
        0 => {
            let bit = random.below(8);
            change(input, random, |byte, _| byte ^ (1 << bit));
        }
        1 => change(input, random, |_, random| random.byte()),
        2 => {
            let step = if random.below(2) == 0 { 1 } else { 255 };
            change(input, random, |byte, _| byte.wrapping_add(step));
        }
        3 => {
            let length = random.below(input.len() + 1);
            input.truncate(length);
        }
        4 => {
            let range = random.range(input);
            input.drain(range);
        }
        5 => write_integer(input, random),
        6 => {
            let token = random.pick(&TOKENS).copied().unwrap_or_default();
            insert(input, token, random);
        }
        7 => {
            let range = random.range(input);
            let copy = input.get(range).unwrap_or_default().to_vec();
            insert(input, &copy, random);
        }
        _ => splice(input, corpus, random),
    }
}

fn change(input: &mut [u8], random: &mut Random, to: impl FnOnce(u8, &mut Random) -> u8) {
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte = to(*byte, random);
    }
}

fn insert(input: &mut Vec<u8>, bytes: &[u8], random: &mut Random) {
    let at = random.below(input.len() + 1);
    input.splice(at..at, bytes.iter().copied());
}

/// Overwrites 1, 2, 4 or 8 bytes, aligned half of the time, in either byte order.
fn write_integer(input: &mut [u8], random: &mut Random) {
    let width = 1 << random.below(4);
    let mut at = random.below(input.len());
    if random.below(2) == 0 {
        at -= at % width;
    }
    let value = random.pick(&INTERESTING).copied().unwrap_or(0);
    let mut bytes = value.to_le_bytes();
    let bytes = bytes.get_mut(..width).unwrap_or_default();
    if random.below(4) == 0 {
        bytes.reverse();
    }
    for (to, from) in input.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Replaces the end with the end of another input.
fn splice(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let Some(other) = random.pick(corpus) else {
        return;
    };
    let begin = random.below(other.len() + 1);
    let length = random.below(input.len() + 1);
    input.truncate(length);
    input.extend_from_slice(other.get(begin..).unwrap_or_default());
}
