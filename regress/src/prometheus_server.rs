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
        let log = directory.join(&format!("prometheus-{port}.log"));
        let log = std::fs::File::create(log).unwrap();
        let child = account::command(store("prometheus"))
            .current_dir(directory.path())
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self {
            child,
            port,
            data: data.to_owned(),
        };
        wait_until("Prometheus is ready", Duration::from_secs(60), || {
            get(server.port, "/-/ready").is_some_and(|answer| answer.starts_with("HTTP/1.0 200"))
        });
        server
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

/// An answer, head and body. HTTP/1.0: its end is that of the connection.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
