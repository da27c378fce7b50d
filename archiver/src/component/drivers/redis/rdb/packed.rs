//! The packed encodings of small collections: listpack, ziplist, intset (Redis, `src/listpack.c`,
//! `src/ziplist.c`, `src/intset.c`). Their elements as text, whatever they are stored as.

use std::borrow::Cow;

/// An element: bytes, or what an integer prints as.
pub(super) type Element<'a> = Cow<'a, [u8]>;

/// A position within bytes that may be wrong.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn string(&mut self, count: usize) -> Option<Element<'a>> {
        self.take(count).map(Cow::Borrowed)
    }

    /// A signed little-endian integer of `N` bytes.
    fn integer<const N: usize>(&mut self) -> Option<Element<'a>> {
        let bytes = self.array::<N>()?;
        let sign = if bytes.last()? & 0x80 == 0 { 0 } else { 0xff };
        let mut wide = [sign; 8];
        for (to, from) in wide.iter_mut().zip(bytes) {
            *to = from;
        }
        Some(integer(i64::from_le_bytes(wide)))
    }
}

fn integer<'a>(value: i64) -> Element<'a> {
    Cow::Owned(value.to_string().into_bytes())
}

/// Calls `give` with every element; `None` when the bytes are no listpack.
pub(super) fn listpack<'a>(bytes: &'a [u8], mut give: impl FnMut(Element<'a>)) -> Option<()> {
    let mut rest = Bytes(bytes);
    let total = u32::from_le_bytes(rest.array()?);
    if usize::try_from(total).ok()? != bytes.len() {
        return None;
    }
    let count = u16::from_le_bytes(rest.array()?);
    let mut seen = 0_u64;
    loop {
        let before = rest.0.len();
        let first = rest.byte()?;
        let low = |mask: u8| usize::from(first & mask);
        let element = match first {
            0xff => break,
            0..=0x7f => integer(i64::from(first)),
            0x80..=0xbf => rest.string(low(0x3f))?,
            0xc0..=0xdf => {
                let raw = i64::from(first & 0x1f) << 8 | i64::from(rest.byte()?);
                integer(if raw >= 1 << 12 { raw - (1 << 13) } else { raw })
            }
            0xe0..=0xef => {
                let length = low(0x0f) << 8 | usize::from(rest.byte()?);
                rest.string(length)?
            }
            0xf0 => {
                let length = u32::from_le_bytes(rest.array()?);
                rest.string(usize::try_from(length).ok()?)?
            }
            0xf1 => rest.integer::<2>()?,
            0xf2 => rest.integer::<3>()?,
            0xf3 => rest.integer::<4>()?,
            0xf4 => rest.integer::<8>()?,
            _ => return None,
        };
        // The length again, for reading backwards.
        let length = before - rest.0.len();
        rest.take(match length {
            0..=127 => 1,
            128..=16_382 => 2,
            16_383..=2_097_150 => 3,
            2_097_151..=268_435_454 => 4,
            _ => 5,
        })?;
        give(element);
        seen += 1;
    }
    (rest.0.is_empty() && (count == u16::MAX || u64::from(count) == seen)).then_some(())
}

/// Calls `give` with every element; `None` when the bytes are no ziplist.
pub(super) fn ziplist<'a>(bytes: &'a [u8], mut give: impl FnMut(Element<'a>)) -> Option<()> {
    let mut rest = Bytes(bytes);
    let total = u32::from_le_bytes(rest.array()?);
    if usize::try_from(total).ok()? != bytes.len() {
        return None;
    }
    rest.array::<4>()?; // Where the last element begins.
    let count = u16::from_le_bytes(rest.array()?);
    let mut seen = 0_u64;
    loop {
        match rest.byte()? {
            0xff => break,
            0xfe => drop(rest.array::<4>()?), // The length of the element before.
            _ => {}
        }
        let first = rest.byte()?;
        let element = match first {
            0..=0x3f => rest.string(usize::from(first))?,
            0x40..=0x7f => {
                let length = usize::from(first & 0x3f) << 8 | usize::from(rest.byte()?);
                rest.string(length)?
            }
            0x80 => {
                let length = u32::from_be_bytes(rest.array()?);
                rest.string(usize::try_from(length).ok()?)?
            }
            0xc0 => rest.integer::<2>()?,
            0xd0 => rest.integer::<4>()?,
            0xe0 => rest.integer::<8>()?,
            0xf0 => rest.integer::<3>()?,
            0xfe => rest.integer::<1>()?,
            0xf1..=0xfd => integer(i64::from(first & 0x0f) - 1),
            _ => return None,
        };
        give(element);
        seen += 1;
    }
    (rest.0.is_empty() && (count == u16::MAX || u64::from(count) == seen)).then_some(())
}

/// Calls `give` with every element; `None` when the bytes are no intset.
pub(super) fn intset<'a>(bytes: &'a [u8], mut give: impl FnMut(Element<'a>)) -> Option<()> {
    let mut rest = Bytes(bytes);
    let width = u32::from_le_bytes(rest.array()?);
    let count = u32::from_le_bytes(rest.array()?);
    for _ in 0..count {
        give(match width {
            2 => rest.integer::<2>()?,
            4 => rest.integer::<4>()?,
            8 => rest.integer::<8>()?,
            _ => return None,
        });
    }
    rest.0.is_empty().then_some(())
}

fn collected<'a>(
    walk: impl FnOnce(&mut dyn FnMut(Element<'a>)) -> Option<()>,
) -> Option<Vec<Element<'a>>> {
    let mut all = Vec::new();
    walk(&mut |element| all.push(element))?;
    Some(all)
}

/// The elements of a listpack.
pub(super) fn listpack_elements(bytes: &[u8]) -> Option<Vec<Element<'_>>> {
    collected(|give| listpack(bytes, give))
}

/// The elements of a ziplist.
pub(super) fn ziplist_elements(bytes: &[u8]) -> Option<Vec<Element<'_>>> {
    collected(|give| ziplist(bytes, give))
}

/// The elements of an intset.
pub(super) fn intset_elements(bytes: &[u8]) -> Option<Vec<Element<'_>>> {
    collected(|give| intset(bytes, give))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Walk = fn(&[u8]) -> Option<Vec<Element<'_>>>;

    fn all(walk: Walk, bytes: &[u8]) -> Option<Vec<String>> {
        let text = |element: Element<'_>| String::from_utf8(element.into_owned()).unwrap();
        Some(walk(bytes)?.into_iter().map(text).collect())
    }

    #[test]
    fn integers_of_every_width() {
        let body = [
            &[5, 1][..],                  // 5
            &[0xdf, 0xff, 2],             // -1 in 13 bits
            &[0x82, b'h', b'i', 3],       // "hi"
            &[0xf1, 0x18, 0xfc, 3],       // -1000
            &[0xf2, 0, 0, 0x80, 4],       // -8388608
            &[0xf3, 0xff, 0xff, 0, 0, 5], // 65535
            &[0xf4, 0, 0, 0, 0, 0, 0, 0, 0x80, 9],
            &[0xff],
        ]
        .concat();
        let total = u32::try_from(body.len() + 6).unwrap();
        let bytes = [&total.to_le_bytes()[..], &7_u16.to_le_bytes(), &body].concat();
        let text = [
            "5",
            "-1",
            "hi",
            "-1000",
            "-8388608",
            "65535",
            "-9223372036854775808",
        ];
        assert_eq!(all(listpack_elements, &bytes).unwrap(), text);
        // Every shorter and every longer one is none.
        for cut in 0..bytes.len() {
            assert_eq!(all(listpack_elements, &bytes[..cut]), None, "{cut}");
        }
        assert_eq!(all(listpack_elements, &[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn ziplists_and_intsets() {
        let body = [
            &[0, 2, b'h', b'i'][..],
            &[4, 0xf1],
            &[2, 0xfe, 0x80],
            &[0xff],
        ]
        .concat();
        let total = u32::try_from(body.len() + 10).unwrap();
        let bytes = [
            &total.to_le_bytes()[..],
            &16_u32.to_le_bytes(),
            &3_u16.to_le_bytes(),
            &body,
        ]
        .concat();
        assert_eq!(all(ziplist_elements, &bytes).unwrap(), ["hi", "0", "-128"]);
        for cut in 0..bytes.len() {
            assert_eq!(all(ziplist_elements, &bytes[..cut]), None, "{cut}");
        }
        let set = [2, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff, 1, 0];
        assert_eq!(all(intset_elements, &set).unwrap(), ["-1", "1"]);
        assert_eq!(all(intset_elements, &set[..11]), None);
    }
}
