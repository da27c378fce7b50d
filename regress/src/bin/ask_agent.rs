//! Talks to an agent's socket as the user it runs as: the agent answers nobody else.
//!
//! usage: `ask-agent SOCKET [IDLE]`: opens IDLE connections that say nothing, then one more, sends it
//! all of standard input, and prints what comes back until the agent closes it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = || std::io::Error::other("usage: ask-agent SOCKET [IDLE]");
    let socket = arguments.next().ok_or_else(usage)?;
    let idle: usize = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let _idle: Vec<UnixStream> = (0..idle)
        .map(|_| UnixStream::connect(&socket))
        .collect::<Result<_, _>>()?;
    let mut request = Vec::new();
    std::io::stdin().read_to_end(&mut request)?;
    let mut stream = UnixStream::connect(&socket)?;
    // The agent may hang up in the middle of what it does not like.
    let _ = stream.write_all(&request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    std::io::stdout().write_all(&answer)
}
