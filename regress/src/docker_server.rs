//! A real Docker engine of a test, in folders and at a socket of its own; ended when dropped. Needs root.
//!
//! Without a network of its own, and with images made of a static busybox alone: nothing is downloaded.

use crate::account;
use crate::directory::TestDirectory;
use crate::process::{self, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running engine.
#[derive(Debug)]
pub struct DockerServer {
    child: Child,
    folder: PathBuf,
}

fn program() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/docker.sh");
    let output = Command::new(script).arg("--path").output().unwrap();
    assert!(
        output.status.success(),
        "Docker is not unpacked: run regress/setup/docker.sh"
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

impl DockerServer {
    /// Starts an empty one in the folder `name` of the test's directory. The account may use its socket.
    pub fn start(directory: &TestDirectory, name: &str) -> Self {
        Self::start_in(directory.folder(name))
    }

    /// Starts an empty one in a folder: a file system of its own, for example.
    pub fn start_in(folder: PathBuf) -> Self {
        let log = std::fs::File::create(folder.join("dockerd.log")).unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        let child = Command::new(program())
            .args([
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
                "--storage-driver=vfs",
                "--group",
                &account::account().gid.to_string(),
                "--data-root",
                &at("data"),
                "--exec-root",
                &at("exec"),
                "--pidfile",
                &at("pid"),
                "-H",
                &format!("unix://{}", at("s")),
            ])
            .env("TMPDIR", &folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { child, folder };
        wait_until("Docker answers", Duration::from_secs(60), || {
            server
                .try_call("GET", "/_ping", None)
                .is_some_and(|(status, _)| status == 200)
        });
        server
    }

    /// `unix:///path`.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    fn try_call(&self, method: &str, path: &str, body: Option<&[u8]>) -> Option<(u16, Vec<u8>)> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        let kind = match body {
            Some(body) if body.first() != Some(&b'{') => "application/x-tar",
            _ => "application/json",
        };
        let body = body.unwrap_or_default();
        let length = body.len();
        // HTTP/1.0: its end is that of the connection.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: d\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )
        .ok()?;
        stream.write_all(body).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split_whitespace().nth(1)?.parse().ok()?;
        Some((status, answer[end + 4..].to_vec()))
    }

    /// Asks; the answer may be a refusal.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = (!body.is_null()).then(|| body.to_string().into_bytes());
        let answer = self.try_call(method, path, body.as_deref());
        let (status, body) = answer.unwrap_or_else(|| panic!("{method} {path}: no answer"));
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Asks what must succeed.
    #[track_caller]
    pub fn must(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask(method, path, body);
        assert!(status < 400, "{method} {path}: {status} {answer}");
        answer
    }

    /// Makes a volume; its directory.
    pub fn volume(&self, name: &str, options: &Value, labels: &Value) -> PathBuf {
        let body = json!({"Name": name, "DriverOpts": options, "Labels": labels});
        let made = self.must("POST", "/volumes/create", &body);
        PathBuf::from(made["Mountpoint"].as_str().unwrap())
    }

    /// The directory of a volume; `None`: there is none.
    pub fn directory_of(&self, name: &str) -> Option<PathBuf> {
        let (status, found) = self.ask("GET", &format!("/volumes/{name}"), &Value::Null);
        (status == 200).then(|| PathBuf::from(found["Mountpoint"].as_str().unwrap()))
    }

    /// Makes the image `name` of a static busybox and of `files`, which lie where the volume goes: what an
    /// engine copies into an empty volume.
    pub fn image(&self, name: &str, files: &[(&str, &str)]) {
        let tree = self.folder.join(format!("image-{name}"));
        let bin = tree.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let busybox = program().with_file_name("busybox");
        std::fs::copy(busybox, bin.join("busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", bin.join("sh")).unwrap();
        for (path, content) in files {
            let path = tree.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let tar = Command::new("tar")
            .arg("-C")
            .arg(&tree)
            .args(["-c", "."])
            .output()
            .unwrap();
        assert!(tar.status.success());
        let path = format!("/images/create?fromSrc=-&repo={name}&tag=1");
        let (status, answer) = self.try_call("POST", &path, Some(&tar.stdout)).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(status == 200 && !answer.contains("\"error\""), "{answer}");
    }

    /// Makes the container `name` of an image, which mounts a volume at /data; it does not run.
    pub fn container(&self, name: &str, image: &str, volume: &str, script: &str) -> String {
        let body = json!({
            "Image": format!("{image}:1"),
            "Cmd": ["/bin/sh", "-c", script],
            "HostConfig": {
                "NetworkMode": "none",
                "Mounts": [{"Type": "volume", "Source": volume, "Target": "/data",
                    "VolumeOptions": {"NoCopy": true}}],
            },
        });
        let path = format!("/containers/create?name={name}");
        let made = self.must("POST", &path, &body);
        made["Id"].as_str().unwrap().to_owned()
    }

    /// Starts a container; what the engine says when it cannot.
    pub fn run(&self, id: &str) -> Result<(), String> {
        let (status, answer) = self.ask("POST", &format!("/containers/{id}/start"), &Value::Null);
        match status < 400 {
            true => Ok(()),
            false => Err(answer.to_string()),
        }
    }

    /// `running`, `paused`, `exited`, `created`.
    pub fn state(&self, id: &str) -> String {
        let found = self.must("GET", &format!("/containers/{id}/json"), &Value::Null);
        found["State"]["Status"].as_str().unwrap().to_owned()
    }

    /// The names of all containers and images.
    pub fn things(&self) -> Vec<String> {
        let containers = self.must("GET", "/containers/json?all=1", &Value::Null);
        let images = self.must("GET", "/images/json?all=1", &Value::Null);
        let mut names: Vec<String> = Vec::new();
        for thing in containers.as_array().unwrap() {
            names.push(thing["Names"][0].as_str().unwrap().to_owned());
        }
        for thing in images.as_array().unwrap() {
            names.push(
                thing["RepoTags"][0]
                    .as_str()
                    .unwrap_or("untagged")
                    .to_owned(),
            );
        }
        names.sort();
        names
    }

    /// Removes a container, running or not.
    pub fn remove(&self, id: &str) {
        self.must("DELETE", &format!("/containers/{id}?force=1"), &Value::Null);
    }
}

impl Drop for DockerServer {
    fn drop(&mut self) {
        // While it runs: it unmounts what it has mounted.
        let containers = self.try_call("GET", "/containers/json?all=1", None);
        let containers =
            containers.and_then(|(_, body)| serde_json::from_slice::<Value>(&body).ok());
        for container in containers.iter().flat_map(|c| c.as_array()).flatten() {
            if let Some(id) = container["Id"].as_str() {
                self.try_call("DELETE", &format!("/containers/{id}?force=1"), None);
            }
        }
        if let Some(pid) = Pid::from_raw(i32::try_from(self.child.id()).unwrap()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let mut ended = false;
        for _ in 0..500 {
            ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            if ended {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if !ended {
            process::kill_tree(i32::try_from(self.child.id()).unwrap());
            let _ = self.child.wait();
        }
    }
}
