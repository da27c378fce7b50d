//! Elasticsearch and OpenSearch of a test: real ones, on loopback, each a cluster of one node with a heap of
//! 512 MiB; ended when dropped.

use crate::account;
use crate::directory::TestDirectory;
use crate::http;
use crate::process::{self, wait_until};
use crate::redis_server::free_port;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The user of a secured server, and its password.
pub const USER: (&str, &str) = ("pgark", "pgark-secret");
/// bcrypt of that password, as `elasticsearch-users` writes it.
const USER_HASH: &str = "$2a$10$vlL1PPSCXWi9.r3xkf4MkOeucMNs9dYxEKuEz2IeKoYQWbR3N6Que";
/// It begins two Java machines.
const START: Duration = Duration::from_secs(300);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// Elasticsearch 8.19.
    Elasticsearch,
    /// OpenSearch 2.19.
    OpenSearch,
}

impl Make {
    fn name(self) -> &'static str {
        match self {
            Self::Elasticsearch => "elasticsearch",
            Self::OpenSearch => "opensearch",
        }
    }
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Signed by itself, for 127.0.0.1.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Tls {
    /// Makes one in the test's directory.
    pub fn make(directory: &TestDirectory) -> Self {
        let tls = Self {
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
        };
        let made = Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ])
            .args([
                "-subj",
                "/CN=127.0.0.1",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&tls.key)
            .arg("-out")
            .arg(&tls.certificate)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        tls
    }
}

/// A running server.
#[derive(Debug)]
pub struct SearchServer {
    child: Option<Child>,
    make: Make,
    port: u16,
    folder: PathBuf,
    repository_dir: PathBuf,
    tls: Option<Tls>,
    /// Elasticsearch asks for [`USER`].
    secured: bool,
}

impl SearchServer {
    /// Starts one whose files lie in the new folder `name`, which may use repositories in `repository_dir`.
    /// With `tls`, Elasticsearch asks for a user as well.
    pub fn start(
        directory: &TestDirectory,
        name: &str,
        make: Make,
        repository_dir: &Path,
        tls: Option<Tls>,
    ) -> Self {
        let folder = directory.folder(name);
        for part in ["config", "data", "logs", "tmp"] {
            directory.folder(&format!("{name}/{part}"));
        }
        let mut server = Self {
            child: None,
            make,
            port: free_port(),
            folder,
            repository_dir: repository_dir.to_owned(),
            secured: tls.is_some(),
            tls,
        };
        server.configure();
        server.run();
        server
    }

    fn configure(&mut self) {
        let shown = |path: &Path| path.display().to_string();
        let (folder, config) = (shown(&self.folder), self.folder.join("config"));
        let mut text = format!(
            "cluster.name: {name}\nnode.name: node\npath.data: {folder}/data\npath.logs: {folder}/logs\n\
             path.repo: [\"{repository}\"]\ndiscovery.type: single-node\nnetwork.host: 127.0.0.1\n\
             http.port: {port}\ntransport.port: {transport}\n\
             cluster.routing.allocation.disk.threshold_enabled: false\n",
            name = self.folder.file_name().unwrap().to_string_lossy(),
            repository = shown(&self.repository_dir),
            port = self.port,
            transport = free_port(),
        );
        if self.make == Make::Elasticsearch {
            text += &format!(
                "xpack.security.enabled: {}\nxpack.security.autoconfiguration.enabled: false\n\
                 xpack.security.transport.ssl.enabled: false\n",
                self.secured
            );
            // The distribution of the tests lacks what the index of users and keys needs: they stand in files.
            self.file("users", &format!("{}:{USER_HASH}\n", USER.0));
            self.file("users_roles", &format!("superuser:{}\n", USER.0));
        }
        if let Some(tls) = &self.tls {
            for (name, from) in [("tls.crt", &tls.certificate), ("tls.key", &tls.key)] {
                let content = std::fs::read_to_string(from).unwrap();
                self.file(name, &content);
            }
            text += &format!(
                "xpack.security.http.ssl.enabled: true\nxpack.security.http.ssl.key: {0}/tls.key\n\
                 xpack.security.http.ssl.certificate: {0}/tls.crt\n",
                shown(&config)
            );
        }
        self.file(&format!("{}.yml", self.make.name()), &text);
    }

    fn file(&self, name: &str, content: &str) {
        let path = self.folder.join("config").join(name);
        std::fs::write(&path, content).unwrap();
        account::give(&path);
    }

    /// Starts it again after [`SearchServer::kill`].
    pub fn run(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/search.sh");
        let output = Command::new(script)
            .args(["--path", self.make.name()])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{0} is not made: run regress/setup/search.sh {0}",
            self.make.name()
        );
        let program = String::from_utf8(output.stdout).unwrap();
        let log = self.folder.join("server.log");
        let log = std::fs::File::options().create(true).append(true).open(log);
        let log = log.unwrap();
        let child = account::command(program.trim())
            .arg(self.folder.join("config"))
            .arg(self.folder.join("tmp"))
            .args(["-Xms512m", "-Xmx512m"])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait_until("the search server answers", START, || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "it ended: see {}", self.folder.display());
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && self
                    .try_ask("GET", "/_cluster/health", None)
                    .is_some_and(|(status, _)| status == 200)
        });
    }

    /// Which it is.
    pub fn make(&self) -> Make {
        self.make
    }

    /// Its address.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Where its repositories may lie.
    pub fn repository_dir(&self) -> &Path {
        &self.repository_dir
    }

    /// A request and its answer, which must be one of success.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, value) = self.ask_any(method, path, body);
        assert!(status < 300, "{method} {path}: {status} {value}");
        value
    }

    /// A request and its answer, whatever it is.
    #[track_caller]
    pub fn ask_any(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let body = Some(body).filter(|body| !body.is_empty());
        self.try_ask(method, path, body)
            .unwrap_or_else(|| panic!("{method} {path}: no answer"))
    }

    /// The same; `None`: it does not answer.
    pub fn try_ask(&self, method: &str, path: &str, body: Option<&str>) -> Option<(u16, Value)> {
        let request = self.request(method, path, body);
        let answer = match &self.tls {
            None => http::exchange(self.port, &request).ok()?,
            Some(tls) => self.exchange_tls(tls, &request)?,
        };
        let (status, content) = http::read(&answer)?;
        let value = serde_json::from_slice(&content).unwrap_or(Value::Null);
        Some((status, value))
    }

    fn request(&self, method: &str, path: &str, body: Option<&str>) -> Vec<u8> {
        let body = body.unwrap_or_default();
        let kind = match path.ends_with("_bulk") || path.contains("_bulk?") {
            true => "application/x-ndjson",
            false => "application/json",
        };
        let user = match self.secured {
            true => format!("Authorization: Basic {}\r\n", basic()),
            false => String::new(),
        };
        http::request(
            method,
            path,
            &format!("Content-Type: {kind}\r\n{user}"),
            body,
        )
    }

    /// Through `openssl s_client`, which looks at the certificate.
    fn exchange_tls(&self, tls: &Tls, request: &[u8]) -> Option<Vec<u8>> {
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-CAfile"])
            .arg(&tls.certificate)
            .args(["-connect", &format!("127.0.0.1:{}", self.port)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Held open until the answer is here: its end would end the connection.
        let mut input = child.stdin.take().unwrap();
        let sent = input.write_all(request);
        let mut answer = Vec::new();
        let read = child.stdout.take().unwrap().read_to_end(&mut answer);
        drop(input);
        child.wait().unwrap();
        (sent.is_ok() && read.is_ok()).then_some(answer)
    }

    /// Stops (SIGSTOP) or continues all of it.
    pub fn pause(&self, stop: bool) {
        let signal = match stop {
            true => rustix::process::Signal::STOP,
            false => rustix::process::Signal::CONT,
        };
        for pid in process::tree(self.pid()) {
            process::signal(pid, signal);
        }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// Kills all of it at once.
    pub fn kill(&mut self) {
        if self.child.is_some() {
            process::kill_tree(self.pid());
            let _ = self.child.take().unwrap().wait();
        }
    }
}

impl Drop for SearchServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `pgark:pgark-secret` in base64.
fn basic() -> &'static str {
    "cGdhcms6cGdhcmstc2VjcmV0"
}
