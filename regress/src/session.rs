//! A psql that stays open: one session for many statements.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What psql prints after each answer; no query of a test does.
const END: &str = "\u{1}end of answer";

/// A session with a server.
#[derive(Debug)]
pub struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    pub(crate) fn start(mut psql: Command) -> Self {
        let mut child = psql
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// Runs statements, each ended by a semicolon, and returns what they answer.
    ///
    /// # Errors
    /// A statement failed or the server went away; the session is over then. Whether the last
    /// transaction committed is unknown, if its COMMIT was among them.
    pub fn query(&mut self, sql: &str) -> Result<String, String> {
        self.begin(sql)?;
        self.finish()
    }

    /// Begins statements without waiting for their answer, as a statement that will hang needs;
    /// [`Session::finish`] waits.
    ///
    /// # Errors
    /// The session is over.
    pub fn begin(&mut self, sql: &str) -> Result<(), String> {
        writeln!(self.input, "{sql}\n\\echo {END}")
            .and_then(|()| self.input.flush())
            .map_err(|error| format!("the session ended: {error}"))
    }

    /// Waits for the answer to [`Session::begin`].
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn finish(&mut self) -> Result<String, String> {
        let mut answer = String::new();
        loop {
            let mut line = String::new();
            match self.output.read_line(&mut line) {
                Ok(0) => return Err("the session ended".to_owned()),
                Err(error) => return Err(format!("the session ended: {error}")),
                Ok(_) if line.trim_end() == END => return Ok(answer.trim_end().to_owned()),
                Ok(_) => answer.push_str(&line),
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
