//! MinIO whose server dies, is started again, falls silent and trickles in the middle of a backup. What goes well is
//! in `t536_minio`.
//!
//! Trap: a backup that hangs with the server, or has half of an object.
//! Expectation: where objects are read, a server that comes back in time is waited for, and the backup is whole; what
//! the admin API sends is not asked for twice. Everything else fails in time, and says so. Nothing on the server has
//! changed.

use crate::component::Bench;
use crate::t536_minio::{filled, imported, objects, section};
use pgark_regress::minio_server::MinioServer;
use pgark_regress::process::wait_until;
use pgark_regress::s3_server::SECRET_KEY;
use pgark_regress::store_set::{Running, StoreSet};
use pgark_regress::tcp_proxy::TcpProxy;
use pgark_regress::tier;
use std::time::Duration;

/// Far above every limit that is set here: a slow machine must not fail these tests, nor a run that hangs pass.
const LIMIT: Duration = Duration::from_secs(120);
const UNREACHABLE: &str = "component_unreachable";

#[test]
fn a_server_that_fails_in_the_middle_is_told_in_time() {
    let bench = Bench::new("t538");
    let mut server = filled(&bench.directory);
    server
        .s3
        .boto("s3.put_object(Bucket='docs', Key='large', Body=bytes(range(256)) * 8192)");
    let (state, held) = (server.state(), objects(&server));
    let proxy = TcpProxy::start(server.port());
    let own = section(
        &bench,
        &proxy.url(),
        SECRET_KEY,
        // One at a time: in the middle of the large object nothing else is on its way.
        "exact = false\nrestart = true\nparallel = 1",
    );
    let patient = format!("kind = \"minio\"\n{own}");
    let hasty = patient
        .replace(
            "attempt_timeout_seconds = 20",
            "attempt_timeout_seconds = 6",
        )
        .replace("\ndeadline_seconds = 30", "\ndeadline_seconds = 6")
        .replace("admin_timeout_seconds = 60", "admin_timeout_seconds = 6")
        // They are asked for while the content is on its way.
        .replace("parallel = 1", "parallel = 1\ntags = \"never\"");
    let mut set = StoreSet::new(&bench.directory, &patient);
    set.whole(set.begin(&[]), LIMIT);
    // In the middle of the configuration, and of the large object.
    let (config, object) = (10_000, proxy.answered() / 2);
    let at = |set: &StoreSet<'_>, bytes: u64| -> Running {
        proxy.hold_after(bytes);
        let running = set.begin(&[]);
        wait_until("something is on its way", LIMIT, || proxy.is_held());
        running
    };

    set.configure(&hasty);
    for (bytes, code) in [(config, UNREACHABLE), (object, "s3_unavailable")] {
        if bytes == object || tier::is_full() {
            let running = at(&set, bytes);
            server.kill();
            proxy.cut_all();
            proxy.let_go();
            set.failed(running, LIMIT, code);
            server.again(&state);
        }
        // Of an object this takes as long as a slow link may take for a piece of one.
        if bytes == config || tier::is_full() {
            let running = at(&set, bytes);
            set.failed(running, LIMIT, code);
            proxy.let_go();
        }

        if bytes == object || tier::is_full() {
            proxy.trickle_after(bytes);
            let slow = set.failed(set.begin(&[]), LIMIT, code);
            assert!(proxy.flow());
            // Of the content: each piece of it came in time.
            let hint = slow["hint"].as_str().unwrap();
            let is_slow = hint.contains("lower parallel");
            assert!(bytes == config || is_slow, "{slow:#}");
        }
    }

    // Back before anybody saw that it was gone.
    set.configure(&patient);
    for bytes in [config, object] {
        let running = at(&set, bytes);
        set.assert_held();
        server.again(&state);
        proxy.cut_all();
        proxy.let_go();
        match bytes == config {
            true => drop(set.failed(running, LIMIT, UNREACHABLE)),
            false => {
                let whole = set.whole(running, LIMIT);
                let target = MinioServer::start(&bench.directory);
                set.restore_store(&whole, &target.endpoint());
                assert_eq!(objects(&target), held);
                assert_eq!(imported(&target), imported(&server));
            }
        }
    }
    assert_eq!(server.state(), state);
    assert_eq!(objects(&server), held);
    let uploads = "print(sum(len(s3.list_multipart_uploads(Bucket=b['Name']).get('Uploads', [])) \
                   for b in s3.list_buckets()['Buckets']))";
    assert_eq!(server.s3.boto(uploads).trim(), "0");
}
