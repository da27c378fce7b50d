//! Sealed JSON: every small object of a repository, so that one flipped bit is found.
//!
//! `{"seal":"<64 hex>",<rest>` where the seal is the BLAKE3-256 of `<rest>`: plain JSON to any
//! reader, checkable without parsing.

use crate::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

const HEAD: &[u8] = b"{\"seal\":\"";

/// Serializes `value` (a struct with at least one field) and seals it.
///
/// # Errors
/// Kind Internal when `value` is no JSON object or an empty one.
pub fn seal<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let plain = serde_json::to_vec(value)
        .map_err(|e| Error::internal("serialize", "could not serialize a record").with_source(e))?;
    let rest = plain.strip_prefix(b"{").filter(|rest| rest.len() > 1);
    let rest =
        rest.ok_or_else(|| Error::internal("serialize", "a sealed record must be a JSON object"))?;
    let mut bytes = Vec::with_capacity(rest.len() + 76);
    bytes.extend_from_slice(HEAD);
    bytes.extend_from_slice(blake3::hash(rest).to_hex().as_bytes());
    bytes.extend_from_slice(b"\",");
    bytes.extend_from_slice(rest);
    Ok(bytes)
}

/// Checks the seal of `bytes`, read from `name`, and returns the JSON as it stands.
///
/// # Errors
/// Kind Data, code `seal_broken`.
pub fn check<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let broken = || {
        Error::data(
            "seal_broken",
            format!("\"{name}\" is damaged: its seal does not match"),
        )
        .with_hint("Run \"pgark verify --all\" to see what else is affected.")
    };
    let rest = bytes.strip_prefix(HEAD).ok_or_else(broken)?;
    let (seal, rest) = rest.split_at_checked(64).ok_or_else(broken)?;
    let rest = rest.strip_prefix(b"\",").ok_or_else(broken)?;
    if blake3::hash(rest).to_hex().as_bytes() != seal {
        return Err(broken());
    }
    Ok(bytes)
}

/// Checks the seal and parses.
///
/// # Errors
/// Kind Data: `seal_broken`, or `unreadable_record` when the JSON is not a `T` (a newer format).
pub fn open<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(check(name, bytes)?).map_err(|e| {
        Error::data(
            "unreadable_record",
            format!("\"{name}\" is not a record this pgark knows"),
        )
        .with_source(e)
        .with_hint("A newer pgark may have written it: upgrade this one.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Record {
        a: u32,
    }

    #[test]
    fn every_flip_is_found() {
        let sealed = seal(&Record { a: 7 }).unwrap();
        assert_eq!(open::<Record>("r", &sealed).unwrap(), Record { a: 7 });
        for at in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert_eq!(
                open::<Record>("r", &bad).unwrap_err().kind(),
                crate::ErrorKind::Data
            );
        }
        for len in 0..sealed.len() {
            assert!(open::<Record>("r", &sealed[..len]).is_err());
        }
    }
}
