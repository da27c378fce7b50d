//! A proxy between pgark and an S3 server that does to requests what networks and tired servers do:
//! delays, drops, resets, truncates, refuses, lies, and goes on with what its client has given up.
//!
//! One thread per connection, one upstream connection per request. Requests and answers are held in
//! memory. What it did is counted, so that a test can ask whether it met what it is about.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nothing.
    Pass,
    /// `If-None-Match` and `If-Match` are taken out: a server that ignores them.
    StripConditions,
    /// It is held back for so many milliseconds, whoever still waits.
    DelayMillis(u64),
    /// It is carried out at once and answered after so many milliseconds.
    LateReplyMillis(u64),
    /// The connection is closed, nothing is carried out.
    Drop,
    /// It is carried out; the connection is reset instead of an answer.
    ResetAfter,
    /// Half of its body reaches the server.
    TruncateRequest,
    /// Half of the answer reaches the client.
    TruncateAnswer,
    /// A byte in the middle of the answer's body is another one.
    FlipAnswer,
    /// This status and this code of S3's, nothing is carried out.
    Refuse(u16, &'static str),
    /// It is carried out and answered with 500.
    ErrorAfter,
    /// 200 with an error in its body, nothing is carried out.
    OkWithError,
    /// 404 with a page that is not S3's, nothing is carried out.
    ForeignNotFound,
}

#[derive(Debug, Default)]
struct Plan {
    always: Option<Fault>,
    next: VecDeque<Fault>,
    /// Choices, the state of the generator, and how many of 1000 requests are hit.
    random: Option<(Vec<Fault>, u64, u64)>,
    /// Only requests whose method is this.
    method: Option<&'static str>,
    /// Whoever changes something is refused.
    read_only: bool,
    counts: BTreeMap<String, u64>,
    /// "GET /bucket/key?query", in order.
    requests: Vec<String>,
}

impl Plan {
    fn fault(&mut self, method: &str) -> Fault {
        if self.read_only && !matches!(method, "GET" | "HEAD") {
            *self.counts.entry("ReadOnly".to_owned()).or_default() += 1;
            return Fault::Refuse(403, "AccessDenied");
        }
        let hit = self.method.is_none_or(|only| only == method);
        let fault = match (self.next.front(), &mut self.random) {
            (Some(_), _) if hit => self.next.pop_front().unwrap(),
            (None, Some((choices, state, permille))) if hit => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                match *state % 1000 < *permille {
                    true => {
                        choices[usize::try_from((*state >> 10) % choices.len() as u64).unwrap()]
                    }
                    false => Fault::Pass,
                }
            }
            _ => self.always.unwrap_or(Fault::Pass),
        };
        let name = format!("{fault:?}");
        let name = name.split('(').next().unwrap().to_owned();
        *self.counts.entry(name).or_default() += 1;
        fault
    }
}

/// A running proxy; dropping it closes its door, and connections end with their clients.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    plan: Arc<Mutex<Plan>>,
    down: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
}

impl Proxy {
    /// Starts one before the server at `upstream`.
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            plan: Arc::default(),
            down: Arc::default(),
            stopped: Arc::default(),
        };
        let (plan, down, stopped) = (
            Arc::clone(&proxy.plan),
            Arc::clone(&proxy.down),
            Arc::clone(&proxy.stopped),
        );
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (plan, down) = (Arc::clone(&plan), Arc::clone(&down));
                std::thread::spawn(move || {
                    // Whatever ends a connection, the client sees the end of it.
                    let _ = serve(client, upstream, &plan, &down);
                });
            }
        });
        proxy
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What happens to every request that nothing else is planned for.
    pub fn always(&self, fault: Fault) {
        self.plan.lock().unwrap().always = Some(fault);
    }

    /// What happens to the next requests of `method`, in order.
    pub fn next(&self, method: Option<&'static str>, faults: &[Fault]) {
        let mut plan = self.plan.lock().unwrap();
        plan.method = method;
        plan.next = faults.iter().copied().collect();
    }

    /// Hits `permille` of all requests with one of `faults`, drawn from `seed`.
    pub fn random(&self, seed: u64, permille: u64, faults: &[Fault]) {
        let mut plan = self.plan.lock().unwrap();
        plan.method = None;
        plan.random = Some((faults.to_vec(), seed | 1, permille));
    }

    /// From now on the credentials have the right to read and to list, and no other.
    pub fn set_read_only(&self, read_only: bool) {
        self.plan.lock().unwrap().read_only = read_only;
    }

    /// Nothing happens any more.
    pub fn calm(&self) {
        let mut plan = self.plan.lock().unwrap();
        plan.always = None;
        plan.random = None;
        plan.next.clear();
        plan.method = None;
    }

    /// Whether the server behind it is gone: connections are closed at once.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// How often each fault was met.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.plan.lock().unwrap().counts.clone()
    }

    /// The requests since this was last asked: method and target, in order.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.plan.lock().unwrap().requests)
    }

    /// How often the fault of this name was met.
    pub fn count(&self, name: &str) -> u64 {
        self.counts().get(name).copied().unwrap_or(0)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// A head (with its empty line) and a body.
struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Message {
    fn bytes(&self) -> Vec<u8> {
        [self.head.as_slice(), &self.body].concat()
    }

    fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    fn without(&mut self, names: &[&str]) {
        let text = String::from_utf8_lossy(&self.head).into_owned();
        let kept = text.split_inclusive("\r\n").filter(|line| {
            let name = line.split(':').next().unwrap().to_ascii_lowercase();
            !names.contains(&name.as_str())
        });
        self.head = kept.collect::<String>().into_bytes();
    }
}

fn header(head: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found
            .eq_ignore_ascii_case(name)
            .then(|| value.trim().to_owned())
    })
}

fn read_head(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte)? {
            0 if head.is_empty() => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => head.push(byte[0]),
        }
    }
    Ok(Some(head))
}

fn read_body(stream: &mut TcpStream, head: &[u8], until_end: bool) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = header(head, "content-length") {
        let length: u64 = length.parse().map_err(io::Error::other)?;
        stream.take(length).read_to_end(&mut body)?;
        if body.len() as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    } else if header(head, "transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        while !body.ends_with(b"0\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            body.push(byte[0]);
        }
    } else if until_end {
        stream.read_to_end(&mut body)?;
    }
    Ok(body)
}

fn serve(
    mut client: TcpStream,
    upstream: u16,
    plan: &Mutex<Plan>,
    down: &AtomicBool,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    loop {
        let Some(head) = read_head(&mut client)? else {
            return Ok(());
        };
        if down.load(Ordering::SeqCst) {
            return client.shutdown(Shutdown::Both);
        }
        if header(&head, "expect").is_some() {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let body = read_body(&mut client, &head, false)?;
        let mut request = Message { head, body };
        request.without(&["expect"]);
        let text = String::from_utf8_lossy(&request.head).into_owned();
        let method = text.split(' ').next().unwrap().to_owned();
        let target = text.split(' ').nth(1).unwrap_or_default();
        let fault = {
            let mut plan = plan.lock().unwrap();
            plan.requests.push(format!("{method} {target}"));
            plan.fault(&method)
        };
        if !act(&mut client, upstream, &method, request, fault)? {
            return Ok(());
        }
    }
}

/// Whether the connection goes on.
fn act(
    client: &mut TcpStream,
    upstream: u16,
    method: &str,
    mut request: Message,
    fault: Fault,
) -> io::Result<bool> {
    let error = |status: &str, code: &str| {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>"
        );
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{}",
            body.len(),
            if method == "HEAD" { "" } else { &body }
        )
    };
    match fault {
        Fault::Pass
        | Fault::StripConditions
        | Fault::DelayMillis(_)
        | Fault::LateReplyMillis(_) => {
            if fault == Fault::StripConditions {
                request.without(&["if-none-match", "if-match"]);
            }
            if let Fault::DelayMillis(millis) = fault {
                std::thread::sleep(Duration::from_millis(millis));
            }
            let answer = forward(upstream, method, &request)?;
            if let Fault::LateReplyMillis(millis) = fault {
                std::thread::sleep(Duration::from_millis(millis));
            }
            client.write_all(&answer.bytes())?;
            Ok(answer
                .header("connection")
                .is_none_or(|value| !value.eq_ignore_ascii_case("close")))
        }
        Fault::Drop => client.shutdown(Shutdown::Both).map(|()| false),
        Fault::ResetAfter => {
            forward(upstream, method, &request)?;
            rustix::net::sockopt::set_socket_linger(&*client, Some(Duration::ZERO))?;
            Ok(false)
        }
        Fault::TruncateRequest => {
            let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
            server.write_all(&request.head)?;
            server.write_all(&request.body[..request.body.len() / 2])?;
            Ok(false)
        }
        Fault::TruncateAnswer => {
            let answer = forward(upstream, method, &request)?.bytes();
            client.write_all(&answer[..answer.len() / 2])?;
            Ok(false)
        }
        Fault::FlipAnswer => {
            let mut answer = forward(upstream, method, &request)?;
            let middle = answer.body.len() / 2;
            if let Some(byte) = answer.body.get_mut(middle) {
                *byte ^= 1;
            }
            client.write_all(&answer.bytes())?;
            Ok(false)
        }
        Fault::Refuse(status, code) => {
            client.write_all(error(&format!("{status} Refused"), code).as_bytes())?;
            Ok(true)
        }
        Fault::ErrorAfter => {
            forward(upstream, method, &request)?;
            client.write_all(error("500 Internal", "InternalError").as_bytes())?;
            Ok(true)
        }
        Fault::OkWithError => {
            client.write_all(error("200 OK", "InternalError").as_bytes())?;
            Ok(true)
        }
        Fault::ForeignNotFound => {
            let page = if method == "HEAD" { "" } else { "not here" };
            let text = format!("HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\n{page}");
            client.write_all(text.as_bytes())?;
            Ok(true)
        }
    }
}

fn forward(upstream: u16, method: &str, request: &Message) -> io::Result<Message> {
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    server.set_nodelay(true)?;
    server.write_all(&request.head)?;
    server.write_all(&request.body)?;
    loop {
        let head = read_head(&mut server)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let text = String::from_utf8_lossy(&head).into_owned();
        let status: u16 = text
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        if status < 200 {
            continue;
        }
        let empty = method == "HEAD" || matches!(status, 204 | 304);
        let body = match empty {
            true => Vec::new(),
            false => read_body(&mut server, &head, true)?,
        };
        return Ok(Message { head, body });
    }
}
