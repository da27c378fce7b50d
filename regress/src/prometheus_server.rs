//! Prometheus of a test: a real one, on loopback, that scrapes itself every second; ended when dropped.

use crate::account;
use crate::directory::TestDirectory;
use crate::process::{self, wait_until};
use crate::redis_server::{free_port, store};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A running server.
#[derive(Debug)]
pub struct PrometheusServer {
    child: Child,
    port: u16,
    data: PathBuf,
    log: PathBuf,
    arguments: Vec<String>,
}

impl PrometheusServer {
    /// Starts one over the folder `data`, which it makes. With `scrape`, it collects samples of itself.
    pub fn start(directory: &TestDirectory, data: &Path, scrape: bool, arguments: &[&str]) -> Self {
        let port = free_port();
        let targets = match scrape {
            true => format!(
                "scrape_configs:\n- job_name: self\n  static_configs:\n  - targets: ['127.0.0.1:{port}']\n"
            ),
            false => String::new(),
        };
        let config = directory.file(
            &format!("prometheus-{port}.yml"),
            &format!("global:\n  scrape_interval: 1s\n{targets}"),
        );
        let mut all = vec![
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", data.display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        all.extend(arguments.iter().map(|a| (*a).to_owned()));
        let log = directory.join(&format!("prometheus-{port}.log"));
        let server = Self {
            child: spawn(&log, &all),
            port,
            data: data.to_owned(),
            log,
            arguments: all,
        };
        server.wait();
        server
    }

    fn wait(&self) {
        wait_until("Prometheus is ready", Duration::from_secs(60), || {
            get(self.port, "/-/ready").is_some_and(|answer| answer.starts_with("HTTP/1.0 200"))
        });
    }

    /// Starts it again over the same data, at the same port.
    pub fn again(&mut self) {
        self.kill();
        self.child = spawn(&self.log, &self.arguments);
        self.wait();
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The result of a query, at a time in milliseconds since 1970.
    pub fn query(&self, query: &str, time_ms: i64) -> Value {
        let time = format!("{}.{:03}", time_ms / 1000, time_ms % 1000);
        let answer = get(
            self.port,
            &format!("/api/v1/query?query={query}&time={time}"),
        )
        .unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut value: Value = serde_json::from_str(body).unwrap();
        value["data"]["result"].take()
    }

    /// Stops (SIGSTOP) or continues it.
    pub fn pause(&self, stop: bool) {
        let signal = match stop {
            true => rustix::process::Signal::STOP,
            false => rustix::process::Signal::CONT,
        };
        process::signal(i32::try_from(self.child.id()).unwrap(), signal);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        process::kill_tree(i32::try_from(self.child.id()).unwrap());
        let _ = self.child.wait();
    }
}

impl Drop for PrometheusServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// In the folder of its log.
fn spawn(log: &Path, arguments: &[String]) -> Child {
    let output = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .unwrap();
    account::command(store("prometheus"))
        .current_dir(log.parent().unwrap())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap()
}

/// An answer, head and body. HTTP/1.0: its end is that of the connection.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
