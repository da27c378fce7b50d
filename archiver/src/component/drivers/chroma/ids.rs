//! The ids of records, for a reconcile: of a running server, or of a copy of its files.

use super::folder::{self, LockLimits};
use super::manifest::Collection;
use super::remote::Remote;
use super::stored::Stored;
use crate::component::Context;
use crate::{Error, Result};
use std::path::Path;

/// Ids of the collections in `tenants` that `part` means.
///
/// # Errors
/// As [`chosen`]; the client's; those of `visit`.
pub(super) fn of_server(
    context: &Context<'_>,
    remote: &Remote,
    tenants: &[String],
    part: &str,
    visit: &mut dyn FnMut(String) -> Result<()>,
) -> Result<()> {
    let mut all = Vec::new();
    for tenant in tenants {
        for database in remote.databases(tenant)? {
            all.extend(remote.collections(&database)?);
        }
    }
    for collection in chosen(&all, part)? {
        context.cancel.check()?;
        for id in remote.ids(collection)? {
            visit(named(collection, part, id))?;
        }
    }
    Ok(())
}

/// Ids of the collections in a data directory that `part` means. They are read from a copy, as a backup is:
/// a server may be at work on the files.
///
/// # Errors
/// As [`chosen`]; as [`folder::copy`]; kind Data, `chroma_vector_lost` among others; those of `visit`.
pub(super) fn of_folder(
    context: &Context<'_>,
    data_dir: &Path,
    limits: LockLimits,
    part: &str,
    visit: &mut dyn FnMut(String) -> Result<()>,
) -> Result<()> {
    let copied = folder::copy(context, data_dir, limits)?;
    let stored = Stored::open(&copied.folder)?;
    stored.check()?;
    let all = stored.described()?;
    for collection in chosen(&all, part)? {
        stored.records(collection, context.cancel, &mut |record| {
            visit(named(collection, part, record.id))
        })?;
    }
    Ok(())
}

/// Ids of several collections are told apart by the collection's name.
fn named(collection: &Collection, part: &str, id: String) -> String {
    match part {
        "" => format!("{}/{id}", collection.full_name()),
        _ => id,
    }
}

/// All of them, or the one that `part` names: `docs`, or `tenant/database/docs`.
///
/// # Errors
/// Kind Invalid: `selection_unknown`, `selection_ambiguous`.
fn chosen<'a>(all: &'a [Collection], part: &str) -> Result<Vec<&'a Collection>> {
    if part.is_empty() {
        return Ok(all.iter().collect());
    }
    let found: Vec<&Collection> = all.iter().filter(|one| one.is(part)).collect();
    match found.as_slice() {
        [_] => Ok(found),
        [] => Err(Error::invalid(
            "selection_unknown",
            format!("Chroma has no collection \"{part}\""),
        )
        .with_hint(
            "Write its name, or tenant/database/name; over HTTP its tenant stands in tenants.",
        )),
        [..] => {
            let names: Vec<String> = found.iter().map(|one| one.full_name()).collect();
            Err(Error::invalid(
                "selection_ambiguous",
                format!("Chroma has several collections \"{part}\""),
            )
            .with_detail(format!("They are: {}.", names.join(", ")))
            .with_hint("Write tenant/database/name."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn collection(database: &str, name: &str) -> Collection {
        Collection {
            tenant: "t".to_owned(),
            database: database.to_owned(),
            name: name.to_owned(),
            id: "0".to_owned(),
            dimension: None,
            metadata: Value::Null,
            configuration: Value::Null,
            schema: Value::Null,
            records: 0,
            digest: String::new(),
        }
    }

    #[test]
    fn a_part_is_one_collection() {
        let all = [
            collection("d", "docs"),
            collection("e", "docs"),
            collection("e", "more"),
        ];
        let names = |part: &str| {
            chosen(&all, part).map(|found| {
                let names: Vec<String> = found
                    .iter()
                    .map(|one| named(one, part, "7".to_owned()))
                    .collect();
                names.join(" ")
            })
        };
        assert_eq!(names("more").unwrap(), "7");
        assert_eq!(names("t/d/docs").unwrap(), "7");
        assert_eq!(names("").unwrap(), "t/d/docs/7 t/e/docs/7 t/e/more/7");
        assert_eq!(names("docs").unwrap_err().code(), "selection_ambiguous");
        assert_eq!(names("t/d/more").unwrap_err().code(), "selection_unknown");
    }
}
