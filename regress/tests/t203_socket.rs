//! The agent's socket: whoever is not the agent's user, and whatever is not a file name of the
//! archive, is refused, and the agent goes on working.

use crate::archive::{SOON, archiving, ask, counter, switch};
use pgark_regress::{Major, Pgark, TestDirectory, tier};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

fn answer(mut stream: UnixStream) -> String {
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn strangers_and_odd_names() {
    let directory = TestDirectory::new("t203_socket");
    let cluster = archiving(&directory, Major::Pg15, "a").start();
    let pgark = Pgark::new(&directory, "p", Some(&cluster));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    let agent = pgark.agent(&[]);

    if tier::needs_root() {
        // Root may open any socket; it is not the agent's user all the same. Another user does not
        // even get into the directory.
        let refused = answer(UnixStream::connect(pgark.socket()).unwrap());
        assert!(
            refused.starts_with("ERROR invalid peer_refused"),
            "{refused}"
        );
        assert!(counter(&directory, &pgark, "refused_connections") >= 1);
        let mut ls = Command::new("setpriv");
        ls.args(["--reuid=65534", "--regid=65534", "--clear-groups", "stat"]);
        let status = ls.arg(pgark.socket()).output().unwrap().status;
        assert!(
            !status.success(),
            "nobody got through the socket's directory"
        );
    }

    let secret = directory.file("secret", "x");
    let absolute = secret.display().to_string();
    let name = "000000010000000000000001";
    for odd in [
        format!("../{name}"),
        format!("../../{name}"),
        format!("/etc/{name}"),
        absolute,
        format!("{name}/"),
        format!("archive_status/{name}.ready"),
        format!("{name}.ready"),
        format!("{name}\0"),
        format!("{name}.partial/../x"),
        "..".to_owned(),
        ".".to_owned(),
        "*".to_owned(),
        name.to_lowercase() + "x",
        "00000001000000000000000g".to_owned(),
    ] {
        for verb in ["PUSH", "FETCH"] {
            let request = format!("PGARK1 {verb} {odd}\n");
            let answer = ask(&directory, &pgark, 0, request.as_bytes());
            assert!(
                answer.starts_with("ERROR invalid bad_name"),
                "{odd:?}: {answer}"
            );
        }
    }
    // A link in pg_wal that bears a good name is not followed.
    let link = cluster.data().join("pg_wal/0000000100000000000000FF");
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    let answer = ask(
        &directory,
        &pgark,
        0,
        b"PGARK1 PUSH 0000000100000000000000FF\n",
    );
    assert!(answer.contains("file_unavailable"), "{answer}");
    std::fs::remove_file(&link).unwrap();

    let long = [b"PGARK1 PUSH ".as_slice(), &[b'0'; 100_000], b"\n"].concat();
    for junk in [
        long.as_slice(),
        b"\n\n\n",
        b"\xff\xfe\x00\n",
        b"PGARK1 PUSH",
        b"PGARK2 PING\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let answer = ask(&directory, &pgark, 0, junk);
        let refused = answer.starts_with("ERROR invalid bad_request") || answer.is_empty();
        assert!(refused, "{:?}: {answer}", &junk[..junk.len().min(20)]);
    }

    // A hundred connections that say nothing: those past the limit are told so, and when they are
    // gone the agent serves as before.
    let full = ask(&directory, &pgark, 100, b"PGARK1 PING\n");
    assert!(full.contains("too_many_connections"), "{full}");
    pgark_regress::process::wait_until("the agent serves again", SOON, || {
        ask(&directory, &pgark, 0, b"PGARK1 PING\n").starts_with("OK pgark")
    });
    let few = ask(&directory, &pgark, 20, b"PGARK1 PING\n");
    assert!(few.starts_with("OK pgark"), "{few}");
    crate::archive::archive_with(&cluster, &pgark);
    let segment = switch(&cluster);
    cluster.wait_archived(&segment, SOON);
    let count = |name| counter(&directory, &pgark, name);
    assert!(count("pushed") + count("lookahead_hits") >= 1);
    assert_eq!(agent.terminate(), Some(0));
}

/// A directory that others may enter is no place for the socket.
#[test]
fn a_wide_directory_is_refused() {
    let directory = TestDirectory::new("t203_wide");
    let cluster = archiving(&directory, Major::Pg15, "a").init();
    let pgark = Pgark::new(&directory, "p", Some(&cluster));
    let home = pgark.socket().parent().unwrap().to_path_buf();
    for mode in [0o755, 0o770, 0o711, 0o701] {
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(mode)).unwrap();
        let refused = pgark.run(&["agent"]).expect(10);
        assert!(refused.stderr.contains("code socket_directory"), "{mode:o}");
        assert!(refused.stderr.contains("chmod 0700"));
        assert!(!pgark.socket().exists());
    }
}
