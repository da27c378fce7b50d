//! Memory for secrets: pages of their own, locked against swapping, left out of core dumps, wiped
//! when they are dropped. And a place to use them in: ciphers and digests leave pieces of a key on
//! the stack, so what handles one runs on a stack that is wiped afterwards.

use super::xaes::KEY_BYTES;
use crate::{Error, Result};
use memmap2::{Advice, MmapMut};
use std::io::Read;
use std::path::Path;
use std::sync::Once;
use zeroize::Zeroize;

/// The largest secret that is read from a file: a key file, a passphrase, age identities.
const FILE_BYTES_MAX: usize = 64 << 10;
const STACK_BYTES: usize = 2 << 20;
const WIPED_BYTES: usize = 1 << 20;

/// A secret.
pub struct Secret {
    pages: MmapMut,
    len: usize,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// A secret of `len` zero bytes.
    ///
    /// # Errors
    /// Kind Unavailable, code `no_memory`.
    pub fn zero(len: usize) -> Result<Self> {
        let failed =
            |e| Error::unavailable("no_memory", "could not get memory for a key").with_source(e);
        let pages = MmapMut::map_anon(len.max(1)).map_err(failed)?;
        pages.advise(Advice::DontDump).map_err(failed)?;
        if let Err(error) = pages.lock() {
            static ONCE: Once = Once::new();
            ONCE.call_once(|| {
                tracing::warn!(
                    code = "memory_not_locked",
                    "key memory may be swapped out: {error}; raise the limit on locked memory (ulimit -l, LimitMEMLOCK)"
                );
            });
        }
        Ok(Self { pages, len })
    }

    /// A copy of `bytes`, which the caller wipes.
    ///
    /// # Errors
    /// Kind Unavailable, code `no_memory`.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        let mut secret = Self::zero(bytes.len())?;
        secret.bytes_mut().copy_from_slice(bytes);
        Ok(secret)
    }

    /// A new random key.
    ///
    /// # Errors
    /// Kind Unavailable, code `no_memory`; Internal without randomness.
    pub fn random_key() -> Result<Self> {
        let mut secret = Self::zero(KEY_BYTES)?;
        random(secret.bytes_mut())?;
        Ok(secret)
    }

    /// The content of a file, read straight into locked memory.
    ///
    /// # Errors
    /// Kind Invalid: `key_file_unreadable`, `key_file_permissions` when everybody may read it,
    /// `key_file_malformed` above 64 KiB.
    pub fn read_file(path: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let unreadable = |e| {
            Error::invalid(
                "key_file_unreadable",
                format!("could not read the key file \"{}\"", path.display()),
            )
            .with_source(e)
            .with_hint("[repository.*.encryption] names it; pgark must be able to read it.")
        };
        let mut file = std::fs::File::open(path).map_err(unreadable)?;
        let meta = file.metadata().map_err(unreadable)?;
        if meta.permissions().mode() & 0o007 != 0 {
            return Err(Error::invalid(
                "key_file_permissions",
                format!("everybody may read the key file \"{}\"", path.display()),
            )
            .with_hint("Take the rights away: chmod 0600, or 0640 with a group of its own."));
        }
        let mut secret = Self::zero(FILE_BYTES_MAX + 1)?;
        let mut len = 0;
        loop {
            let room = secret.pages.get_mut(len..).unwrap_or_default();
            match file.read(room) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(unreadable(e)),
            }
        }
        if len > FILE_BYTES_MAX {
            return Err(Error::invalid(
                "key_file_malformed",
                format!("\"{}\" is too long for a key file", path.display()),
            ));
        }
        secret.len = len;
        Ok(secret)
    }

    /// The secret.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.pages.get(..self.len).unwrap_or_default()
    }

    /// The secret, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.get_mut(..self.len).unwrap_or_default()
    }

    /// The secret as a key.
    ///
    /// # Errors
    /// Kind Internal when its length is another one.
    pub fn key(&self) -> Result<&[u8; KEY_BYTES]> {
        self.bytes()
            .try_into()
            .map_err(|_| Error::internal("key_length", "a key has an unexpected length"))
    }

    /// Shortens it to `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Cuts line ends off: what an editor leaves behind a passphrase.
    pub fn trim_line_end(&mut self) {
        while self.bytes().ends_with(b"\n") || self.bytes().ends_with(b"\r") {
            self.len -= 1;
        }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.pages.zeroize();
    }
}

/// Fills `bytes` from the operating system's generator. Key material and nonces are not taken from
/// the injected clock: a test that repeats its random numbers must not repeat a nonce.
///
/// # Errors
/// Kind Internal.
pub fn random(bytes: &mut [u8]) -> Result<()> {
    aws_lc_rs::rand::fill(bytes)
        .map_err(|_| Error::internal("no_randomness", "could not get random bytes"))
}

/// Runs `work` on a thread of its own and wipes the stack that it used.
///
/// # Errors
/// What `work` returns; kind Unavailable when there is no thread; Internal when it panics.
pub fn on_wiped_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("keys".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || {
                let done = run(work);
                wipe();
                done
            })
            .map_err(|e| Error::io("could not start a thread", e))?
            .join()
            .map_err(|_| Error::internal("thread_panicked", "the handling of a key panicked"))?
    })
}

#[inline(never)]
fn run<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe() {
    let mut stack = [0_u8; WIPED_BYTES];
    std::hint::black_box(&mut stack).zeroize();
    std::hint::black_box(&stack);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a core dump would hold: every writable mapping that is not marked "dd".
    fn dumpable_memory_holds(marker: &[u8]) -> bool {
        use std::os::unix::fs::FileExt;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let (mut range, mut writable) = ((0, 0), false);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((from, to)) = first.split_once('-') {
                let number = |text| u64::from_str_radix(text, 16).unwrap();
                range = (number(from), number(to));
                writable = words.next().unwrap_or_default().contains('w');
            } else if first == "VmFlags:" && writable && !words.any(|flag| flag == "dd") {
                let mut buffer = vec![0; usize::try_from(range.1 - range.0).unwrap()];
                if memory.read_exact_at(&mut buffer, range.0).is_err() {
                    continue;
                }
                let found = buffer.windows(marker.len()).any(|w| w == marker);
                buffer.zeroize();
                if found {
                    return true;
                }
            }
        }
        false
    }

    /// A marker that stands nowhere in memory until it is made.
    fn marker(into: &mut [u8]) {
        for (at, byte) in (0_u8..).zip(into) {
            *byte = at.wrapping_mul(37) ^ 0xA5;
        }
    }

    #[test]
    fn a_core_dump_does_not_hold_it() {
        let mut secret = Secret::zero(32).unwrap();
        marker(secret.bytes_mut());
        let cipher = on_wiped_stack(|| {
            let made = super::super::xaes::Xaes::new(secret.key()?)
                .map_err(|_| Error::internal("test", "test"))?;
            made.seal([1; 24], b"", &mut [1; 64])
                .map_err(|_| Error::internal("test", "test"))
        });
        assert!(cipher.is_ok());
        assert!(!dumpable_memory_holds(secret.bytes()));
        // The search itself works: the same bytes on the heap are found.
        let careless = secret.bytes().to_vec();
        assert!(dumpable_memory_holds(&careless));
    }

    #[test]
    fn files_are_read_and_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert_eq!(
            Secret::read_file(&path).unwrap_err().code(),
            "key_file_unreadable"
        );
        std::fs::write(&path, "correct horse\r\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
        mode(0o644).unwrap();
        assert_eq!(
            Secret::read_file(&path).unwrap_err().code(),
            "key_file_permissions"
        );
        mode(0o640).unwrap();
        let mut secret = Secret::read_file(&path).unwrap();
        secret.trim_line_end();
        assert_eq!(secret.bytes(), b"correct horse");
        std::fs::write(&path, vec![b'a'; FILE_BYTES_MAX + 1]).unwrap();
        assert_eq!(
            Secret::read_file(&path).unwrap_err().code(),
            "key_file_malformed"
        );
    }
}
