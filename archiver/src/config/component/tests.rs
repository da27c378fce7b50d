use super::super::Config;
use super::*;

const BASE: &str = "[cluster]\nconninfo = \"\"\n[component.cache]\nkind = \"redis\"\nurl = \"x\"\n";

fn refusal(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

#[test]
fn common_keys_and_those_of_the_driver_are_told_apart() {
    let text = format!(
        "{BASE}before_backup = [\"/bin/stop\", \"now\"]\nrestore_order = 7\n\
         [component.cache.reconcile]\nquery = \"SELECT 1\"\n"
    );
    let config = Config::parse(&text).unwrap();
    let cache = &config.component["cache"];
    assert_eq!(cache.common.before_backup, ["/bin/stop", "now"]);
    assert_eq!(cache.common.restore_order, Some(7));
    assert_eq!(cache.common.hook_timeout_seconds, 60);
    assert_eq!(cache.common.reconcile.as_ref().unwrap().query, "SELECT 1");
    assert_eq!(cache.settings.len(), 1);
    assert!(cache.settings.contains_key("url"));
}

#[test]
fn every_common_key_is_a_key_of_the_struct() {
    // One that is missing from COMMON_KEYS would be taken for the driver's, silently.
    let source = include_str!("../component.rs");
    let body = source.split("pub struct Common {").nth(1).unwrap();
    let body = body.split("\n}\n").next().unwrap();
    let fields: Vec<&str> = body
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub ")?.split(':').next())
        .collect();
    assert_eq!(fields, COMMON_KEYS);
}

#[test]
fn nonsense_is_refused_by_its_key() {
    for (more, key) in [
        (
            "hook_timeout_seconds = 0",
            "component.cache.hook_timeout_seconds",
        ),
        (
            "before_backup = [\"stop\"]",
            "component.cache.before_backup",
        ),
        (
            "quiesce = [\"/bin/stop\"]",
            "component.cache.quiesce and release",
        ),
        (
            "[component.cache.reconcile]\nquery = \" \"",
            "component.cache.reconcile.query",
        ),
        ("[component.main]\nkind = \"files\"", "[component.main]"),
        (
            "[group.all]\ncomponents = [\"nobody\"]",
            "group.all names \"nobody\"",
        ),
        (
            "[group.all]\ncomponents = [\"cache\", \"cache\"]",
            "group.all names \"cache\" twice",
        ),
        (
            "[group.all]\ncomponents = []",
            "group.all has no components",
        ),
        ("[backup_set]\nquiesce = \"app\"", "backup_set.quiesce"),
        (
            "[backup_set]\nquiesce_seconds_max = 0",
            "backup_set.quiesce_seconds_max",
        ),
        ("[component.\"a/b\"]\nkind = \"files\"", "name \"a/b\""),
        (
            "[component.d]\nkind = \"files\"\nrestore_requests_to = \"\"",
            "component.d.restore_requests_to",
        ),
        (
            "[component.d]\nkind = \"files\"\nrestore_requests_to = \"/r/{job}/x\"",
            "component.d.restore_requests_to",
        ),
        (
            "[component.d]\nkind = \"files\"\nrestore_requests_to = \"/{job}\"",
            "component.d.restore_requests_to",
        ),
        (
            "[component.d]\nkind = \"files\"\nrestore_requests_to = \"redis://h/{job}\"",
            "component.d.restore_requests_to",
        ),
    ] {
        let error = refusal(&format!("{BASE}{more}\n"));
        assert!(error.starts_with(key), "{more}: {error}");
    }
    assert!(refusal(&format!("{BASE}[backup_set]\nquiesced = 1\n")).contains("quiesced"));
    assert!(
        refusal(&format!(
            "{BASE}[component.cache.reconcile]\nquery = \"x\"\nq = 1\n"
        ))
        .contains('q')
    );
}

#[test]
fn components_are_selected_by_name_and_group() {
    let text = format!(
        "{BASE}[component.docs]\nkind = \"files\"\n[group.app]\ncomponents = [\"docs\", \"main\"]\n"
    );
    let config = Config::parse(&text).unwrap();
    let select = |names: &[&str], groups: &[&str]| {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        config.select_components(&own(names), &own(groups))
    };
    assert_eq!(select(&[], &[]).unwrap(), ["main", "cache", "docs"]);
    assert_eq!(
        select(&["docs", "cache", "docs"], &[]).unwrap(),
        ["cache", "docs"]
    );
    assert_eq!(
        select(&["cache"], &["app"]).unwrap(),
        ["main", "cache", "docs"]
    );
    assert_eq!(select(&[], &["app"]).unwrap(), ["main", "docs"]);
    assert_eq!(select(&[], &["full"]).unwrap(), ["main", "cache", "docs"]);
    assert_eq!(
        select(&["nobody"], &[]).unwrap_err().code(),
        "component_unknown"
    );
    assert_eq!(
        select(&[], &["volumes"]).unwrap_err().code(),
        "group_unknown"
    );
    let bare = Config::parse("[repository.r]\nkind = \"posix\"\npath = \"/r\"").unwrap();
    assert_eq!(
        bare.select_components(&[], &[]).unwrap_err().code(),
        "no_components"
    );
}

#[test]
fn requests_from_sql_have_a_place() {
    for to in ["/r/{job}", "/r", "redis://other:6379", "db.example:5433"] {
        let more = format!("[component.d]\nkind = \"files\"\nrestore_requests_to = \"{to}\"\n");
        let config = Config::parse(&format!("{BASE}{more}")).unwrap();
        let section = &config.component["d"];
        assert_eq!(section.common.restore_requests_to.as_deref(), Some(to));
        assert!(!section.settings.contains_key("restore_requests_to"));
        // Nobody is asked by default.
        assert_eq!(config.component["cache"].common.restore_requests_to, None);
    }
}
