//! Ids as text. Postgres holds no other bytes than UTF-8 without NUL; stores do.

use std::fmt::Write as _;

/// The text of an id: itself, where it is one. Else bytes that are none stand there as `\x` and two digits,
/// and a backslash twice: no row has such an id, and no two ids become one.
pub(super) fn text(id: &[u8]) -> String {
    let whole = std::str::from_utf8(id).ok();
    // What looks like an escape is none.
    if let Some(whole) = whole.filter(|t| !t.contains('\0') && !t.contains("\\x")) {
        return whole.to_owned();
    }
    let mut text = String::with_capacity(id.len() + 16);
    for chunk in id.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\0' => text.push_str("\\x00"),
                '\\' => text.push_str("\\\\"),
                other => text.push(other),
            }
        }
        for byte in chunk.invalid() {
            // A String takes everything.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_ids_become_one() {
        let ids: [&[u8]; 9] = [
            b"",
            b"a\xff",
            b"a\xfe",
            b"a\\xff",
            b"a\\\\xff",
            b"a\0",
            b"a\\x00",
            b"a\\b",
            "\u{fffd}".as_bytes(),
        ];
        let texts: BTreeSet<String> = ids.iter().map(|id| text(id)).collect();
        assert_eq!(texts.len(), ids.len(), "{texts:?}");
        assert!(texts.iter().all(|text| !text.contains('\0')));
    }

    #[test]
    fn what_is_text_stays_as_it_is() {
        for id in ["", "document:7", "C:\\a\\b", "\u{fffd}\n", "é"] {
            assert_eq!(text(id.as_bytes()), id);
        }
        assert_eq!(text(b"a\xff\\"), "a\\xff\\\\");
    }
}
