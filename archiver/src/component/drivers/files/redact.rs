//! Masks the values in configuration files: names of keys stay, so that one sees what has to be set.

/// What stands in a value's place. Its length says nothing of the value's.
const MASK: &[u8] = b"********";

/// `content` without values. A line that is no `key = value` or `key: value` is masked whole: what is not
/// understood may be a secret, or a part of one.
pub(super) fn redact(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    for line in content.split_inclusive(|b| *b == b'\n') {
        let (text, end) = match line.strip_suffix(b"\n") {
            Some(text) => (text.strip_suffix(b"\r").unwrap_or(text), true),
            None => (line, false),
        };
        if !text.iter().all(u8::is_ascii_whitespace) {
            out.extend_from_slice(key(text));
            out.extend_from_slice(MASK);
        }
        if end {
            out.push(b'\n');
        }
    }
    out
}

/// The beginning of a line up to its value; empty when it has no key.
fn key(line: &[u8]) -> &[u8] {
    let is_key = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let blank = |from: usize| {
        let rest = line.get(from..).unwrap_or_default();
        from + rest
            .iter()
            .take_while(|b| matches!(b, b' ' | b'\t'))
            .count()
    };
    let mut at = blank(0);
    if line
        .get(at..)
        .is_some_and(|rest| rest.starts_with(b"export "))
    {
        at = blank(at + 7);
    }
    let quote = line.get(at).copied().filter(|b| matches!(b, b'"' | b'\''));
    at += usize::from(quote.is_some());
    let rest = line.get(at..).unwrap_or_default();
    let len = rest.iter().take_while(|b| is_key(b)).count();
    at += len;
    if quote.is_some() {
        if line.get(at).copied() != quote {
            return &[];
        }
        at += 1;
    }
    at = blank(at);
    if len == 0 || !line.get(at).is_some_and(|b| matches!(b, b'=' | b':')) {
        return &[];
    }
    line.get(..blank(at + 1)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_and_nothing_else() {
        let secret = b"# old: hunter2\nDB_URL=postgres://u:hunter2@h/db?a=b\nexport TOKEN = 'hunter2'\n\n  password: hunter2\n\"key\": \"hunter2\",\n-----BEGIN KEY-----\nhunter2\n{\"a\": \"hunter2\"}\nhunter2=\r\nlast=hunter2";
        let masked = redact(secret);
        let text = String::from_utf8(masked).unwrap();
        assert_eq!(
            text,
            "********\nDB_URL=********\nexport TOKEN = ********\n\n  password: ********\n\"key\": ********\n********\n********\n********\nhunter2=********\nlast=********"
        );
        assert!(redact(b"").is_empty());
        assert_eq!(redact(b"\xff\x00=x"), MASK);
    }
}
