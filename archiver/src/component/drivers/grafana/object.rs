//! What Grafana is made of: classes of objects, their names, and what of them is compared.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// A class of objects, in the order in which a restore makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Folder,
    DataSource,
    Library,
    Dashboard,
    ContactPoint,
    MuteTiming,
    Template,
    Policies,
    RuleGroup,
}

impl Class {
    pub(super) const ALL: [Self; 9] = [
        Self::Folder,
        Self::DataSource,
        Self::Library,
        Self::Dashboard,
        Self::ContactPoint,
        Self::MuteTiming,
        Self::Template,
        Self::Policies,
        Self::RuleGroup,
    ];

    /// Its folder in a backup.
    pub(super) const fn folder(self) -> &'static str {
        match self {
            Self::Folder => "folders",
            Self::DataSource => "datasources",
            Self::Library => "library-panels",
            Self::Dashboard => "dashboards",
            Self::ContactPoint => "contact-points",
            Self::MuteTiming => "mute-timings",
            Self::Template => "templates",
            Self::Policies => "policies",
            Self::RuleGroup => "alert-rules",
        }
    }

    /// Fields that say the same on any server. Nothing else is compared.
    const fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Folder => &["uid", "title", "parentUid"],
            Self::DataSource => &[
                "uid",
                "name",
                "type",
                "access",
                "url",
                "user",
                "database",
                "basicAuth",
                "basicAuthUser",
                "withCredentials",
                "isDefault",
                "jsonData",
            ],
            Self::Library => &[
                "uid",
                "name",
                "kind",
                "type",
                "description",
                "model",
                "folderUid",
            ],
            Self::Dashboard => &["dashboard", "folderUid"],
            Self::ContactPoint => &["uid", "name", "type", "settings", "disableResolveMessage"],
            Self::MuteTiming => &["name", "time_intervals"],
            Self::Template => &["name", "template"],
            Self::Policies => &[
                "receiver",
                "group_by",
                "routes",
                "group_wait",
                "group_interval",
                "repeat_interval",
            ],
            Self::RuleGroup => &["title", "folderUid", "interval", "rules"],
        }
    }
}

/// An object: its class, its name within the class, and what the API says.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) class: Class,
    pub(super) name: String,
    pub(super) value: Value,
}

/// A text of an object; empty when it has none.
pub(super) fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

impl Object {
    /// The path in a backup.
    pub(super) fn path(&self) -> String {
        path(self.class, &self.name)
    }

    /// Reads one back.
    ///
    /// # Errors
    /// Kind Data, `grafana_object`.
    pub(super) fn read(path: &str, bytes: &[u8]) -> Result<Self> {
        let wrong = || {
            Error::data(
                "grafana_object",
                format!("\"{path}\" is no object of Grafana"),
            )
        };
        let (folder, name) = path.split_once('/').ok_or_else(wrong)?;
        let class = Class::ALL
            .into_iter()
            .find(|class| class.folder() == folder);
        let name = name.strip_suffix(".json").and_then(unescape);
        Ok(Self {
            class: class.ok_or_else(wrong)?,
            name: name.ok_or_else(wrong)?,
            value: serde_json::from_slice(bytes).map_err(|e| wrong().with_source(e))?,
        })
    }

    /// What a restore has to bring back.
    pub(super) fn essence(&self) -> Value {
        let mut kept = Map::new();
        for field in self.class.fields() {
            match self.value.get(*field) {
                // Left out means the same as empty.
                None | Some(Value::Null) => {}
                Some(Value::String(text)) if text.is_empty() => {}
                Some(value) => drop(kept.insert((*field).to_owned(), value.clone())),
            }
        }
        match self.class {
            Class::Dashboard => strip(kept.get_mut("dashboard"), &["id", "version", "iteration"]),
            Class::Library => strip(kept.get_mut("model"), &["libraryPanel", "id"]),
            Class::ContactPoint => redact(kept.get_mut("settings")),
            Class::RuleGroup => {
                let rules = kept.get_mut("rules").and_then(Value::as_array_mut);
                for rule in rules.into_iter().flatten() {
                    strip(Some(rule), &["id", "orgID", "updated", "provenance"]);
                }
            }
            _ => {}
        }
        Value::Object(kept)
    }

    /// BLAKE3 of what is compared.
    pub(super) fn digest(&self) -> blake3::Hash {
        let mut text = String::new();
        canonical(&self.essence(), &mut text);
        blake3::hash(text.as_bytes())
    }

    /// The folder that it lies in; empty: in none.
    pub(super) fn folder_uid(&self) -> &str {
        match self.class {
            Class::Folder => text(&self.value, "parentUid"),
            Class::Library | Class::Dashboard | Class::RuleGroup => text(&self.value, "folderUid"),
            _ => "",
        }
    }
}

fn strip(value: Option<&mut Value>, fields: &[&str]) {
    if let Some(Value::Object(map)) = value {
        for field in fields {
            map.remove(*field);
        }
    }
}

/// What the API writes in place of a secret.
pub(super) const REDACTED: &str = "[REDACTED]";

fn redact(settings: Option<&mut Value>) {
    if let Some(Value::Object(map)) = settings {
        map.retain(|_, value| value.as_str() != Some(REDACTED));
    }
}

/// JSON with sorted keys and no spaces.
fn canonical(value: &Value, to: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            to.push('{');
            for key in keys {
                let _ = write!(to, "{}:", Value::String(key.clone()));
                canonical(map.get(key).unwrap_or(&Value::Null), to);
                to.push(',');
            }
            to.push('}');
        }
        Value::Array(list) => {
            to.push('[');
            for item in list {
                canonical(item, to);
                to.push(',');
            }
            to.push(']');
        }
        other => {
            let _ = write!(to, "{other}");
        }
    }
}

/// The path of an object. A rule group's name is its folder and its title.
pub(super) fn path(class: Class, name: &str) -> String {
    let mut path = format!("{}/", class.folder());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => path.push(char::from(byte)),
            other => {
                let _ = write!(path, "%{other:02X}");
            }
        }
    }
    path + ".json"
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(class: Class, value: Value) -> Object {
        Object {
            class,
            name: "n".to_owned(),
            value,
        }
    }

    #[test]
    fn names_of_any_kind_have_a_path() {
        for name in ["abc-1_X", "f1/Group one", "..", "ü%", ""] {
            let path = path(Class::RuleGroup, name);
            let read = Object::read(&path, b"{}").unwrap();
            assert_eq!((read.class, read.name.as_str()), (Class::RuleGroup, name));
        }
        for wrong in ["x", "x/y.json", "dashboards/y", "dashboards/%zz.json"] {
            assert_eq!(
                Object::read(wrong, b"{}").unwrap_err().code(),
                "grafana_object"
            );
        }
        assert!(Object::read("dashboards/y.json", b"{").is_err());
    }

    #[test]
    fn what_differs_between_servers_is_not_compared() {
        let one = object(
            Class::Dashboard,
            json!({"dashboard": {"id": 1, "version": 7, "title": "t", "a": 1}, "folderUid": ""}),
        );
        let two = object(
            Class::Dashboard,
            json!({"dashboard": {"a": 1, "title": "t", "id": 9, "version": 1}, "provisioned": false}),
        );
        assert_eq!(one.digest(), two.digest());
        let three = object(
            Class::Dashboard,
            json!({"dashboard": {"a": 2, "title": "t"}}),
        );
        assert_ne!(one.digest(), three.digest());
        let secret = object(
            Class::ContactPoint,
            json!({"name": "x", "settings": {"url": "[REDACTED]", "to": "y"}}),
        );
        let none = object(
            Class::ContactPoint,
            json!({"name": "x", "settings": {"to": "y"}}),
        );
        assert_eq!(secret.digest(), none.digest());
    }
}
