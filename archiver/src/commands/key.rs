//! `pgark key`.

use super::key_file::Made;
use super::output::{Output, choose_repository, print_json, print_text};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::repository::crypto::data_key::DataKeyRecord;
use crate::repository::crypto::key_text;
use crate::repository::crypto::keys::{self, Listing, NewSlot, Opened};
use crate::repository::crypto::removal;
use crate::repository::crypto::secret::{Secret, on_wiped_stack};
use crate::repository::crypto::source::{Credential, KeySource, PassphraseSource};
use crate::repository::{Repository, layout, sealed};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use ulid::Ulid;

/// The keys of an encrypted repository.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// The repository [default: the first required one]
    #[arg(long, global = true, value_name = "NAME")]
    repository: Option<String>,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List the key slots. Needs no key.
    #[command(after_help = crate::examples::KEY_LIST)]
    List,
    /// Open the repository with the configured key, and every data key with it.
    #[command(after_help = crate::examples::KEY_CHECK)]
    Check {
        /// Prove this recovery kit instead of the configured key; "-" reads it, typed, from standard input
        #[arg(long, value_name = "FILE")]
        kit: Option<PathBuf>,
    },
    /// Add a key slot.
    #[command(after_help = crate::examples::KEY_ADD)]
    Add {
        /// What people call the slot
        #[arg(long, value_name = "NAME")]
        name: String,
        #[command(flatten)]
        new: NewKey,
        /// For a host that backs up, archives and verifies, and must not be able to read. With --key-file
        #[arg(long)]
        writer: bool,
    },
    /// Remove a key slot.
    #[command(after_help = crate::examples::KEY_REMOVE)]
    Remove {
        /// The slot, as "pgark key list" shows it
        slot: Ulid,
    },
    /// Begin a new key epoch: what is written from now on opens with the new key alone, and so does
    /// everything older.
    #[command(after_help = crate::examples::KEY_ROTATE)]
    Rotate {
        #[command(flatten)]
        new: NewKey,
        /// Where to write the recovery kit of the new epoch; the old one opens nothing new
        #[arg(long, value_name = "FILE")]
        recovery_kit: PathBuf,
    },
    /// Make another recovery kit, with a slot of its own.
    #[command(after_help = crate::examples::KEY_EXPORT)]
    Export {
        /// Where to write it, as text to be printed; "-" for standard output
        #[arg(long, value_name = "FILE")]
        paper: PathBuf,
    },
}

/// The key that a new slot is made for.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = true)]
struct NewKey {
    /// A key file; made when it is not there
    #[arg(long, value_name = "FILE", conflicts_with_all = ["passphrase_file", "recipients"])]
    key_file: Option<PathBuf>,
    /// A file that holds a passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "recipients")]
    passphrase_file: Option<PathBuf>,
    /// An age recipient; may be repeated
    #[arg(long = "recipient", value_name = "RECIPIENT")]
    recipients: Vec<String>,
}

impl NewKey {
    fn source(&self) -> KeySource {
        match (&self.key_file, &self.passphrase_file) {
            (Some(path), _) => KeySource::KeyFile(path.clone()),
            (None, Some(path)) => KeySource::Passphrase(PassphraseSource::File(path.clone())),
            (None, None) => KeySource::Recipients {
                recipients: self.recipients.clone(),
                identity_file: None,
            },
        }
    }
}

/// The repository whose keys are looked at, and where its key comes from.
struct Target {
    repository: Repository,
    source: Option<KeySource>,
}

impl Target {
    fn new(config: &Config, name: Option<&str>) -> Result<Self> {
        let (name, section, storage) = choose_repository(config, name)?;
        let repository = Repository::open(&name, storage)?;
        if !repository.is_encrypted() {
            return Err(Error::invalid(
                "not_encrypted",
                format!("repository \"{name}\" is not encrypted"),
            )
            .with_hint("An unencrypted repository stays so: make another one, encrypted."));
        }
        let source = match &section.encryption {
            Some(encryption) => encryption.source()?,
            None => None,
        };
        Ok(Self { repository, source })
    }

    fn open(&self) -> Result<Opened> {
        let source = self.source.as_ref().ok_or_else(|| {
            Error::invalid(
                "key_required",
                "the configuration names no key to the repository",
            )
            .with_hint("Name the key in [repository.*.encryption].")
        })?;
        self.open_with(&source.to_open()?)
    }

    /// To make slots with: files are written for them, and should not be in vain.
    fn open_to_add(&self) -> Result<Opened> {
        let opened = self.open()?;
        keys::require_owner(&opened)?;
        Ok(opened)
    }

    fn open_with(&self, credential: &Credential) -> Result<Opened> {
        let storage = self.repository.storage().as_ref();
        keys::open(storage, self.repository.id(), credential)
    }

    fn listing(&self) -> Result<Listing> {
        Listing::read(self.repository.storage().as_ref(), self.repository.id())
    }

    fn add(&self, opened: &Opened, new: &NewSlot, writer: bool) -> Result<Ulid> {
        let storage = self.repository.storage().as_ref();
        let id = self.repository.id();
        let record = keys::add(storage, id, opened, (new, writer), &SystemClock)?;
        Ok(record.slot)
    }
}

/// Runs the subcommand.
///
/// # Errors
/// Kind Invalid for a wrong key, an unencrypted repository, and what the key module refuses; or
/// the storage's.
pub fn run(config: &Config, args: &Args, output: Output) -> Result<()> {
    let target = Target::new(config, args.repository.as_deref())?;
    match &args.command {
        Command::List => list(&target, output),
        Command::Check { kit } => check(&target, kit.as_deref(), output),
        Command::Add { name, new, writer } => add(&target, (name, new), *writer, output),
        Command::Remove { slot } => remove(&target, *slot, output),
        Command::Rotate { new, recovery_kit } => {
            let named = args.repository.as_deref();
            rotate(&target, new, (recovery_kit, named), output)
        }
        Command::Export { paper } => export(&target, paper, output),
    }
}

fn say(output: Output, json: serde_json::Value, text: String) -> Result<()> {
    match output {
        Output::Json => print_json(json),
        Output::Text => print_text(text),
    }
    Ok(())
}

fn remove(target: &Target, slot: Ulid, output: Output) -> Result<()> {
    let opened = target.open()?;
    let storage = target.repository.storage().as_ref();
    let id = target.repository.id();
    let removed = removal::remove(storage, id, &opened, slot, &SystemClock)?;
    let until = match removed.locked_until {
        None => String::new(),
        Some(until) => format!(
            ": pgark opens nothing with it any more. The wrapped key lies there, locked, until {}; \"pgark gc\" deletes it then. \
             Who has the old key and can read the storage can unwrap it until that: rotate if it has leaked (\"pgark key rotate\")",
            until.format("%Y-%m-%d %H:%M:%SZ")
        ),
    };
    say(
        output,
        json!({"removed": slot, "locked_until": removed.locked_until}),
        format!("key slot {slot} is removed{until}"),
    )
}

/// What became of a slot: when it was removed, until when it is locked all the same, and whether an owner's
/// key has proven that.
struct Fate {
    removed_at: Option<DateTime<Utc>>,
    locked_until: Option<DateTime<Utc>>,
    proven: bool,
}

impl Fate {
    fn of(
        target: &Target,
        listing: &Listing,
        removed: Option<&BTreeSet<Ulid>>,
        slot: Ulid,
    ) -> Result<Self> {
        let said = listing.removal_of(slot);
        // A false record is not shown to those who can tell.
        let removed_at = said.filter(|_| removed.is_none_or(|removed| removed.contains(&slot)));
        let locked_until = match removed_at {
            Some(_) => removal::locked_until(
                target.repository.storage().as_ref(),
                &layout::key_slot(slot)?,
                &SystemClock,
            )?,
            None => None,
        };
        Ok(Self {
            removed_at,
            locked_until,
            proven: removed.is_some(),
        })
    }

    fn text(&self) -> String {
        let time = |at: DateTime<Utc>| at.format("%Y-%m-%d %H:%M:%SZ").to_string();
        let Some(at) = self.removed_at else {
            return String::new();
        };
        let how = match self.proven {
            true => "removed",
            false => "said to be removed (only an owner's key can tell)",
        };
        let until = match self.locked_until {
            Some(until) => format!("its lock ends {}", time(until)),
            None => "gc deletes it".to_owned(),
        };
        format!(", {how} {}: {until}", time(at))
    }
}

/// The slots that were removed, if an owner's key is at hand to tell.
fn proven_removals(target: &Target, listing: &Listing) -> Result<Option<BTreeSet<Ulid>>> {
    if listing.removals.is_empty() {
        return Ok(None);
    }
    let opened = target.open().ok().filter(|o| o.keyring.can_read());
    let removed = opened.map(|o| on_wiped_stack(|| listing.removed(&o.keyring)));
    removed.transpose()
}

fn list(target: &Target, output: Output) -> Result<()> {
    let listing = target.listing()?;
    let removed = proven_removals(target, &listing)?;
    for damage in &listing.damaged {
        tracing::error!(code = damage.code(), "{damage}");
    }
    let newest = listing.epochs.first().map(|epoch| epoch.number);
    let slots = listing.slots.iter().filter_map(|slot| {
        let mut epochs = listing.epochs.iter();
        let number = epochs.find(|epoch| epoch.epoch == slot.epoch)?.number;
        Some((slot, number, newest == Some(number)))
    });
    let slots: Vec<_> = slots
        .map(|(slot, epoch, current)| {
            let fate = Fate::of(target, &listing, removed.as_ref(), slot.slot)?;
            let json = json!({"slot": slot.slot, "name": slot.name, "kind": slot.method.kind(),
                "epoch": epoch, "current": current, "created_at": slot.created_at,
                "removed_at": fate.removed_at, "locked_until": fate.locked_until});
            Ok((json, fate))
        })
        .collect::<Result<_>>()?;
    let text = |(slot, fate): &(serde_json::Value, Fate)| {
        let field = |name: &str| slot[name].as_str().unwrap_or_default().to_owned();
        let current = if slot["current"] == true {
            ""
        } else {
            ", of an older epoch"
        };
        format!(
            "{}  {} ({}), epoch {}{current}, made {}{}",
            field("slot"),
            field("name"),
            field("kind"),
            slot["epoch"],
            field("created_at"),
            fate.text(),
        )
    };
    let lines: Vec<String> = slots.iter().map(text).collect();
    let slots: Vec<_> = slots.into_iter().map(|(json, _)| json).collect();
    say(output, json!({"slots": slots}), lines.join("\n"))
}

/// The key opens the repository, and with it every data key there is.
fn check(target: &Target, kit: Option<&Path>, output: Output) -> Result<()> {
    let opened = match kit {
        None => target.open()?,
        Some(path) => target.open_with(&Credential::Key(read_kit(path)?))?,
    };
    let storage = target.repository.storage().as_ref();
    let mut data_keys = 0;
    for object in storage.list(layout::KEYS_PREFIX)? {
        if !object.key.as_str().starts_with(layout::DATA_KEYS_PREFIX) {
            continue;
        }
        let bytes = storage.get(&object.key, 1 << 20)?;
        let record: DataKeyRecord = sealed::open(object.key.as_str(), &bytes)?;
        if opened.keyring.can_read() {
            opened.keyring.data_key(storage, record.data_key)?;
        }
        data_keys += 1;
    }
    let what = match opened.keyring.can_read() {
        true => format!("opens it and its {data_keys} data keys"),
        false => "opens it for writing only".to_owned(),
    };
    let age = match opened.current {
        true => "",
        false => {
            "; its epoch is not the newest, so what is written under the new key stays closed to it"
        }
    };
    say(
        output,
        json!({"slot": opened.slot.slot, "name": opened.slot.name, "epoch": opened.epoch.number,
            "current": opened.current, "reads": opened.keyring.can_read(), "data_keys": data_keys}),
        format!(
            "slot {} ({}) {what}{age}",
            opened.slot.slot, opened.slot.name
        ),
    )
}

/// A kit from a file, or typed.
fn read_kit(path: &Path) -> Result<Secret> {
    if path != Path::new("-") {
        return key_text::parse(Secret::read_file(path)?.bytes());
    }
    let mut text = zeroize::Zeroizing::new(Vec::with_capacity(64 << 10));
    std::io::stdin()
        .take(64 << 10)
        .read_to_end(&mut text)
        .map_err(|e| Error::io("could not read standard input", e))?;
    key_text::parse(&text)
}

fn add(target: &Target, (name, new): (&str, &NewKey), writer: bool, output: Output) -> Result<()> {
    if name.trim().is_empty() {
        return Err(
            Error::invalid("slot_name", "a key slot needs a name").with_hint(
                "By its name people know whose key to remove: for example --name backup-host.",
            ),
        );
    }
    let opened = target.open_to_add()?;
    let mut made = Made::default();
    let new = NewSlot {
        name: name.to_owned(),
        credential: made.credential(&new.source(), target.repository.name())?,
    };
    let slot = target.add(&opened, &new, writer);
    let slot = made.kept_unless_refused(slot)?;
    say(
        output,
        json!({"slot": slot, "name": name, "writer": writer}),
        format!("key slot {slot} ({name}) is added"),
    )
}

fn export(target: &Target, paper: &Path, output: Output) -> Result<()> {
    let opened = target.open_to_add()?;
    let (name, id) = (target.repository.name(), target.repository.id());
    if paper == Path::new("-") {
        let key = Secret::random_key()?;
        let text = key_text::render(
            key.key()?,
            &[format!("pgark recovery kit of repository \"{name}\"")],
        );
        let new = NewSlot {
            name: "recovery-kit".to_owned(),
            credential: Credential::Key(key),
        };
        let slot = target.add(&opened, &new, false)?;
        say(
            output,
            json!({"slot": slot, "recovery_kit": null, "kit": text.trim_end()}),
            text.trim_end().to_owned(),
        )?;
        tracing::info!("key slot {slot}: prove the printed kit with \"pgark key check --kit -\"");
        return Ok(());
    }
    let mut made = Made::default();
    let new = made.kit(paper, name, id)?;
    let slot = target.add(&opened, &new, false);
    let slot = made.kept_unless_refused(slot)?;
    target.open_with(&Credential::Key(read_kit(paper)?))?;
    say(
        output,
        json!({"slot": slot, "recovery_kit": paper, "kit": null}),
        format!(
            "key slot {slot} (recovery-kit): the kit is in {}, and opens the repository",
            paper.display()
        ),
    )
}

/// `named`: the repository, where the command line names it.
fn rotate(
    target: &Target,
    new: &NewKey,
    (kit, named): (&Path, Option<&str>),
    output: Output,
) -> Result<()> {
    let opened = target.open_to_add()?;
    let before = target.listing()?;
    let (name, id) = (target.repository.name(), target.repository.id());
    let mut made = Made::default();
    let slots = [
        NewSlot {
            name: "rotated".to_owned(),
            credential: made.credential(&new.source(), name)?,
        },
        made.kit(kit, name, id)?,
    ];
    // An error does not tell what the storage has taken, and a new epoch opens with nothing else.
    made.keep();
    let storage = target.repository.storage().as_ref();
    let epoch = keys::rotate(storage, id, &opened, &slots, &SystemClock).inspect_err(|_| {
        tracing::warn!(
            code = "key_file_stays",
            "\"{}\" and the new key stay: \"pgark key check --kit\" tells whether they open the repository",
            kit.display()
        );
    })?;
    target.open_with(&Credential::Key(read_kit(kit)?))?;
    let old: Vec<Ulid> = before.slots.iter().map(|slot| slot.slot).collect();
    let repository = named.map_or_else(String::new, |name| format!(" --repository {name}"));
    let names: Vec<String> = old
        .iter()
        .map(|slot| format!("  pgark key remove{repository} {slot}"))
        .collect();
    say(
        output,
        json!({"epoch": epoch, "recovery_kit": kit, "old_slots": old}),
        format!(
            "key epoch {epoch} begins; its recovery kit is in {}\n\
             Now name the new key in [repository.{name}.encryption] on every host, restart the agents, add the\n\
             slots that other hosts and people need, then remove the old ones:\n{}",
            kit.display(),
            names.join("\n")
        ),
    )
}
