//! `pgark check`: whether a backup and a restore would work.

use super::Settings;
use super::about::About;
use super::capture::choose;
use super::place::{Place, reading};
use super::registration::{self, Registration};
use super::server::{Server, text};
use crate::Result;
use crate::component::{CheckLine, Context, Ground};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// What to do about a server that does not answer.
pub(super) const HINT: &str = "Look whether it runs, and at url, username, password and api_key.";

/// How full a node's disk may be, in thousandths, before the server blocks writes (its flood stage).
const FLOOD_THOUSANDTHS: u64 = 950;

/// Looks at everything that a backup needs.
///
/// # Errors
/// `cancelled`.
pub(super) fn check(
    settings: &Settings,
    server: &Server,
    place: &Place,
    context: &Context<'_>,
) -> Result<Vec<CheckLine>> {
    let about = match About::of(server) {
        Ok(about) => about,
        Err(error) => return Ok(vec![CheckLine::failed("server", &error, HINT)]),
    };
    let detail = format!(
        "{}, {}, {} nodes",
        about.shown(),
        server.http.name(),
        about.nodes
    );
    let mut lines = vec![CheckLine::well("server", detail)];
    let looks: [(&str, &dyn Fn() -> Result<CheckLine>); 4] = [
        ("cluster health", &|| health(settings, server)),
        ("blocks", &|| blocks(server)),
        ("disks", &|| disks(server)),
        ("leftovers", &|| leftovers(server, place, context)),
    ];
    for (name, look) in looks {
        context.cancel.check()?;
        lines.push(look().unwrap_or_else(|error| CheckLine::failed(name, &error, HINT)));
    }
    lines.push(path_repo(&about, place).of(Ground::Setup));
    context.cancel.check()?;
    lines.push(repository(server, place, context).of(Ground::Setup));
    Ok(lines)
}

fn health(settings: &Settings, server: &Server) -> Result<CheckLine> {
    const NAME: &str = "cluster health";
    let answer = server.get(&["_cluster", "health"], &[])?;
    let status = text(&answer, "status");
    let names = server.names()?;
    let chosen = choose(settings, &names).indices;
    let red: Vec<&str> = chosen
        .iter()
        .filter(|name| names.indices.get(*name).is_some_and(|index| index.red))
        .map(String::as_str)
        .collect();
    let detail = format!("{status}, {} indices to back up", chosen.len());
    Ok(match red.is_empty() {
        true => CheckLine::well(NAME, detail),
        false => CheckLine::wrong(
            NAME,
            format!("{detail}; red: {}", red.join(", ")),
            "Look at GET _cluster/allocation/explain: a backup would be partial, and is refused.",
        ),
    })
}

/// Blocks that the server sets itself, or that keep a restore out.
fn blocks(server: &Server) -> Result<CheckLine> {
    const NAME: &str = "blocks";
    let mut found = Vec::new();
    let query = [("flat_settings", "true"), ("expand_wildcards", "all")];
    let answer = server.get(&["_all", "_settings", "index.blocks.*"], &query)?;
    for (index, value) in answer.as_object().into_iter().flatten() {
        let settings = value.get("settings").and_then(Value::as_object);
        for (block, on) in settings.into_iter().flatten() {
            let refuses = block == "index.blocks.read_only_allow_delete"
                || block == "index.blocks.read_only"
                || block == "index.blocks.metadata";
            if refuses && on.as_str() == Some("true") {
                found.push(format!("{index}: {block}"));
            }
        }
    }
    for block in [
        "cluster.blocks.read_only",
        "cluster.blocks.read_only_allow_delete",
    ] {
        if server.persistent(block)?.as_deref() == Some("true") {
            found.push(block.to_owned());
        }
    }
    Ok(match found.is_empty() {
        true => CheckLine::well(NAME, "none"),
        false => CheckLine::wrong(
            NAME,
            found.join(", "),
            "Free space on the nodes' disks (read_only_allow_delete is set by the server when they are full), \
             or take the block away: a restore in place would be refused.",
        )
        .of(Ground::Setup),
    })
}

fn disks(server: &Server) -> Result<CheckLine> {
    const NAME: &str = "disks";
    let filter = [("filter_path", "nodes.*.name,nodes.*.fs.total")];
    let answer = server.get(&["_nodes", "stats", "fs"], &filter)?;
    let nodes = answer.get("nodes").and_then(Value::as_object);
    let (mut least, mut full) = (u64::MAX, Vec::new());
    for node in nodes.into_iter().flat_map(|nodes| nodes.values()) {
        let of = |key: &str| {
            let value = node.pointer(&format!("/fs/total/{key}"));
            value.and_then(Value::as_u64).unwrap_or(0)
        };
        let (total, free) = (of("total_in_bytes"), of("available_in_bytes"));
        least = least.min(free);
        if total.saturating_sub(free) / 1000 > total / 1_000_000 * FLOOD_THOUSANDTHS {
            full.push(text(node, "name").to_owned());
        }
    }
    let detail = format!("{} MiB free on the fullest node", least >> 20);
    Ok(match full.is_empty() {
        true => CheckLine::well(NAME, detail),
        false => CheckLine::wrong(
            NAME,
            format!("{detail}; more than 95 % full: {}", full.join(", ")),
            "Free space: at its flood stage the server blocks writes, and a restore does not start.",
        )
        .of(Ground::Setup),
    })
}

/// Repositories that a crash left and no run has removed yet.
fn leftovers(server: &Server, place: &Place, context: &Context<'_>) -> Result<CheckLine> {
    const NAME: &str = "leftovers";
    if place.lock(context.cancel, Duration::ZERO).is_err() {
        return Ok(CheckLine::well(NAME, "a backup or a restore is under way"));
    }
    let left = registration::leftovers(server, place)?;
    Ok(CheckLine::well(
        NAME,
        match left.is_empty() {
            true => "none".to_owned(),
            false => format!("{}: the next backup removes them", left.join(", ")),
        },
    ))
}

fn path_repo(about: &About, place: &Place) -> CheckLine {
    const NAME: &str = "path.repo";
    let allows = |paths: &Vec<String>| {
        let mut paths = paths.iter();
        paths.any(|path| Path::new(&place.location).starts_with(path))
    };
    let lacking = about
        .path_repo
        .iter()
        .filter(|paths| !allows(paths))
        .count();
    match lacking {
        0 => CheckLine::well(NAME, place.location.clone()),
        // A node that does not tell it may allow it all the same: the line after this one is the proof.
        count => CheckLine::wrong(
            NAME,
            format!(
                "{count} of {} nodes do not list {}",
                about.nodes, place.location
            ),
            "Add it to path.repo in the configuration of every node and restart them; where the nodes see the \
             directory under another path, set repository_location.",
        ),
    }
}

/// As a backup does it; and once with a directory that the nodes make, which this host must see.
fn prove(server: &Server, place: &Place) -> Result<()> {
    let name = place.fresh_name();
    place.make_folder(&name)?;
    Registration::make(server, place, name, false, None)?.remove()?;
    let name = place.fresh_name();
    let folder = place.folder(&name);
    let registration = Registration::make(server, place, name, false, None)?;
    let seen = std::fs::read_dir(&folder).map(drop);
    registration.remove()?;
    seen.map_err(|e| reading(&folder, e))
}

/// The proof: a repository is registered, every node writes to it, this host sees it, and it goes again.
fn repository(server: &Server, place: &Place, context: &Context<'_>) -> CheckLine {
    const NAME: &str = "repository_dir";
    const HINT: &str = "Every node and pgark must be able to write there.";
    let lock = match place.lock(context.cancel, Duration::ZERO) {
        Ok(lock) => lock,
        Err(error) if error.code() == "elasticsearch_busy" => {
            return CheckLine::well(NAME, "in use by a backup or a restore");
        }
        Err(error) => return CheckLine::failed(NAME, &error, HINT),
    };
    let proven = prove(server, place);
    drop(lock);
    if let Err(error) = proven {
        return CheckLine::failed(NAME, &error, HINT);
    }
    match rustix::fs::access(&place.dir, rustix::fs::Access::WRITE_OK) {
        Ok(()) => CheckLine::well(NAME, place.dir.display().to_string()),
        Err(_) => CheckLine::wrong(
            NAME,
            format!("pgark may not write to \"{}\"", place.dir.display()),
            "A restore puts the backup's files there: let pgark's user write to it.",
        ),
    }
}
