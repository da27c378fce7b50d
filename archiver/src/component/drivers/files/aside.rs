//! What a restore in place moves aside, for no backup has it as it is: `NAME.before-<time>`.
//!
//! For every pattern such a name counts as the one it was made of, too: what was masked as `app.env` must
//! not be stored in clear by the next backup.

use chrono::{DateTime, Utc};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

const MARK: &[u8] = b".before-";

/// The end of all names of one restore.
pub(super) fn ending(now: DateTime<Utc>) -> Vec<u8> {
    let time = now.format("%Y%m%dT%H%M%S%3fZ").to_string();
    [MARK, time.as_bytes()].concat()
}

/// `name` with an [`ending`].
pub(super) fn name(name: &OsStr, ending: &[u8]) -> OsString {
    OsString::from_vec([name.as_bytes(), ending].concat())
}

/// Whether `name` is of something that was moved aside.
pub(super) fn is_aside(name: &[u8]) -> bool {
    former(name).len() < name.len()
}

/// A path with the names that its parts had; `None`: none of them was moved aside.
pub(super) fn former_path(path: &[u8]) -> Option<Vec<u8>> {
    if !path.split(|b| *b == b'/').any(is_aside) {
        return None;
    }
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').map(former).collect();
    Some(parts.join(&b'/'))
}

/// What was moved aside twice has two endings.
fn former(name: &[u8]) -> &[u8] {
    let mut name = name;
    while let Some(at) = name.windows(MARK.len()).rposition(|part| part == MARK) {
        let time = name.get(at + MARK.len()..).unwrap_or_default();
        match name.get(..at).filter(|former| !former.is_empty()) {
            Some(former) if is_time(time) => name = former,
            _ => break,
        }
    }
    name
}

fn is_time(time: &[u8]) -> bool {
    const FORM: &[u8] = b"00000000T000000000Z";
    let fits = |(byte, form): (&u8, &u8)| match form {
        b'0' => byte.is_ascii_digit(),
        form => byte == form,
    };
    time.len() == FORM.len() && time.iter().zip(FORM).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_what_it_was_made_of() {
        let ending = ending(DateTime::from_timestamp(1_795_998_756, 123_456_789).unwrap());
        let aside = name(OsStr::new("app.env"), &ending);
        assert_eq!(former(aside.as_bytes()), b"app.env");
        let twice = name(&aside, &ending);
        assert_eq!(former(twice.as_bytes()), b"app.env");
        let below = [b"d", ending.as_slice(), b"/x/", aside.as_bytes()].concat();
        assert_eq!(former_path(&below).unwrap(), b"d/x/app.env");
        for other in [
            "app.env",
            "app.env.before-",
            "app.env.before-20261130T09324612Z",
            "app.env.before-20261130T093246123Z.bak",
            ".before-20261130T093246123Z",
        ] {
            assert!(!is_aside(other.as_bytes()), "{other}");
            assert_eq!(former_path(other.as_bytes()), None);
        }
    }
}
