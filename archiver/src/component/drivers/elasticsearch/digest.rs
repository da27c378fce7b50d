//! What is compared: documents, mappings, settings.

use serde_json::Value;
use std::collections::BTreeSet;

/// The content of an index, whatever the order its documents come in: the sum of their hashes. Sorting by
/// `_id` would cost the server memory for every document, and some servers forbid it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Digest {
    sum: [u64; 4],
    records: u64,
}

impl Digest {
    /// Adds a document: its id, its routing, its source as the server hands it out.
    pub(super) fn add(&mut self, id: &str, routing: Option<&str>, source: Option<&str>) {
        let mut hasher = blake3::Hasher::new();
        // Lengths keep parts apart; a tag tells an empty one from one that is not there.
        for part in [Some(id), routing, source] {
            match part {
                None => drop(hasher.update(&[0])),
                Some(part) => {
                    hasher.update(&[1]);
                    hasher.update(&(part.len() as u64).to_le_bytes());
                    hasher.update(part.as_bytes());
                }
            }
        }
        let hash = hasher.finalize();
        let mut carry = false;
        for (word, bytes) in self.sum.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            let (sum, over) = word.overflowing_add(u64::from_le_bytes(eight));
            let (sum, again) = sum.overflowing_add(u64::from(carry));
            *word = sum;
            carry = over || again;
        }
        self.records += 1;
    }

    /// How many there were, and the sum in hex.
    pub(super) fn finish(&self) -> (u64, String) {
        let words = self.sum.iter().rev();
        let hex = words.map(|word| format!("{word:016x}")).collect();
        (self.records, hex)
    }
}

/// The hash of a value: JSON with its keys in order.
pub(super) fn of_value(value: &Value) -> String {
    let text = value.to_string();
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// Settings that an index gets from the server that it is on, and that no restore keeps.
const OWN_SETTINGS: [&str; 9] = [
    "index.uuid",
    "index.history.uuid",
    "index.creation_date",
    "index.provided_name",
    "index.verified_before_close",
    "index.verified_read_only",
    "index.blocks.write",
    "index.blocks.read_only_allow_delete",
    "index.remote_store.segment.repository",
];

/// Settings that count, of `flat_settings`.
pub(super) fn settings_of(flat: &Value) -> Value {
    let own: BTreeSet<&str> = OWN_SETTINGS.into();
    let mut kept = flat.clone();
    if let Some(map) = kept.as_object_mut() {
        map.retain(|key, _| {
            !own.contains(key.as_str())
                && !key.starts_with("index.version.")
                && !key.starts_with("index.resize.")
                && !key.starts_with("index.routing.allocation.initial_recovery.")
        });
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_count_and_their_order_does_not() {
        let of = |documents: &[(&str, Option<&str>, Option<&str>)]| {
            let mut digest = Digest::default();
            for (id, routing, source) in documents {
                digest.add(id, *routing, *source);
            }
            digest.finish()
        };
        let (a, b) = (("a", None, Some("{}")), ("b", Some("r"), None));
        assert_eq!(of(&[a, b]), of(&[b, a]));
        assert_eq!(of(&[]), (0, "0".repeat(64)));
        for other in [
            vec![a],
            vec![a, a, b],
            vec![("a", Some(""), Some("{}")), b],
            vec![("a", None, Some("{ }")), b],
            vec![("a", None, Some("")), b],
            vec![("ar", None, None), ("b", None, None)],
        ] {
            assert_ne!(of(&other), of(&[a, b]));
        }
        assert_ne!(
            of(&[("ab", Some("c"), None)]),
            of(&[("a", Some("bc"), None)])
        );
        // The carry goes through every word.
        let full = Digest {
            sum: [u64::MAX; 4],
            records: 0,
        };
        let (mut wrapped, mut one) = (full, Digest::default());
        wrapped.add("x", None, None);
        one.add("x", None, None);
        let last = |digest: &Digest| u128::from(digest.sum[0]) + u128::from(digest.sum[1]);
        assert_eq!(last(&wrapped), last(&one) - 1);
    }

    #[test]
    fn what_a_restore_changes_does_not_count() {
        let flat = json!({"index.uuid": "a", "index.version.created": "1", "index.version.upgraded": "1",
            "index.number_of_shards": "2", "index.blocks.write": "true", "index.blocks.read": "true"});
        let kept = settings_of(&flat);
        assert_eq!(
            kept,
            json!({"index.number_of_shards": "2", "index.blocks.read": "true"})
        );
        assert_ne!(of_value(&kept), of_value(&flat));
    }
}
