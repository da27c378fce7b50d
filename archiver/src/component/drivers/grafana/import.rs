//! Writing objects into a server, in the order in which they refer to each other, and comparing.

use super::Settings;
use super::api::Api;
use super::export::each;
use super::object::{Class, Object, REDACTED, path, text};
use super::selection::{Names, Selection, read};
use crate::component::{Context, Evidence, EvidenceLine, Request, Source};
use crate::storage::s3::settings::secret;
use crate::{Error, Result};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Stands for a secret that has to be set again, where the server wants an address.
const UNSET: &str = "https://secret-to-be-set-again.invalid/";

/// What a server has: the digest of each object.
#[derive(Default)]
struct There {
    digests: BTreeMap<(Class, String), blake3::Hash>,
    /// From files of the server: it does not let them be changed.
    provisioned: BTreeSet<(Class, String)>,
    /// Uids of alert rules.
    rules: BTreeSet<String>,
    has_routes: bool,
}

fn there(api: &Api, context: &Context<'_>) -> Result<There> {
    let mut there = There::default();
    each(api, context, &mut |object| {
        let id = (object.class, object.name.clone());
        let digest = object.digest();
        let is = |key: &str| object.value.get(key).and_then(Value::as_bool) == Some(true);
        if is("provisioned") || is("readOnly") {
            there.provisioned.insert(id.clone());
        }
        match object.class {
            Class::Policies => {
                let routes = object.value.get("routes").and_then(Value::as_array);
                there.has_routes = routes.is_some_and(|routes| !routes.is_empty());
            }
            Class::RuleGroup => there
                .rules
                .extend(rules(&object.value).map(|r| text(r, "uid").to_owned())),
            _ => {}
        }
        there.digests.insert(id, digest);
        Ok(())
    })?;
    Ok(there)
}

fn rules(group: &Value) -> impl Iterator<Item = &Value> {
    group
        .get("rules")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// Restores into the server.
///
/// # Errors
/// As [`crate::component::Driver::restore`].
pub(super) fn restore(
    api: &Api,
    settings: &Settings,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Vec<String>> {
    refuse_rename(request)?;
    let selection = Selection::of(context, source, &request.select)?;
    let there = there(api, context)?;
    if !request.overwrite {
        refuse_existing(&selection.meant, &there, request)?;
    }
    let secrets = resolve(settings)?;
    let mut importer = Importer {
        api,
        there,
        secrets,
        lines: Vec::new(),
    };
    importer.refuse_dangling(&selection);
    for class in Class::ALL {
        let mut done = 0_u64;
        for (name, meant) in in_order(class, &selection) {
            context.cancel.check()?;
            let id = (class, name.clone());
            let exists = importer.there.digests.contains_key(&id);
            // What is merely needed is made where it is missing.
            if exists && !meant {
                continue;
            }
            if importer.there.provisioned.contains(&id) {
                importer.lines.push(format!(
                    "left {} \"{name}\" as it is: the server has it from its files",
                    class.folder()
                ));
                continue;
            }
            let object = read(source, &path(class, &name))?;
            importer.import(&object, exists).map_err(|e| {
                e.context(format!("could not restore {} \"{name}\"", class.folder()))
            })?;
            done += 1;
        }
        if done > 0 {
            importer
                .lines
                .push(format!("restored {done} {}", class.folder()));
        }
    }
    Ok(importer.lines)
}

fn refuse_rename(request: &Request) -> Result<()> {
    match request.rename.is_empty() {
        true => Ok(()),
        false => Err(Error::invalid(
            "component_select",
            "objects of Grafana cannot be restored under another uid",
        )),
    }
}

/// Names of a class, and whether each is meant or merely needed.
fn in_order(class: Class, selection: &Selection) -> Vec<(String, bool)> {
    let of = |names: &Names| names.get(&class).cloned().unwrap_or_default();
    let (meant, needed) = (of(&selection.meant), of(&selection.needed));
    let all: Vec<String> = match class {
        Class::Folder => selection.folders.clone(),
        _ => meant.union(&needed).cloned().collect(),
    };
    all.into_iter()
        .filter(|name| meant.contains(name) || needed.contains(name))
        .map(|name| (name.clone(), meant.contains(&name)))
        .collect()
}

fn refuse_existing(meant: &Names, there: &There, request: &Request) -> Result<()> {
    for (class, names) in meant {
        for name in names {
            let occupied = match class {
                // Every server has a tree of policies: an empty one may be replaced.
                Class::Policies => there.has_routes,
                _ => there.digests.contains_key(&(*class, name.clone())),
            };
            if occupied {
                return Err(Error::invalid(
                    "component_not_empty",
                    format!("Grafana has {} \"{name}\" already", class.folder()),
                )
                .with_hint(format!(
                    "Use {} to replace it; what the backup does not have stays.",
                    request.overwrite_options()
                )));
            }
        }
    }
    Ok(())
}

type Secrets = BTreeMap<String, BTreeMap<String, String>>;

/// Reads the secrets, before anything is changed.
fn resolve(settings: &Settings) -> Result<Secrets> {
    let mut all = Secrets::new();
    for (uid, fields) in &settings.secrets {
        let known = all.entry(uid.clone()).or_default();
        for (field, reference) in fields {
            let key = format!("secrets.{uid}.{field}");
            known.insert(field.clone(), secret(&key, reference)?);
        }
    }
    Ok(all)
}

/// The fields of an object that hold secrets which nobody supplies.
pub(super) fn missing_secrets(object: &Object, known: &BTreeMap<String, String>) -> Option<String> {
    let fields = match object.class {
        Class::DataSource => object.value.get("secureJsonFields"),
        Class::ContactPoint => object.value.get("settings"),
        _ => None,
    };
    let fields = fields.and_then(Value::as_object)?;
    let missing: Vec<&str> = fields
        .iter()
        .filter(|(_, value)| {
            value.as_bool() == Some(true) && object.class == Class::DataSource
                || value.as_str() == Some(REDACTED)
        })
        .map(|(field, _)| field.as_str())
        .filter(|field| !known.contains_key(*field))
        .collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

struct Importer<'a> {
    api: &'a Api,
    there: There,
    secrets: Secrets,
    lines: Vec<String>,
}

impl Importer<'_> {
    /// Says which panels will find no data.
    fn refuse_dangling(&mut self, selection: &Selection) {
        for (uid, dashboard) in &selection.data_sources {
            let id = (Class::DataSource, uid.clone());
            let comes = selection.meant.get(&Class::DataSource);
            if !self.there.digests.contains_key(&id) && !comes.is_some_and(|c| c.contains(uid)) {
                self.lines.push(format!(
                    "dashboard \"{dashboard}\" refers to data source \"{uid}\", which is not there"
                ));
            }
        }
    }

    fn secrets_of(&mut self, object: &Object) -> BTreeMap<String, String> {
        let known = self.secrets.get(&object.name).cloned().unwrap_or_default();
        if let Some(missing) = missing_secrets(object, &known) {
            self.lines.push(format!(
                "{} \"{}\" needs its secrets again: {missing} (set them in Grafana, or in \
                 [component.<name>.secrets.{}])",
                object.class.folder(),
                object.name,
                object.name
            ));
        }
        known
    }

    fn import(&mut self, object: &Object, exists: bool) -> Result<()> {
        let (api, value, name) = (self.api, &object.value, object.name.as_str());
        match object.class {
            Class::Folder => self.folder(object, exists),
            Class::DataSource => self.data_source(object, exists),
            Class::Library => {
                let mut body = object.essence();
                match api.find(&["api", "library-elements", name])? {
                    None => api.send(Method::POST, &["api", "library-elements"], &body),
                    Some(now) => {
                        let version = now.pointer("/result/version").cloned();
                        set(&mut body, "version", version.unwrap_or_default());
                        api.send(Method::PATCH, &["api", "library-elements", name], &body)
                    }
                }
                .map(drop)
            }
            Class::Dashboard => {
                let mut dashboard = value.get("dashboard").cloned().unwrap_or_default();
                // Its number on the other server means nothing here.
                set(&mut dashboard, "id", Value::Null);
                let body = json!({
                    "dashboard": dashboard,
                    "folderUid": text(value, "folderUid"),
                    "overwrite": exists,
                    "message": "restored by pgark",
                });
                api.send(Method::POST, &["api", "dashboards", "db"], &body)
                    .map(drop)
            }
            Class::ContactPoint => self.contact_point(object, exists),
            Class::MuteTiming => self.provision(object, "mute-timings", exists),
            Class::Template => {
                let path = ["api", "v1", "provisioning", "templates", name];
                api.send(Method::PUT, &path, &object.essence()).map(drop)
            }
            Class::Policies => {
                let path = ["api", "v1", "provisioning", "policies"];
                api.send(Method::PUT, &path, &object.essence()).map(drop)
            }
            Class::RuleGroup => self.rule_group(object),
        }
    }

    fn provision(&self, object: &Object, place: &str, exists: bool) -> Result<()> {
        self.provision_value(&object.essence(), &object.name, place, exists)
    }

    fn provision_value(&self, body: &Value, name: &str, place: &str, exists: bool) -> Result<()> {
        let base = ["api", "v1", "provisioning", place];
        match exists {
            true => {
                let [a, b, c, d] = base;
                self.api.send(Method::PUT, &[a, b, c, d, name], body)
            }
            false => self.api.send(Method::POST, &base, body),
        }
        .map(drop)
    }

    fn folder(&self, object: &Object, exists: bool) -> Result<()> {
        let (api, uid) = (self.api, object.name.as_str());
        if !exists {
            return api
                .send(Method::POST, &["api", "folders"], &object.essence())
                .map(drop);
        }
        let title = json!({"title": text(&object.value, "title"), "overwrite": true});
        api.send(Method::PUT, &["api", "folders", uid], &title)?;
        let now = api.find(&["api", "folders", uid])?.unwrap_or_default();
        let parent = object.folder_uid();
        if text(&now, "parentUid") != parent {
            let body = json!({"parentUid": parent});
            api.send(Method::POST, &["api", "folders", uid, "move"], &body)?;
        }
        Ok(())
    }

    fn data_source(&mut self, object: &Object, exists: bool) -> Result<()> {
        let known = self.secrets_of(object);
        let mut body = object.essence();
        if !known.is_empty() {
            set(&mut body, "secureJsonData", json!(known));
        }
        match exists {
            true => {
                let path = ["api", "datasources", "uid", object.name.as_str()];
                self.api.send(Method::PUT, &path, &body)
            }
            false => self.api.send(Method::POST, &["api", "datasources"], &body),
        }
        .map(drop)
    }

    fn contact_point(&mut self, object: &Object, exists: bool) -> Result<()> {
        let known = self.secrets_of(object);
        let mut body = object.essence();
        let mut filled = Map::new();
        if let Some(Value::Object(map)) = object.value.get("settings") {
            for (field, value) in map {
                match (value.as_str() == Some(REDACTED), known.get(field)) {
                    (_, Some(secret)) => drop(filled.insert(field.clone(), json!(secret))),
                    // A server that has it keeps it; another would take the word for the secret, and
                    // refuse a contact point without one.
                    (true, None) if !exists => drop(filled.insert(field.clone(), json!(UNSET))),
                    _ => drop(filled.insert(field.clone(), value.clone())),
                }
            }
        }
        set(&mut body, "settings", Value::Object(filled));
        self.provision_value(&body, &object.name, "contact-points", exists)
    }

    /// Rules one by one, since a group cannot be written with rules that the server does not know; then the group,
    /// for its interval and the rules that must go.
    fn rule_group(&self, object: &Object) -> Result<()> {
        let essence = object.essence();
        let (folder, title) = (text(&essence, "folderUid"), text(&essence, "title"));
        for rule in rules(&essence) {
            let uid = text(rule, "uid");
            let mut rule = rule.clone();
            set(&mut rule, "folderUID", json!(folder));
            set(&mut rule, "ruleGroup", json!(title));
            self.provision_value(&rule, uid, "alert-rules", self.there.rules.contains(uid))?;
        }
        let path = [
            "api",
            "v1",
            "provisioning",
            "folder",
            folder,
            "rule-groups",
            title,
        ];
        self.api.send(Method::PUT, &path, &essence).map(drop)
    }
}

fn set(value: &mut Value, key: &str, to: Value) {
    if let Value::Object(map) = value {
        map.insert(key.to_owned(), to);
    }
}

/// Reads everything out of the server again, and compares.
///
/// # Errors
/// Those of the server and of the source.
pub(super) fn evidence(
    api: &Api,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Evidence> {
    refuse_rename(request)?;
    let selection = Selection::of(context, source, &request.select)?;
    let there = there(api, context)?;
    let mut lines = Vec::new();
    for (class, names) in &selection.meant {
        let mut different = Vec::new();
        for name in names {
            context.cancel.check()?;
            let expected = read(source, &path(*class, name))?.digest();
            if there.digests.get(&(*class, name.clone())) != Some(&expected) {
                different.push(name.as_str());
            }
        }
        let expected = names.len();
        let mut found = format!("{}", expected - different.len());
        if let Some(first) = different.first() {
            found = format!(
                "{found} ({} differ, among them \"{first}\")",
                different.len()
            );
        }
        lines.push(EvidenceLine {
            what: format!("{} with the same content", class.folder()),
            expected: expected.to_string(),
            found,
            ok: different.is_empty(),
        });
    }
    Ok(Evidence {
        ok: lines.iter().all(|line| line.ok),
        lines,
    })
}
