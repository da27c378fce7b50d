//! A server that answers as Grafana's documentation says its HTTP API does: no real one is packaged
//! anywhere (docs/untested.md). Strict where importers fail: objects are refused that refer to what is not
//! there, that exist already, whose rules are unknown; secrets never come out.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The token that it wants.
pub const TOKEN: &str = "glsa_test";

type Objects = BTreeMap<String, Value>;

/// What a server holds, by uid or name.
#[derive(Debug, Default)]
pub struct State {
    /// Folders.
    pub folders: Objects,
    /// Data sources, with `secureJsonData`.
    pub data_sources: Objects,
    /// Library panels.
    pub panels: Objects,
    /// Dashboards: `{"dashboard": …, "folderUid": …}`.
    pub dashboards: Objects,
    /// Contact points, with their secrets.
    pub contact_points: Objects,
    /// Mute timings.
    pub mute_timings: Objects,
    /// Templates.
    pub templates: Objects,
    /// The tree of policies.
    pub policies: Value,
    /// Alert rules.
    pub rules: Objects,
    /// Seconds between evaluations, by folder and group.
    pub intervals: BTreeMap<(String, String), Value>,
    /// Requests that were answered with an error.
    pub refusals: Vec<String>,
    /// Requests that change something, in order.
    pub writes: Vec<String>,
    next: u64,
}

/// A running fake.
#[derive(Debug)]
pub struct FakeGrafana {
    port: u16,
    state: Arc<Mutex<State>>,
}

/// Status and body.
type Answer = (u16, Value);

struct Call {
    method: String,
    path: Vec<String>,
    query: BTreeMap<String, String>,
    body: Value,
    keeps_provenance: bool,
}

impl FakeGrafana {
    /// Starts an empty one.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State {
            policies: json!({"receiver": "grafana-default-email"}),
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { port, state }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it holds.
    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut words = line.split_whitespace();
        let method = words.next().unwrap().to_owned();
        let target = words.next().unwrap().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let Some((name, value)) = header.trim().split_once(':') else {
                break;
            };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let length = headers
            .get("content-length")
            .map_or(0, |l| l.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let call = Call {
            path: path.split('/').skip(1).map(decode).collect(),
            query: query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(key, value)| (key.to_owned(), decode(value)))
                .collect(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
            keeps_provenance: headers
                .get("x-disable-provenance")
                .is_none_or(|v| v != "true"),
            method,
        };
        let allowed = headers
            .get("authorization")
            .is_some_and(|v| *v == format!("Bearer {TOKEN}"));
        let (status, answer) = {
            let mut state = state.lock().unwrap();
            let answer = match allowed || call.path == ["api", "health"] {
                true => state.answer(&call),
                false => (401, json!({"message": "Unauthorized"})),
            };
            let shown = format!("{} {path}", call.method);
            if answer.0 >= 400 && call.method != "GET" {
                state
                    .refusals
                    .push(format!("{shown}: {} {}", answer.0, answer.1));
            } else if call.method != "GET" {
                state.writes.push(shown);
            }
            answer
        };
        let text = answer.to_string();
        // In one piece: small ones would wait for each other's acknowledgement.
        let sent = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        let sent = reader.get_mut().write_all(sent.as_bytes());
        if sent.is_err() {
            return;
        }
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                let digits = std::str::from_utf8(&digits).unwrap().to_owned();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap());
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn refuse(status: u16, why: &str) -> Answer {
    (status, json!({"message": why}))
}

fn page(call: &Call, all: Vec<Value>, size: &str) -> Vec<Value> {
    let number = |key: &str, default| call.query.get(key).map_or(default, |n| n.parse().unwrap());
    let (size, page): (usize, usize) = (number(size, 1000), number("page", 1));
    all.into_iter().skip((page - 1) * size).take(size).collect()
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn has_folder(&self, uid: &str) -> bool {
        uid.is_empty() || self.folders.contains_key(uid)
    }

    fn answer(&mut self, call: &Call) -> Answer {
        let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
        match (call.method.as_str(), path.as_slice()) {
            ("GET", ["api", "health"]) => (200, json!({"database": "ok", "version": "12.1.0"})),
            (_, ["api", "folders", ..]) => self.folder(call, &path),
            (_, ["api", "datasources", ..]) => self.data_source(call, &path),
            (_, ["api", "library-elements", ..]) => self.panel(call, &path),
            ("GET", ["api", "search"]) => {
                let found = self.dashboards.iter();
                let found = found.map(|(uid, d)| json!({"uid": uid, "folderUid": d["folderUid"]}));
                let found = found.collect();
                (200, Value::Array(page(call, found, "limit")))
            }
            ("GET", ["api", "dashboards", "uid", uid]) => match self.dashboards.get(*uid) {
                None => refuse(404, "Dashboard not found"),
                Some(found) => (
                    200,
                    json!({
                        "dashboard": found["dashboard"],
                        "meta": {"folderUid": found["folderUid"], "provisioned": found["provisioned"] == true},
                    }),
                ),
            },
            ("POST", ["api", "dashboards", "db"]) => self.save_dashboard(&call.body),
            (_, ["api", "v1", "provisioning", rest @ ..]) => self.provisioning(call, rest),
            _ => refuse(404, "Not found"),
        }
    }

    fn folder(&mut self, call: &Call, path: &[&str]) -> Answer {
        let body = &call.body;
        match (call.method.as_str(), path.get(2).copied()) {
            ("GET", None) => {
                let parent = call.query.get("parentUid").map_or("", String::as_str);
                let of = self
                    .folders
                    .values()
                    .filter(|f| text(f, "parentUid") == parent);
                // The list does not repeat the parent.
                let of = of.map(|f| json!({"id": f["id"], "uid": f["uid"], "title": f["title"]}));
                let of = of.collect();
                (200, Value::Array(page(call, of, "limit")))
            }
            ("GET", Some(uid)) => match self.folders.get(uid) {
                Some(folder) => (200, folder.clone()),
                None => refuse(404, "folder not found"),
            },
            ("POST", None) => {
                let uid = text(body, "uid").to_owned();
                if self.folders.contains_key(&uid) {
                    return refuse(412, "a folder with the same uid already exists");
                }
                if !self.has_folder(text(body, "parentUid")) {
                    return refuse(400, "parent folder not found");
                }
                let mut folder = body.clone();
                folder["id"] = json!(self.number());
                self.folders.insert(uid, folder.clone());
                (200, folder)
            }
            ("PUT", Some(uid)) if self.folders.contains_key(uid) => {
                if body["overwrite"] != true {
                    return refuse(412, "version mismatch");
                }
                self.folders.get_mut(uid).unwrap()["title"] = body["title"].clone();
                (200, json!({}))
            }
            ("POST", Some(uid)) if path.get(3) == Some(&"move") => {
                if !self.has_folder(text(body, "parentUid")) {
                    return refuse(400, "parent folder not found");
                }
                self.folders.get_mut(uid).unwrap()["parentUid"] = body["parentUid"].clone();
                (200, json!({}))
            }
            _ => refuse(404, "folder not found"),
        }
    }

    fn data_source(&mut self, call: &Call, path: &[&str]) -> Answer {
        let mut value = call.body.clone();
        let uid = text(&value, "uid").to_owned();
        match call.method.as_str() {
            "GET" => {
                let shown = self.data_sources.values().map(|source| {
                    let mut shown = source.clone();
                    let secrets = shown.as_object_mut().unwrap().remove("secureJsonData");
                    let secrets = secrets.unwrap_or_default();
                    let set = secrets.as_object().cloned().unwrap_or_default();
                    let set: Map<String, Value> =
                        set.into_iter().map(|(k, _)| (k, json!(true))).collect();
                    shown["secureJsonFields"] = Value::Object(set);
                    shown
                });
                (200, shown.collect())
            }
            "POST" => {
                let name = text(&value, "name");
                let taken = self.data_sources.values().any(|s| text(s, "name") == name);
                if taken || self.data_sources.contains_key(&uid) {
                    return refuse(409, "data source with the same name already exists");
                }
                value["id"] = json!(self.number());
                self.data_sources.insert(uid, value);
                (200, json!({"message": "Datasource added"}))
            }
            _ => {
                let Some(now) = self.data_sources.get(path[3]) else {
                    return refuse(404, "Data source not found");
                };
                if now["readOnly"] == true {
                    return refuse(403, "Cannot update read-only data source");
                }
                if value["secureJsonData"].is_null() {
                    value["secureJsonData"] = now["secureJsonData"].clone();
                }
                self.data_sources.insert(uid, value);
                (200, json!({}))
            }
        }
    }

    fn panel(&mut self, call: &Call, path: &[&str]) -> Answer {
        let mut value = call.body.clone();
        match (call.method.as_str(), path.get(2).copied()) {
            ("GET", None) => {
                let all = self.panels.values().cloned().collect();
                (
                    200,
                    json!({"result": {"elements": page(call, all, "perPage")}}),
                )
            }
            ("GET", Some(uid)) => match self.panels.get(uid) {
                Some(panel) => (200, json!({"result": panel})),
                None => refuse(404, "library element could not be found"),
            },
            ("POST", None) => {
                if !self.has_folder(text(&value, "folderUid")) {
                    return refuse(404, "folder not found");
                }
                value["version"] = json!(1);
                self.panels.insert(text(&value, "uid").to_owned(), value);
                (200, json!({}))
            }
            (_, uid) => {
                let now = self.panels.get(uid.unwrap()).unwrap();
                if now["version"] != value["version"] {
                    return refuse(412, "the library element has been changed by someone else");
                }
                value["version"] = json!(now["version"].as_u64().unwrap() + 1);
                self.panels.insert(uid.unwrap().to_owned(), value);
                (200, json!({}))
            }
        }
    }

    fn save_dashboard(&mut self, body: &Value) -> Answer {
        let mut dashboard = body["dashboard"].clone();
        let uid = text(&dashboard, "uid").to_owned();
        if !dashboard["id"].is_null() {
            return refuse(404, "Dashboard not found");
        }
        if !self.has_folder(text(body, "folderUid")) {
            return refuse(400, "folder not found");
        }
        let now = self.dashboards.get(&uid);
        if now.is_some_and(|now| now["provisioned"] == true) {
            return refuse(400, "Cannot save provisioned dashboard");
        }
        if now.is_some() && body["overwrite"] != true {
            return refuse(412, "A dashboard with the same uid already exists");
        }
        let version = now.map_or(0, |now| now["dashboard"]["version"].as_u64().unwrap());
        dashboard["id"] = json!(self.number());
        dashboard["version"] = json!(version + 1);
        let saved = json!({"dashboard": dashboard, "folderUid": body["folderUid"]});
        self.dashboards.insert(uid, saved);
        (200, json!({"status": "success"}))
    }

    fn provisioning(&mut self, call: &Call, rest: &[&str]) -> Answer {
        let value = call.body.clone();
        if call.method != "GET" && call.keeps_provenance {
            return refuse(
                400,
                "the fake wants X-Disable-Provenance: else nobody can edit it",
            );
        }
        match rest {
            ["contact-points", name @ ..] => {
                let shown = |point: &Value| {
                    let mut point = point.clone();
                    if !point["settings"]["url"].is_null() {
                        point["settings"]["url"] = json!("[REDACTED]");
                    }
                    point
                };
                if call.method == "GET" {
                    // The one that every server comes with.
                    let built_in =
                        json!({"uid": "", "name": "grafana-default-email", "type": "email"});
                    let all =
                        std::iter::once(built_in).chain(self.contact_points.values().map(shown));
                    return (200, all.collect());
                }
                if text(&value, "type") == "slack" && value["settings"]["url"].is_null() {
                    return refuse(400, "token must be specified when using the Slack chat API");
                }
                keyed(&mut self.contact_points, call, name, "uid")
            }
            ["mute-timings", name @ ..] => keyed(&mut self.mute_timings, call, name, "name"),
            ["templates", name @ ..] => match call.method.as_str() {
                "PUT" => {
                    self.templates.insert(name[0].to_owned(), value);
                    (202, json!({}))
                }
                _ => keyed(&mut self.templates, call, name, "name"),
            },
            ["policies"] if call.method == "GET" => (200, self.policies.clone()),
            ["policies"] => {
                let known = |name: &str| {
                    name == "grafana-default-email"
                        || self
                            .contact_points
                            .values()
                            .any(|c| text(c, "name") == name)
                };
                let routes = value["routes"].as_array().cloned().unwrap_or_default();
                let mut receivers = routes.iter().chain([&value]).map(|r| text(r, "receiver"));
                if !receivers.all(known) {
                    return refuse(400, "receiver does not exist");
                }
                let muted = |route: &Value| {
                    let names = route["mute_time_intervals"]
                        .as_array()
                        .cloned()
                        .unwrap_or_default();
                    names
                        .iter()
                        .all(|n| self.mute_timings.contains_key(n.as_str().unwrap()))
                };
                if !routes.iter().all(muted) {
                    return refuse(400, "mute time interval does not exist");
                }
                self.policies = call.body.clone();
                (202, json!({}))
            }
            ["alert-rules", name @ ..] => {
                if call.method != "GET" && !self.has_folder(text(&value, "folderUID")) {
                    return refuse(400, "folder does not exist");
                }
                keyed(&mut self.rules, call, name, "uid")
            }
            ["folder", folder, "rule-groups", group] => self.rule_group(call, folder, group),
            _ => refuse(404, "Not found"),
        }
    }

    fn rule_group(&mut self, call: &Call, folder: &str, group: &str) -> Answer {
        let id = (folder.to_owned(), group.to_owned());
        let inside =
            |rule: &&Value| text(rule, "folderUID") == folder && text(rule, "ruleGroup") == group;
        if call.method == "GET" {
            let rules: Vec<&Value> = self.rules.values().filter(inside).collect();
            let interval = self.intervals.get(&id).cloned().unwrap_or(json!(60));
            return match rules.is_empty() {
                true => refuse(404, "rule group not found"),
                false => (
                    200,
                    json!({"title": group, "folderUid": folder, "interval": interval, "rules": rules}),
                ),
            };
        }
        let rules = call.body["rules"].as_array().unwrap();
        if !rules
            .iter()
            .all(|rule| self.rules.contains_key(text(rule, "uid")))
        {
            return refuse(404, "could not find alert rule");
        }
        self.rules.retain(|_, rule| !inside(&&*rule));
        for rule in rules {
            self.rules
                .insert(text(rule, "uid").to_owned(), rule.clone());
        }
        self.intervals.insert(id, call.body["interval"].clone());
        (200, json!({}))
    }
}

/// A plain collection: list, create, replace.
fn keyed(objects: &mut Objects, call: &Call, name: &[&str], key: &str) -> Answer {
    let uid = text(&call.body, key).to_owned();
    match (call.method.as_str(), name) {
        ("GET", _) => (200, objects.values().cloned().collect()),
        ("POST", _) if objects.contains_key(&uid) => refuse(409, "exists already"),
        ("POST", _) => {
            objects.insert(uid, call.body.clone());
            (201, json!({}))
        }
        (_, [name]) if objects.contains_key(*name) => {
            objects.insert((*name).to_owned(), call.body.clone());
            (202, json!({}))
        }
        _ => refuse(404, "not found"),
    }
}
