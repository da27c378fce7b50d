//! A stand-in for the agent: acknowledges every push and writes down its name, or hangs while the
//! file `hang` is there. Runs as a process of its own so that it can run as the server's user.
//!
//! usage: `fake-agent DIRECTORY`; the socket is `DIRECTORY/agent.sock`, the names that it was asked for
//! stand in `DIRECTORY/asked`, those that it acknowledged in `DIRECTORY/acknowledged`.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn main() -> std::io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(std::io::Error::other("usage: fake-agent DIRECTORY"));
    };
    let listener = UnixListener::bind(directory.join("agent.sock"))?;
    for stream in listener.incoming() {
        let (stream, directory) = (stream?, directory.clone());
        std::thread::spawn(move || serve(&stream, &directory));
    }
    Ok(())
}

fn serve(mut stream: &UnixStream, directory: &Path) -> std::io::Result<()> {
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let Some(name) = line.strip_prefix("PGARK1 PUSH ") else {
            stream.write_all(b"ERROR invalid bad_request unknown request\n")?;
            continue;
        };
        note(&directory.join("asked"), name)?;
        while directory.join("hang").exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        note(&directory.join("acknowledged"), name)?;
        stream.write_all(b"OK\n")?;
    }
    Ok(())
}

fn note(path: &Path, name: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{name}\n").as_bytes())
}
