//! The Qdrant server of a test: `setup/qdrant_fake.py`, on loopback, at a port that the system chooses, as
//! the test account, ended when dropped.

use crate::account;
use crate::directory::TestDirectory;
use crate::process::wait_until;
use crate::redis_server::free_port;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server, running or not.
#[derive(Debug)]
pub struct QdrantServer {
    child: Child,
    port: u16,
    data: PathBuf,
    log: PathBuf,
    arguments: Vec<String>,
}

fn python() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/qdrant-edge.sh");
    let output = Command::new(script).arg("--path").output().unwrap();
    assert!(
        output.status.success(),
        "Qdrant's engine is not installed: run regress/setup/qdrant-edge.sh"
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

impl QdrantServer {
    /// Starts an empty one with further `arguments`; its files go into the new folder `name`.
    pub fn start(directory: &TestDirectory, name: &str, arguments: &[&str]) -> Self {
        let data = directory.folder(name);
        // The account that it runs as need not reach the sources.
        let script = directory.file(
            &format!("{name}.py"),
            include_str!("../setup/qdrant_fake.py"),
        );
        let port = free_port();
        let mut all = vec![script.display().to_string()];
        all.extend(["--data".to_owned(), data.display().to_string()]);
        all.extend(["--port".to_owned(), port.to_string()]);
        all.extend(arguments.iter().map(|a| (*a).to_owned()));
        let log = directory.join(&format!("{name}.log"));
        let mut server = Self {
            child: spawn(&all, &log),
            port,
            data,
            log,
            arguments: all,
        };
        server.wait();
        server
    }

    fn wait(&mut self) {
        let (port, log) = (self.port, self.log.clone());
        wait_until("the Qdrant server answers", Duration::from_secs(60), || {
            let ended = self.child.try_wait().unwrap().is_some();
            assert!(!ended, "it ended at its start; see {}", log.display());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again over the same files.
    pub fn again(&mut self) {
        self.kill();
        self.child = spawn(&self.arguments, &self.log);
        self.wait();
    }

    /// The files of snapshots and uploads that lie on its disk, sorted.
    pub fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        for folder in std::fs::read_dir(self.data.join("snapshots"))
            .into_iter()
            .flatten()
            .flatten()
        {
            for file in std::fs::read_dir(folder.path()).unwrap().flatten() {
                found.push(file.file_name().into_string().unwrap());
            }
        }
        found.retain(|file| !file.ends_with(".checksum"));
        found.sort();
        found
    }

    /// Runs Python with `call(method, path, body)`, which returns the status and the result or the error;
    /// what it prints.
    #[track_caller]
    pub fn python(&self, code: &str) -> String {
        let mut command = account::command(python());
        crate::cluster::run(command.arg("-c").arg(self.program(code)).current_dir("/"))
    }

    /// As [`QdrantServer::python`], in the background.
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

    /// Sets faults for what comes next: the fake's own, as JSON.
    pub fn fault(&self, faults: &str) {
        self.python(&format!(
            "import json\nassert call('POST', '/_fake', json.loads('''{faults}'''))[0] == 200"
        ));
    }

    fn program(&self, code: &str) -> String {
        // Floats that are whole numbers of 256ths: the same in every format.
        format!(
            "import json, random, hashlib, http.client\n\
             connection = http.client.HTTPConnection('127.0.0.1', {}, timeout=60)\n\
             def call(method, path, body=None, key='root'):\n\
             \x20   headers = {{'content-type': 'application/json', 'api-key': key}}\n\
             \x20   connection.request(method, path, None if body is None else json.dumps(body), headers)\n\
             \x20   answer = connection.getresponse()\n\
             \x20   value = json.loads(answer.read())\n\
             \x20   return answer.status, value.get('result', value.get('status'))\n\
             def made(result):\n\
             \x20   assert result[0] == 200, result\n\
             \x20   return result[1]\n\
             def vector(n, size=4):\n\
             \x20   r = random.Random(n)\n\
             \x20   return [r.randrange(-512, 512) / 256 for _ in range(size)]\n\
             {code}\n",
            self.port
        )
    }
}

fn spawn(arguments: &[String], log: &Path) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .unwrap();
    account::command(python())
        .arg("-B")
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for QdrantServer {
    fn drop(&mut self) {
        self.kill();
    }
}
