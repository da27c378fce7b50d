//! Reads the one kind of Python pickle that Chroma keeps beside an index: dictionaries of strings and
//! integers (`index_metadata.pickle`). Nothing is ever called or made that a pickle asks for.

use crate::{Error, Result};
use std::collections::HashMap;
use std::rc::Rc;

/// How deep values may stand on the stack: a dictionary's pairs lie there until they are put in.
const STACK_MAX: usize = 64 << 20;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// `None`.
    None,
    /// An integer.
    Int(i64),
    /// A string.
    Text(Rc<str>),
    /// A dictionary, its pairs in order.
    Dict(Vec<(Value, Value)>),
    /// Something that does not matter here: a class, an empty tuple, a number with a fraction.
    Other,
    /// A mark on the stack.
    Mark,
}

impl Value {
    /// The value of a dictionary under `key`.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let Self::Dict(pairs) = self else { return None };
        pairs
            .iter()
            .find(|(name, _)| matches!(name, Self::Text(text) if &**text == key))
            .map(|(_, value)| value)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    stack: Vec<Value>,
    memo: HashMap<u64, Value>,
}

fn malformed(why: &str) -> Error {
    Error::data(
        "chroma_index_unreadable",
        format!("index_metadata.pickle is not understood: {why}"),
    )
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let count = usize::try_from(count).map_err(|_| malformed("too long"))?;
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or_else(|| malformed("it ends early"))?;
        self.bytes = rest;
        Ok(taken)
    }

    /// An unsigned little-endian number of `width` bytes.
    fn number(&mut self, width: u64) -> Result<u64> {
        let bytes = self.take(width)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |n, byte| (n << 8) | u64::from(*byte)))
    }

    fn text(&mut self, width: u64) -> Result<()> {
        let length = self.number(width)?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| malformed("not UTF-8"))?;
        self.push(Value::Text(text.into()))
    }

    /// A signed number of up to eight bytes, of any width.
    fn long(&mut self) -> Result<()> {
        let width = self.number(1)?;
        if width > 8 {
            return Err(malformed("a number is too large"));
        }
        let value = self.number(width)?;
        let shift = 64 - 8 * width;
        let signed = match shift {
            64 => 0,
            shift => (value << shift).cast_signed() >> shift,
        };
        self.push(Value::Int(signed))
    }

    fn push(&mut self, value: Value) -> Result<()> {
        if self.stack.len() >= STACK_MAX {
            return Err(malformed("it is too large"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value> {
        self.stack.pop().ok_or_else(|| malformed("nothing to take"))
    }

    fn put_items(&mut self, items: Vec<Value>) -> Result<()> {
        let Some(Value::Dict(pairs)) = self.stack.last_mut() else {
            return Err(malformed("pairs without a dictionary"));
        };
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            let value = items.next().ok_or_else(|| malformed("half a pair"))?;
            pairs.push((key, value));
        }
        Ok(())
    }

    fn remember(&mut self, key: u64) -> Result<()> {
        let top = self.stack.last().ok_or_else(|| malformed("no value"))?;
        // Only strings are referred to again; a dictionary would be a copy.
        if let Value::Text(_) = top {
            self.memo.insert(key, top.clone());
        }
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        let value = self.memo.get(&key).cloned();
        self.push(value.ok_or_else(|| malformed("an unknown reference"))?)
    }

    fn run(mut self) -> Result<Value> {
        let mut remembered = 0_u64;
        loop {
            let code = self.number(1)?;
            match u8::try_from(code).unwrap_or_default() {
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b'(' => self.push(Value::Mark)?,
                b'N' => self.push(Value::None)?,
                b'X' => self.text(4)?,
                0x8c => self.text(1)?,
                0x8d => self.text(8)?,
                b'J' => {
                    let value = self.number(4)?;
                    let low = u32::try_from(value).unwrap_or_default();
                    self.push(Value::Int(i64::from(low.cast_signed())))?;
                }
                b'K' => {
                    let value = self.number(1)?;
                    self.push(Value::Int(value.cast_signed()))?;
                }
                b'M' => {
                    let value = self.number(2)?;
                    self.push(Value::Int(value.cast_signed()))?;
                }
                0x8a => self.long()?,
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Other)?;
                }
                0x88 | 0x89 | b')' => self.push(Value::Other)?,
                b'u' => {
                    let mark = self.stack.iter().rposition(|value| *value == Value::Mark);
                    let mark = mark.ok_or_else(|| malformed("no mark"))?;
                    let items = self.stack.split_off(mark);
                    self.put_items(items.into_iter().skip(1).collect())?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.put_items(vec![key, value])?;
                }
                0x94 => {
                    self.remember(remembered)?;
                    remembered += 1;
                }
                b'q' => {
                    let key = self.number(1)?;
                    self.remember(key)?;
                }
                b'r' => {
                    let key = self.number(4)?;
                    self.remember(key)?;
                }
                b'h' => {
                    let key = self.number(1)?;
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.number(4)?;
                    self.recall(key)?;
                }
                // A class by two names, an object of it, and its state: Chroma before 1.0 pickled an object;
                // its attributes are all that matters.
                0x93 | 0x81 => {
                    self.pop()?;
                    self.pop()?;
                    self.push(Value::Other)?;
                }
                b'b' => {
                    let state = self.pop()?;
                    self.pop()?;
                    self.push(state)?;
                }
                b'.' => return self.pop(),
                other => return Err(malformed(&format!("operation 0x{other:02x}"))),
            }
        }
    }
}

/// Reads a pickle.
///
/// # Errors
/// Kind Data, `chroma_index_unreadable`.
pub(super) fn parse(bytes: &[u8]) -> Result<Value> {
    let reader = Reader {
        bytes,
        stack: Vec::new(),
        memo: HashMap::new(),
    };
    reader.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `pickle.dumps({"a": {"x": 1, "y": 70000, "z": -2}, "b": None, "c": 1 << 40}, protocol=4)`.
    const PYTHON: &[u8] = b"\x80\x04\x956\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94}\x94(\x8c\x01x\x94K\x01\x8c\x01y\x94Jp\x11\x01\x00\x8c\x01z\x94J\xfe\xff\xff\xffu\x8c\x01b\x94N\x8c\x01c\x94\x8a\x06\x00\x00\x00\x00\x00\x01u.";

    #[test]
    fn pythons_own_is_read() {
        let value = parse(PYTHON).unwrap();
        let inner = value.get("a").unwrap();
        assert_eq!(inner.get("x"), Some(&Value::Int(1)));
        assert_eq!(inner.get("y"), Some(&Value::Int(70000)));
        assert_eq!(inner.get("z"), Some(&Value::Int(-2)));
        assert_eq!(value.get("b"), Some(&Value::None));
        assert_eq!(value.get("c"), Some(&Value::Int(1 << 40)));
    }

    #[test]
    fn cut_or_changed_it_fails_or_reads_and_never_panics() {
        for end in 0..PYTHON.len() {
            assert!(parse(&PYTHON[..end]).is_err(), "{end}");
        }
        for at in 0..PYTHON.len() {
            for byte in 0..=255 {
                let mut changed = PYTHON.to_vec();
                changed[at] = byte;
                let _ = parse(&changed);
            }
        }
    }
}
