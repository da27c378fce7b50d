//! Back into a server, collection by collection, and the comparison afterwards.

use super::manifest::{Collection, Database, Manifest, Mode, Wanted};
use super::record::Record;
use super::remote::{Comparison, Remote, Writer};
use super::stored::Stored;
use super::{folder, leftovers};
use crate::component::drivers::mark::{Mark, What};
use crate::component::{Context, Evidence, EvidenceLine, Request, Source};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The longest line of a backup: a vector of 64 K numbers and a document of many megabytes.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// The records of a backup, however it was taken.
pub(super) struct Records<'a> {
    source: &'a dyn Source,
    /// A backup of a data directory, unpacked.
    stored: Option<Stored>,
}

impl<'a> Records<'a> {
    /// Of `source`; a data directory is unpacked into the scratch directory first.
    ///
    /// # Errors
    /// I/O; the source's.
    pub(super) fn open(context: &Context<'_>, source: &'a dyn Source, mode: Mode) -> Result<Self> {
        let stored = match mode {
            Mode::Http => None,
            Mode::DataDir => {
                let folder = context.scratch.join("unpacked");
                if !folder.exists() {
                    std::fs::create_dir(&folder).map_err(|e| {
                        Error::io(format!("could not make \"{}\"", folder.display()), e)
                    })?;
                    folder::unpack(context, source, &folder, None)?;
                }
                Some(Stored::open(&folder)?)
            }
        };
        Ok(Self { source, stored })
    }

    /// Gives every record of `collection` to `take`, in the order of their ids.
    ///
    /// # Errors
    /// Kind Data for damage; those of `take`.
    pub(super) fn each(
        &self,
        context: &Context<'_>,
        collection: &Collection,
        take: &mut dyn FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        if let Some(stored) = &self.stored {
            return stored.records(collection, context.cancel, take);
        }
        let path = collection.path();
        let mut lines = BufReader::with_capacity(1 << 20, self.source.read(path.as_bytes())?);
        let mut line = Vec::new();
        loop {
            context.cancel.check()?;
            line.clear();
            (&mut lines)
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line)
                .map_err(|e| Error::io(format!("could not read \"{path}\" of the backup"), e))?;
            match line.last() {
                None => return Ok(()),
                Some(b'\n') => take(Record::parse(&line)?)?,
                Some(_) => {
                    return Err(Error::data(
                        "chroma_record",
                        format!("\"{path}\" of the backup ends in mid-record"),
                    ));
                }
            }
        }
    }
}

/// Restores what `request` asks for into the server.
///
/// # Errors
/// Kind Invalid, before anything was changed: `chroma_collection_exists`, `selection_unknown`; the
/// client's; the source's.
pub(super) fn into_server(
    context: &Context<'_>,
    remote: &Remote,
    manifest: &Manifest,
    source: &dyn Source,
    request: &Request,
) -> Result<Vec<String>> {
    let wanted = manifest.wanted(request)?;
    remote.version()?;
    let mut existing = Vec::new();
    for one in &wanted {
        let there = remote.find(one)?;
        if there.is_some() && !request.overwrite {
            return Err(Error::invalid(
                "chroma_collection_exists",
                format!(
                    "{} has a collection {} already",
                    remote.http.name(),
                    one.full_name()
                ),
            )
            .with_hint(
                "Restore it under another name, or allow it to be replaced (--yes): in place a safety backup is taken first.",
            ));
        }
        existing.push(there);
    }
    let records = Records::open(context, source, manifest.mode)?;
    let mut done = Vec::new();
    if request.select.is_empty() {
        for database in &manifest.databases {
            remote.make_database(&database.tenant, &database.name)?;
        }
    }
    let mut swept = BTreeSet::new();
    for (one, there) in wanted.iter().zip(existing) {
        context.cancel.check()?;
        remote.make_database(&one.tenant, &one.database)?;
        if swept.insert((&one.tenant, &one.database)) {
            let database = Database {
                tenant: one.tenant.to_string(),
                name: one.database.to_string(),
            };
            done.extend(leftovers::sweep(remote, &database));
        }
        let count = one_collection(context, remote, &records, one, there.as_ref())?;
        let replaced = if there.is_some() { ", replaced" } else { "" };
        done.push(format!(
            "collection {}: {count} records{replaced}",
            one.full_name()
        ));
    }
    Ok(done)
}

/// Fills a collection under a name of its own and then gives it the wanted one: until then the old one is
/// whole, and on an error nothing is left behind.
fn one_collection(
    context: &Context<'_>,
    remote: &Remote,
    records: &Records<'_>,
    wanted: &Wanted<'_>,
    there: Option<&Collection>,
) -> Result<u64> {
    let now = chrono::Utc::now().timestamp();
    let mark = Mark::new(What::Restoring, now);
    let _held = mark.hold();
    let name = mark.name();
    let made = remote.create(wanted, &name)?;
    let filled = fill(context, remote, records, wanted.from, &made);
    let count = match filled {
        Ok(count) => count,
        Err(error) => {
            // The error is what matters; a leftover says by its name whose it is.
            if let Err(left) = remote.remove(&made) {
                tracing::warn!(
                    code = left.code(),
                    "collection {name} is left behind: {left}"
                );
            }
            return Err(error);
        }
    };
    crate::fault::point("chroma:filled");
    // Complete, and no half that the next restore may remove: below its user may be told to keep it.
    let mark = Mark::new(What::Restored, now);
    let _held = mark.hold();
    let restored = mark.name();
    remote.rename(&made, &restored)?;
    let kept = |error: Error| {
        let name = &wanted.name;
        error.with_hint(format!(
            "The restored records are in collection {restored}: rename it to {name}, or delete it."
        ))
    };
    // The old one is not removed before the new one has its name.
    let mark = Mark::new(What::Replaced, now);
    let _held = mark.hold();
    let old = there.map(|there| Collection {
        name: mark.name(),
        ..there.clone()
    });
    if let Some(old) = &old {
        remote.rename(old, &old.name).map_err(kept)?;
    }
    crate::fault::point("chroma:set_aside");
    if let Err(error) = remote.rename(&made, &wanted.name) {
        if let Some(old) = &old
            && let Err(left) = remote.rename(old, &wanted.name)
        {
            let (code, old) = (left.code(), &old.name);
            tracing::warn!(code, "what was there before is collection {old}: {left}");
        }
        return Err(kept(error));
    }
    if let Some(old) = &old {
        remote.remove(old)?;
    }
    Ok(count)
}

fn fill(
    context: &Context<'_>,
    remote: &Remote,
    records: &Records<'_>,
    from: &Collection,
    made: &Collection,
) -> Result<u64> {
    let mut writer = Writer::new(remote, made);
    records.each(context, from, &mut |record| writer.add(record))?;
    writer.flush()?;
    let count = remote.count(made)?;
    if count != from.records {
        return Err(Error::data(
            "chroma_incomplete",
            format!(
                "collection {} has {count} records after its restore, not {}",
                from.full_name(),
                from.records
            ),
        ));
    }
    Ok(count)
}

fn line(what: String, expected: impl ToString, found: impl ToString, ok: bool) -> EvidenceLine {
    EvidenceLine {
        what,
        expected: expected.to_string(),
        found: found.to_string(),
        ok,
    }
}

/// Compares a server with a backup: counts, every record, and a query for each collection.
///
/// # Errors
/// The client's; the source's.
pub(super) fn compare_server(
    context: &Context<'_>,
    remote: &Remote,
    manifest: &Manifest,
    source: &dyn Source,
    request: &Request,
) -> Result<Evidence> {
    let records = Records::open(context, source, manifest.mode)?;
    let mut lines = Vec::new();
    for one in manifest.wanted(request)? {
        context.cancel.check()?;
        let name = one.full_name();
        let Some(found) = remote.find(&one)? else {
            lines.push(line(
                format!("collection {name}"),
                "there",
                "missing",
                false,
            ));
            continue;
        };
        let count = remote.count(&found)?;
        lines.push(line(
            format!("records of collection {name}"),
            one.from.records,
            count,
            count == one.from.records,
        ));
        let settings =
            |collection: &Collection| format!("{} {}", collection.space(), collection.metadata);
        lines.push(line(
            format!("space and metadata of collection {name}"),
            settings(one.from),
            settings(&found),
            settings(one.from) == settings(&found),
        ));
        compare_records(
            context, remote, &records, one.from, &found, &name, &mut lines,
        )?;
    }
    Ok(Evidence {
        ok: lines.iter().all(|line| line.ok),
        lines,
    })
}

fn compare_records(
    context: &Context<'_>,
    remote: &Remote,
    records: &Records<'_>,
    from: &Collection,
    found: &Collection,
    name: &str,
    lines: &mut Vec<EvidenceLine>,
) -> Result<()> {
    let mut comparison = Comparison::new(remote, found);
    let compared = records
        .each(context, from, &mut |record| comparison.add(record))
        .and_then(|()| comparison.flush());
    match compared {
        Ok(()) => {}
        // The server fails when vectors are lost: that is the finding, not a failure of ours.
        Err(error) if matches!(error.code(), "component_failed" | "chroma_vector_lost") => {
            let what = format!("every record of collection {name}");
            lines.push(line(what, "readable", error.to_string(), false));
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    let (expected, digest) = comparison.digests();
    let exact = digest == from.digest && expected == from.digest;
    if exact || from.space() != "cosine" || comparison.different_count > 0 {
        lines.push(line(
            format!("digest of collection {name}"),
            &from.digest,
            &digest,
            exact,
        ));
    }
    if !exact {
        let different = comparison.different_count;
        let found = match different {
            // Cosine: the server itself rounds vectors when it puts them into its index.
            0 => "0, with vectors equal but for the server's rounding".to_owned(),
            count => format!("{count}: {}", comparison.different.join(", ")),
        };
        let what = format!("records of collection {name} that differ");
        lines.push(line(what, 0, found, different == 0));
    }
    if let Some(first) = comparison.first() {
        let nearest = remote.nearest(found, &first.embedding)?;
        let shown = nearest.map_or_else(|| "none".to_owned(), |distance| distance.to_string());
        let what = format!("a query of collection {name}");
        lines.push(line(what, "an answer", shown, nearest.is_some()));
    }
    Ok(())
}

/// Compares a data directory, without its server, with a backup.
///
/// # Errors
/// Kind Data for damage.
pub(super) fn compare_folder(
    context: &Context<'_>,
    manifest: &Manifest,
    target: &Path,
) -> Result<Evidence> {
    let found = Stored::open(target).and_then(|stored| {
        stored.check()?;
        stored.collections(context.cancel)
    });
    let found = match found {
        Ok(found) => found,
        Err(error) if error.kind() == crate::error::ErrorKind::Data => {
            let what = format!("\"{}\"", target.display());
            let lines = vec![line(what, "readable", error.to_string(), false)];
            return Ok(Evidence { ok: false, lines });
        }
        Err(error) => return Err(error),
    };
    let mut lines = Vec::new();
    for collection in &manifest.collections {
        let name = collection.full_name();
        let other = found.iter().find(|other| other.id == collection.id);
        let show = |one: &Collection| format!("{} records, {}", one.records, one.digest);
        let shown = other.map_or_else(|| "missing".to_owned(), show);
        let expected = show(collection);
        let ok = expected == shown;
        let what = format!("digest of collection {name}");
        lines.push(line(what, expected, shown, ok));
    }
    Ok(Evidence {
        ok: lines.iter().all(|line| line.ok),
        lines,
    })
}
