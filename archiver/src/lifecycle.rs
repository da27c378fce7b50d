//! Lifecycle rules of a bucket, made from the retention policy and the layout of the repository.
//!
//! Rules move data to cheaper storage classes; what is no longer needed is for gc, which knows. A rule
//! removes nothing but what is of no use after hours: temporary objects, tails of WAL, unfinished
//! uploads, and versions that gc or its like has deleted.

use crate::storage::bucket::Rule;
use pgark_types::retention::{Age, RetentionPolicy};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// S3's classes charge for 30, 90 and 180 days at least.
const IA_DAYS: u16 = 30;
const GLACIER_DAYS: u16 = 90;
const DEEP_ARCHIVE_DAYS: u16 = 180;
/// A backup may refer to data that an older one stored, up to this age: a file is stored whole again
/// then.
const REBASE_DAYS: u32 = 60;
/// Smaller objects cost more in these classes than in the standard one. Indexes of WAL are smaller.
const BYTES_ABOVE: u64 = 128 << 10;
/// Tails and temporary objects are of use for hours.
const TEMPORARY_DAYS: u16 = 7;
/// For how long what was deleted can be brought back in a bucket with versions and without locks.
const NONCURRENT_DAYS: u16 = 30;

/// How cold data may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coldest {
    /// Nothing is moved.
    None,
    /// Cheaper to keep, dearer to read, at hand at once.
    StandardIa,
    /// Must be asked for: hours.
    Glacier,
    /// Must be asked for: half a day and more.
    DeepArchive,
}

/// Rules, and what to know of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proposal {
    /// What the names of the rules begin with: the rules of this repository.
    pub own: String,
    /// The rules.
    pub rules: Vec<Rule>,
    /// For the operator.
    pub notes: Vec<String>,
}

/// For how many days a policy keeps backups, and WAL for a recovery to any moment; `None`: for ever, or
/// it cannot be told.
fn days_kept(policy: &RetentionPolicy) -> (Option<u32>, Option<u32>) {
    let days = |age: Age| u32::try_from(age.as_seconds() / 86_400).unwrap_or(u32::MAX);
    let window = policy.window.map(days);
    if !policy.has_rules() {
        return (None, None);
    }
    let counted = [
        (policy.hourly, 1),
        (policy.daily, 1),
        (policy.weekly, 7),
        (policy.monthly, 31),
        (policy.yearly, 366),
    ];
    let counted = counted
        .into_iter()
        .map(|(n, days)| n.unwrap_or(0).saturating_mul(days));
    let ages = [policy.keep_within, policy.window].into_iter().flatten();
    let longest = counted.chain(ages.map(days)).max();
    // Without a window every backup keeps all WAL after it; how old the last so many are, nobody knows.
    if window.is_none() && policy.keep_last.is_some_and(|n| n > 0) {
        return (None, None);
    }
    (longest, window.or(longest))
}

/// The rules for the repository whose objects' names begin with `place` (empty, or with a `/` at its end).
/// `policies` are those of all of its components; `locks`: whether its first versions count.
#[must_use]
pub fn propose(
    place: &str,
    policies: &[RetentionPolicy],
    locks: bool,
    coldest: Coldest,
) -> Proposal {
    let digest = blake3::hash(place.as_bytes()).to_hex();
    let own = format!("pgark-{}-", digest.get(..8).unwrap_or_default());
    let mut proposal = Proposal {
        rules: housekeeping(&own, place, locks),
        own,
        notes: Vec::new(),
    };
    if coldest == Coldest::None {
        return proposal;
    }
    if policies.is_empty() {
        let note = "no component has a retention policy: nothing is moved to cheaper classes (\"pgark retention set\")";
        proposal.notes.push(note.to_owned());
        return proposal;
    }
    let kept: Vec<_> = policies.iter().map(days_kept).collect();
    // The policies share packs' prefix: what holds for one must hold for all.
    let longest = kept.iter().map(|(longest, _)| longest.unwrap_or(u32::MAX));
    let longest = longest.max().unwrap_or(0);
    let window = kept.iter().map(|(_, window)| window.unwrap_or(u32::MAX));
    let window = window.max().unwrap_or(0);
    let packs = transitions(longest, window.saturating_add(REBASE_DAYS), coldest);
    let wal = transitions(longest, window, coldest);
    // Packs are large; among WAL lie small indexes, which every restore reads.
    for (name, prefix, transitions, bytes_above) in [
        ("packs", "packs/", packs, None),
        ("wal", "wal/", wal, Some(BYTES_ABOVE)),
    ] {
        if transitions.is_empty() {
            proposal.notes.push(format!(
                "{prefix} stays in its class: a cheaper one charges for more days than the policy keeps it"
            ));
            continue;
        }
        if let Some((after, class)) = transitions.iter().find(|(_, c)| c != "STANDARD_IA") {
            proposal.notes.push(format!(
                "what needs {prefix} older than {after} days comes from {class}: \"pgark restore --retrieve\" asks for it, and it takes hours"
            ));
        }
        proposal.rules.push(Rule {
            id: format!("{}{name}", proposal.own),
            prefix: format!("{place}{prefix}"),
            bytes_above,
            transitions,
            ..Rule::default()
        });
    }
    proposal
}

/// What is to be moved, when, and where to: never to an archive what is younger than `at_hand` days, and
/// never where a class charges for longer than the data stays.
fn transitions(longest: u32, at_hand: u32, coldest: Coldest) -> Vec<(u16, String)> {
    let mut found: Vec<(u16, String)> = Vec::new();
    let mut earliest = u32::from(IA_DAYS);
    for (cold, class, days_min, begin) in [
        (
            Coldest::StandardIa,
            "STANDARD_IA",
            IA_DAYS,
            u32::from(IA_DAYS),
        ),
        (
            Coldest::Glacier,
            "GLACIER",
            GLACIER_DAYS,
            at_hand.saturating_add(1).max(GLACIER_DAYS.into()),
        ),
        (
            Coldest::DeepArchive,
            "DEEP_ARCHIVE",
            DEEP_ARCHIVE_DAYS,
            at_hand.saturating_add(1).max(DEEP_ARCHIVE_DAYS.into()),
        ),
    ] {
        let begin = begin.max(earliest);
        let pays = begin.saturating_add(days_min.into()) <= longest;
        let Ok(after) = u16::try_from(begin) else {
            break;
        };
        if cold > coldest || !pays {
            break;
        }
        found.push((after, class.to_owned()));
        earliest = begin.saturating_add(days_min.into());
    }
    found
}

fn housekeeping(own: &str, place: &str, locks: bool) -> Vec<Rule> {
    let uploads = Rule {
        id: format!("{own}uploads"),
        prefix: place.to_owned(),
        abort_uploads_days: Some(1),
        // Where first versions count, an older version is the one that counts. Without them it is what
        // gc deleted.
        noncurrent_days: (!locks).then_some(NONCURRENT_DAYS),
        ..Rule::default()
    };
    let passing = ["tmp", "tail"].map(|what| Rule {
        id: format!("{own}{what}"),
        prefix: format!("{place}{what}/"),
        expire_days: Some(TEMPORARY_DAYS),
        noncurrent_days: locks.then_some(1),
        ..Rule::default()
    });
    [uploads].into_iter().chain(passing).collect()
}

impl Proposal {
    /// The same for a server that knows no conditions on sizes: what needs one is left out.
    #[must_use]
    pub fn without_sizes(mut self) -> Self {
        let before = self.rules.len();
        self.rules.retain(|rule| rule.bytes_above.is_none());
        if self.rules.len() < before {
            self.notes
                .push("the server knows no conditions on sizes: WAL stays in its class".to_owned());
        }
        self
    }

    /// Whether a rule has a condition on sizes.
    #[must_use]
    pub fn has_sizes(&self) -> bool {
        self.rules.iter().any(|rule| rule.bytes_above.is_some())
    }
}

/// The rule as `aws s3api put-bucket-lifecycle-configuration` takes it.
#[must_use]
pub fn as_json(rule: &Rule) -> Value {
    let filter = match rule.bytes_above {
        Some(bytes) => json!({"And": {"Prefix": rule.prefix, "ObjectSizeGreaterThan": bytes}}),
        None => json!({"Prefix": rule.prefix}),
    };
    let mut value = json!({"ID": rule.id, "Status": "Enabled", "Filter": filter});
    let mut put = |name: &str, part: Value| {
        if let Some(fields) = value.as_object_mut() {
            fields.insert(name.to_owned(), part);
        }
    };
    if !rule.transitions.is_empty() {
        let parts = rule.transitions.iter();
        let parts = parts.map(|(days, class)| json!({"Days": days, "StorageClass": class}));
        put("Transitions", parts.collect());
    }
    if let Some(days) = rule.expire_days {
        put("Expiration", json!({"Days": days}));
    }
    if let Some(days) = rule.noncurrent_days {
        put(
            "NoncurrentVersionExpiration",
            json!({"NoncurrentDays": days}),
        );
    }
    if let Some(days) = rule.abort_uploads_days {
        put(
            "AbortIncompleteMultipartUpload",
            json!({"DaysAfterInitiation": days}),
        );
    }
    value
}

/// The rule in words.
#[must_use]
pub fn in_words(rule: &Rule) -> String {
    let mut text = format!("\"{}\"", rule.prefix);
    if let Some(bytes) = rule.bytes_above {
        let _ = write!(text, " above {bytes} bytes");
    }
    let mut parts = Vec::new();
    for (days, class) in &rule.transitions {
        parts.push(format!("to {class} after {days} days"));
    }
    if let Some(days) = rule.expire_days {
        parts.push(format!("gone after {days} days"));
    }
    if let Some(days) = rule.noncurrent_days {
        parts.push(format!("deleted versions gone after {days} days"));
    }
    if let Some(days) = rule.abort_uploads_days {
        parts.push(format!("unfinished uploads gone after {days} days"));
    }
    format!("{text}: {}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn age(days: u64) -> Age {
        Age::seconds(days * 86_400)
    }

    fn of<'a>(proposal: &'a Proposal, name: &str) -> Option<&'a Rule> {
        proposal.rules.iter().find(|rule| rule.id.ends_with(name))
    }

    #[test]
    fn years_of_backups_go_to_the_archive_and_the_window_stays_at_hand() {
        let policy = RetentionPolicy {
            yearly: Some(7),
            window: Some(age(30)),
            ..RetentionPolicy::default()
        };
        let proposal = propose("a/", &[policy], true, Coldest::DeepArchive);
        let packs = &of(&proposal, "packs").unwrap().transitions;
        let expected = [(30, "STANDARD_IA"), (91, "GLACIER"), (181, "DEEP_ARCHIVE")];
        let expected = expected.map(|(days, class)| (days, class.to_owned()));
        assert_eq!(packs.as_slice(), expected);
        assert_eq!(of(&proposal, "packs").unwrap().prefix, "a/packs/");
        assert_eq!(of(&proposal, "wal").unwrap().transitions[1].0, 90);
        let near = propose("a/", &[policy], true, Coldest::StandardIa);
        assert_eq!(of(&near, "packs").unwrap().transitions.len(), 1);
    }

    /// How long a hundred backups take is not known, and each keeps all WAL after it: what another
    /// component's policy says of years moves none of it, nor of the packs, out of reach.
    #[test]
    fn wal_that_a_counting_policy_needs_whole_stays_at_hand() {
        let yearly = RetentionPolicy {
            yearly: Some(7),
            window: Some(age(30)),
            ..RetentionPolicy::default()
        };
        let counting = RetentionPolicy {
            keep_last: Some(100),
            ..RetentionPolicy::default()
        };
        let dated = RetentionPolicy {
            keep_within: Some(age(10)),
            ..counting
        };
        for policies in [
            [yearly, counting],
            [counting, yearly],
            [yearly, dated],
            [counting, counting],
        ] {
            let proposal = propose("", &policies, false, Coldest::DeepArchive);
            for name in ["wal", "packs"] {
                let rule = of(&proposal, name).unwrap();
                let near = [(30, "STANDARD_IA".to_owned())];
                assert_eq!(rule.transitions, near, "{name} {policies:?}");
            }
        }
        // With a window it is known what stays whole; zero keeps nothing.
        for known in [
            RetentionPolicy {
                window: Some(age(14)),
                ..counting
            },
            RetentionPolicy {
                keep_last: Some(0),
                ..dated
            },
        ] {
            let proposal = propose("", &[yearly, known], false, Coldest::DeepArchive);
            assert_eq!(of(&proposal, "wal").unwrap().transitions[1].0, 90);
        }
    }

    #[test]
    fn what_stays_for_weeks_stays_where_it_is() {
        let policy = RetentionPolicy {
            keep_last: Some(5),
            window: Some(age(14)),
            ..RetentionPolicy::default()
        };
        let proposal = propose("", &[policy], false, Coldest::DeepArchive);
        assert!(of(&proposal, "packs").is_none() && of(&proposal, "wal").is_none());
        assert_eq!(proposal.notes.len(), 2);
        assert!(propose("", &[], false, Coldest::DeepArchive).rules.len() == 3);
    }

    proptest! {
        /// Whatever the policy: no rule removes what a backup may need, and nothing that the window needs
        /// within moments goes to an archive.
        #[test]
        fn no_rule_removes_live_data(
            yearly in proptest::option::of(0_u32..100),
            monthly in proptest::option::of(0_u32..100),
            keep_last in proptest::option::of(0_u32..100),
            window in proptest::option::of(0_u64..4000),
            within in proptest::option::of(0_u64..4000),
            locks: bool,
            place in "([a-z]{1,5}/)?",
        ) {
            let policy = RetentionPolicy {
                yearly, monthly, keep_last,
                window: window.map(age),
                keep_within: within.map(age),
                ..RetentionPolicy::default()
            };
            let proposal = propose(&place, &[policy], locks, Coldest::DeepArchive);
            for rule in &proposal.rules {
                prop_assert!(rule.prefix.starts_with(&place) && rule.id.starts_with(&proposal.own));
                let passing = [format!("{place}tmp/"), format!("{place}tail/")];
                prop_assert!(rule.expire_days.is_none() || passing.contains(&rule.prefix));
                if locks {
                    prop_assert!(rule.noncurrent_days.is_none() || passing.contains(&rule.prefix));
                }
                let movable = [format!("{place}packs/"), format!("{place}wal/")];
                prop_assert!(rule.transitions.is_empty() || movable.contains(&rule.prefix));
                let mut last = 0;
                for (days, class) in &rule.transitions {
                    prop_assert!(*days >= last + 30);
                    last = *days;
                    if class != "STANDARD_IA" && policy.has_rules() {
                        prop_assert!(u64::from(*days) > window.unwrap_or(0));
                    }
                }
            }
        }
    }
}
