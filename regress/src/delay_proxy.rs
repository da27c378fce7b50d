//! A TCP proxy that holds every byte back for a while, in each direction: a server far away. It changes
//! nothing and limits nothing but the time.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks on their way at once: far more than a delay of a second can hold.
const CHUNKS_MAX: usize = 16 << 10;

/// A running proxy; dropping it closes its door.
#[derive(Debug)]
pub struct DelayProxy {
    port: u16,
    stopped: Arc<AtomicBool>,
}

impl DelayProxy {
    /// Starts one before the server on loopback at `upstream`: an answer comes `round_trip` later.
    pub fn start(upstream: u16, round_trip: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            stopped: Arc::default(),
        };
        let stopped = Arc::clone(&proxy.stopped);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A connection that does not come about ends: its client sees that.
                let _ = join(client, upstream, round_trip / 2);
            }
        });
        proxy
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for DelayProxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn join(client: TcpStream, upstream: u16, delay: Duration) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", upstream))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let (sender, receiver) = mpsc::sync_channel(CHUNKS_MAX);
        std::thread::spawn(move || read(from, &sender));
        std::thread::spawn(move || write(to, &receiver, delay));
    }
    Ok(())
}

type Chunk = (Instant, Vec<u8>);

fn read(mut from: TcpStream, sender: &SyncSender<Chunk>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if sender.send((Instant::now(), buffer[..n].to_vec())).is_err() {
            return;
        }
    }
}

fn write(mut to: TcpStream, receiver: &Receiver<Chunk>, delay: Duration) {
    for (came, bytes) in receiver {
        std::thread::sleep((came + delay).saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_later_and_unchanged() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        });
        let proxy = DelayProxy::start(port, Duration::from_millis(200));
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let start = Instant::now();
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert!(answer == sent);
        assert!(start.elapsed() >= Duration::from_millis(200));
    }
}
