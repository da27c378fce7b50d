//! Whether a server holds what a backup says: settings, counts, every point, aliases.

use super::manifest::{Collection, Manifest, Readings, Wanted};
use super::point::{Digest, Lines, PointLine, merge};
use super::remote::Remote;
use super::restore::{described, description};
use crate::component::{Context, Evidence, EvidenceLine, Request, Source};
use crate::{Error, Result};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};

/// Ids of points that differ are named, so many of them.
const NAMED: usize = 5;

fn line(what: String, expected: impl ToString, found: impl ToString, ok: bool) -> EvidenceLine {
    EvidenceLine {
        what,
        expected: expected.to_string(),
        found: found.to_string(),
        ok,
    }
}

/// Compares.
///
/// # Errors
/// The client's; the source's.
pub(super) fn evidence(
    remote: &Remote,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Evidence> {
    let manifest = Manifest::read(source)?;
    let plan = manifest.plan(request)?;
    remote.version()?;
    let mut lines = Vec::new();
    for wanted in &plan.collections {
        context.cancel.check()?;
        collection(remote, context, source, *wanted, &mut lines)?;
    }
    let there = remote.aliases()?;
    for alias in &plan.aliases {
        let found = there.iter().find(|there| there.alias == alias.alias);
        let found = found.map_or("nothing", |there| there.collection.as_str());
        let in_use = plan.is_renamed(alias) && found != "nothing";
        let ok = found == alias.collection || in_use;
        lines.push(line(
            format!("alias {}", alias.alias),
            &alias.collection,
            found,
            ok,
        ));
    }
    Ok(Evidence {
        ok: lines.iter().all(|line| line.ok),
        lines,
    })
}

fn collection(
    remote: &Remote,
    context: &Context<'_>,
    source: &dyn Source,
    wanted: Wanted<'_>,
    lines: &mut Vec<EvidenceLine>,
) -> Result<()> {
    let (name, from) = (wanted.name, wanted.from);
    let Some(found) = remote.collection(name)? else {
        lines.push(line(
            format!("collection {name}"),
            "there",
            "missing",
            false,
        ));
        return Ok(());
    };
    let status = found.status.as_str();
    lines.push(line(
        format!("status of collection {name}"),
        "green",
        status,
        matches!(status, "green" | "yellow" | "grey"),
    ));
    let (expected, settings) = (described(from), description(&found.config, &found.indexes));
    let same = expected == settings;
    lines.push(line(
        format!("settings and indexes of collection {name}"),
        expected,
        settings,
        same,
    ));
    let count = remote.count(name)?;
    let (least, most) = bounds(from);
    let expected = match least == most {
        true => least.to_string(),
        false => format!("{least} to {most}"),
    };
    lines.push(line(
        format!("points of collection {name}"),
        expected,
        count,
        (least..=most).contains(&count),
    ));
    match &from.read {
        Some(read) => points(remote, context, source, name, read, lines),
        None => Ok(()),
    }
}

/// How many points the snapshot can hold.
fn bounds(from: &Collection) -> (u64, u64) {
    match &from.read {
        Some(read) => (read.stable, read.stable.saturating_add(read.changed)),
        None => {
            let (before, after) = from.points;
            (before.min(after), before.max(after))
        }
    }
}

fn points(
    remote: &Remote,
    context: &Context<'_>,
    source: &dyn Source,
    name: &str,
    read: &Readings,
    lines: &mut Vec<EvidenceLine>,
) -> Result<()> {
    let path = context.scratch.join("found");
    let failed = |e| Error::io(format!("could not write file \"{}\"", path.display()), e);
    let mut file = BufWriter::new(File::create(&path).map_err(failed)?);
    let all = remote.points(context, name, &mut |point| {
        file.write_all(point.line().as_bytes()).map_err(failed)
    });
    match all {
        Ok(()) => {}
        // A point that cannot be read is the finding, not a failure of ours.
        Err(error) if error.code() == "component_failed" => {
            let what = format!("every point of collection {name}");
            lines.push(line(what, "readable", error.to_string(), false));
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    file.flush().map_err(failed)?;
    drop(file);
    let found = BufReader::new(File::open(&path).map_err(failed)?);
    let expected = BufReader::with_capacity(1 << 20, source.read(read.path.as_bytes())?);
    let outcome = compare(
        Lines::new(expected),
        Lines::new(found),
        // Where nothing changed during the backup, nothing can have come either.
        read.changed == 0,
    )?;
    let meanwhile = match read.changed {
        0 => String::new(),
        count => format!(" that did not change during the backup ({count} did)"),
    };
    lines.push(line(
        format!("digest of the points of collection {name}{meanwhile}"),
        &read.digest,
        &outcome.digest,
        read.digest == outcome.digest,
    ));
    let shown = match outcome.different {
        0 => "0".to_owned(),
        count => format!("{count}: {}", outcome.named.join(", ")),
    };
    lines.push(line(
        format!("points of collection {name} that differ"),
        0,
        shown,
        outcome.different == 0,
    ));
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    digest: String,
    different: u64,
    named: Vec<String>,
}

/// The backup's points against the server's. What changed during the backup may be in it or not.
fn compare(
    expected: impl Iterator<Item = Result<PointLine>>,
    found: impl Iterator<Item = Result<PointLine>>,
    closed: bool,
) -> Result<Outcome> {
    let mut digest = Digest::default();
    let (mut different, mut named) = (0, Vec::new());
    merge(expected, found, |id, expected, found| {
        let same = match (&expected, &found) {
            (Some(expected), Some(found)) if expected.hash.is_some() => {
                digest.add(found);
                expected == found
            }
            (Some(expected), _) => expected.hash.is_none(),
            (None, _) => {
                if closed && let Some(found) = &found {
                    digest.add(found);
                }
                !closed
            }
        };
        if !same {
            different += 1;
            if named.len() < NAMED {
                named.push(id.to_string());
            }
        }
        Ok(())
    })?;
    Ok(Outcome {
        digest: digest.finish(),
        different,
        named,
    })
}

#[cfg(test)]
mod tests {
    use super::super::point::PointId;
    use super::*;

    fn lines(text: &str) -> Vec<Result<PointLine>> {
        let lines = text.split_whitespace().map(|word| {
            let (id, hash) = word.split_once(':').unwrap();
            Ok(PointLine {
                id: PointId::Number(id.parse().unwrap()),
                hash: (hash != "*").then(|| hash.repeat(32)),
            })
        });
        lines.collect()
    }

    fn of(expected: &str, found: &str, closed: bool) -> (String, u64, String) {
        let (expected, found) = (lines(expected), lines(found));
        let outcome = compare(expected.into_iter(), found.into_iter(), closed).unwrap();
        (outcome.digest, outcome.different, outcome.named.join(" "))
    }

    #[test]
    fn what_differs_is_named_and_what_changed_is_not() {
        let whole = of("1:a 2:b 3:c", "1:a 2:b 3:c", true);
        assert_eq!((whole.1, whole.2.as_str()), (0, ""));
        for (found, named) in [
            ("1:a 2:x 3:c", "2"),
            ("1:a 3:c", "2"),
            ("1:a 2:b 3:c 4:d", "4"),
        ] {
            let outcome = of("1:a 2:b 3:c", found, true);
            assert_eq!((outcome.1, outcome.2.as_str()), (1, named));
            assert_ne!(outcome.0, whole.0, "{found}");
        }
        // 2 changed during the backup: whatever became of it is right, and of what only came meanwhile.
        let busy = of("1:a 2:* 3:c", "1:a 3:c", false);
        for found in ["1:a 2:b 3:c", "1:a 2:x 3:c 9:z"] {
            assert_eq!(of("1:a 2:* 3:c", found, false), busy);
        }
        assert_eq!(busy.1, 0);
        assert_eq!(of("1:a 2:* 3:c", "1:a 2:b", false).2, "3");
    }
}
