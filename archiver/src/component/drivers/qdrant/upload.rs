//! An archive on its way back: a multipart body that is fed while it is sent, so that no archive has to
//! lie anywhere as a whole.

use super::remote::Remote;
use crate::component::Context;
use crate::{Error, Result};
use serde_json::Value;
use std::io::{Cursor, PipeReader, Read, Write};

/// Bytes fed at a time.
const FEED_BYTES: usize = 1 << 18;
/// What parts the body's pieces: 128 random bits, fixed, do not occur in an archive by chance.
const BOUNDARY: &str = "pgark-b0c9d1f47c6e4e0d9a53-f2e7718c5a0b";

/// A body for [`Remote::upload`].
pub(super) struct Body {
    /// The body.
    pub content: reqwest::blocking::Body,
    /// Its type.
    pub content_type: String,
}

/// What to send, and where to.
pub(super) struct Upload<'a> {
    /// The path of the request.
    pub path: &'a [&'a str],
    /// The name that the server keeps the file under.
    pub file: &'a str,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256, which the server compares before it begins.
    pub sha256: &'a str,
    /// For the answer.
    pub seconds: u64,
}

/// Ends as an error, not as an end, when what feeds it stops early: the server would take the shorter
/// body for the whole.
struct Exact {
    pipe: PipeReader,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.pipe.read(buffer)?;
        if len == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(len as u64);
        Ok(len)
    }
}

impl Upload<'_> {
    /// Sends what `content` yields.
    ///
    /// # Errors
    /// Those of `content` before those of the server.
    pub(super) fn send(
        &self,
        context: &Context<'_>,
        remote: &Remote,
        content: &mut dyn Read,
    ) -> Result<Value> {
        let failed = |e| Error::io("could not make a pipe", e);
        let (pipe, mut feed) = std::io::pipe().map_err(failed)?;
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"snapshot\"; filename=\"{}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n",
            self.file
        );
        let tail = format!("\r\n--{BOUNDARY}--\r\n");
        let around = (head.len() as u64).saturating_add(tail.len() as u64);
        let exact = Exact {
            pipe,
            left: self.bytes,
        };
        let reader = Cursor::new(head)
            .chain(exact.take(self.bytes))
            .chain(Cursor::new(tail));
        let body = Body {
            content: reqwest::blocking::Body::sized(reader, around.saturating_add(self.bytes)),
            content_type: format!("multipart/form-data; boundary={BOUNDARY}"),
        };
        let query = [
            ("priority", "snapshot"),
            ("wait", "true"),
            ("checksum", self.sha256),
        ];
        let (answer, fed) = std::thread::scope(|scope| {
            let answer = scope
                .spawn(|| remote.upload(self.path, &query, self.seconds, body, context.cancel));
            let fed = feed_all(context, content, &mut feed);
            // The body ends here: early, when the content did.
            drop(feed);
            (answer.join(), fed)
        });
        let answer = answer.map_err(|_| Error::internal("qdrant_request", "a request was lost"))?;
        match fed {
            Err(error) => Err(error),
            Ok(()) => answer,
        }
    }
}

/// Feeds all of `content`. That nobody reads any more is the request's failure, and no error here.
fn feed_all(context: &Context<'_>, content: &mut dyn Read, feed: &mut dyn Write) -> Result<()> {
    let mut buffer = vec![0; FEED_BYTES];
    loop {
        context.cancel.check()?;
        let len = content.read(&mut buffer).map_err(|e| {
            crate::component::content_error("could not read a snapshot of the backup", e)
        })?;
        let bytes = buffer.get(..len).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        match feed.write_all(bytes) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            Err(e) => return Err(Error::io("could not write to a pipe", e)),
        }
    }
}
