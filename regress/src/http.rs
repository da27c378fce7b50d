//! Plain HTTP of a test: one request over one connection of its own, and the whole answer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The bytes of a request. `headers` are whole lines, each with its end.
pub(crate) fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends a request to a port of this host; what comes back.
pub(crate) fn exchange(port: u16, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Status and content of an answer.
pub(crate) fn read(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let (head, content) = split(answer)?;
    Some((head.split(' ').nth(1)?.parse().ok()?, content))
}

/// Head and content.
fn split(answer: &[u8]) -> Option<(String, Vec<u8>)> {
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..at]).into_owned();
    let mut rest = &answer[at + 4..];
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return Some((head, rest.to_vec()));
    }
    let mut content = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let size =
            usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?.trim(), 16).ok()?;
        if size == 0 {
            return Some((head, content));
        }
        content.extend(rest.get(end + 2..end + 2 + size)?);
        rest = rest.get(end + 4 + size..)?;
    }
}
