//! Where the key to a repository comes from.

use super::key_text;
use super::secret::Secret;
use super::slot;
use crate::{Error, Result};
use std::path::PathBuf;

/// The fewest bytes of a passphrase that a slot is made for.
const PASSPHRASE_BYTES_MIN: usize = 12;

/// What opens the repository, as the configuration says it: names, no secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// The key in this file.
    KeyFile(PathBuf),
    /// A passphrase.
    Passphrase(PassphraseSource),
    /// An age identity.
    Recipients {
        /// For whom the master key is encrypted.
        recipients: Vec<String>,
        /// The identities that open it.
        identity_file: Option<PathBuf>,
    },
}

/// Where a passphrase stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassphraseSource {
    /// In a file; line ends behind it do not count.
    File(PathBuf),
    /// In an environment variable.
    Env(String),
}

/// The secret itself.
#[derive(Debug)]
pub enum Credential {
    /// A key.
    Key(Secret),
    /// A passphrase.
    Passphrase(Secret),
    /// The text of an age identity file: opens.
    Identities(Secret),
    /// age recipients: wrap.
    Recipients(Vec<String>),
}

impl KeySource {
    /// Reads what opens a slot.
    ///
    /// # Errors
    /// Kind Invalid: the file is not there, malformed or open to everybody, the variable is not
    /// set, there is no identity file.
    pub fn to_open(&self) -> Result<Credential> {
        match self {
            Self::KeyFile(path) => {
                let text = Secret::read_file(path)?;
                let key = key_text::parse(text.bytes());
                Ok(Credential::Key(key.map_err(|e| e.context(path.display()))?))
            }
            Self::Passphrase(source) => Ok(Credential::Passphrase(source.read()?)),
            Self::Recipients { identity_file, .. } => match identity_file {
                Some(path) => Ok(Credential::Identities(Secret::read_file(path)?)),
                None => Err(Error::invalid(
                    "identity_missing",
                    "the configuration names no age identity to open the repository with",
                )
                .with_hint("Set identity_file in [repository.*.encryption].")),
            },
        }
    }

    /// Reads what a new slot is made for.
    ///
    /// # Errors
    /// As [`KeySource::to_open`]; and kind Invalid for a passphrase that is too short
    /// (`passphrase_short`), no recipients or malformed ones (`recipient`).
    pub fn to_wrap(&self) -> Result<Credential> {
        match self {
            Self::Recipients { recipients, .. } if recipients.is_empty() => Err(Error::invalid(
                "recipient",
                "there is no age recipient to encrypt the master key for",
            )),
            Self::Recipients { recipients, .. } => {
                // Before anything is made for them.
                slot::parse_recipients(recipients)?;
                Ok(Credential::Recipients(recipients.clone()))
            }
            Self::Passphrase(source) => {
                let passphrase = source.read()?;
                if passphrase.bytes().len() < PASSPHRASE_BYTES_MIN {
                    return Err(
                        Error::invalid("passphrase_short", "the passphrase is too short")
                            .with_hint("Take 12 characters at least, better four random words."),
                    );
                }
                Ok(Credential::Passphrase(passphrase))
            }
            Self::KeyFile(_) => self.to_open(),
        }
    }
}

impl PassphraseSource {
    fn read(&self) -> Result<Secret> {
        let secret = match self {
            Self::File(path) => {
                let mut secret = Secret::read_file(path)?;
                secret.trim_line_end();
                secret
            }
            Self::Env(name) => {
                let value = zeroize::Zeroizing::new(std::env::var(name).unwrap_or_default());
                Secret::of(value.as_bytes())?
            }
        };
        if secret.bytes().is_empty() {
            let place = match self {
                Self::File(path) => format!("The file \"{}\" is empty", path.display()),
                Self::Env(name) => format!("The environment variable {name} is not set"),
            };
            return Err(
                Error::invalid("passphrase_missing", "there is no passphrase")
                    .with_detail(format!("{place}.")),
            );
        }
        Ok(secret)
    }
}
