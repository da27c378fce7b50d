use crate::{Error, Result};

/// The name of an object: relative, `/`-separated, every part of `[A-Za-z0-9._-]`, none `.` or
/// `..`, at most 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// # Errors
    /// Kind Data, code `invalid_key`, on any other text: keys come out of listings too.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let byte_ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let part_ok = |part: &str| {
            !part.is_empty() && part != "." && part != ".." && part.bytes().all(byte_ok)
        };
        if text.len() > 512 || !text.split('/').all(part_ok) {
            return Err(Error::data(
                "invalid_key",
                format!("invalid object key {text:?}"),
            ));
        }
        Ok(Self(text))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part behind the last `/`.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
