//! Redis and Valkey servers of a test: real ones, on loopback, ended when dropped.

use crate::account;
use crate::directory::TestDirectory;
use crate::process::{self, wait_until};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// Redis 7.0, of bookworm.
    Redis7,
    /// Redis 8.0, of trixie.
    Redis8,
    /// Valkey 8.1, of trixie.
    Valkey8,
}

/// The path of a program that `stores.sh` has unpacked.
pub fn store(what: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/stores.sh");
    let output = Command::new(script)
        .args(["--path", what])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{what} is not unpacked: run regress/setup/stores.sh {what}"
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A running server.
#[derive(Debug)]
pub struct RedisServer {
    child: Option<Child>,
    port: u16,
    folder: PathBuf,
    make: Make,
    arguments: Vec<String>,
}

impl RedisServer {
    /// Starts a server whose directory is the new folder `name`, with further `arguments`.
    pub fn start(directory: &TestDirectory, name: &str, make: Make, arguments: &[&str]) -> Self {
        let folder = directory.folder(name);
        let mut server = Self {
            child: None,
            port: free_port(),
            folder,
            make,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
        };
        server.again(&[]);
        server
    }

    /// A server that is not started yet, over an existing directory.
    pub fn over(folder: PathBuf, make: Make, arguments: &[&str]) -> Self {
        Self {
            child: None,
            port: free_port(),
            folder,
            make,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
        }
    }

    fn command(&self, more: &[&str]) -> Command {
        let program = store(match self.make {
            Make::Redis7 => "redis",
            Make::Redis8 => "redis-8",
            Make::Valkey8 => "valkey",
        });
        let mut command = account::command(program);
        let log = std::fs::File::create(self.folder.with_extension("log")).unwrap();
        command
            .current_dir(&self.folder)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--dir", self.folder.to_str().unwrap(), "--save", ""])
            // A snapshot at once, instead of waiting for other replicas.
            .args(["--repl-diskless-sync-delay", "0"])
            .args(&self.arguments)
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if self.make == Make::Redis7 {
            command.args(["--enable-debug-command", "yes"]);
        }
        command
    }

    /// Starts it, again, and waits until it has loaded its data.
    pub fn again(&mut self, more: &[&str]) {
        self.child = Some(self.command(more).spawn().unwrap());
        let port = self.port;
        wait_until("the Redis server answers", Duration::from_secs(60), || {
            Client::open(port)
                .ok()
                .and_then(|mut client| client.try_ask(&["PING"]).ok())
                .is_some_and(|answer| !answer.contains("LOADING"))
        });
    }

    /// Starts it and waits until it gives up, as one does that cannot load its data.
    pub fn must_fail(&mut self, more: &[&str]) {
        let mut child = self.command(more).spawn().unwrap();
        wait_until("the Redis server gives up", Duration::from_secs(60), || {
            child.try_wait().unwrap().is_some()
        });
    }

    /// Its make.
    pub fn make(&self) -> Make {
        self.make
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process, for signals.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// A connection.
    pub fn client(&self) -> Client {
        Client::open(self.port).unwrap()
    }

    /// Asks once; the answer as text, parts separated by spaces.
    #[track_caller]
    pub fn ask(&self, words: &[&str]) -> String {
        self.client().ask(words)
    }

    /// Saves, once nothing else does.
    pub fn save(&self) {
        wait_until("a save", Duration::from_secs(30), || {
            let answer = self.client().try_ask(&["SAVE"]);
            !answer.unwrap().starts_with('-')
        });
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::kill_tree(i32::try_from(child.id()).unwrap());
            let _ = child.wait();
        }
    }

    /// Stops it as an operator does, without saving.
    pub fn stop(&mut self) {
        let _ = self.client().try_ask(&["SHUTDOWN", "NOSAVE"]);
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A connection to a server: a client of the harness's own, so that the driver is not its own judge.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    fn open(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    /// Asks; panics when the server answers with an error, or not.
    #[track_caller]
    pub fn ask(&mut self, words: &[&str]) -> String {
        let answer = self.try_ask(words).unwrap();
        assert!(!answer.starts_with("-"), "{words:?}: {answer}");
        answer
    }

    /// Asks; an error of the server begins with `-`.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn try_ask(&mut self, words: &[&str]) -> std::io::Result<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.try_ask_bytes(&words)
    }

    /// As [`Client::try_ask`], with any bytes.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn try_ask_bytes(&mut self, words: &[&[u8]]) -> std::io::Result<String> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).into_bytes());
            bytes.extend_from_slice(word);
            bytes.extend(b"\r\n");
        }
        self.reader.get_mut().write_all(&bytes)?;
        self.answer()
    }

    fn answer(&mut self) -> std::io::Result<String> {
        let gone = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).ok_or_else(gone)?;
        match kind {
            "+" | ":" => Ok(rest.to_owned()),
            "-" => Ok(line.to_owned()),
            "$" if rest == "-1" => Ok("(nil)".to_owned()),
            "$" => {
                let length: usize = rest.parse().unwrap();
                let mut bytes = vec![0; length + 2];
                self.reader.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            "*" => {
                let count: i64 = rest.parse().unwrap();
                let parts: Result<Vec<String>, _> = (0..count).map(|_| self.answer()).collect();
                Ok(parts?.join(" "))
            }
            _ => panic!("{line:?} is no answer"),
        }
    }
}
