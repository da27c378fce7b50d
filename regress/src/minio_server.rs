//! A MinIO of a test: its admin API by a program that signs and encrypts with MinIO's own client library
//! (`setup/minio_server.py`), its S3 by moto. Ended when dropped.

use crate::cluster::run;
use crate::directory::TestDirectory;
use crate::process::wait_until;
use crate::redis_server::free_port;
use crate::s3_server::{ACCESS_KEY, S3Server, SECRET_KEY};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running server.
#[derive(Debug)]
pub struct MinioServer {
    child: Child,
    port: u16,
    log: PathBuf,
    /// What its buckets lie in.
    pub s3: S3Server,
}

fn setup(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("setup")
        .join(file)
}

/// The Python that has the client library.
fn python() -> PathBuf {
    let output = Command::new(setup("minio-client.sh"))
        .arg("--path")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "MinIO's client library is not installed: run regress/setup/minio-client.sh"
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

impl MinioServer {
    /// Starts one without buckets.
    pub fn start(directory: &TestDirectory) -> Self {
        let s3 = S3Server::moto(directory);
        let port = free_port();
        let log = directory.join(&format!("minio-{port}.log"));
        let server = Self {
            child: spawn(&log, port, s3.port()),
            port,
            log,
            s3,
        };
        server.wait();
        server
    }

    fn wait(&self) {
        wait_until("MinIO answers", Duration::from_secs(30), || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again with what it holds, at the same port.
    pub fn again(&mut self, state: &Value) {
        self.kill();
        self.child = spawn(&self.log, self.port, self.s3.port());
        self.wait();
        self.set(state);
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it holds beside objects.
    pub fn state(&self) -> Value {
        self.test("GET", "/test/state", "")
    }

    /// Sets parts of what it holds.
    pub fn set(&self, state: &Value) {
        self.test("PUT", "/test/state", &state.to_string());
    }

    /// The admin calls since this was last asked.
    pub fn calls(&self) -> Vec<String> {
        serde_json::from_value(self.test("GET", "/test/calls", "")).unwrap()
    }

    fn test(&self, method: &str, path: &str, body: &str) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    /// Runs Python with the vendor's admin client as `admin`; what it prints.
    #[track_caller]
    pub fn client(&self, code: &str) -> String {
        let program = format!(
            "from minio import MinioAdmin\nfrom minio.credentials import StaticProvider\n\
             admin = MinioAdmin(endpoint='127.0.0.1:{}', credentials=StaticProvider('{ACCESS_KEY}', \
             '{SECRET_KEY}'), secure=False)\n{code}\n",
            self.port
        );
        run(Command::new(python()).arg("-c").arg(program))
    }
}

fn spawn(log: &Path, port: u16, s3_port: u16) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .unwrap();
    Command::new(python())
        .arg(setup("minio_server.py"))
        .args([port.to_string(), s3_port.to_string()])
        .args([ACCESS_KEY, SECRET_KEY])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for MinioServer {
    fn drop(&mut self) {
        self.kill();
    }
}
