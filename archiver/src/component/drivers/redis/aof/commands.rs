//! The commands of an append-only file: where the last whole one ends.

use std::io::{BufRead, Read};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Up to here there are whole commands, and no transaction that is open.
    pub good_bytes: u64,
    /// Commands up to there.
    pub commands: u64,
    /// The newest `#TS:` up to there, in seconds since 1970.
    pub newest_seconds: Option<u64>,
    /// What follows; `None`: nothing.
    pub problem: Option<String>,
}

/// More arguments than any command has, or longer ones, are damage.
const ARGUMENTS_MAX: u64 = 1 << 24;
const ARGUMENT_BYTES_MAX: u64 = 4 << 30;
const LINE_BYTES_MAX: u64 = 1 << 10;

/// Reads commands to the end, or to the first that is none.
///
/// # Errors
/// Those of the reader.
pub fn scan(mut from: impl BufRead) -> std::io::Result<Scan> {
    let mut scan = Scan::default();
    let mut at = 0;
    let mut inside = false;
    // Of the open transaction: they count with its end.
    let mut waiting = 0;
    loop {
        let begin = at;
        match step(&mut from, &mut at)? {
            Step::End => {
                if inside {
                    scan.problem = Some("a transaction is not finished".to_owned());
                }
                return Ok(scan);
            }
            Step::Bad(why) => {
                scan.problem = Some(format!("{why}, in the command at byte {begin}"));
                return Ok(scan);
            }
            Step::Remark(seconds) => {
                if !inside {
                    scan.good_bytes = at;
                    scan.newest_seconds = seconds.or(scan.newest_seconds);
                }
            }
            Step::Command(name) => {
                waiting += 1;
                match name.as_slice() {
                    b"MULTI" => inside = true,
                    b"EXEC" => inside = false,
                    _ => {}
                }
                if !inside {
                    scan.commands += waiting;
                    waiting = 0;
                    scan.good_bytes = at;
                }
            }
        }
    }
}

enum Step {
    End,
    Bad(&'static str),
    Remark(Option<u64>),
    /// Its first word, in capitals; cut when it is long.
    Command(Vec<u8>),
}

fn step(from: &mut impl BufRead, at: &mut u64) -> std::io::Result<Step> {
    let Some(head) = line(from, at)? else {
        let ended = from.fill_buf()?.is_empty();
        return Ok(match ended {
            true => Step::End,
            false => Step::Bad("a line without end"),
        });
    };
    if head.is_empty() {
        return Ok(Step::End);
    }
    match head.strip_suffix(b"\r\n") {
        None => Ok(Step::Bad("the file ends")),
        Some(head) if head.first() == Some(&b'#') => {
            let text = head.strip_prefix(b"#TS:");
            Ok(Step::Remark(text.and_then(number)))
        }
        Some(head) => command(head, from, at),
    }
}

fn command(head: &[u8], from: &mut impl BufRead, at: &mut u64) -> std::io::Result<Step> {
    let count = head.strip_prefix(b"*").and_then(number);
    let Some(count) = count.filter(|count| (1..=ARGUMENTS_MAX).contains(count)) else {
        return Ok(Step::Bad("no count of arguments"));
    };
    let mut name = Vec::new();
    for argument in 0..count {
        let Some(head) = line(from, at)? else {
            return Ok(Step::Bad("a line without end"));
        };
        let length = match head.strip_suffix(b"\r\n") {
            None => return Ok(Step::Bad("the file ends")),
            Some(head) => head.strip_prefix(b"$").and_then(number),
        };
        let Some(length) = length.filter(|length| *length <= ARGUMENT_BYTES_MAX) else {
            return Ok(Step::Bad("no length of an argument"));
        };
        let kept = if argument == 0 { length.min(16) } else { 0 };
        let taken = from.take(kept).read_to_end(&mut name)? as u64;
        let skipped = std::io::copy(&mut from.take(length - kept), &mut std::io::sink())?;
        *at += taken + skipped;
        if taken + skipped < length {
            return Ok(Step::Bad("the file ends"));
        }
        match line(from, at)?.as_deref() {
            Some(b"\r\n") => {}
            Some([] | b"\r") => return Ok(Step::Bad("the file ends")),
            _ => return Ok(Step::Bad("an argument of another length")),
        }
    }
    name.make_ascii_uppercase();
    Ok(Step::Command(name))
}

/// A line with its end; without it at the end of the file; `None` when it is longer than any.
fn line(from: &mut impl BufRead, at: &mut u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = from.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
    *at += read;
    Ok((read < LINE_BYTES_MAX).then_some(line))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
