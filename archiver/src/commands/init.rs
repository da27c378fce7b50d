//! `pgark init`.

use super::key_file::Made;
use super::output::{Output, print_json, print_text, repository_unknown};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, RepositoryConfig, RepositoryKind};
use crate::repository::crypto::keys::{self, NewSlot};
use crate::repository::crypto::source::KeySource;
use crate::repository::{Repository, layout};
use crate::storage::SharedStorage;
use crate::storage::posix::PosixStorage;
use crate::storage::sftp::{self, SftpStorage};
use crate::{Error, Result, places, repository};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Creates the configured repositories.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Store everything unencrypted. Without it the configuration must say how to encrypt.
    #[arg(long)]
    pub no_encryption: bool,
    /// Where to write the recovery kit of an encrypted repository: a file that is not there yet. The
    /// kit opens the repository when every other key is lost: keep it away from this host
    #[arg(long, value_name = "FILE")]
    pub recovery_kit: Option<PathBuf>,
    /// Only this repository [default: every configured one that does not exist yet]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// Creates the repositories.
///
/// # Errors
/// Kind Invalid without a choice for or against encryption, or without a recovery kit; Conflict
/// when the named one exists, or all do; or the storage's error.
pub fn run(config: &Config, args: &Args, output: Output) -> Result<()> {
    let storages = config.storages()?;
    if let Some(name) = &args.repository
        && !storages.iter().any(|(n, ..)| n == name)
    {
        return Err(repository_unknown(name));
    }
    let wanted = storages
        .iter()
        .filter(|(n, ..)| args.repository.as_ref().is_none_or(|w| w == n));
    // What is missing must be known before anything is made.
    let mut plans = Vec::new();
    for (name, section, storage) in wanted {
        let there = matches!(storage.head(&layout::repository()?), Ok(Some(_)));
        // An interrupted init is gone on with.
        let begun = match there {
            true => repository::unfinished(storage)?,
            false => None,
        };
        let source = match there && begun.is_none() {
            true => None,
            false => choice(name, section, args)?,
        };
        plans.push(Plan {
            name,
            section,
            storage,
            begun,
            source,
        });
    }
    one_kit_each(&plans)?;
    let mut made = Vec::new();
    let mut there_already = None;
    for plan in plans {
        let Plan {
            name,
            section,
            storage,
            begun,
            source,
        } = plan;
        let (storage, place) = match section.kind {
            RepositoryKind::Posix => directory(config, section)?,
            RepositoryKind::S3 => bucket(storage)?,
            RepositoryKind::Sftp => server(name, section, storage)?,
        };
        let created = match (&source, &args.recovery_kit) {
            (Some(source), Some(kit)) => {
                let id = begun.unwrap_or_else(|| SystemClock.random());
                encrypted((name, id), &storage, source, kit)
            }
            _ => repository::create(&storage, &SystemClock),
        };
        match created {
            Err(e) if e.code() == "repository_exists" && args.repository.is_none() => {
                there_already.get_or_insert(e);
                continue;
            }
            other => other?,
        }
        let kit = args.recovery_kit.as_ref().filter(|_| source.is_some());
        made.push(
            json!({"name": name, "path": place, "encrypted": source.is_some(), "recovery_kit": kit}),
        );
        if output == Output::Text {
            print_text(format_args!("repository \"{name}\" is ready at {place}"));
            if let Some(kit) = kit {
                print_text(format_args!(
                    "It is encrypted. Its recovery kit is in {}: the kit was read back and opens it. Move it away\n\
                     from this host, or print it and remove the file; \"pgark key check --kit\" proves it again.",
                    kit.display()
                ));
            }
        }
    }
    // With a second repository in the configuration the first one stays as it is; a run that made
    // nothing is a mistake to be told.
    if let Some(error) = there_already.filter(|_| made.is_empty()) {
        return Err(error);
    }
    if output == Output::Json {
        print_json(json!({"repositories": made}));
    }
    Ok(())
}

/// A repository that is asked for.
struct Plan<'a> {
    name: &'a str,
    section: &'a RepositoryConfig,
    storage: &'a SharedStorage,
    /// The id that an interrupted init has given it.
    begun: Option<[u8; 16]>,
    /// How it is to be encrypted; `None` too where it is there already.
    source: Option<KeySource>,
}

/// A kit opens one repository, and there is one file for it.
fn one_kit_each(plans: &[Plan<'_>]) -> Result<()> {
    let encrypted = plans.iter().filter(|plan| plan.source.is_some());
    let names: Vec<String> = encrypted.map(|plan| format!("\"{}\"", plan.name)).collect();
    if names.len() < 2 {
        return Ok(());
    }
    Err(Error::invalid(
        "recovery_kit_shared",
        format!(
            "the repositories {} need a recovery kit each",
            names.join(", ")
        ),
    )
    .with_hint("Make one after the other: --repository NAME --recovery-kit FILE."))
}

/// Whether and how to encrypt: it must be said, and not twice differently.
fn choice(name: &str, section: &RepositoryConfig, args: &Args) -> Result<Option<KeySource>> {
    let source = match &section.encryption {
        Some(encryption) => encryption.source()?,
        None if args.no_encryption => None,
        None => {
            return Err(Error::invalid(
                "encryption_choice",
                format!("say whether repository \"{name}\" is to be encrypted"),
            )
            .with_hint("Add [repository.*.encryption] with mode key-file, passphrase or recipients, or say --no-encryption."));
        }
    };
    match (&source, args.no_encryption, &args.recovery_kit) {
        (Some(_), true, _) => Err(Error::invalid(
            "encryption_choice",
            format!("--no-encryption, and the configuration encrypts repository \"{name}\""),
        )
        .with_hint("Leave one of them out.")),
        (Some(_), false, None) => Err(Error::invalid(
            "recovery_kit_required",
            format!("repository \"{name}\" needs a recovery kit"),
        )
        .with_hint(
            "Say --recovery-kit FILE. Without a kit, a lost key is the loss of every backup.",
        )),
        _ => Ok(source),
    }
}

/// An encrypted repository, and the proof that its keys open it.
fn encrypted(
    (name, id): (&str, [u8; 16]),
    storage: &SharedStorage,
    source: &KeySource,
    kit: &Path,
) -> Result<()> {
    let mut made = Made::default();
    let credential = made.credential(source, name)?;
    let opens = !matches!(
        source,
        KeySource::Recipients {
            identity_file: None,
            ..
        }
    );
    // What will not open it must be known before it is there.
    if opens && matches!(source, KeySource::Recipients { .. }) {
        keys::try_out(&id, &credential, &source.to_open()?)?;
    }
    let slots = [
        NewSlot {
            name: "first".to_owned(),
            credential,
        },
        made.kit(kit, name, &id)?,
    ];
    let created = repository::create_encrypted(storage, &SystemClock, &id, &slots);
    // Any other error may have come after the keys were stored.
    if !matches!(&created, Err(error) if error.code() == "repository_exists") {
        made.keep();
    }
    created?;
    Repository::open_with(
        name,
        SharedStorage::clone(storage),
        &KeySource::KeyFile(kit.to_path_buf()),
    )?;
    if opens {
        Repository::open_with(name, SharedStorage::clone(storage), source)?;
    }
    Ok(())
}

/// Makes the directory; the storage and its place for the reader.
fn directory(config: &Config, section: &RepositoryConfig) -> Result<(SharedStorage, String)> {
    let path = section.path.clone().unwrap_or_default();
    let cluster = config.cluster.as_ref();
    let data_directory = cluster.and_then(|c| c.data_directory.as_deref());
    places::outside_data_directories(&path, data_directory)?;
    let place = path.display().to_string();
    let storage = PosixStorage::create(path)?;
    // A share may lack what a repository is built on: before one is made there.
    if !storage.probe()?.exclusive_put {
        return Err(Error::invalid(
            "exclusive_put_unsupported",
            format!("the file system of \"{place}\" cannot create a file exclusively"),
        )
        .with_hint(
            "Put the repository on another file system: docs/guide/shares.md says what it needs.",
        ));
    }
    Ok((Arc::new(storage), place))
}

/// Makes the directory on the server, and tries whether names can be given there without replacing.
fn server(
    name: &str,
    section: &RepositoryConfig,
    storage: &SharedStorage,
) -> Result<(SharedStorage, String)> {
    let settings = sftp::Settings::from_config(name, section)?;
    SftpStorage::new(settings).create_directory()?;
    if !storage.probe()?.exclusive_put {
        return Err(Error::unavailable(
            "storage_too_weak",
            format!(
                "of several files that are given one name in {} not exactly one gets it",
                storage.describe()
            ),
        )
        .with_hint("Use a server with OpenSSH's extensions and a file system that has hard links: docs/guide/sftp.md."));
    }
    Ok((SharedStorage::clone(storage), storage.describe()))
}

/// Tries whether the server keeps what a repository is built on, before one is made there.
fn bucket(storage: &SharedStorage) -> Result<(SharedStorage, String)> {
    if let Some(bucket) = storage.bucket() {
        bucket.check_object_lock()?;
    }
    if !storage.probe()?.exclusive_put {
        return Err(Error::unavailable(
            "storage_too_weak",
            format!(
                "of several puts of one object at {} more than one wins",
                storage.describe()
            ),
        )
        .with_hint("Set conditional_put = \"emulated\" in [repository.*]: docs/guide/s3.md says what that means."));
    }
    Ok((SharedStorage::clone(storage), storage.describe()))
}
