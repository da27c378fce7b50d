//! Prometheus: a real server is backed up while it scrapes, and restored into an empty directory, where another
//! server must answer queries with the very same samples. Then what is missing or damaged is put back in
//! place, and everything that can go wrong; no snapshot may be left in the server's directory.

use crate::component::{Bench, driver, text};
use pgark_archiver::component::memory::MemorySink;
use pgark_archiver::component::{Driver, Request, Source};
use pgark_regress::process::wait_until;
use pgark_regress::prometheus_server::PrometheusServer;
use pgark_regress::redis_server::{free_port, store};
use std::path::Path;
use std::time::Duration;

pub(crate) const ADMIN: &str = "--web.enable-admin-api";

pub(crate) fn prometheus(url: &str, data: &Path) -> Box<dyn Driver> {
    let settings = format!("url = \"{url}\"\ndata_dir = \"{}\"", data.display());
    driver("prometheus", &settings)
}

pub(crate) fn scraping(bench: &Bench, arguments: &[&str]) -> PrometheusServer {
    let data = bench.directory.join("source");
    let server = PrometheusServer::start(&bench.directory, &data, true, arguments);
    wait_until("samples were scraped", Duration::from_secs(60), || {
        let now = chrono::Utc::now().timestamp_millis();
        let found = server.query("count_over_time(up[1h])", now);
        found[0]["value"][1]
            .as_str()
            .is_some_and(|count| count.parse::<u32>().unwrap() >= 3)
    });
    server
}

pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn into(folder: &Path, overwrite: bool) -> Request {
    Request {
        to: Some(folder.display().to_string()),
        overwrite,
        ..Request::default()
    }
}

#[test]
fn samples_come_back() {
    let bench = Bench::new("prometheus");
    let server = scraping(&bench, &[ADMIN]);
    let from = prometheus(&server.url(), server.data());
    let lines = from.check(&bench.context()).unwrap();
    assert!(lines.iter().all(|line| line.ok), "{lines:?}");
    // What a crash of ours left behind goes, what others have made stays.
    let snapshots = server.data().join("snapshots");
    std::fs::create_dir_all(snapshots.join("ours")).unwrap();
    std::fs::write(snapshots.join("ours/pgark.lock"), "").unwrap();
    std::fs::create_dir_all(snapshots.join("theirs")).unwrap();
    pgark_regress::account::give(&snapshots);
    let backup = bench.capture(from.as_ref());
    assert_eq!(entries(&snapshots), ["theirs"]);
    let point = backup.point();
    assert!(point.evidence["samples"].as_u64().unwrap() > 100);
    let last = point.position["last_sample"].as_str().unwrap();
    let last = chrono::DateTime::parse_from_rfc3339(last)
        .unwrap()
        .timestamp_millis();

    // Into a new directory, for another server: the same samples, of every series.
    let place = bench.directory.join("restored");
    bench.restore(from.as_ref(), &backup, &into(&place, false));
    assert!(
        bench
            .evidence(from.as_ref(), &backup, &into(&place, false))
            .ok
    );
    let listed = std::process::Command::new(store("prometheus").with_file_name("promtool"))
        .args(["tsdb", "list", place.to_str().unwrap()])
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let block = backup.paths()[0].split('/').next().unwrap().to_owned();
    assert!(listed.contains(&block), "{listed}");
    give_all(&place);
    let mut restored = PrometheusServer::start(&bench.directory, &place, false, &[ADMIN]);
    for query in ["up[1h]", "prometheus_tsdb_head_samples_appended_total[1h]"] {
        let expected = server.query(query, last - 1);
        assert!(!expected[0]["values"].as_array().unwrap().is_empty());
        assert_eq!(restored.query(query, last - 1), expected, "{query}");
    }
    let every = "count({__name__=~\".%2B\"})";
    assert_eq!(
        restored.query(every, last - 1),
        server.query(every, last - 1)
    );
    // A block stays what it is: the next backup has it, without reading it again.
    let again = prometheus(&restored.url(), &place);
    let next = bench.capture_after(again.as_ref(), backup.clone());
    assert!(
        next.paths().contains(&format!("{block}/index")),
        "{:?}",
        next.paths()
    );
    restored.kill();

    // In place: a damaged block is replaced, a missing one added, what is there is not touched otherwise.
    let refused = bench.try_restore(from.as_ref(), &backup, &into(&place, false));
    assert_eq!(refused.unwrap_err().code(), "component_not_empty");
    let chunks = place.join(&block).join("chunks/000001");
    let mut bytes = std::fs::read(&chunks).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&chunks, &bytes).unwrap();
    std::fs::write(place.join("newer"), "stays").unwrap();
    assert!(
        !bench
            .evidence(from.as_ref(), &backup, &into(&place, true))
            .ok
    );
    let done = bench.restore(from.as_ref(), &backup, &into(&place, true));
    assert!(
        done.iter().any(|line| line.contains("1 replaced")),
        "{done:?}"
    );
    assert!(
        bench
            .evidence(from.as_ref(), &backup, &into(&place, true))
            .ok
    );
    let names = entries(&place);
    assert!(
        names.iter().any(|name| name.contains(".before-")),
        "{names:?}"
    );
    assert!(names.contains(&"newer".to_owned()));
    std::fs::remove_dir_all(place.join(&block)).unwrap();
    assert!(
        !bench
            .evidence(from.as_ref(), &backup, &into(&place, true))
            .ok
    );
    bench.restore(from.as_ref(), &backup, &into(&place, true));
    assert!(
        bench
            .evidence(from.as_ref(), &backup, &into(&place, true))
            .ok
    );

    // A part of time.
    let part = bench.directory.join("part");
    let range = |text: &str| Request {
        select: vec![text.to_owned()],
        ..into(&part, true)
    };
    let nothing = range("2001-01-01T00:00:00Z..2002-01-01T00:00:00Z");
    let refused = bench.try_restore(from.as_ref(), &backup, &nothing);
    assert_eq!(refused.unwrap_err().code(), "nothing_selected");
    let vetted = from.vet(&bench.context(), &backup, &nothing);
    assert_eq!(vetted.unwrap_err().code(), "nothing_selected");
    assert!(entries(&part).is_empty());
    bench.restore(from.as_ref(), &backup, &range("2001-01-01T00:00:00Z.."));
    assert_eq!(entries(&part), [block.as_str()]);
    let wrong = bench.try_restore(from.as_ref(), &backup, &range("yesterday"));
    assert_eq!(wrong.unwrap_err().code(), "component_select");
}

/// The server's account owns what a test made as root.
fn give_all(folder: &Path) {
    pgark_regress::account::give(folder);
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.path().is_dir() {
            true => give_all(&entry.path()),
            false => pgark_regress::account::give(&entry.path()),
        }
    }
}

#[test]
fn what_goes_wrong_is_told_and_leaves_no_snapshot() {
    let bench = Bench::new("prometheus-wrong");
    let mut server = scraping(&bench, &[ADMIN]);
    let from = prometheus(&server.url(), server.data());
    let snapshots = server.data().join("snapshots");

    // The repository is full.
    let sink = MemorySink::new().failing_after(1000);
    let error = from.capture(&bench.context(), &sink).unwrap_err();
    assert_eq!(error.code(), "disk_full");
    assert!(entries(&snapshots).is_empty());
    // Another directory than the server's.
    let other = bench.directory.folder("other");
    let error = bench
        .try_capture(prometheus(&server.url(), &other).as_ref())
        .unwrap_err();
    assert_eq!(error.code(), "prometheus_data_dir");
    // That one could not be removed, and says so.
    assert!(
        text(&error).contains("remove the snapshot"),
        "{}",
        text(&error)
    );
    for name in entries(&snapshots) {
        std::fs::remove_dir_all(snapshots.join(name)).unwrap();
    }
    // A damaged backup: nothing that a server would load.
    let mut backup = bench.capture(from.as_ref());
    let path = backup
        .paths()
        .into_iter()
        .find(|path| path.contains("chunks"))
        .unwrap();
    let bytes = backup.content_mut(path.as_bytes()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let place = bench.directory.join("restored");
    let refused = bench.try_restore(from.as_ref(), &backup, &into(&place, false));
    assert_eq!(refused.unwrap_err().code(), "prometheus_block");
    assert!(entries(&place).is_empty());
    // Cancelled.
    bench.cancel.cancel();
    let error = bench.try_capture(from.as_ref()).unwrap_err();
    assert_eq!(error.code(), "cancelled");
    assert!(entries(&snapshots).is_empty());
    // Gone.
    server.kill();
    let bench = Bench::new("prometheus-gone");
    let error = bench.try_capture(from.as_ref()).unwrap_err();
    assert_eq!(error.code(), "component_unreachable");
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let lines = prometheus(&nobody, server.data())
        .check(&bench.context())
        .unwrap();
    assert!(!lines[0].ok);
    // Without the admin API.
    let data = bench.directory.join("without");
    let server = PrometheusServer::start(&bench.directory, &data, false, &[]);
    let from = prometheus(&server.url(), &data);
    let error = bench.try_capture(from.as_ref()).unwrap_err();
    assert_eq!(error.code(), "prometheus_admin_api", "{}", text(&error));
    let lines = from.check(&bench.context()).unwrap();
    let line = lines.iter().find(|line| line.name == "admin API").unwrap();
    assert!(!line.ok && line.hint.contains(ADMIN));
}
