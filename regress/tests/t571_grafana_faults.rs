//! Grafana whose server dies, is started again and falls silent in the middle of a backup. What goes well is in
//! `t570_grafana`. The server is a fake in this process: what its death looks like the proxy before it shows.
//!
//! Trap: a backup that hangs with the server, or passes for whole with half of its objects.
//! Expectation: it fails in time, and says so; nothing was written to the server.

use pgark_regress::TestDirectory;
use pgark_regress::fake_grafana::{FakeGrafana, State, TOKEN};
use pgark_regress::process::wait_until;
use pgark_regress::store_set::StoreSet;
use pgark_regress::tcp_proxy::TcpProxy;
use serde_json::{Value, json};
use std::time::Duration;

/// Far above every limit that is set here: a slow machine must not fail these tests, nor a run that hangs pass.
const LIMIT: Duration = Duration::from_secs(120);
/// Seconds, where a limit must strike: enough for everything before it on a slow machine.
const HASTY: u32 = 6;
const UNREACHABLE: &str = "component_unreachable";

/// What a restore brings: numbers and versions are each server's own, secrets stay with it.
fn held(state: &State) -> Value {
    let parent = |folder: &Value| {
        let parent = folder["parentUid"].as_str();
        parent.unwrap_or_default().to_owned()
    };
    let dashboards = state.dashboards.iter().map(|(uid, found)| {
        let dashboard = &found["dashboard"];
        json!([
            uid,
            dashboard["title"],
            dashboard["panels"],
            found["folderUid"]
        ])
    });
    let folders = state.folders.iter();
    let folders = folders.map(|(uid, f)| json!([uid, f["title"], parent(f)]));
    let panels = state.panels.iter();
    let panels = panels.map(|(uid, p)| json!([uid, p["name"], p["folderUid"], p["model"]]));
    let rules = state.rules.iter();
    let rules = rules.map(|(uid, r)| json!([uid, r["title"], r["folderUID"], r["ruleGroup"]]));
    json!({
        "dashboards": dashboards.collect::<Vec<_>>(),
        "folders": folders.collect::<Vec<_>>(),
        "panels": panels.collect::<Vec<_>>(),
        "rules": rules.collect::<Vec<_>>(),
        "policies": state.policies,
        "mute_timings": state.mute_timings,
        "templates": state.templates,
    })
}

#[test]
fn a_server_that_fails_in_the_middle_is_told_in_time() {
    let directory = TestDirectory::new("t571");
    let token = directory.file("token", TOKEN).display().to_string();
    let server = crate::t570_grafana::filled(200);
    let before = held(&server.state());
    let proxy = TcpProxy::start(server.port());
    let section = |seconds: u32| {
        format!(
            "kind = \"grafana\"\nurl = \"{}\"\ntoken = \"file:{token}\"\ntimeout_seconds = {seconds}",
            proxy.url()
        )
    };
    let mut set = StoreSet::new(&directory, &section(60));
    set.whole(set.begin(&[]), LIMIT);
    let half = proxy.answered() / 2;
    let in_the_middle = |set: &StoreSet<'_>| {
        proxy.hold_after(half);
        let running = set.begin(&[]);
        wait_until("dashboards are on their way", LIMIT, || proxy.is_held());
        running
    };

    let running = in_the_middle(&set);
    set.assert_held();
    proxy.set_down(true);
    proxy.let_go();
    set.failed(running, LIMIT, UNREACHABLE);
    set.failed(set.begin(&[]), LIMIT, UNREACHABLE);
    proxy.set_down(false);

    // Back before anybody saw that it was gone.
    let running = in_the_middle(&set);
    set.assert_held();
    proxy.cut_all();
    proxy.let_go();
    set.failed(running, LIMIT, UNREACHABLE);

    set.configure(&section(HASTY));
    let running = in_the_middle(&set);
    set.failed(running, LIMIT, UNREACHABLE);
    proxy.let_go();

    set.configure(&section(60));
    let whole = set.whole(set.begin(&[]), LIMIT);
    assert!(server.state().writes.is_empty());
    assert!(server.state().refusals.is_empty());
    let empty = FakeGrafana::start();
    set.restore_store(&whole, &empty.url());
    assert_eq!(held(&empty.state()), before);
}
