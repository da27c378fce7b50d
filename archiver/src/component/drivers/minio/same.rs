//! Whether two files of an export say the same: times of changes, order and white space apart.

use serde_json::Value;

/// Files of an export that an import leaves out.
const NOT_IMPORTED: [&str; 2] = ["replication.xml", "bucket-targets.json"];

/// Whether an import sets what the file says.
pub(super) fn is_imported(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    !NOT_IMPORTED.contains(&file)
}

/// A file without what changes by itself.
pub(super) fn essence(name: &str, content: &[u8]) -> String {
    let text = String::from_utf8_lossy(content);
    if name.ends_with(".json") {
        return match serde_json::from_slice::<Value>(content) {
            Ok(value) => plain(value).to_string(),
            Err(_) => text.into_owned(),
        };
    }
    if name.ends_with(".xml") {
        let mut text: String = text.lines().map(str::trim).collect();
        while let Some((before, after)) = cut(&text, "<ExpiryUpdatedAt>", "</ExpiryUpdatedAt>") {
            text = format!("{before}{after}");
        }
        return text;
    }
    // A configuration: what is commented out is not set.
    let lines = text.lines().map(str::trim);
    let mut lines: Vec<&str> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// What stands before and after the first element of this name.
fn cut<'t>(text: &'t str, begin: &str, end: &str) -> Option<(&'t str, &'t str)> {
    let (before, rest) = text.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some((before, after))
}

/// Without the times of changes.
pub(super) fn plain(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(key, _)| !key.eq_ignore_ascii_case("updatedAt"))
            .map(|(key, value)| (key, plain(value)))
            .collect(),
        Value::Array(list) => list.into_iter().map(plain).collect(),
        other => other,
    }
}

/// The first name in a file of users or policies that `there` has with another content.
pub(super) fn conflict(own: &[u8], there: &[u8]) -> Option<String> {
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok().map(plain);
    let (Some(Value::Object(own)), Some(Value::Object(there))) = (parse(own), parse(there)) else {
        return None;
    };
    own.into_iter()
        .find(|(name, value)| there.get(name).is_some_and(|found| found != value))
        .map(|(name, _)| name)
}

/// Names in a file of users or policies that `there` lacks, or has with another content; and how many there are.
pub(super) fn differing(own: &[u8], there: Option<&[u8]>) -> (usize, Vec<String>) {
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok().map(plain);
    let Some(Value::Object(own)) = parse(own) else {
        return (0, Vec::new());
    };
    let there = there.and_then(parse).unwrap_or_default();
    let count = own.len();
    let differing = own
        .into_iter()
        .filter(|(name, value)| there.get(name) != Some(value))
        .map(|(name, _)| name);
    (count, differing.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_by_itself_does_not_count() {
        let same = |name: &str, a: &str, b: &str| {
            essence(name, a.as_bytes()) == essence(name, b.as_bytes())
        };
        assert!(same(
            "a.json",
            r#"{"a": 1, "updatedAt": "x"}"#,
            r#"{"updatedAt":"y","a":1}"#
        ));
        assert!(!same("a.json", r#"{"a": 1}"#, r#"{"a": 2}"#));
        assert!(same(
            "b/lifecycle.xml",
            "<L><R/><ExpiryUpdatedAt>1</ExpiryUpdatedAt></L>",
            "<L>\n  <R/>\n</L>"
        ));
        assert!(same(
            "config.txt",
            "b x=1\n# c\na y=2\n",
            "a y=2\nb x=1\n# d"
        ));
        assert!(!same("config.txt", "b x=1", "b x=2"));
        let own = br#"{"a": {"secretKey": "1", "updatedAt": "x"}, "b": {}}"#;
        assert_eq!(conflict(own, br#"{"a": {"secretKey": "1"}}"#), None);
        assert_eq!(conflict(own, br#"{"a": {"secretKey": "2"}}"#).unwrap(), "a");
        let (count, names) = differing(own, Some(br#"{"a": {"secretKey": "1"}}"#));
        assert_eq!((count, names), (2, vec!["b".to_owned()]));
        assert_eq!(differing(own, None).1.len(), 2);
        assert!(!is_imported("b/replication.xml") && is_imported("b/policy.json"));
    }
}
