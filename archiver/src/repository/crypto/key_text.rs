//! A key as text: key files and recovery kits. Four numbered lines, each with a check of its own,
//! so that a kit can be typed from paper and a slip is told by its line.

use super::secret::Secret;
use super::xaes::KEY_BYTES;
use crate::{Error, Result};
use std::fmt::Write as _;
use zeroize::Zeroizing;

const LINES: usize = 4;
const LINE_BYTES: usize = KEY_BYTES / LINES;
const CHECK_BYTES: usize = 2;

/// The text of `key`, with `remarks` above it.
#[must_use]
pub fn render(key: &[u8; KEY_BYTES], remarks: &[String]) -> Zeroizing<String> {
    // Room for all of it: a text that grows leaves copies behind.
    let remark_bytes: usize = remarks.iter().map(|r| r.len() + 3).sum();
    let mut text = Zeroizing::new(String::with_capacity(remark_bytes + 256));
    for remark in remarks {
        let _ = writeln!(text, "# {remark}");
    }
    for (number, part) in (1_u8..).zip(key.chunks_exact(LINE_BYTES)) {
        let _ = write!(text, "{number}");
        let check = check(number, part);
        for pair in part.chunks(2).chain([&check[..]]) {
            text.push(' ');
            for byte in pair {
                let _ = write!(text, "{byte:02x}");
            }
        }
        text.push('\n');
    }
    text
}

fn check(number: u8, part: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"pgark key line\0");
    hasher.update(&[number]);
    hasher.update(part);
    let [a, b, ..] = *hasher.finalize().as_bytes();
    [a, b]
}

/// The key in `text`. Spaces, dashes and case do not matter; lines that begin with `#` are remarks.
///
/// # Errors
/// Kind Invalid, code `key_file_malformed`: which line is wrong or missing.
pub fn parse(text: &[u8]) -> Result<Secret> {
    let malformed = |what: String| {
        Error::invalid(
            "key_file_malformed",
            format!("this is no whole key: {what}"),
        )
        .with_hint("A key has four lines \"1 xxxx xxxx xxxx xxxx cccc\"; lines with # are remarks. Put a copy of it back, or use the recovery kit as key_file and make another key with \"pgark key add\".")
    };
    let mut key = Secret::zero(KEY_BYTES)?;
    let mut lines = text
        .split(|b| *b == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    for (number, part) in (1_u8..).zip(key.bytes_mut().chunks_exact_mut(LINE_BYTES)) {
        let line = lines
            .next()
            .ok_or_else(|| malformed(format!("line {number} is missing")))?;
        let mut digits = line
            .iter()
            .filter(|b| !matches!(b, b' ' | b'\t' | b'-'))
            .map(|b| {
                char::from(*b)
                    .to_digit(16)
                    .and_then(|d| u8::try_from(d).ok())
            });
        let slip = || malformed(format!("line {number} has a slip in it"));
        if digits.next().flatten() != Some(number) {
            return Err(slip());
        }
        let mut byte = || Some((digits.next()?? << 4) | digits.next()??);
        for place in part.iter_mut() {
            *place = byte().ok_or_else(slip)?;
        }
        let found = [byte().ok_or_else(slip)?, byte().ok_or_else(slip)?];
        if found != check(number, part) || digits.next().is_some() {
            return Err(slip());
        }
    }
    if lines.next().is_some() {
        return Err(malformed("there is more than four lines".to_owned()));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let key = [0x5C; KEY_BYTES];
        let text = render(&key, &["a remark".to_owned()]);
        assert_eq!(parse(text.as_bytes()).unwrap().bytes(), key);
        let typed = text
            .to_uppercase()
            .replace(' ', " - ")
            .replace("# - ", "# ");
        assert_eq!(parse(typed.as_bytes()).unwrap().bytes(), key);
    }

    #[test]
    fn slips_and_losses_are_told_by_line() {
        let mut key = [0; KEY_BYTES];
        (0..).zip(&mut key).for_each(|(at, byte)| *byte = at);
        let text = render(&key, &[]);
        let says = |text: &str, what: &str| {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.code(), "key_file_malformed");
            assert!(error.message().contains(what), "{error}");
        };
        says("", "line 1 is missing");
        let lines: Vec<&str> = text.lines().collect();
        says(&lines[..3].join("\n"), "line 4 is missing");
        says(&text.replacen("3 1011", "3 1012", 1), "line 3");
        says(
            &[lines[1], lines[0], lines[2], lines[3]].join("\n"),
            "line 1",
        );
        says(&format!("{}\n5 00", text.as_str()), "more than four");
        for at in 0..text.len() {
            for other in "0f z".chars() {
                let mut slipped: Vec<char> = text.chars().collect();
                slipped[at] = other;
                let slipped: String = slipped.into_iter().collect();
                if let Ok(found) = parse(slipped.as_bytes()) {
                    assert_eq!(found.bytes(), key, "{slipped}");
                }
            }
        }
    }
}
