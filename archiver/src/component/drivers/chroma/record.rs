//! A record of a collection, and the one way of writing it that digests are taken over.

use crate::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;

/// How far two vectors of a cosine collection may be apart, relative to their length. Chroma keeps such
/// vectors normalised beside their length and multiplies on the way out (observed with 1.5.9: most
/// vectors change in their last bits once they are in the index), so their bits are not stable on
/// the server either.
const COSINE_TOLERANCE: f64 = 1e-5;

/// A record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// Its id.
    pub id: String,
    /// Its vector: the bits, little-endian, as hexadecimal digits.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub embedding: Vec<f32>,
    /// Its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Where its content is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Its metadata; that there is none and that it is empty is the same to Chroma.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, Value>,
}

impl Record {
    /// Its line, the end of it included.
    ///
    /// # Errors
    /// Kind Internal.
    pub(super) fn line(&self) -> Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self).map_err(|e| {
            Error::internal("chroma_record", "could not write a record").with_source(e)
        })?;
        line.push(b'\n');
        Ok(line)
    }

    /// Reads a line.
    ///
    /// # Errors
    /// Kind Data.
    pub(super) fn parse(line: &[u8]) -> Result<Self> {
        serde_json::from_slice(line).map_err(|e| {
            Error::data("chroma_record", "a record of the backup is malformed").with_source(e)
        })
    }

    /// Whether `other` is the same record, with the slack that cosine collections have.
    pub(super) fn agrees(&self, other: &Self, cosine: bool) -> bool {
        self.id == other.id
            && self.document == other.document
            && self.uri == other.uri
            && self.metadata == other.metadata
            && same_vector(&self.embedding, &other.embedding, cosine)
    }
}

fn same_vector(a: &[f32], b: &[f32], cosine: bool) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let pairs = || a.iter().zip(b);
    if pairs().all(|(a, b)| a.to_bits() == b.to_bits()) {
        return true;
    }
    let square = |x: f64| x * x;
    let length: f64 = a.iter().map(|x| square(f64::from(*x))).sum();
    let apart: f64 = pairs()
        .map(|(a, b)| square(f64::from(*a) - f64::from(*b)))
        .sum();
    cosine && apart.sqrt() <= COSINE_TOLERANCE * length.sqrt()
}

/// A digest over records in the order of their ids.
#[derive(Default)]
pub(super) struct Digest {
    hasher: blake3::Hasher,
    records: u64,
}

impl Digest {
    /// Adds a record's line.
    pub(super) fn add(&mut self, line: &[u8]) {
        self.hasher.update(line);
        self.records += 1;
    }

    /// How many there were, and the digest.
    pub(super) fn finish(&self) -> (u64, String) {
        (self.records, self.hasher.finalize().to_hex().to_string())
    }
}

fn to_hex<S: Serializer>(vector: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(vector.len() * 8);
    for byte in vector.iter().flat_map(|x| x.to_le_bytes()) {
        for digit in [byte >> 4, byte & 15] {
            let digit = DIGITS.get(usize::from(digit)).copied().unwrap_or(b'0');
            text.push(char::from(digit));
        }
    }
    serializer.serialize_str(&text)
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits: Option<Vec<u8>> = text
        .bytes()
        .map(|byte| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        })
        .collect();
    let bytes: Option<Vec<u8>> = digits.filter(|digits| digits.len() % 8 == 0).map(|digits| {
        digits
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| (byte << 4) | digit))
            .collect()
    });
    let bytes = bytes.ok_or_else(|| serde::de::Error::custom("not a vector"))?;
    Ok(floats(&bytes))
}

/// The little-endian numbers in `bytes`; what is left over is dropped.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    let (whole, _) = bytes.as_chunks::<4>();
    whole.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(embedding: Vec<f32>) -> Record {
        Record {
            id: "a\n\"".to_owned(),
            embedding,
            document: Some("é".to_owned()),
            uri: None,
            metadata: BTreeMap::from([("f".to_owned(), Value::from(1.0))]),
        }
    }

    #[test]
    fn a_line_keeps_every_bit() {
        let bits = [0.1_f32, -0.0, f32::MIN_POSITIVE / 2.0, f32::MAX, 1e-45];
        let record = record(bits.to_vec());
        let line = record.line().unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read = Record::parse(&line).unwrap();
        let as_bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(as_bits(&read.embedding), as_bits(&bits));
        assert_eq!(read.line().unwrap(), line);
        // An integer and a number with a fraction are different metadata.
        assert!(String::from_utf8(line).unwrap().contains("\"f\":1.0"));
    }

    #[test]
    fn malformed_lines_are_damage() {
        for line in [
            "{}",
            "{\"id\":\"a\",\"embedding\":\"0\"}",
            "{\"id\":\"a\",\"embedding\":\"0000000g\"}",
            "{\"id\":\"a\",\"embedding\":\"\",\"x\":1}",
        ] {
            let error = Record::parse(line.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), crate::error::ErrorKind::Data, "{line}");
        }
    }

    #[test]
    fn slack_is_for_cosine_and_small() {
        let a = record(vec![1.0, 2.0]);
        let near = record(vec![1.0, 2.000_001]);
        assert!(a.agrees(&near, true) && !a.agrees(&near, false));
        let far = record(vec![1.0, 2.01]);
        assert!(!a.agrees(&far, true));
        assert!(!a.agrees(&record(vec![1.0]), true));
    }
}
