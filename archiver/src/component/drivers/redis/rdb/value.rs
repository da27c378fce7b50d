//! Values: where they end, and a digest of what they hold.
//!
//! The digest does not depend on the encoding: a set is the same set as a listpack, as an intset and
//! as a hash table, in whatever order. So it can be compared across servers and versions. Of a stream
//! it holds entries, groups, consumers and what is pending; not when a consumer was last seen, which a
//! newer server adds by itself.

use super::input::Input;
use super::{lzf, packed};
use crate::{Error, Result};
use std::io::Read;

/// BLAKE3 of a value or of a key; several are put together by [`Digest::join`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Puts another element of a set in: the order does not matter.
    pub fn join(&mut self, other: Self) {
        for (to, from) in self.0.iter_mut().zip(other.0) {
            *to ^= from;
        }
    }

    /// Of a key: its name, its expiry, its value.
    #[must_use]
    pub fn of_key(name: &[u8], expires_ms: Option<u64>, value: Self) -> Self {
        let mut parts = Parts::new("key");
        parts.add(name);
        parts.number(expires_ms.map_or(0, |ms| ms.saturating_add(1)));
        parts.add(&value.0);
        parts.finish()
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Things in order, each with its length.
struct Parts(blake3::Hasher);

impl Parts {
    fn new(what: &str) -> Self {
        let mut parts = Self(blake3::Hasher::new());
        parts.add(what.as_bytes());
        parts
    }

    fn of(what: &str, all: &[&[u8]]) -> Digest {
        let mut parts = Self::new(what);
        all.iter().for_each(|part| parts.add(part));
        parts.finish()
    }

    fn add(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

/// A collection without order.
struct Heap {
    digest: Digest,
    count: u64,
}

impl Heap {
    fn new() -> Self {
        Self {
            digest: Digest::default(),
            count: 0,
        }
    }

    fn add(&mut self, parts: &[&[u8]]) {
        self.digest.join(Parts::of("element", parts));
        self.count += 1;
    }

    fn finish(&self, what: &str) -> Digest {
        Parts::of(what, &[&self.count.to_le_bytes(), &self.digest.0])
    }
}

/// A length, or what stands in its place.
enum Length {
    Plain(u64),
    Encoded(u8),
}

fn any_length<R: Read>(input: &mut Input<R>) -> Result<Length> {
    let first = input.byte()?;
    Ok(match first >> 6 {
        0 => Length::Plain(u64::from(first & 0x3f)),
        1 => Length::Plain(u64::from(first & 0x3f) << 8 | u64::from(input.byte()?)),
        2 => match first {
            0x80 => Length::Plain(u64::from(u32::from_be_bytes(input.array()?))),
            0x81 => Length::Plain(u64::from_be_bytes(input.array()?)),
            _ => return Err(input.damaged("a length of an unknown kind")),
        },
        _ => Length::Encoded(first & 0x3f),
    })
}

/// A number.
pub(super) fn length<R: Read>(input: &mut Input<R>) -> Result<u64> {
    match any_length(input)? {
        Length::Plain(length) => Ok(length),
        Length::Encoded(_) => Err(input.damaged("a string where a number is due")),
    }
}

/// A string, however it is stored.
pub(super) fn string<R: Read>(input: &mut Input<R>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let integer = |value: i32| value.to_string().into_bytes();
    match any_length(input)? {
        Length::Plain(length) => input.bytes(length, &mut bytes)?,
        Length::Encoded(0) => bytes = integer(i8::from_le_bytes(input.array()?).into()),
        Length::Encoded(1) => bytes = integer(i16::from_le_bytes(input.array()?).into()),
        Length::Encoded(2) => bytes = integer(i32::from_le_bytes(input.array()?)),
        Length::Encoded(3) => {
            let stored = length(input)?;
            let original = usize::try_from(length(input)?).unwrap_or(usize::MAX);
            input.bytes(stored, &mut bytes)?;
            bytes = lzf::decompress(&bytes, original)
                .ok_or_else(|| input.damaged("a compressed string"))?;
        }
        Length::Encoded(_) => return Err(input.damaged("a string of an unknown kind")),
    }
    Ok(bytes)
}

/// Walks over a value of type `kind`.
pub(super) fn value<R: Read>(input: &mut Input<R>, kind: u8) -> Result<Digest> {
    Ok(match kind {
        0 => Parts::of("string", &[&string(input)?]),
        1 => list(input, |input, give| {
            give(&string(input)?);
            Ok(())
        })?,
        // Nodes that are packed.
        14 => list(input, |input, give| {
            let node = string(input)?;
            packed::ziplist(&node, |e| give(&e)).ok_or_else(|| input.damaged("a ziplist"))
        })?,
        18 => list(input, quicklist_node)?,
        10 => {
            let bytes = string(input)?;
            let mut parts = Parts::new("list");
            packed::ziplist(&bytes, |e| parts.add(&e)).ok_or_else(|| input.damaged("a ziplist"))?;
            parts.finish()
        }
        2 => each(input, "set", |input, heap| {
            heap.add(&[&string(input)?]);
            Ok(())
        })?,
        11 => tuples(input, "set", packed::intset_elements, 1)?,
        20 => tuples(input, "set", packed::listpack_elements, 1)?,
        3 | 5 => each(input, "zset", |input, heap| {
            let member = string(input)?;
            let score = match kind {
                3 => text_score(input)?,
                _ => f64::from_le_bytes(input.array()?),
            };
            heap.add(&[&member, &score.to_bits().to_le_bytes()]);
            Ok(())
        })?,
        12 => tuples(input, "zset", packed::ziplist_elements, 2)?,
        17 => tuples(input, "zset", packed::listpack_elements, 2)?,
        4 => each(input, "hash", |input, heap| {
            let field = string(input)?;
            heap.add(&[&field, &string(input)?]);
            Ok(())
        })?,
        13 => tuples(input, "hash", packed::ziplist_elements, 2)?,
        16 => tuples(input, "hash", packed::listpack_elements, 2)?,
        24 => hash_with_expiry(input)?,
        25 => {
            input.array::<8>()?; // The first expiry: it is in the fields, too.
            tuples(input, "hash", packed::listpack_elements, 3)?
        }
        15 | 19 | 21 => stream(input, kind)?,
        7 => {
            let mut parts = Parts::new("module");
            parts.number(length(input)?);
            module(input, &mut |bytes| parts.add(bytes))?;
            parts.finish()
        }
        _ => {
            return Err(Error::invalid(
                "rdb_unknown",
                format!(
                    "the RDB data holds a value of type {kind}, which this pgark does not know"
                ),
            )
            .with_detail(format!("It stands before byte {}.", input.offset()))
            .with_hint("A newer pgark may know it."));
        }
    })
}

/// Calls what follows as often as the count before it says.
fn each<R: Read>(
    input: &mut Input<R>,
    what: &str,
    mut one: impl FnMut(&mut Input<R>, &mut Heap) -> Result<()>,
) -> Result<Digest> {
    let mut heap = Heap::new();
    for _ in 0..length(input)? {
        one(input, &mut heap)?;
    }
    Ok(heap.finish(what))
}

fn list<R: Read>(
    input: &mut Input<R>,
    mut node: impl FnMut(&mut Input<R>, &mut dyn FnMut(&[u8])) -> Result<()>,
) -> Result<Digest> {
    let mut parts = Parts::new("list");
    for _ in 0..length(input)? {
        node(input, &mut |element| parts.add(element))?;
    }
    Ok(parts.finish())
}

fn quicklist_node<R: Read>(input: &mut Input<R>, give: &mut dyn FnMut(&[u8])) -> Result<()> {
    let container = length(input)?;
    let node = string(input)?;
    match container {
        1 => give(&node),
        2 => packed::listpack(&node, |e| give(&e)).ok_or_else(|| input.damaged("a listpack"))?,
        _ => return Err(input.damaged("a list node of an unknown kind")),
    }
    Ok(())
}

/// A packed collection of groups of `width` elements each.
fn tuples<R: Read>(
    input: &mut Input<R>,
    what: &str,
    elements: for<'b> fn(&'b [u8]) -> Option<Vec<packed::Element<'b>>>,
    width: usize,
) -> Result<Digest> {
    let bytes = string(input)?;
    let elements = elements(&bytes).filter(|all| all.len().is_multiple_of(width));
    let elements = elements.ok_or_else(|| input.damaged("a packed collection"))?;
    let mut heap = Heap::new();
    for tuple in elements.chunks(width) {
        match (what, tuple) {
            ("zset", [member, score]) => {
                let score = parse_score(score).ok_or_else(|| input.damaged("a score"))?;
                heap.add(&[member, &score.to_bits().to_le_bytes()]);
            }
            // A field that never expires is as one without an expiry.
            ("hash", [field, value, expires]) if **expires == *b"0" => heap.add(&[field, value]),
            _ => heap.add(&tuple.iter().map(|e| &**e).collect::<Vec<_>>()),
        }
    }
    Ok(heap.finish(what))
}

fn parse_score(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn text_score<R: Read>(input: &mut Input<R>) -> Result<f64> {
    let length = input.byte()?;
    Ok(match length {
        253 => f64::NAN,
        254 => f64::INFINITY,
        255 => f64::NEG_INFINITY,
        _ => {
            let mut text = Vec::new();
            input.bytes(length.into(), &mut text)?;
            parse_score(&text).ok_or_else(|| input.damaged("a score"))?
        }
    })
}

/// A hash with fields that expire, Redis 7.4 and later.
fn hash_with_expiry<R: Read>(input: &mut Input<R>) -> Result<Digest> {
    let first = u64::from_le_bytes(input.array()?);
    each(input, "hash", |input, heap| {
        let after = length(input)?;
        let field = string(input)?;
        let value = string(input)?;
        match after {
            0 => heap.add(&[&field, &value]),
            _ => {
                let at = first.saturating_add(after - 1).to_string();
                heap.add(&[&field, &value, at.as_bytes()]);
            }
        }
        Ok(())
    })
}

fn stream<R: Read>(input: &mut Input<R>, kind: u8) -> Result<Digest> {
    let mut parts = Parts::new("stream");
    for _ in 0..length(input)? {
        parts.add(&string(input)?); // The id of the first entry of the node.
        let entries = string(input)?;
        packed::listpack(&entries, |_| ()).ok_or_else(|| input.damaged("a stream's listpack"))?;
        parts.add(&entries);
    }
    // How many entries, and the last id.
    for _ in 0..3 {
        parts.number(length(input)?);
    }
    if kind >= 19 {
        // The first id, the highest deleted one, entries ever added.
        for _ in 0..5 {
            length(input)?;
        }
    }
    for _ in 0..length(input)? {
        parts.add(&string(input)?);
        parts.number(length(input)?);
        parts.number(length(input)?);
        if kind >= 19 {
            length(input)?; // Entries read.
        }
        // Pending: id, when it was delivered, how often.
        for _ in 0..length(input)? {
            parts.add(&input.array::<16>()?);
            parts.add(&input.array::<8>()?);
            parts.number(length(input)?);
        }
        for _ in 0..length(input)? {
            parts.add(&string(input)?);
            input.array::<8>()?; // Last seen.
            if kind >= 21 {
                input.array::<8>()?; // Last active.
            }
            for _ in 0..length(input)? {
                parts.add(&input.array::<16>()?);
            }
        }
    }
    Ok(parts.finish())
}

/// What a module wrote, after its id; `give` gets every piece.
pub(super) fn module<R: Read>(input: &mut Input<R>, give: &mut dyn FnMut(&[u8])) -> Result<()> {
    loop {
        match length(input)? {
            0 => return Ok(()),
            1 | 2 => give(&length(input)?.to_le_bytes()),
            3 => give(&input.array::<4>()?),
            4 => give(&input.array::<8>()?),
            5 => give(&string(input)?),
            _ => return Err(input.damaged("data of a module")),
        }
    }
}

/// The name of a module, of nine characters, in its id.
pub(super) fn module_name(id: u64) -> String {
    const CHARACTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..9)
        .map(|at| {
            let six = usize::try_from(id >> (58 - 6 * at) & 63).unwrap_or_default();
            char::from(CHARACTERS.get(six).copied().unwrap_or(b'?'))
        })
        .collect()
}
