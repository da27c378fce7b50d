use super::{Failure, PUSH_LIMIT, push};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const SEGMENT: &str = "00000001000000000000002A";

/// A server that answers each request line by `answer`; `None` hangs for as long as the test runs.
struct FakeAgent {
    directory: tempfile::TempDir,
    requests: mpsc::Receiver<String>,
}

impl FakeAgent {
    fn start(answer: Option<&'static [u8]>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        let (sender, requests) = mpsc::channel();
        thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                let mut stream: UnixStream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                if sender.send(line).is_err() {
                    return;
                }
                if let Some(answer) = answer {
                    stream.write_all(answer).unwrap();
                } else {
                    held.push(stream);
                }
            }
        });
        Self {
            directory,
            requests,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn push(&self, name: &str) -> Result<(), Failure> {
        push(&self.socket(), name, PUSH_LIMIT, &mut || None)
    }
}

#[test]
fn acknowledges_what_the_agent_acknowledges() {
    let agent = FakeAgent::start(Some(b"OK\n"));
    agent.push(SEGMENT).unwrap();
    assert_eq!(
        agent.requests.recv().unwrap(),
        format!("PGARK1 PUSH {SEGMENT}\n")
    );
    agent.push("00000002.history").unwrap();
    agent.push(&format!("{SEGMENT}.00000028.backup")).unwrap();
    agent.push(&format!("{SEGMENT}.partial")).unwrap();
}

#[test]
fn refuses_odd_names_before_it_sends_anything() {
    let agent = FakeAgent::start(Some(b"OK\n"));
    for name in [
        "",
        "../../../etc/passwd",
        "/etc/passwd",
        "00000001000000000000002a",
        "00000001000000000000002A\nPGARK1 PING",
        "00000001000000000000002A.ready",
        "000000010000000000000",
        "000000000000000000000001",
    ] {
        let error = agent.push(name).unwrap_err();
        assert!(matches!(error, Failure::BadName), "{name:?}: {error:?}");
    }
    assert!(agent.requests.try_recv().is_err());
}

#[test]
fn an_error_reply_is_a_refusal_with_its_text() {
    let agent = FakeAgent::start(Some(b"ERROR conflict wal_conflict other content\n"));
    match agent.push(SEGMENT).unwrap_err() {
        Failure::Refused(text) => assert_eq!(text, "conflict wal_conflict other content"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn anything_but_ok_is_no_acknowledgement() {
    for answer in [
        b"\n".as_slice(),
        b"ok\n",
        b"OKAY\n",
        b"OK",
        b"ABSENT\n",
        b"\xff\xfe\n",
        &[b'x'; 4096],
    ] {
        let agent = FakeAgent::start(Some(answer.to_vec().leak()));
        let result = agent.push(SEGMENT);
        assert!(
            matches!(result, Err(Failure::Malformed(_) | Failure::Unreachable(_))),
            "{answer:?}: {result:?}"
        );
    }
}

#[test]
fn a_reply_cannot_forge_a_log_line() {
    let agent = FakeAgent::start(Some(b"ERROR a b c\r\x1b[2JPANIC\n"));
    match agent.push(SEGMENT).unwrap_err() {
        Failure::Refused(text) => assert_eq!(text, "a b c??[2JPANIC"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_socket_is_unreachable_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let missing = directory.path().join("none.sock");
    let result = push(&missing, SEGMENT, PUSH_LIMIT, &mut || None);
    assert!(matches!(result, Err(Failure::Unreachable(_))), "{result:?}");
    // A socket whose server is gone.
    let stale = directory.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let result = push(&stale, SEGMENT, PUSH_LIMIT, &mut || None);
    assert!(matches!(result, Err(Failure::Unreachable(_))), "{result:?}");
    // A path longer than a socket's address holds.
    let long = directory.path().join("x".repeat(200));
    let result = push(&long, SEGMENT, PUSH_LIMIT, &mut || None);
    assert!(matches!(result, Err(Failure::Unreachable(_))), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_hung_agent_costs_the_limit_and_no_more() {
    assert_eq!(PUSH_LIMIT, Duration::from_secs(10));
    let agent = FakeAgent::start(None);
    let limit = Duration::from_millis(350);
    let start = Instant::now();
    let result = push(&agent.socket(), SEGMENT, limit, &mut || None);
    let took = start.elapsed();
    assert!(matches!(result, Err(Failure::TimedOut(_))), "{result:?}");
    assert!(
        took >= limit && took < limit + Duration::from_millis(200),
        "{took:?}"
    );
}

#[test]
fn a_hung_agent_gives_way_to_the_server_within_200_ms() {
    let agent = FakeAgent::start(None);
    let start = Instant::now();
    let raised = start + Duration::from_millis(250);
    let mut interrupted = || (Instant::now() >= raised).then_some("a barrier");
    let result = push(&agent.socket(), SEGMENT, PUSH_LIMIT, &mut interrupted);
    assert!(
        matches!(result, Err(Failure::Interrupted("a barrier"))),
        "{result:?}"
    );
    assert!(raised.elapsed() < Duration::from_millis(200));
}

/// A listener that never accepts: once its queue is full, a blocking connect would hang for good.
#[test]
fn a_full_queue_costs_the_limit_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let fd = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&fd, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&fd, 0).unwrap();
    let limit = Duration::from_millis(150);
    for _ in 0..4 {
        let start = Instant::now();
        let result = push(&path, SEGMENT, limit, &mut || None);
        assert!(matches!(result, Err(Failure::TimedOut(_))), "{result:?}");
        assert!(start.elapsed() < limit + Duration::from_millis(200));
    }
}
