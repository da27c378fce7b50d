//! Grafana: no real server is packaged, so a fake that is pinned to the documented behaviour, and strict where
//! importers are known to fail: order, unknown rules, numbers of another server, secrets that never come out.
//! A backup goes into an empty server, in part, and over what was changed; the evidence must see each change.

use crate::component::{Bench, driver, text};
use pgark_archiver::component::{Driver, Request, Source};
use pgark_regress::fake_grafana::{FakeGrafana, TOKEN};
use serde_json::json;

fn grafana(bench: &Bench, url: &str, more: &str) -> Box<dyn Driver> {
    bench.directory.file("token", TOKEN);
    bench.directory.file("secret", "geheim");
    let file = |name: &str| bench.directory.join(name).display().to_string();
    let settings = format!(
        "url = \"{url}\"\ntoken = \"file:{}\"\n{more}",
        file("token")
    );
    driver("grafana", &settings.replace("SECRET", &file("secret")))
}

/// A server with everything that refers to something else.
pub(crate) fn filled(dashboards: u64) -> FakeGrafana {
    let server = FakeGrafana::start();
    let mut state = server.state();
    // By name, children come before their parents.
    for (uid, parent) in [("c-top", ""), ("b-middle", "c-top"), ("a-leaf", "b-middle")] {
        let folder =
            json!({"id": 1, "uid": uid, "title": format!("Folder {uid}"), "parentUid": parent});
        state.folders.insert(uid.to_owned(), folder);
    }
    state.data_sources.insert(
        "prom".to_owned(),
        json!({"id": 3, "uid": "prom", "name": "Prometheus", "type": "prometheus", "url": "http://p",
            "jsonData": {"httpMethod": "POST"}, "secureJsonData": {"httpHeaderValue1": "geheim"}}),
    );
    state.panels.insert(
        "panel".to_owned(),
        json!({"uid": "panel", "name": "Load", "kind": 1, "folderUid": "b-middle", "version": 4,
            "model": {"type": "graph", "title": "Load"}}),
    );
    for n in 0..dashboards {
        let uid = format!("d{n}");
        let dashboard = json!({"id": n, "uid": uid, "title": format!("Dashboard {n}"), "version": 9,
            "panels": [{"libraryPanel": {"uid": "panel"}, "datasource": {"uid": "prom"}}]});
        let folder = if n % 2 == 0 { "a-leaf" } else { "" };
        state
            .dashboards
            .insert(uid, json!({"dashboard": dashboard, "folderUid": folder}));
    }
    state.contact_points.insert(
        "cp".to_owned(),
        json!({"uid": "cp", "name": "On call", "type": "slack",
            "settings": {"url": "https://hooks/geheim", "recipient": "#a"}}),
    );
    state.mute_timings.insert(
        "nights".to_owned(),
        json!({"name": "nights", "time_intervals": []}),
    );
    state.templates.insert(
        "mine".to_owned(),
        json!({"name": "mine", "template": "{{ x }}"}),
    );
    state.policies = json!({"receiver": "On call", "routes": [
        {"receiver": "On call", "mute_time_intervals": ["nights"]}]});
    for (uid, group) in [("r1", "Group / one"), ("r2", "Group / one"), ("r3", "two")] {
        let rule = json!({"id": 1, "uid": uid, "title": uid, "folderUID": "a-leaf", "ruleGroup": group,
            "orgID": 1, "data": [], "updated": "2026-01-01T00:00:00Z"});
        state.rules.insert(uid.to_owned(), rule);
    }
    let one = ("a-leaf".to_owned(), "Group / one".to_owned());
    state.intervals.insert(one, json!(30));
    drop(state);
    server
}

#[test]
fn objects_come_back_in_order_whole_in_part_and_in_place() {
    let bench = Bench::new("grafana");
    let source = filled(30);
    let from = grafana(&bench, &source.url(), "");
    let lines = from.check(&bench.context()).unwrap();
    assert!(lines.iter().all(|line| line.ok), "{lines:?}");
    let backup = bench.capture(from.as_ref());
    let point = backup.point();
    assert_eq!(point.evidence["dashboards"], 30);
    assert_eq!(point.evidence["alert-rules"], 2);
    assert!(
        format!("{:?}", point.notes).contains("2 data sources and contact points have secrets")
    );
    let stored: Vec<String> = backup.paths();
    let content = stored
        .iter()
        .map(|path| backup.content(path.as_bytes()).unwrap());
    assert!(
        content
            .into_iter()
            .all(|c| !String::from_utf8_lossy(c).contains("geheim"))
    );

    // Into an empty server; one secret is supplied, the other is asked for.
    let target = FakeGrafana::start();
    let secrets = "[secrets.prom]\nhttpHeaderValue1 = \"file:SECRET\"\n";
    let into = grafana(&bench, &target.url(), secrets);
    let done = bench.restore(into.as_ref(), &backup, &Request::default());
    assert!(
        target.state().refusals.is_empty(),
        "{:?}",
        target.state().refusals
    );
    assert!(
        done.iter()
            .any(|line| line.contains("\"cp\" needs its secrets again: url")),
        "{done:?}"
    );
    assert!(
        !done.iter().any(|line| line.contains("\"prom\" needs")),
        "{done:?}"
    );
    {
        let state = target.state();
        assert_eq!(
            state.data_sources["prom"]["secureJsonData"]["httpHeaderValue1"],
            "geheim"
        );
        assert_ne!(state.contact_points["cp"]["settings"]["url"], "[REDACTED]");
        assert_eq!(state.folders["a-leaf"]["parentUid"], "b-middle");
        assert_eq!(state.dashboards.len(), 30);
        assert_eq!(state.rules.len(), 3);
        assert_eq!(state.policies, source.state().policies);
        assert_eq!(
            state.intervals,
            source
                .state()
                .intervals
                .clone()
                .into_iter()
                .chain([(("a-leaf".to_owned(), "two".to_owned()), json!(60))])
                .collect()
        );
    }
    let evidence = bench.evidence(into.as_ref(), &backup, &Request::default());
    assert!(evidence.ok, "{evidence:?}");

    // Not over what is there.
    let refused = bench.try_restore(into.as_ref(), &backup, &Request::default());
    assert_eq!(refused.unwrap_err().code(), "component_not_empty");

    // Each change is seen, and set right in place; what the backup does not have stays.
    let overwrite = Request {
        overwrite: true,
        ..Request::default()
    };
    target.state().dashboards.insert(
        "new".to_owned(),
        json!({"dashboard": {"uid": "new", "version": 1}, "folderUid": ""}),
    );
    let damages: [fn(&mut pgark_regress::fake_grafana::State); 8] = [
        |s| s.dashboards.get_mut("d7").unwrap()["dashboard"]["title"] = json!("x"),
        |s| drop(s.dashboards.remove("d8")),
        |s| s.folders.get_mut("a-leaf").unwrap()["parentUid"] = json!(""),
        |s| s.data_sources.get_mut("prom").unwrap()["url"] = json!("http://x"),
        |s| s.panels.get_mut("panel").unwrap()["model"]["title"] = json!("x"),
        |s| s.contact_points.get_mut("cp").unwrap()["settings"]["recipient"] = json!("#b"),
        |s| s.policies = json!({"receiver": "grafana-default-email"}),
        |s| drop(s.rules.remove("r2")),
    ];
    for (at, damage) in damages.into_iter().enumerate() {
        damage(&mut target.state());
        assert!(
            !bench.evidence(into.as_ref(), &backup, &overwrite).ok,
            "{at}"
        );
    }
    bench.restore(into.as_ref(), &backup, &overwrite);
    assert!(
        target.state().refusals.is_empty(),
        "{:?}",
        target.state().refusals
    );
    let evidence = bench.evidence(into.as_ref(), &backup, &overwrite);
    assert!(evidence.ok, "{evidence:?}");
    assert!(target.state().dashboards.contains_key("new"));

    // One dashboard, with what it needs: its folders, its panel; of its data source it says that it is missing.
    let part = FakeGrafana::start();
    let into = grafana(&bench, &part.url(), "");
    let one = Request {
        select: vec!["dashboards/d0".to_owned()],
        ..Request::default()
    };
    let done = bench.restore(into.as_ref(), &backup, &one);
    assert!(part.state().refusals.is_empty());
    assert_eq!(part.state().dashboards.len(), 1);
    assert_eq!(part.state().folders.len(), 3);
    assert_eq!(part.state().panels.len(), 1);
    assert!(part.state().data_sources.is_empty());
    assert!(
        done.iter()
            .any(|line| line.contains("\"prom\", which is not there")),
        "{done:?}"
    );
    assert!(bench.evidence(into.as_ref(), &backup, &one).ok);
    // What the server has from its files stays as it is.
    part.state().dashboards.get_mut("d0").unwrap()["provisioned"] = json!(true);
    let again = Request {
        overwrite: true,
        ..one
    };
    let done = bench.restore(into.as_ref(), &backup, &again);
    assert!(
        done.iter().any(|line| line.contains("from its files")),
        "{done:?}"
    );
}

#[test]
fn what_goes_wrong_is_told() {
    let bench = Bench::new("grafana-wrong");
    // More than one page of a list.
    let source = filled(1100);
    let from = grafana(&bench, &source.url(), "");
    let mut backup = bench.capture(from.as_ref());
    assert_eq!(backup.point().evidence["dashboards"], 1100);
    // A wrong token; nobody there; a word that selects nothing; a secret that cannot be read.
    bench.directory.file("bad", "hunter2");
    let bad = format!(
        "url = \"{}\"\ntoken = \"file:{}\"",
        source.url(),
        bench.directory.join("bad").display()
    );
    let error = bench
        .try_capture(driver("grafana", &bad).as_ref())
        .unwrap_err();
    assert_eq!(error.code(), "component_denied");
    assert!(!text(&error).contains("hunter2"));
    let lines = driver("grafana", &bad).check(&bench.context()).unwrap();
    assert!(
        lines.iter().any(|line| !line.ok && !line.hint.is_empty()),
        "{lines:?}"
    );
    let port = pgark_regress::redis_server::free_port();
    let nobody = grafana(&bench, &format!("http://127.0.0.1:{port}"), "");
    assert_eq!(
        bench.try_capture(nobody.as_ref()).unwrap_err().code(),
        "component_unreachable"
    );
    for (select, code) in [
        ("dashboard/d0", "component_select"),
        ("dashboards/none", "nothing_selected"),
    ] {
        let wrong = Request {
            select: vec![select.to_owned()],
            ..Request::default()
        };
        let error = bench.try_restore(from.as_ref(), &backup, &wrong);
        assert_eq!(error.unwrap_err().code(), code);
    }
    let target = FakeGrafana::start();
    let unreadable = grafana(
        &bench,
        &target.url(),
        "[secrets.prom]\npassword = \"file:/nowhere\"\n",
    );
    let error = bench
        .try_restore(unreadable.as_ref(), &backup, &Request::default())
        .unwrap_err();
    assert_eq!(error.code(), "secret_unreadable");
    // A damaged object: before anything is written.
    backup.content_mut(b"dashboards/d9.json").unwrap()[0] = b'x';
    let into = grafana(&bench, &target.url(), "");
    let error = bench
        .try_restore(into.as_ref(), &backup, &Request::default())
        .unwrap_err();
    assert_eq!(error.code(), "grafana_object");
    assert!(target.state().writes.is_empty());
    bench.cancel.cancel();
    assert_eq!(
        bench.try_capture(from.as_ref()).unwrap_err().code(),
        "cancelled"
    );
}
