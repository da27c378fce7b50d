//! An engine that answers as Docker's API is documented to: for what a test cannot make a real one do, and
//! where none can run. Its volumes are real directories; containers are records of it. Strict as the real one
//! is: what is paused cannot be paused, what is used cannot be removed, an old version is refused.

use crate::account;
use crate::directory::TestDirectory;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

/// A container.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// The name of its image.
    pub image: String,
    /// The volumes that it mounts.
    pub volumes: Vec<String>,
    /// It runs, paused or not.
    pub running: bool,
    /// It is frozen.
    pub paused: bool,
    /// It is removed when it stops.
    pub auto_remove: bool,
    /// How often it was started.
    pub starts: u32,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made, in seconds since 1970.
    pub created: i64,
}

/// What an engine holds.
#[derive(Debug, Default)]
pub struct State {
    /// As `GET /volumes/{name}` tells them.
    pub volumes: BTreeMap<String, Value>,
    /// By id.
    pub containers: BTreeMap<String, Container>,
    /// What was done to containers: `pause web`.
    pub acts: Vec<String>,
    /// What fails, by act (`pause web`): the status and what the engine says.
    pub fails: BTreeMap<String, (u16, String)>,
    /// Its versions of the API: newest and oldest.
    pub api: (String, String),
    /// `Podman Engine` or `Engine`.
    pub component: String,
    /// The name of its host.
    pub host: String,
    /// Images that were made of archives: name, and labels.
    pub images: BTreeMap<String, Value>,
    /// How many bytes of an archive come out before it breaks off.
    pub cut: Option<usize>,
    /// Paths of requests, with the version in front.
    pub requests: Vec<String>,
    folder: PathBuf,
    next: u32,
}

/// A running fake.
#[derive(Debug)]
pub struct FakeDocker {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

type Answer = (u16, Value);

impl FakeDocker {
    /// Starts an empty one at the socket `name` of the test's directory.
    pub fn start(directory: &TestDirectory, name: &str) -> Self {
        let socket = directory.join(name);
        let folder = directory.folder(&format!("{name}-volumes"));
        let listener = UnixListener::bind(&socket).unwrap();
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o660)).unwrap();
        account::give(&socket);
        let host = rustix::system::uname();
        let state = Arc::new(Mutex::new(State {
            api: ("1.41".to_owned(), "1.12".to_owned()),
            component: "Engine".to_owned(),
            host: host.nodename().to_string_lossy().into_owned(),
            folder,
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { socket, state }
    }

    /// `unix:///path`.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// What it holds.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes a volume, and its directory, which is the account's; the directory.
    pub fn volume(&self, name: &str, more: &Value) -> PathBuf {
        let mut state = self.state();
        state.make_volume(name, more);
        state.folder.join(name).join("_data")
    }

    /// Makes a container that runs and mounts a volume.
    pub fn container(&self, name: &str, image: &str, volume: &str) {
        let id = self.state().id();
        let container = Container {
            name: name.to_owned(),
            image: image.to_owned(),
            volumes: vec![volume.to_owned()],
            running: true,
            starts: 1,
            ..Container::default()
        };
        self.state().containers.insert(id, container);
    }

    /// The container of that name.
    pub fn of(&self, name: &str) -> Container {
        let state = self.state();
        let mut containers = state.containers.values();
        containers.find(|c| c.name == name).unwrap().clone()
    }

    /// What was done to containers since this was asked.
    pub fn take_acts(&self) -> Vec<String> {
        std::mem::take(&mut self.state().acts)
    }
}

impl State {
    fn id(&mut self) -> String {
        self.next += 1;
        format!("{:064x}", 0xabcd_0000_0000_u64 + u64::from(self.next))
    }

    fn make_volume(&mut self, name: &str, more: &Value) {
        let data = self.folder.join(name).join("_data");
        for path in [data.parent().unwrap(), &data] {
            std::fs::create_dir_all(path).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
            account::give(path);
        }
        let mut volume = json!({"Name": name, "Driver": "local", "Labels": null, "Options": null,
            "Mountpoint": data, "Scope": "local", "CreatedAt": "2026-11-20T00:00:00Z"});
        for (key, value) in more.as_object().into_iter().flatten() {
            volume[key] = value.clone();
        }
        self.volumes.insert(name.to_owned(), volume);
    }

    fn listed(&self, id: &str, container: &Container) -> Value {
        let mounts = container.volumes.iter();
        let mounts: Vec<Value> = mounts
            .map(|v| json!({"Type": "volume", "Name": v, "Destination": "/data", "RW": true}))
            .collect();
        let status = match (container.running, container.paused) {
            (true, true) => "paused",
            (true, false) => "running",
            _ => "exited",
        };
        json!({"Id": id, "Names": [format!("/{}", container.name)], "Image": container.image,
            "ImageID": "sha256:00", "Created": container.created, "State": status,
            "Labels": container.labels, "Mounts": mounts})
    }

    fn inspected(&self, id: &str) -> Answer {
        let Some(c) = self.containers.get(id) else {
            return refuse(404, &format!("No such container: {id}"));
        };
        let state = json!({"Running": c.running, "Paused": c.paused, "Restarting": false,
            "StartedAt": format!("2026-11-20T00:00:{:02}Z", c.starts)});
        (
            200,
            json!({"Id": id, "Name": format!("/{}", c.name), "Image": "sha256:00", "State": state,
                "Config": {"Image": c.image, "Labels": c.labels},
                "HostConfig": {"AutoRemove": c.auto_remove}}),
        )
    }

    fn act(&mut self, id: &str, what: &str) -> Answer {
        let Some(c) = self.containers.get_mut(id) else {
            return refuse(404, &format!("No such container: {id}"));
        };
        let act = format!("{what} {}", c.name);
        if let Some((status, why)) = self.fails.get(&act) {
            // Somebody else was faster by a moment.
            c.paused = c.paused || (*status, what) == (409, "pause");
            return refuse(*status, why);
        }
        match (what, c.running, c.paused) {
            ("pause", true, false) => c.paused = true,
            ("pause", true, true) => return refuse(409, "Container is already paused"),
            ("pause", ..) => return refuse(409, "Container is not running"),
            ("unpause", true, true) => c.paused = false,
            ("unpause", ..) => return refuse(500, "Container is not paused"),
            ("stop", true, false) => c.running = false,
            ("stop", true, true) => return refuse(500, "Container is paused"),
            ("start", false, _) => {
                c.running = true;
                c.starts += 1;
            }
            ("stop" | "start", ..) => return (304, Value::Null),
            _ => return refuse(404, "page not found"),
        }
        if what == "stop" && c.auto_remove {
            self.containers.remove(id);
        }
        self.acts.push(act);
        (204, Value::Null)
    }

    fn create(&mut self, body: &Value) -> Answer {
        let image = body["Image"].as_str().unwrap().to_owned();
        if image != "sha256:00" && !self.images.contains_key(&image) {
            return refuse(404, &format!("No such image: {image}"));
        }
        let mount = &body["HostConfig"]["Mounts"][0];
        let volume = mount["Source"].as_str().unwrap().to_owned();
        if !self.volumes.contains_key(&volume) {
            self.make_volume(&volume, &Value::Null);
        }
        let data = self.folder.join(&volume).join("_data");
        if mount["VolumeOptions"]["NoCopy"] != true && data.read_dir().unwrap().next().is_none() {
            std::fs::write(data.join("from-image"), "x").unwrap();
        }
        let labels = serde_json::from_value(body["Labels"].clone()).unwrap();
        let id = self.id();
        let container = Container {
            name: format!(
                "helper{}",
                if mount["ReadOnly"] == true {
                    ""
                } else {
                    " that writes"
                }
            ),
            image,
            volumes: vec![volume],
            labels,
            ..Container::default()
        };
        self.containers.insert(id.clone(), container);
        (201, json!({"Id": id, "Warnings": []}))
    }

    /// The volume of a helper, packed or unpacked by the system's own tar.
    fn archive(&mut self, method: &str, target: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let (path, query) = target.split_once('?').unwrap();
        self.requests.push(format!("{method} {path}"));
        let id = path.rsplit('/').nth(1).unwrap();
        let container = self.containers.get(id).unwrap();
        assert!(!container.running);
        let volume = self.folder.join(&container.volumes[0]);
        let query: String = decode(query);
        if method == "GET" {
            assert_eq!(query, "path=/pgark-volume/.");
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(volume.join("_data"));
            tar.args([
                "--numeric-owner",
                "--format=pax",
                "--pax-option=delete=atime,delete=ctime",
                "-c",
                ".",
            ]);
            let mut bytes = tar.output().unwrap().stdout;
            bytes.truncate(self.cut.unwrap_or(usize::MAX));
            return (200, bytes);
        }
        assert!(query.starts_with("path=/&"), "{query}");
        if container.name != "helper that writes" {
            return (
                403,
                b"{\"message\":\"mounted volume is marked read-only\"}".to_vec(),
            );
        }
        let mut tar = Command::new("tar");
        tar.arg("-C")
            .arg(&volume)
            .args(["--numeric-owner", "-p", "--overwrite-dir"]);
        let mut tar = tar
            .args(["--transform=flags=rh;s,^pgark-volume,_data,", "-x"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(body).unwrap();
        match tar.wait().unwrap().success() {
            true => (200, Vec::new()),
            false => (500, b"{\"message\":\"Error processing tar file\"}".to_vec()),
        }
    }

    fn chosen(&self, filters: &Value) -> Vec<Value> {
        let volume = filters["volume"][0].as_str();
        let label = filters["label"][0].as_str();
        let containers = self.containers.iter().filter(|(_, c)| {
            volume.is_none_or(|v| c.volumes.iter().any(|own| own == v))
                && label.is_none_or(|l| c.labels.contains_key(l))
        });
        containers.map(|(id, c)| self.listed(id, c)).collect()
    }

    fn labelled(&self, filters: &Value) -> Vec<Value> {
        let label = filters["label"][0].as_str().unwrap();
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        let volumes = self.volumes.values();
        let has = |v: &&Value| {
            v["Labels"][key]
                .as_str()
                .is_some_and(|own| own == value || !label.contains('='))
        };
        volumes.filter(has).cloned().collect()
    }

    fn answer(
        &mut self,
        method: &str,
        path: &[&str],
        query: &BTreeMap<String, String>,
        body: &Value,
    ) -> Answer {
        let filters = query
            .get("filters")
            .map_or(Value::Null, |f| serde_json::from_str(f).unwrap());
        match (method, path) {
            ("GET", ["info"]) => (200, json!({"Name": self.host, "ID": "X"})),
            ("GET", ["volumes"]) => (
                200,
                json!({"Volumes": self.labelled(&filters), "Warnings": null}),
            ),
            ("GET", ["volumes", name]) => match self.volumes.get(*name) {
                Some(volume) => (200, volume.clone()),
                None => refuse(404, &format!("get {name}: no such volume")),
            },
            ("POST", ["volumes", "create"]) => {
                let name = body["Name"].as_str().unwrap().to_owned();
                if let Some((status, why)) = self.fails.get(&format!("make {name}")) {
                    return refuse(*status, why);
                }
                let options = match body["DriverOpts"].as_object() {
                    Some(options) if !options.is_empty() => body["DriverOpts"].clone(),
                    _ => Value::Null,
                };
                let more =
                    json!({"Driver": body["Driver"], "Labels": body["Labels"], "Options": options});
                if !self.volumes.contains_key(&name) {
                    self.make_volume(&name, &more);
                }
                (201, self.volumes[&name].clone())
            }
            ("DELETE", ["volumes", name]) => {
                if self
                    .containers
                    .values()
                    .any(|c| c.volumes.iter().any(|v| v == name))
                {
                    return refuse(409, "remove: volume is in use");
                }
                match self.volumes.remove(*name) {
                    Some(_) => {
                        std::fs::remove_dir_all(self.folder.join(name)).unwrap();
                        (204, Value::Null)
                    }
                    None => refuse(404, "no such volume"),
                }
            }
            ("GET", ["containers", "json"]) => (200, Value::Array(self.chosen(&filters))),
            ("GET", ["containers", id, "json"]) => self.inspected(id),
            ("DELETE", ["containers", id]) => match self.containers.remove(*id) {
                Some(container) => {
                    self.acts.push(format!("remove {}", container.name));
                    (204, Value::Null)
                }
                None => refuse(404, "No such container"),
            },
            ("POST", ["containers", "create"]) => self.create(body),
            ("POST", ["containers", id, what]) => self.act(id, what),
            ("GET", ["images", "json"]) => {
                let images = self.images.iter().map(|(name, labels)| {
                    json!({"Id": name, "RepoTags": [name], "Labels": labels, "Created": 0})
                });
                (200, images.collect())
            }
            ("POST", ["images", "create"]) => {
                let label = query["changes"].strip_prefix("LABEL ").unwrap();
                let (key, value) = label.split_once('=').unwrap();
                let name = format!("{}:{}", query["repo"], query["tag"]);
                self.images.insert(name, json!({ key: value }));
                (200, json!({"status": "sha256:11"}))
            }
            ("DELETE", ["images", name]) => match self.images.remove(*name) {
                Some(_) => (200, json!([])),
                None => refuse(404, "No such image"),
            },
            _ => refuse(404, "page not found"),
        }
    }

    /// With the version in front of the path taken off, and refused as the engine does.
    fn versioned(&mut self, method: &str, target: &str, body: &Value) -> Answer {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = query
            .map(|(key, value)| (key.to_owned(), decode(value)))
            .collect();
        self.requests.push(format!("{method} {path}"));
        let path: Vec<String> = path.split('/').skip(1).map(decode).collect();
        let mut path: Vec<&str> = path.iter().map(String::as_str).collect();
        if path == ["version"] {
            let (newest, oldest) = &self.api;
            return (
                200,
                json!({"Version": "20.10.24", "ApiVersion": newest, "MinAPIVersion": oldest,
                    "Components": [{"Name": self.component, "Version": "20.10.24"}]}),
            );
        }
        let number = |text: &str| -> u32 { text.split('.').nth(1).unwrap().parse().unwrap() };
        let Some(version) = path.first().and_then(|first| first.strip_prefix('v')) else {
            return refuse(404, "page not found");
        };
        if number(version) < number(&self.api.1) {
            let oldest = &self.api.1;
            return refuse(
                400,
                &format!(
                    "client version {version} is too old. Minimum supported API version is {oldest}"
                ),
            );
        }
        if number(version) > number(&self.api.0) {
            return refuse(400, &format!("client version {version} is too new"));
        }
        path.remove(0);
        self.answer(method, &path, &query, body)
    }
}

fn refuse(status: u16, why: &str) -> Answer {
    (status, json!({"message": why}))
}

fn serve(stream: UnixStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut words = line.split_whitespace();
        let method = words.next().unwrap().to_owned();
        let target = words.next().unwrap().to_owned();
        let (mut length, mut chunked) = (0, false);
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
                break;
            }
            let (name, value) = header.split_once(':').unwrap();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
            chunked |= name.eq_ignore_ascii_case("transfer-encoding");
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        while chunked {
            let mut size = String::new();
            if reader.read_line(&mut size).unwrap_or(0) == 0 {
                return;
            }
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            if reader.read_exact(&mut chunk).is_err() {
                return;
            }
            body.extend_from_slice(&chunk[..size]);
            chunked = size > 0;
        }
        let (status, answer) = if target.contains("/archive?") {
            state.lock().unwrap().archive(&method, &target, &body)
        } else {
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let answer = state.lock().unwrap().versioned(&method, &target, &body);
            match answer {
                (status, Value::Null) => (status, Vec::new()),
                (status, answer) => (status, answer.to_string().into_bytes()),
            }
        };
        let length = match status {
            204 | 304 => String::new(),
            _ => format!("Content-Length: {}\r\n", answer.len()),
        };
        let mut sent =
            format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{length}\r\n")
                .into_bytes();
        sent.extend(answer);
        if reader.get_mut().write_all(&sent).is_err() {
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
