//! Masks the values in configuration files: names of keys stay, so that one sees what has to be set.
//!
//! A name is shown where a line is `key = value` or `key: value` beyond doubt, and where no line before
//! it has left something open that this line may belong to. Everything else is masked whole: what is
//! not understood may be a secret, or a part of one.

/// What stands in a value's place. Its length says nothing of the value's.
const MASK: &[u8] = b"********";

/// Longer names are no names.
const KEY_MAX: usize = 64;

/// `content` without values.
pub(super) fn redact(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    let mut reader = Reader::default();
    for line in content.split_inclusive(|b| *b == b'\n') {
        let (text, end) = match line.strip_suffix(b"\n") {
            Some(text) => (text.strip_suffix(b"\r").unwrap_or(text), true),
            None => (line, false),
        };
        if !text.iter().all(u8::is_ascii_whitespace) {
            let shown = reader.shown(text);
            out.extend_from_slice(text.get(..shown).unwrap_or_default());
            out.extend_from_slice(MASK);
        }
        if end {
            out.push(b'\n');
        }
    }
    out
}

/// What the lines before say of the next one.
#[derive(Default)]
struct Reader {
    /// A quote that no line has closed.
    quote: Option<Quote>,
    /// A block that only a line of its own closes.
    block: Option<Block>,
    /// The line before ends in a backslash.
    continued: bool,
    /// The column of the last value's key: a line that begins further in may go on with that value (a
    /// block of YAML, a continuation of an INI file).
    value_of: Option<usize>,
    /// The keys of the structures that are open: their columns, and whether only `key: value` is a key
    /// in them.
    around: Vec<(usize, bool)>,
}

#[derive(Clone, Copy)]
struct Quote {
    mark: u8,
    triple: bool,
}

enum Block {
    Pem,
    /// A here-document, with the word that ends it.
    Here(Vec<u8>),
}

impl Reader {
    /// How much of a line, which is not empty, may be seen.
    fn shown(&mut self, line: &[u8]) -> usize {
        let mut inside = self.quote.is_some() || self.block.is_some();
        inside |= std::mem::take(&mut self.continued);
        let indent = blank(line, 0);
        if !inside && is_comment(line.get(indent..).unwrap_or_default()) {
            return 0;
        }
        self.follow(line);
        if inside || self.value_of.is_some_and(|column| indent > column) {
            return 0;
        }
        self.value_of = None;
        while self
            .around
            .pop_if(|(column, _)| indent <= *column)
            .is_some()
        {}
        self.own(line, indent)
    }

    /// How much may be seen of a line that belongs to none before it.
    fn own(&mut self, line: &[u8], indent: usize) -> usize {
        let (mut at, mut dash) = (indent, None);
        while line.get(at) == Some(&b'-') && line.get(at + 1).is_some_and(is_blank) {
            dash = Some(at);
            at = blank(line, at + 1);
        }
        if let Some(column) = dash {
            self.around.push((column, true));
        }
        let strict = self.around.iter().any(|(_, strict)| *strict);
        let key = key(line, at).filter(|key| !strict || key.separator == b':');
        let Some(key) = key else {
            self.value_of = match opens_or_closes(line.get(at..).unwrap_or_default()) {
                true => None,
                false => Some(dash.unwrap_or(indent)),
            };
            return 0;
        };
        let is_map = key.separator == b':';
        match line.get(key.end..).unwrap_or_default().trim_ascii_end() {
            // It may be the last line of a value, as well.
            b"" if is_map => {
                self.around.push((at, true));
                0
            }
            b"{" => {
                self.around.push((at, is_map));
                key.end
            }
            b"[" => {
                self.around.push((at, true));
                key.end
            }
            value => {
                self.value_of = Some(at);
                match value.iter().all(is_noise) {
                    true => 0,
                    false => key.end,
                }
            }
        }
    }

    /// Notes what a line leaves open.
    fn follow(&mut self, line: &[u8]) {
        self.continued = line.ends_with(b"\\");
        let is_over = match &self.block {
            None => false,
            Some(Block::Pem) => has(line, b"-----END"),
            Some(Block::Here(word)) => line.trim_ascii() == word.as_slice(),
        };
        if is_over {
            self.block = None;
            return;
        }
        if self.block.is_some() {
            return;
        }
        self.follow_quotes(line);
        if self.quote.is_some() {
            return;
        }
        self.block = match has(line, b"-----BEGIN") && !has(line, b"-----END") {
            true => Some(Block::Pem),
            false => here_document(line).map(Block::Here),
        };
    }

    fn follow_quotes(&mut self, line: &[u8]) {
        let (mut rest, mut before) = (line, b' ');
        while let Some(byte) = rest.first().copied() {
            let three = rest.get(..3);
            let triple = three.is_some_and(|three| three.iter().all(|b| *b == byte));
            // The apostrophe of a word is no quote.
            let may_open =
                matches!(byte, b'"' | b'`') || (byte == b'\'' && !before.is_ascii_alphanumeric());
            let mut taken = 1;
            match self.quote {
                None if may_open => {
                    taken = if triple { 3 } else { 1 };
                    self.quote = Some(Quote { mark: byte, triple });
                }
                Some(quote) if quote.mark == byte && (triple || !quote.triple) => {
                    taken = if quote.triple { 3 } else { 1 };
                    self.quote = None;
                }
                Some(quote) if quote.mark == b'"' && byte == b'\\' => taken = 2,
                _ => {}
            }
            before = byte;
            rest = rest.get(taken..).unwrap_or_default();
        }
    }
}

/// The key of a line.
struct Key {
    /// Where the value begins.
    end: usize,
    separator: u8,
}

/// The key that stands at `at`.
fn key(line: &[u8], at: usize) -> Option<Key> {
    let is_key = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let rest = line.get(at..)?;
    let mut at = match rest.starts_with(b"export ") {
        true => blank(line, at + 7),
        false => at,
    };
    let quote = line.get(at).copied().filter(|b| matches!(b, b'"' | b'\''));
    at += usize::from(quote.is_some());
    let name = line.get(at..)?;
    let len = name.iter().take_while(|b| is_key(b)).count();
    let first = name.first()?;
    if len > KEY_MAX || !(first.is_ascii_alphabetic() || *first == b'_') {
        return None;
    }
    at += len;
    if quote.is_some() {
        if line.get(at).copied() != quote {
            return None;
        }
        at += 1;
    }
    let at = blank(line, at);
    let separator = *line.get(at)?;
    let end = blank(line, at + 1);
    let value = line.get(end..)?;
    let has_space = end > at + 1 || value.is_empty();
    let is_separator = match separator {
        b'=' => true,
        // Without a space it is a URL, or one of several values.
        b':' => has_space || quote.is_some(),
        _ => false,
    };
    // The padding of base64, and "::" of an address.
    let is_doubled = value.first().is_some_and(|b| matches!(b, b'=' | b':'));
    (is_separator && !is_doubled).then_some(Key { end, separator })
}

/// The end of the blanks that begin at `from`.
fn blank(line: &[u8], from: usize) -> usize {
    let rest = line.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|b| is_blank(b)).count()
}

fn is_blank(b: &u8) -> bool {
    matches!(b, b' ' | b'\t')
}

/// What may follow the padding at the end of a longer value. A value of these alone says nothing, and
/// then the key may be the value.
fn is_noise(b: &u8) -> bool {
    b.is_ascii_whitespace()
        || matches!(
            b,
            b'=' | b':' | b'"' | b'\'' | b'`' | b',' | b';' | b')' | b']' | b'}' | b'\\'
        )
}

fn is_comment(text: &[u8]) -> bool {
    text.starts_with(b"#") || text.starts_with(b";") || text.starts_with(b"//")
}

/// Whether what follows further in is not a part of this text: brackets, a list's member, a section.
fn opens_or_closes(text: &[u8]) -> bool {
    let text = text.trim_ascii_end();
    let last = text.last().copied().unwrap_or(b',');
    text == b"-" || text == b"---" || b"{[()]},;".contains(&last)
}

fn has(line: &[u8], part: &[u8]) -> bool {
    line.windows(part.len()).any(|window| window == part)
}

/// The word that ends the here-document which a line begins.
fn here_document(line: &[u8]) -> Option<Vec<u8>> {
    let at = line.windows(2).position(|window| window == b"<<")?;
    let rest = line.get(at + 2..)?;
    let before = rest.iter().take_while(|b| b"-~ \t'\"\\".contains(b));
    let word = rest.get(before.count()..)?.iter().copied();
    let word: Vec<u8> = word
        .take_while(|b| b.is_ascii_alphanumeric() || *b == b'_')
        .collect();
    (!word.is_empty()).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(plain: &str, masked: &str) {
        let got = String::from_utf8(redact(plain.as_bytes())).unwrap();
        assert_eq!(got, masked.replace("**", "********"), "of {plain:?}");
    }

    #[test]
    fn keys_stay_and_nothing_else() {
        is(
            "# old: hunter2\nDB_URL=postgres://u:hunter2@h/db?a=b\nexport TOKEN = 'hunter2'\n\npassword: hunter2\n\"key\": \"hunter2\",\n-----BEGIN KEY-----\nhunter2\n-----END KEY-----\n{\"a\": \"hunter2\"}\nhunter2=\r\nlast=hunter2",
            "**\nDB_URL=**\nexport TOKEN = **\n\npassword: **\n\"key\": **\n**\n**\n**\n**\n**\nlast=**",
        );
        is("export X=\"a b\"\nY='c'\n", "export X=**\nY=**\n");
        is("[a]\n  b = 1\n  c = 2\n", "**\n  b = **\n  c = **\n");
        assert!(redact(b"").is_empty());
        assert_eq!(redact(b"\xff\x00=x"), MASK);
    }

    #[test]
    fn what_may_be_the_end_of_a_value_is_no_key() {
        for line in [
            "dGhpc2lzc2VjcmV0MTIzNDU2NTY=",
            "q1w2e3r4p0==",
            "q1w2e3r4p0==\"",
            "q1w2e3r4p0=',",
            "s3cretvalue:",
            "s3cretvalue: ",
            "s3cretvalue :",
            "PASSWORD=\"\"",
            "postgres://user:hunter2@host/db",
            "AKIAKEY:hunter2",
            "fe80::1",
            "- hunter2",
            "- hunter2=x",
            "hunter2 is=it",
            "12345=6",
            "\"hunter2=\": x",
        ] {
            is(line, "**");
        }
        is(&format!("{}=x", "k".repeat(65)), "**");
        is(
            &format!("{}=x", "k".repeat(64)),
            &format!("{}=**", "k".repeat(64)),
        );
    }

    #[test]
    fn lines_of_one_value_show_nothing() {
        // Blocks of YAML, values that go on, and what stands below a key without a value.
        is(
            "a: |\n  hunter=2\n\n  hunter: 2\nb: >-\n  x: y\nc: one\n  two=2\nd:\n  hunter=2\ne: 1\n",
            "a: **\n**\n\n**\nb: **\n**\nc: **\n**\n**\n**\ne: **\n",
        );
        // Quotes.
        is(
            "A=\"one\nhunter=2\nhunter: 2\"\nB='x\ny=z'\nC=\"\"\"\nsay \"x\ny=z\n\"\"\"\nD=d\n",
            "A=**\n**\n**\nB=**\n**\n**\n**\n**\n**\nD=**\n",
        );
        // The apostrophe of a word opens nothing, nor does an escaped quote close.
        is(
            "a: it's\nb: 1\nC=\"x\\\"\ny=z\"\nd=1",
            "a: **\nb: **\nC=**\n**\nd=**",
        );
        is("a = x \\\nb=c\nd=e", "a = **\n**\nd=**");
        is(
            "K=$(cat <<'EOF'\nhunter=2\nEOF\n)\nb=c",
            "K=**\n**\n**\n**\nb=**",
        );
        is(
            "-----BEGIN X-----\nProc: 4\nab=\nc=d\n-----END X-----\ne=f",
            "**\n**\n**\n**\n**\ne=**",
        );
    }

    #[test]
    fn structures_keep_their_keys() {
        is(
            "{\n  \"db\": {\n    \"password\": \"x\",\n    \"hosts\": [\n      \"a=b\"\n    ]\n  },\n  \"k\":\"v\"\n}\n",
            "**\n  \"db\": **\n    \"password\": **\n    \"hosts\": **\n**\n**\n**\n  \"k\":**\n**\n",
        );
        is(
            "db:\n  users:\n    - name: x\n      password: y\n    - name: z\n  port: 1\ntop: 2\n",
            "**\n**\n    - name: **\n      password: **\n    - name: **\n  port: **\ntop: **\n",
        );
        is("tags = {\n  a = \"x\"\n}\n", "tags = **\n  a = **\n**\n");
    }
}
