//! A proxy for any protocol over TCP: it cannot read what passes, so it cuts: after so many pieces from
//! the server, before the next one is let through, or after so many bytes from the client. Or it holds back what
//! the server sends, at a place that a test knows, and hands it on byte by byte.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Debug, Default)]
struct Plan {
    /// Pieces from the server that still pass; the one after them does not, and the connection ends.
    answers: Option<u64>,
    /// Bytes from a client that still pass.
    bytes: Option<u64>,
    /// Bytes from the server that still pass before all is held back.
    hold: Option<u64>,
    /// Bytes from the server that still pass before all trickles.
    trickle: Option<u64>,
}

#[derive(Debug)]
struct Shared {
    plan: Mutex<Plan>,
    /// Connections that were cut.
    cuts: AtomicU64,
    /// Bytes that the server has sent.
    answered: AtomicU64,
    /// Nothing passes, and nobody is told.
    stalled: AtomicBool,
    /// Nothing passes from the server.
    held: AtomicBool,
    /// What the server sends passes byte by byte.
    trickles: AtomicBool,
    /// New connections are closed, old ones cut.
    down: AtomicBool,
    over: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

/// A running proxy; dropping it closes its door and cuts its connections.
#[derive(Debug)]
pub struct TcpProxy {
    shared: Arc<Shared>,
    port: u16,
}

impl TcpProxy {
    /// Starts one before the server at `port` of loopback.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            plan: Mutex::default(),
            cuts: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
            held: AtomicBool::new(false),
            trickles: AtomicBool::new(false),
            down: AtomicBool::new(false),
            over: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let proxy = Self {
            shared: Arc::clone(&shared),
            port: listener.local_addr().unwrap().port(),
        };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                if shared.down.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                let _ = client.set_nodelay(true);
                let _ = server.set_nodelay(true);
                connect(&shared, &client, &server);
            }
        });
        proxy
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// `count` more pieces pass from the server, of all connections together; the next one is lost with
    /// its connection. What was asked for has been done by then.
    pub fn lose_answer_after(&self, count: u64) {
        self.shared.plan.lock().unwrap().answers = Some(count);
    }

    /// `count` more bytes pass to the server; then that connection is lost.
    pub fn lose_request_after(&self, count: u64) {
        self.shared.plan.lock().unwrap().bytes = Some(count);
    }

    /// `bytes` more pass from the server, of all connections together, in whole pieces; then everything that it
    /// sends is held back until [`TcpProxy::let_go`].
    pub fn hold_after(&self, bytes: u64) {
        self.shared.plan.lock().unwrap().hold = Some(bytes);
    }

    /// Whether something is held back: the server has sent so many bytes.
    pub fn is_held(&self) -> bool {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// What was held back passes, and what comes.
    pub fn let_go(&self) {
        self.shared.plan.lock().unwrap().hold = None;
        self.shared.held.store(false, Ordering::SeqCst);
    }

    /// `bytes` more pass from the server, of all connections together, in whole pieces; then what it sends passes a
    /// byte at a time, ten a second, until [`TcpProxy::flow`].
    pub fn trickle_after(&self, bytes: u64) {
        self.shared.plan.lock().unwrap().trickle = Some(bytes);
    }

    /// What the server sends passes at once again; whether it trickled.
    pub fn flow(&self) -> bool {
        self.shared.plan.lock().unwrap().trickle = None;
        self.shared.trickles.swap(false, Ordering::SeqCst)
    }

    /// How many bytes the server has sent since this was last asked.
    pub fn answered(&self) -> u64 {
        self.shared.answered.swap(0, Ordering::SeqCst)
    }

    /// No more plans; whether one was still waiting.
    pub fn calm(&self) -> bool {
        let plan = std::mem::take(&mut *self.shared.plan.lock().unwrap());
        plan.answers.is_some() || plan.bytes.is_some()
    }

    /// How many connections were cut by plan.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Nothing passes any more, or everything again.
    pub fn stall(&self, stalled: bool) {
        self.shared.stalled.store(stalled, Ordering::SeqCst);
    }

    /// The server goes away, or comes back.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::SeqCst);
        if down {
            self.cut_all();
        }
    }

    /// Cuts every connection.
    pub fn cut_all(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.cut_all();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    /// Of bytes that the server has sent, before they pass.
    fn count(&self, bytes: u64) {
        self.answered.fetch_add(bytes, Ordering::SeqCst);
        let mut plan = self.plan.lock().unwrap();
        reach(&mut plan.hold, bytes, &self.held);
        reach(&mut plan.trickle, bytes, &self.trickles);
    }
}

/// Of `left` bytes `bytes` pass; sets `reached` when that is more.
fn reach(left: &mut Option<u64>, bytes: u64, reached: &AtomicBool) {
    match left {
        Some(some) if *some < bytes => {
            *left = None;
            reached.store(true, Ordering::SeqCst);
        }
        Some(some) => *some -= bytes,
        None => {}
    }
}

fn connect(shared: &Arc<Shared>, client: &TcpStream, server: &TcpStream) {
    let copies = |stream: &TcpStream| stream.try_clone().unwrap();
    shared
        .open
        .lock()
        .unwrap()
        .extend([copies(client), copies(server)]);
    for (from, to, answers) in [(client, server, false), (server, client, true)] {
        let (from, to, shared) = (copies(from), copies(to), Arc::clone(shared));
        std::thread::spawn(move || {
            pass(&shared, &from, &to, answers);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

fn pass(shared: &Shared, mut from: &TcpStream, mut to: &TcpStream, answers: bool) {
    let mut piece = vec![0; 16 << 10];
    loop {
        let length = match from.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        if answers {
            shared.count(length as u64);
        }
        let waits = || {
            let held = answers && shared.held.load(Ordering::SeqCst);
            held || shared.stalled.load(Ordering::SeqCst)
        };
        while waits() && !shared.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut plan = shared.plan.lock().unwrap();
        let (left, cost) = match answers {
            true => (&mut plan.answers, 1),
            false => (&mut plan.bytes, length as u64),
        };
        match left {
            Some(some) if *some < cost => {
                *left = None;
                drop(plan);
                shared.cuts.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Some(some) => *some -= cost,
            None => {}
        }
        drop(plan);
        let mut rest = &piece[..length];
        while answers && !rest.is_empty() && shared.trickles.load(Ordering::SeqCst) {
            if shared.over.load(Ordering::SeqCst) || to.write_all(&rest[..1]).is_err() {
                return;
            }
            rest = &rest[1..];
            std::thread::sleep(Duration::from_millis(100));
        }
        if to.write_all(rest).is_err() {
            return;
        }
    }
}
