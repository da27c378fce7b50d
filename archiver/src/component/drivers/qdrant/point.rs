//! Points as scroll hands them out: their order, and the one way of writing them that digests are over.

use crate::{Error, Result};
use serde_json::Value;
use std::io::{BufRead, Read as _, Write};

/// A point's id. Qdrant sorts numbers before UUIDs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PointId {
    /// A number.
    Number(u64),
    /// A UUID, in lower case.
    Uuid(String),
}

impl PointId {
    /// As the server writes it; `None`: it is none.
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => number.as_u64().map(Self::Number),
            Value::String(text) => Self::uuid(text),
            _ => None,
        }
    }

    fn uuid(text: &str) -> Option<Self> {
        let fine = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        fine.then(|| Self::Uuid(text.to_ascii_lowercase()))
    }

    fn parse(text: &str) -> Option<Self> {
        match text.parse() {
            Ok(number) => Some(Self::Number(number)),
            Err(_) => Self::uuid(text),
        }
    }
}

impl std::fmt::Display for PointId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Uuid(text) => f.write_str(text),
        }
    }
}

/// A point as a line: its id, and what its content hashes to; `None`: it was being changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PointLine {
    /// Its id.
    pub id: PointId,
    /// Of payload and vectors: 128 bits of BLAKE3, hexadecimal.
    pub hash: Option<String>,
}

impl PointLine {
    /// Of a point in an answer to `scroll`; `None`: it is none.
    pub(super) fn of(point: &Value) -> Option<Self> {
        let id = PointId::of(point.get("id")?)?;
        let mut text = String::new();
        for part in ["payload", "vector"] {
            match point.get(part) {
                // No payload and an empty one are the same.
                None | Some(Value::Null) => text.push_str("{}"),
                Some(value) => canonical(value, &mut text),
            }
            text.push('\n');
        }
        let mut hash = blake3::hash(text.as_bytes()).to_hex().to_string();
        hash.truncate(32);
        Some(Self {
            id,
            hash: Some(hash),
        })
    }

    /// The line, the end of it included.
    pub(super) fn line(&self) -> String {
        format!("{} {}\n", self.id, self.hash.as_deref().unwrap_or("*"))
    }

    fn parse(line: &str) -> Option<Self> {
        let (id, hash) = line.strip_suffix('\n')?.split_once(' ')?;
        let hash = match hash {
            "*" => None,
            hash if hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Some(hash.to_owned())
            }
            _ => return None,
        };
        Some(Self {
            id: PointId::parse(id)?,
            hash,
        })
    }
}

/// JSON without spaces, keys in their order, numbers as they read.
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.iter().collect();
            keys.sort_by_key(|(key, _)| *key);
            text.push('{');
            for (key, value) in keys {
                text.push_str(&Value::String(key.clone()).to_string());
                text.push(':');
                canonical(value, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(list) => {
            text.push('[');
            for value in list {
                canonical(value, text);
                text.push(',');
            }
            text.push(']');
        }
        other => text.push_str(&other.to_string()),
    }
}

/// Lines in the order of their ids, from a file.
pub(super) struct Lines<R> {
    reader: R,
    last: Option<PointId>,
}

impl<R: BufRead> Lines<R> {
    /// Of `reader`.
    pub(super) fn new(reader: R) -> Self {
        Self { reader, last: None }
    }

    fn read(&mut self) -> Result<Option<PointLine>> {
        let mut text = String::new();
        let read = (&mut self.reader).take(256).read_line(&mut text);
        let read = read
            .map_err(|e| crate::component::content_error("could not read the list of points", e))?;
        if read == 0 {
            return Ok(None);
        }
        let line = PointLine::parse(&text)
            .filter(|line| self.last.as_ref().is_none_or(|last| *last < line.id));
        let line = line.ok_or_else(|| {
            Error::data("qdrant_points", "the backup's list of points is malformed")
        })?;
        self.last = Some(line.id.clone());
        Ok(Some(line))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<PointLine>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Two lists side by side: every id that either has.
pub(super) fn merge(
    mut left: impl Iterator<Item = Result<PointLine>>,
    mut right: impl Iterator<Item = Result<PointLine>>,
    mut each: impl FnMut(PointId, Option<PointLine>, Option<PointLine>) -> Result<()>,
) -> Result<()> {
    let (mut a, mut b) = (left.next().transpose()?, right.next().transpose()?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(()),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(a), Some(b)) => a.id.cmp(&b.id),
        };
        let one = if order.is_le() { a.take() } else { None };
        let other = if order.is_ge() { b.take() } else { None };
        if one.is_some() {
            a = left.next().transpose()?;
        }
        if other.is_some() {
            b = right.next().transpose()?;
        }
        if let Some(id) = one.as_ref().or(other.as_ref()).map(|line| line.id.clone()) {
            each(id, one, other)?;
        }
    }
}

/// A digest over lines in the order of their ids.
#[derive(Default)]
pub(super) struct Digest {
    hasher: blake3::Hasher,
    /// How many there were.
    pub points: u64,
}

impl Digest {
    /// Adds a line.
    pub(super) fn add(&mut self, line: &PointLine) {
        self.hasher.update(line.line().as_bytes());
        self.points += 1;
    }

    /// The digest.
    pub(super) fn finish(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

/// What two readings of a collection, before and after its snapshot, have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Compared {
    /// Points that both readings saw alike.
    pub stable: u64,
    /// Points that changed, came or went meanwhile.
    pub changed: u64,
    /// Digest of the former.
    pub digest: String,
}

/// Compares them and writes the outcome, a line for each point, to `out`.
///
/// # Errors
/// Those of the readings; of `out`.
pub(super) fn compare(
    before: impl Iterator<Item = Result<PointLine>>,
    after: impl Iterator<Item = Result<PointLine>>,
    out: &mut dyn Write,
) -> Result<Compared> {
    let (mut digest, mut changed) = (Digest::default(), 0);
    merge(before, after, |id, before, after| {
        let line = match (before, after) {
            (Some(before), Some(after)) if before == after => {
                digest.add(&before);
                before
            }
            _ => {
                changed += 1;
                PointLine { id, hash: None }
            }
        };
        out.write_all(line.line().as_bytes())
            .map_err(|e| Error::io("could not write the list of points", e))
    })?;
    Ok(Compared {
        stable: digest.points,
        changed,
        digest: digest.finish(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const UUID: &str = "5c56c793-69f3-4fbf-87e6-c4bf54c28c26";

    fn line(id: u64, hash: Option<char>) -> PointLine {
        PointLine {
            id: PointId::Number(id),
            hash: hash.map(|c| c.to_string().repeat(32)),
        }
    }

    fn parse(text: &str) -> Result<Vec<PointLine>> {
        Lines::new(text.as_bytes()).collect()
    }

    #[test]
    fn content_alone_makes_the_hash() {
        let hash = |point: Value| PointLine::of(&point).unwrap().hash;
        let one =
            hash(json!({"id": 1, "payload": {"a": 1, "b": [1.5, null]}, "vector": [0.1, 2.0]}));
        let text = r#"{"vector": [0.1, 2.0], "payload": {"b": [1.5, null], "a": 1}, "id": 2}"#;
        assert_eq!(hash(serde_json::from_str(text).unwrap()), one);
        for other in [
            json!({"id": 1, "payload": {"a": 1.0, "b": [1.5, null]}, "vector": [0.1, 2.0]}),
            json!({"id": 1, "payload": {"a": 1, "b": [1.5]}, "vector": [0.1, 2.0]}),
            json!({"id": 1, "payload": {"a": 1, "b": [1.5, null]}, "vector": [0.1, 2.5]}),
            json!({"id": 1, "payload": {"a": 1, "b": [1.5, null]}, "vector": {"": [0.1, 2.0]}}),
        ] {
            assert_ne!(hash(other), one);
        }
        assert_eq!(
            hash(json!({"id": 1, "payload": null, "vector": [1.0]})),
            hash(json!({"id": 1, "payload": {}, "vector": [1.0]}))
        );
        for none in [
            json!({"id": -1}),
            json!({"id": "x"}),
            json!({"payload": {}}),
            json!(1),
        ] {
            assert_eq!(PointLine::of(&none), None);
        }
    }

    #[test]
    fn lines_come_back_in_order_or_not_at_all() {
        let text = format!(
            "3 {}\n18446744073709551615 *\n{UUID} {}\n",
            "a".repeat(32),
            "b".repeat(32)
        );
        let lines = parse(&text).unwrap();
        assert_eq!(lines.iter().map(PointLine::line).collect::<String>(), text);
        assert!(lines[1].hash.is_none());
        for bad in [
            "3",
            "3 *",
            "3 x\n",
            "x *\n",
            "3 *\n3 *\n",
            "4 *\n3 *\n",
            "-1 *\n",
        ] {
            assert_eq!(parse(bad).unwrap_err().code(), "qdrant_points", "{bad}");
        }
        assert!(parse(&"9".repeat(1000)).is_err());
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn what_changed_between_two_readings_is_marked() {
        let before = [
            line(1, Some('a')),
            line(2, Some('b')),
            line(3, Some('c')),
            line(5, Some('e')),
        ];
        let after = [
            line(1, Some('a')),
            line(2, Some('x')),
            line(4, Some('d')),
            line(5, Some('e')),
        ];
        let mut out = Vec::new();
        let found = compare(
            before.into_iter().map(Ok),
            after.into_iter().map(Ok),
            &mut out,
        )
        .unwrap();
        assert_eq!((found.stable, found.changed), (2, 3));
        let lines = parse(&String::from_utf8(out).unwrap()).unwrap();
        let expected = [
            line(1, Some('a')),
            line(2, None),
            line(3, None),
            line(4, None),
            line(5, Some('e')),
        ];
        assert_eq!(lines, expected);
        let mut digest = Digest::default();
        digest.add(&expected[0]);
        digest.add(&expected[4]);
        assert_eq!(digest.finish(), found.digest);
    }
}
