//! Reading everything out of a server, object by object.

use super::api::Api;
use super::object::{Class, Object, text};
use crate::Result;
use crate::component::{Consistency, Context, Entry, Point, Sink};
use chrono::Utc;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What a list of library panels holds at most.
const LIBRARY_PAGE: usize = 100;

/// Calls `give` with every object. Notes what the server has not.
///
/// # Errors
/// Those of the server and of `give`.
pub(super) fn each(
    api: &Api,
    context: &Context<'_>,
    give: &mut dyn FnMut(Object) -> Result<()>,
) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut give = |class, name: &str, value| {
        context.cancel.check()?;
        give(Object {
            class,
            name: name.to_owned(),
            value,
        })
    };
    folders(api, &mut give)?;
    for value in api.list(&["api", "datasources"], &[])? {
        let uid = text(&value, "uid").to_owned();
        give(Class::DataSource, &uid, value)?;
    }
    library(api, &mut give)?;
    for found in api.pages(&["api", "search"], &[("type", "dash-db")])? {
        let uid = text(&found, "uid");
        // Deleted since it was listed.
        let Some(mut value) = api.find(&["api", "dashboards", "uid", uid])? else {
            continue;
        };
        let meta = value.get("meta").cloned().unwrap_or_default();
        let value = json!({
            "dashboard": value.get_mut("dashboard").map(Value::take),
            "folderUid": text(&meta, "folderUid"),
            "provisioned": meta.get("provisioned"),
        });
        give(Class::Dashboard, uid, value)?;
    }
    if !alerting(api, &mut give)? {
        notes.push("the server has no alerting".to_owned());
    }
    Ok(notes)
}

type Give<'g> = dyn FnMut(Class, &str, Value) -> Result<()> + 'g;

fn folders(api: &Api, give: &mut Give<'_>) -> Result<()> {
    let mut parents = vec![String::new()];
    let mut seen = BTreeSet::new();
    while let Some(parent) = parents.pop() {
        let of = [("parentUid", parent.as_str())];
        let query: &[_] = if parent.is_empty() { &[] } else { &of };
        for mut value in api.pages(&["api", "folders"], query)? {
            let uid = text(&value, "uid").to_owned();
            // Servers without nested folders ignore the parent, and answer with all of them again.
            if !seen.insert(uid.clone()) {
                continue;
            }
            if let (Value::Object(map), false) = (&mut value, parent.is_empty()) {
                map.insert("parentUid".to_owned(), json!(parent));
            }
            give(Class::Folder, &uid, value)?;
            parents.push(uid);
        }
    }
    Ok(())
}

fn library(api: &Api, give: &mut Give<'_>) -> Result<()> {
    for page in 1_u32.. {
        let (page, size) = (page.to_string(), LIBRARY_PAGE.to_string());
        let query = [("page", page.as_str()), ("perPage", size.as_str())];
        let mut answer = api.get(&["api", "library-elements"], &query)?;
        let Some(Value::Array(list)) = answer.pointer_mut("/result/elements").map(Value::take)
        else {
            return Err(api.not_understood("it holds no library panels"));
        };
        let full = list.len() >= LIBRARY_PAGE;
        for mut value in list {
            if let Value::Object(map) = &mut value
                && !map.contains_key("folderUid")
            {
                let uid = map
                    .get("meta")
                    .map(|meta| text(meta, "folderUid").to_owned());
                map.insert("folderUid".to_owned(), json!(uid));
            }
            let uid = text(&value, "uid").to_owned();
            give(Class::Library, &uid, value)?;
        }
        if !full {
            break;
        }
    }
    Ok(())
}

/// False: there is none.
fn alerting(api: &Api, give: &mut Give<'_>) -> Result<bool> {
    const BASE: [&str; 3] = ["api", "v1", "provisioning"];
    let [a, b, c] = BASE;
    let Some(policies) = api.find(&[a, b, c, "policies"])? else {
        return Ok(false);
    };
    for (class, place, key) in [
        (Class::ContactPoint, "contact-points", "uid"),
        (Class::MuteTiming, "mute-timings", "name"),
        (Class::Template, "templates", "name"),
    ] {
        // No templates are a null on some versions.
        let list = match api.get(&[a, b, c, place], &[])? {
            Value::Array(list) => list,
            _ => Vec::new(),
        };
        for value in list {
            let name = text(&value, key).to_owned();
            // The contact point that a new server comes with has no uid, and cannot be written.
            if !name.is_empty() {
                give(class, &name, value)?;
            }
        }
    }
    give(Class::Policies, "policies", policies)?;
    let mut groups = BTreeSet::new();
    for rule in api.list(&[a, b, c, "alert-rules"], &[])? {
        groups.insert((
            text(&rule, "folderUID").to_owned(),
            text(&rule, "ruleGroup").to_owned(),
        ));
    }
    for (folder, group) in groups {
        let path = [a, b, c, "folder", &folder, "rule-groups", &group];
        if let Some(value) = api.find(&path)? {
            give(Class::RuleGroup, &format!("{folder}/{group}"), value)?;
        }
    }
    Ok(true)
}

/// Captures the server.
///
/// # Errors
/// As [`crate::component::Driver::capture`].
pub(super) fn capture(api: &Api, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
    let from = Utc::now();
    let version = api.version()?;
    let mut found: BTreeMap<Class, (u64, blake3::Hasher)> = BTreeMap::new();
    let mut secrets = 0_u64;
    let mut notes = each(api, context, &mut |object| {
        let (count, hasher) = found.entry(object.class).or_default();
        *count += 1;
        hasher.update(object.digest().as_bytes());
        secrets += u64::from(super::import::missing_secrets(&object, &BTreeMap::new()).is_some());
        let text = format!("{:#}\n", object.value);
        sink.file(Entry::file(object.path()), &mut text.as_bytes())?;
        Ok(())
    })?;
    if secrets > 0 {
        notes.push(format!(
            "{secrets} data sources and contact points have secrets, which Grafana does not hand out"
        ));
    }
    notes.push("users, teams, annotations, plugins and settings are not in the backup".to_owned());
    let mut evidence = BTreeMap::new();
    for (class, (count, hasher)) in &found {
        evidence.insert(class.folder().to_owned(), json!(count));
        let digest = hasher.finalize().to_hex().to_string();
        evidence.insert(format!("digest of {}", class.folder()), json!(digest));
    }
    Ok(Point {
        consistency: Consistency::Fuzzy,
        from,
        until: Utc::now(),
        clock_skew_seconds: None,
        position: BTreeMap::new(),
        evidence,
        notes,
        server_version: Some(version),
    })
}
