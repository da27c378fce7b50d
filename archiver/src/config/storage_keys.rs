//! Which keys of `[repository.<name>]` belong to which kind of storage. One that belongs to another kind
//! is refused: whoever wrote it believes that it has an effect.

use crate::{Error, Result};
use toml::Table;

/// What belongs to S3 alone.
const S3: [&str; 21] = [
    "bucket",
    "prefix",
    "endpoint",
    "region",
    "path_style",
    "ca_file",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "credentials_file",
    "profile",
    "storage_class_wal",
    "storage_class_packs",
    "storage_class_metadata",
    "sse",
    "sse_kms_key_id",
    "sse_customer_key",
    "object_lock",
    "object_lock_days",
    "checksums",
    "conditional_put",
];

/// What belongs to SFTP alone.
const SFTP: [&str; 8] = [
    "host",
    "port",
    "user",
    "host_key",
    "host_key_sha256",
    "key_file",
    "key_passphrase",
    "ssh_agent",
];

/// What belongs to storages behind a network.
const REMOTE: [&str; 3] = [
    "bytes_per_second_max",
    "attempt_timeout_seconds",
    "deadline_seconds",
];

/// The kinds that a key belongs to; none: every kind.
fn kinds_of(key: &str) -> &'static [&'static str] {
    if S3.contains(&key) {
        &["s3"]
    } else if SFTP.contains(&key) {
        &["sftp"]
    } else if REMOTE.contains(&key) {
        &["s3", "sftp"]
    } else if key == "path" {
        &["posix", "sftp"]
    } else {
        &[]
    }
}

/// Refuses keys of another kind than the section's own. What is wrong with the sections otherwise is told
/// by whoever reads them.
///
/// # Errors
/// Kind Invalid, `config_invalid`, with every such key of the first section that has any.
pub(super) fn check(text: &str) -> Result<()> {
    let Ok(table) = text.parse::<Table>() else {
        return Ok(());
    };
    let sections = table.get("repository").and_then(toml::Value::as_table);
    for (name, section) in sections.into_iter().flatten() {
        let Some(section) = section.as_table() else {
            continue;
        };
        let Some(kind) = section.get("kind").and_then(toml::Value::as_str) else {
            continue;
        };
        let misplaced = section.keys().map(|key| (key, kinds_of(key)));
        let misplaced = misplaced.filter(|(_, kinds)| !kinds.is_empty() && !kinds.contains(&kind));
        let told: Vec<String> = misplaced
            .map(|(key, kinds)| format!("{key} (of kind {})", kinds.join(" or ")))
            .collect();
        if !told.is_empty() {
            return Err(Error::invalid(
                "config_invalid",
                format!(
                    "repository.{name}: kind \"{kind}\" knows nothing of {}",
                    told.join(", ")
                ),
            )
            .with_detail("A key without effect is not passed over in silence.")
            .with_hint("Remove it, or set the kind that it belongs to: docs/reference/config.md says which."));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const POSIX: &str = "kind = \"posix\"\npath = \"/r\"\n";
    const BUCKET: &str = "kind = \"s3\"\nbucket = \"r-r\"\n";
    const SERVER: &str = "kind = \"sftp\"\nhost = \"h\"\nuser = \"u\"\npath = \"/r\"\nkey_file = \"/k\"\n\
        host_key_sha256 = \"SHA256:mKYCbEskvHyg+6avpTZ+sJhfBn3+AUHEnJ0Qatj1joU\"\n";

    /// A value that the key takes.
    fn value(key: &str) -> &'static str {
        match key {
            "path_style" => "true",
            "port" | "object_lock_days" => "22",
            "sse" | "object_lock" => "\"none\"",
            "checksums" => "\"required\"",
            "conditional_put" => "\"probe\"",
            key if REMOTE.contains(&key) => "5",
            _ => "\"/x\"",
        }
    }

    fn parse(section: &str) -> Result<Config> {
        Config::parse(&format!("[repository.r]\n{section}"))
    }

    #[test]
    fn a_key_of_another_kind_is_refused_by_its_name() {
        for (section, kind) in [(POSIX, "posix"), (BUCKET, "s3"), (SERVER, "sftp")] {
            parse(section).unwrap();
            let all = S3.iter().chain(&SFTP).chain(&REMOTE).chain(&["path"]);
            for key in all.filter(|key| !kinds_of(key).contains(&kind)) {
                let error = parse(&format!("{section}{key} = {}\n", value(key))).unwrap_err();
                let told = error.to_string();
                let name =
                    format!("repository.r: kind \"{kind}\" knows nothing of {key} (of kind ");
                assert!(told.starts_with(&name), "{told}");
                assert!(error.hint().is_some());
            }
        }
        // Even with the value that it has by default, and several at once.
        let told = parse(&format!("{POSIX}port = 22\nregion = \"us-east-1\"\n")).unwrap_err();
        assert!(
            told.to_string()
                .contains("port (of kind sftp), region (of kind s3)"),
            "{told}"
        );
        // What belongs to both is fine in both.
        for section in [BUCKET, SERVER] {
            let more = "deadline_seconds = 9\nbytes_per_second_max = 1\nrequired = true\n";
            parse(&format!("{section}{more}")).unwrap();
        }
    }

    /// The reference page says which kind each key belongs to; this table says the same.
    #[test]
    fn every_key_belongs_where_its_description_says() {
        let source = include_str!("../config.rs");
        let (_, section) = source.split_once("pub struct RepositoryConfig {").unwrap();
        let (section, _) = section.split_once("\n}\n").unwrap();
        let mut seen = 0;
        let mut doc = String::new();
        for line in section.lines().map(str::trim) {
            if let Some(text) = line.strip_prefix("/// ") {
                doc.push_str(text);
                doc.push(' ');
            } else if let Some((key, _)) = line.strip_prefix("pub ").and_then(|l| l.split_once(':'))
            {
                let expected: &[&str] = match doc.as_str() {
                    d if d.starts_with("S3: ") => &["s3"],
                    d if d.starts_with("SFTP: ") => &["sftp"],
                    d if d.starts_with("S3, SFTP: ") => &["s3", "sftp"],
                    _ if key == "path" => &["posix", "sftp"],
                    _ => &[],
                };
                assert_eq!(kinds_of(key), expected, "{key}");
                seen += 1;
                doc.clear();
            }
        }
        assert_eq!(
            seen,
            S3.len() + SFTP.len() + REMOTE.len() + 4,
            "kind, path, required, encryption"
        );
    }
}
