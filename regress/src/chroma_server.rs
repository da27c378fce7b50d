//! A real Chroma server of a test: on loopback, at a port that the system chooses, as the test account,
//! ended when dropped.

use crate::account;
use crate::directory::TestDirectory;
use crate::http;
use crate::process::{self, wait_until};
use serde_json::Value;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running server.
#[derive(Debug)]
pub struct ChromaServer {
    child: Child,
    port: u16,
    data: PathBuf,
    /// The test's directory.
    folder: PathBuf,
}

fn python() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/chroma.sh");
    let output = Command::new(script).arg("--path").output().unwrap();
    assert!(
        output.status.success(),
        "Chroma is not installed: run regress/setup/chroma.sh"
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

impl ChromaServer {
    /// Starts it over the data directory `data`, which may be there already.
    pub fn start(directory: &TestDirectory, data: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let folder = directory.path().to_owned();
        let mut server = Self {
            child: spawn(&folder, data, port),
            port,
            data: data.to_owned(),
            folder,
        };
        server.wait();
        server
    }

    fn wait(&mut self) {
        let port = self.port;
        wait_until("Chroma answers", Duration::from_secs(60), || {
            assert!(
                self.child.try_wait().unwrap().is_none(),
                "Chroma ended at its start; see chroma-{port}.log"
            );
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where its files are.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A request below the default database and its answer, which must be one of success.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        const DATABASE: &str = "/api/v2/tenants/default_tenant/databases/default_database";
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let request = http::request(
            method,
            &format!("{DATABASE}{path}"),
            "Content-Type: application/json\r\n",
            &body,
        );
        let answer = http::exchange(self.port, &request).unwrap();
        let (status, content) = http::read(&answer).unwrap();
        let text = String::from_utf8_lossy(&content);
        assert!(status < 300, "{method} {path}: {status} {text}");
        serde_json::from_slice(&content).unwrap_or(Value::Null)
    }

    /// Runs Python with `call(method, path, body)`, which returns status and answer, and `D`, the path
    /// of the default database; what it prints.
    #[track_caller]
    pub fn python(&self, code: &str) -> String {
        let mut command = account::command(python());
        crate::cluster::run(command.arg("-c").arg(self.program(code)).current_dir("/"))
    }

    /// As [`ChromaServer::python`], in the background.
    pub fn python_start(&self, code: &str, output: &Path) -> Child {
        let output = std::fs::File::create(output).unwrap();
        account::command(python())
            .arg("-c")
            .arg(self.program(code))
            .current_dir("/")
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap()
    }

    fn program(&self, code: &str) -> String {
        format!(
            "import json, random, struct, urllib.request, urllib.error\n\
             D = '/tenants/default_tenant/databases/default_database'\n\
             def call(method, path, body=None):\n\
             \x20   data = None if body is None else json.dumps(body).encode()\n\
             \x20   request = urllib.request.Request('{}/api/v2' + path, method=method, data=data,\n\
             \x20       headers={{'content-type': 'application/json'}})\n\
             \x20   try:\n\
             \x20       with urllib.request.urlopen(request) as answer:\n\
             \x20           text = answer.read()\n\
             \x20           return answer.status, json.loads(text) if text else None\n\
             \x20   except urllib.error.HTTPError as error:\n\
             \x20       return error.code, error.read().decode()\n\
             def vector(n):\n\
             \x20   r = random.Random(n)\n\
             \x20   return [struct.unpack('<f', struct.pack('<f', r.gauss(0, 1)))[0] for _ in range(8)]\n\
             {code}\n",
            self.url()
        )
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.end();
    }

    /// Starts it again over the same files, at the same port.
    pub fn again(&mut self) {
        self.end();
        self.child = spawn(&self.folder, &self.data, self.port);
        self.wait();
    }

    /// The process, for hooks that end it.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Ends it and waits.
    pub fn stop(mut self) -> PathBuf {
        self.end();
        self.data.clone()
    }

    /// Stops (SIGSTOP) or continues it.
    pub fn pause(&self, stop: bool) {
        let signal = match stop {
            true => rustix::process::Signal::STOP,
            false => rustix::process::Signal::CONT,
        };
        process::signal(self.pid(), signal);
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, data: &Path, port: u16) -> Child {
    let program = format!(
        "import chromadb_rust_bindings as b; b.cli(['chroma', 'run', '--path', '{}', \
         '--host', '127.0.0.1', '--port', '{port}'])",
        data.display()
    );
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join(format!("chroma-{port}.log")))
        .unwrap();
    account::command(python())
        .args(["-c", &program])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for ChromaServer {
    fn drop(&mut self) {
        self.end();
    }
}
