//! Backup sets, of all repositories that were asked.

use super::sides::Side;
use crate::Result;
use crate::repository::sets::{self, MemberOutcome, Presence, Set, SetOutcome};
use pgark_types::BackupLabel;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A set, and the repositories that have its record; each with the members that it lacks by now.
struct Known {
    set: Set,
    repositories: Vec<(String, Vec<String>)>,
}

fn known(sides: &[Side]) -> Result<Vec<Known>> {
    let mut known: BTreeMap<BackupLabel, Known> = BTreeMap::new();
    for side in sides {
        let Some(repository) = &side.repository else {
            continue;
        };
        for found in sets::list(repository)? {
            let set = match found.set {
                Ok(set) => set,
                Err(error) => {
                    tracing::error!(
                        code = error.code(),
                        "set {} is damaged: {error}",
                        found.label
                    );
                    continue;
                }
            };
            let mut missing = Vec::new();
            for member in &set.members {
                let there = match sets::presence(repository, member) {
                    Err(error) if error.kind() == crate::ErrorKind::Data => false,
                    presence => presence? == Some(Presence::There),
                };
                if !there && member.outcome != MemberOutcome::Failed {
                    missing.push(member.component.clone());
                }
            }
            let entry = known.entry(set.label.clone()).or_insert_with(|| Known {
                set,
                repositories: Vec::new(),
            });
            entry.repositories.push((side.name.clone(), missing));
        }
    }
    Ok(known.into_values().collect())
}

pub(super) fn json(sides: &[Side]) -> Result<Value> {
    let sets = known(sides)?;
    let sets = sets.iter().map(|known| {
        let set = &known.set;
        let repositories = known.repositories.iter();
        let repositories =
            repositories.map(|(name, missing)| json!({"name": name, "missing_members": missing}));
        json!({
            "label": set.label,
            "outcome": set.outcome,
            "started_at": set.started_at,
            "stopped_at": set.stopped_at,
            "quiesce": set.quiesce,
            "postgres": set.postgres,
            "members": set.members,
            "notes": set.notes,
            "repositories": repositories.collect::<Vec<_>>(),
        })
    });
    Ok(Value::Array(sets.collect()))
}

pub(super) fn text(sides: &[Side]) -> Result<String> {
    let mut text = String::new();
    for known in known(sides)? {
        let set = &known.set;
        let outcome = match set.outcome {
            SetOutcome::Complete => "complete",
            SetOutcome::Failed => "FAILED",
        };
        let _ = writeln!(
            text,
            "\nset {}  {}  {outcome}",
            set.label,
            set.stopped_at.format("%Y-%m-%d %H:%M:%SZ")
        );
        for member in &set.members {
            let what = match (&member.label, &member.code) {
                (Some(label), None) => label.to_string(),
                (Some(label), Some(code)) => format!("{label} ({code})"),
                (None, code) => format!("FAILED ({})", code.as_deref().unwrap_or("not taken")),
            };
            let consistency = member
                .consistency
                .map_or("", crate::component::Consistency::as_str);
            let _ = writeln!(text, "  {}: {what}  {consistency}", member.component);
        }
        if let Some(postgres) = &set.postgres {
            let _ = writeln!(
                text,
                "  one moment: {} to {} on timeline {}",
                postgres.begin.lsn, postgres.end.lsn, postgres.timeline
            );
        }
        for (name, missing) in &known.repositories {
            if !missing.is_empty() {
                let _ = writeln!(text, "  repository {name} lacks {}", missing.join(", "));
            }
        }
    }
    Ok(text)
}
