//! Against a server of a few lines that speaks just enough of the protocol.

use super::errors::classify;
use super::*;
use crate::ErrorKind;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::Instant;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn read_body(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap() - 4];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn error_fields(state: &str) -> Vec<u8> {
    format!("SFATAL\0VFATAL\0C{state}\0Mno\0Dthe detail\0\0").into_bytes()
}

/// A server that says yes to everything, or `refuse`s with an SQLSTATE; hangs up when told.
fn serve(directory: &Path, refuse: Option<&'static str>) -> mpsc::Sender<()> {
    let listener = UnixListener::bind(directory.join(".s.PGSQL.5432")).unwrap();
    let (hang_up, told) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_body(&mut stream).unwrap();
        if let Some(state) = refuse {
            stream
                .write_all(&message(b'E', &error_fields(state)))
                .unwrap();
            return;
        }
        stream.write_all(&message(b'R', &[0; 4])).unwrap();
        let version = b"server_version\x0015.16 (Debian)\0";
        stream.write_all(&message(b'S', version)).unwrap();
        stream.write_all(&message(b'Z', b"I")).unwrap();
        let mut reader = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut tag = [0];
            while reader.read_exact(&mut tag).is_ok() && tag == *b"Q" {
                let sql = String::from_utf8(read_body(&mut reader).unwrap()).unwrap();
                if sql.contains("fail") {
                    reader
                        .write_all(&message(b'E', &error_fields("42501")))
                        .unwrap();
                } else {
                    reader.write_all(&message(b'C', b"SET\0")).unwrap();
                }
                reader.write_all(&message(b'Z', b"I")).unwrap();
            }
        });
        told.recv().ok();
        stream.shutdown(std::net::Shutdown::Both).ok();
    });
    hang_up
}

fn conninfo(directory: &Path) -> String {
    format!(
        "host={} user=u password=s3cret dbname=d",
        directory.display()
    )
}

#[test]
fn a_missing_socket_is_unreachable() {
    let directory = tempfile::tempdir().unwrap();
    let error = Session::connect(&conninfo(directory.path()), "t").unwrap_err();
    assert_eq!(error.code(), "server_unreachable");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.hint().is_some() && !is_denied(&error));
    assert!(!format!("{error} {error:?}").contains("s3cret"));
}

#[test]
fn a_refusal_is_unreachable_with_the_servers_words() {
    let directory = tempfile::tempdir().unwrap();
    let _server = serve(directory.path(), Some("28P01"));
    let error = Session::connect(&conninfo(directory.path()), "t").unwrap_err();
    assert_eq!(error.code(), "server_unreachable");
    assert!(error.message().contains("SQLSTATE 28P01"), "{error}");
    assert!(is_denied(&error));
    assert_eq!(error.detail(), Some("the detail"));
    assert!(error.hint().unwrap().contains("pg_hba.conf"));
}

#[test]
fn a_lost_connection_shows_without_a_query() {
    let directory = tempfile::tempdir().unwrap();
    let hang_up = serve(directory.path(), None);
    let mut session = Session::connect(&conninfo(directory.path()), "t").unwrap();
    assert_eq!(session.server_version_num(), 150_016);
    assert!(session.is_alive());
    session.ping(Duration::from_secs(5)).unwrap();
    let error = session.batch("fail").unwrap_err();
    assert_eq!(
        (error.code(), error.kind()),
        ("sql_privilege", ErrorKind::Invalid)
    );
    hang_up.send(()).unwrap();
    let since = Instant::now();
    while session.is_alive() {
        assert!(since.elapsed() < Duration::from_secs(2));
        std::thread::sleep(Duration::from_millis(5));
    }
    let error = session.batch("SELECT 1").unwrap_err();
    assert_eq!(error.code(), "server_unreachable");
}

#[test]
fn bad_conninfo_is_invalid() {
    let error = Session::connect("no such thing", "t").unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Invalid, "invalid_conninfo")
    );
}

#[test]
fn versions() {
    assert_eq!(
        parse_server_version("15.16 (Debian 15.16-0+deb12u1)"),
        150_016
    );
    assert_eq!(parse_server_version("17.2"), 170_002);
    assert_eq!(parse_server_version("18beta1"), 180_000);
    assert_eq!(parse_server_version(""), 0);
    assert_eq!(parse_server_version("99999999999.9"), 0);
    assert_eq!(parse_server_version("4294967295.1"), 0);
}

#[test]
fn states() {
    assert_eq!(classify("42P01"), (ErrorKind::Invalid, "sql_failed"));
    assert_eq!(
        classify("53100"),
        (ErrorKind::Unavailable, "server_resources")
    );
    assert_eq!(classify("XX001"), (ErrorKind::Data, "server_corruption"));
    assert_eq!(classify(""), (ErrorKind::Invalid, "sql_failed"));
}
