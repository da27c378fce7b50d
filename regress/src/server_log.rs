//! A server's log, and what may stand in it: a WARNING or worse that no test expects is a failure.

use std::path::{Path, PathBuf};

/// Lines above LOG that every test may cause by starting and stopping servers, and by ending an agent, which
/// the harness kills: a query of its may be under way.
const ALWAYS_ALLOWED: [&str; 5] = [
    "connection to client lost",
    "terminating connection due to administrator command",
    "terminating connection due to immediate shutdown command",
    "the database system is starting up",
    "the database system is shutting down",
];

const BAD_LEVELS: [&str; 4] = ["WARNING:  ", "ERROR:  ", "FATAL:  ", "PANIC:  "];

/// The log file of one server.
#[derive(Debug)]
pub struct ServerLog {
    path: PathBuf,
    allowed: Vec<String>,
}

impl ServerLog {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            allowed: Vec::new(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Expects lines that contain `text`: they do not fail the test.
    pub fn allow(&mut self, text: &str) {
        self.allowed.push(text.to_owned());
    }

    /// All of it.
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether a line contains `text`.
    pub fn contains(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    /// The last `count` lines.
    pub fn tail(&self, count: usize) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// The lines at WARNING or above that nobody expects.
    pub fn unexpected(&self) -> Vec<String> {
        unexpected(&self.text(), &self.allowed)
    }

    /// Fails the test if there are any.
    #[track_caller]
    pub fn assert_clean(&self) {
        let lines = self.unexpected();
        let text = lines.join("\n");
        assert!(
            lines.is_empty(),
            "unexpected in {}:\n{text}",
            self.path.display()
        );
    }
}

fn unexpected(text: &str, allowed: &[String]) -> Vec<String> {
    text.lines()
        .filter(|line| BAD_LEVELS.iter().any(|level| line.contains(level)))
        .filter(|line| !ALWAYS_ALLOWED.iter().any(|known| line.contains(known)))
        .filter(|line| !allowed.iter().any(|known| line.contains(known)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::unexpected;

    #[test]
    fn finds_what_nobody_expects() {
        let text = "t [1] startup LOG:  fine\nt [2] client backend ERROR:  bad\n\
                    t [3] archiver WARNING:  odd\nt [4] x FATAL:  the database system is starting up\n";
        assert_eq!(unexpected(text, &[]).len(), 2);
        assert_eq!(
            unexpected(text, &["odd".to_owned(), "bad".to_owned()]).len(),
            0
        );
    }
}
