//! Schedules and retention between SQL, where they are asked for, and the repositories, where they are
//! kept and from which they come back. A change takes effect when every required repository has it.

use super::Connection;
use crate::clock::Clock;
use crate::postgres::history_file::{HistoryEntry, TimelineHistory};
use crate::postgres::session::column;
use crate::repository::Repository;
use crate::retention::{self, Change, Kept};
use crate::wal::recovery_file::RecoveryFile;
use crate::wal::repositories::Repositories;
use crate::{Error, Result};
use pgark_types::retention::RetentionPolicy;
use pgark_types::{SystemId, TimelineId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What SQL and the repositories exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    format: u32,
    schedules: Vec<Value>,
    retention: Vec<Entry>,
    /// From the repositories: the components that have a record there, and whether schedules do. Where
    /// there is one, it wins over what a dump has brought.
    #[serde(default)]
    recorded: BTreeSet<String>,
    #[serde(default)]
    schedules_recorded: bool,
    /// From the repositories, when one is away or behind: those that this tells of. What the tables say of
    /// others, or of all in general, stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    covered: Option<BTreeSet<String>>,
}

/// Whose retention, and where; without a repository: in every one that has no entry of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    component: String,
    repository: Option<String>,
    policy: RetentionPolicy,
}

/// What the tables agree with: kept in them, and rewound with them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Reference {
    system_identifier: u64,
    timeline: u32,
    /// Numbers of the policies that count, by repository and component.
    records: BTreeMap<String, BTreeMap<String, u32>>,
    /// Repositories that were away when a change was put.
    #[serde(default)]
    behind: BTreeSet<String>,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Synced {
    /// Rows that came from the repositories.
    pub imported: i32,
    /// Whether a change was put into them.
    pub stored: bool,
    /// The tables were found rewound by a recovery to the past, or copied.
    pub rewound: bool,
}

/// The cluster that the tables are in, now.
#[derive(Debug)]
pub struct Here {
    system_id: SystemId,
    timeline: TimelineId,
    /// Without it, a new timeline counts as a recovery to the past.
    history: Option<TimelineHistory>,
    /// The timeline along which "pgark restore" has recovered the cluster, some time.
    recovered_along: Option<TimelineId>,
}

impl Here {
    /// Asks the server, and reads the history file of its timeline in `data_directory`.
    ///
    /// # Errors
    /// The server's.
    pub fn ask(connection: &mut Connection, data_directory: &Path) -> Result<Self> {
        let row = connection.sql.query_one(
            "SELECT s.system_identifier, substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)
             FROM pg_control_system() AS s",
            &[],
        )?;
        let signed: i64 = column(&row, 0)?;
        let timeline = TimelineId::from_hex(column(&row, 1)?)?;
        let path = data_directory
            .join("pg_wal")
            .join(timeline.history_file_name());
        let bytes = std::fs::read(path).ok();
        // A plan that cannot be read was left by some recovery: the history does not tell which.
        let plan = RecoveryFile::read(data_directory);
        let bytes = bytes.filter(|_| plan.is_ok());
        let plan = plan.ok().flatten();
        Ok(Self {
            recovered_along: plan.and_then(|plan| plan.recovered_along()),
            system_id: SystemId(u64::from_ne_bytes(signed.to_ne_bytes())),
            timeline,
            history: bytes.and_then(|bytes| TimelineHistory::parse(timeline, &bytes).ok()),
        })
    }

    /// Whether tables that agreed with `reference` are older than they pretend: somebody recovered to the
    /// past since, restored, or copied the cluster. A promotion rewinds nothing.
    fn is_rewound(&self, reference: &Reference) -> bool {
        if reference.system_identifier != self.system_id.0 {
            return true;
        }
        if reference.timeline == self.timeline.0 {
            return false;
        }
        let Some(history) = &self.history else {
            return true;
        };
        let since = history
            .entries
            .iter()
            .skip_while(|entry| entry.timeline.0 != reference.timeline);
        let restored = |entry: &HistoryEntry| self.recovered_along == Some(entry.timeline);
        let since: Vec<bool> = since
            .map(|entry| entry.is_promotion() && !restored(entry))
            .collect();
        since.is_empty() || since.contains(&false)
    }
}

/// Brings tables and repositories together: what a repository has that the tables do not know is taken
/// over, then what was asked for in SQL is put. `component` is the cluster's: its record holds the schedules.
///
/// # Errors
/// The server's and the repositories'; kind Unavailable when a change waits and a required repository is
/// away.
pub fn sync(
    connection: &mut Connection,
    component: &str,
    repositories: &Repositories,
    here: &Here,
    clock: &dyn Clock,
) -> Result<Synced> {
    let mut sync = Sync {
        connection,
        component,
        open: repositories.open.iter().map(|(r, _)| r).collect(),
        all_open: repositories.failed.is_empty(),
        clock,
    };
    let mut synced = Synced::default();
    let mut records = sync.numbers()?;
    let reference = sync.reference()?;
    let behind: BTreeSet<String> = match &reference {
        Some(reference) => reference.behind.clone(),
        None => BTreeSet::new(),
    };
    synced.rewound = reference.as_ref().is_some_and(|r| here.is_rewound(r));
    let known = reference.as_ref().map(|r| &r.records);
    let news = |name: &String, numbers: &BTreeMap<String, u32>| match known {
        Some(known) => known.get(name) != Some(numbers) && !numbers.is_empty(),
        None => !numbers.is_empty(),
    };
    let required_away = || {
        let away = repositories.failed.iter().find(|failed| failed.required);
        away.map_or(Ok(()), |away| Err(away.to_error()))
    };
    // Nobody has the policy: what rewound tables say is all there is of it, and not to be thrown away.
    let nowhere = records.values().all(BTreeMap::is_empty);
    if synced.rewound {
        // Whoever is away may have the newest policy.
        required_away()?;
        if sync.open.is_empty() {
            return Ok(synced);
        }
    }
    let new = Reference {
        system_identifier: here.system_id.0,
        timeline: here.timeline.0,
        records: match known {
            // What one that is away has is news when it comes back.
            Some(known) if !synced.rewound => known.clone(),
            _ => BTreeMap::new(),
        },
        behind,
    };
    let has_news = records.iter().any(|(name, numbers)| news(name, numbers));
    if synced.rewound && !nowhere || has_news {
        let document = sync.stored_document(&new.behind)?;
        let new = new.clone().with(records.clone());
        synced.imported = sync.import(&document, &new, synced.rewound)?;
    }
    let pending = sync.pending()?;
    let behind = sync
        .open
        .iter()
        .any(|repository| new.behind.contains(repository.name()));
    if pending.is_none() && !behind && !(synced.rewound && nowhere) {
        return Ok(synced);
    }
    required_away()?;
    let (version, document) = match pending {
        Some(pending) => pending,
        // Nothing was asked for: one that was away, or is new, gets what holds.
        None => (0, sync.effective()?),
    };
    sync.put(&document)?;
    records = sync.numbers()?;
    let mut new = new.with(records);
    let away = repositories.failed.iter().map(|failed| failed.name.clone());
    new.behind.extend(away);
    sync.stored(version, &new)?;
    synced.stored = true;
    Ok(synced)
}

impl Reference {
    /// With the numbers that hold now in the repositories that answered; they lag no more.
    fn with(mut self, records: BTreeMap<String, BTreeMap<String, u32>>) -> Self {
        for (name, numbers) in records {
            self.behind.remove(&name);
            self.records.insert(name, numbers);
        }
        self
    }
}

impl Connection {
    /// The schedules that hold now.
    ///
    /// # Errors
    /// The server's.
    pub fn effective_schedules(&mut self) -> Result<Vec<Value>> {
        let rows = self.sql.query(
            "SELECT effective::text FROM pgark.schedule WHERE effective IS NOT NULL ORDER BY name",
            &[],
        )?;
        let schedules = rows.iter().map(|row| {
            serde_json::from_str(column(row, 0)?).map_err(|e| {
                Error::data("policy_malformed", "a schedule in the tables is no JSON")
                    .with_source(e)
            })
        });
        schedules.collect()
    }
}

struct Sync<'a> {
    connection: &'a mut Connection,
    component: &'a str,
    /// The required ones first.
    open: Vec<&'a Repository>,
    /// Whether that are all that the configuration has.
    all_open: bool,
    clock: &'a dyn Clock,
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::internal("serialize", "could not serialize a policy").with_source(e))
}

fn document(text: &str) -> Result<Document> {
    serde_json::from_str(text).map_err(|e| {
        Error::data(
            "policy_malformed",
            "the tables of the extension hold a policy that this pgark does not know",
        )
        .with_source(e)
        .with_hint("Upgrade pgark on this host to the version of the extension.")
    })
}

impl Sync<'_> {
    fn numbers(&self) -> Result<BTreeMap<String, BTreeMap<String, u32>>> {
        let numbers = self.open.iter();
        numbers
            .map(|repository| {
                let name = repository.name().to_owned();
                Ok((name, retention::numbers(repository)?))
            })
            .collect()
    }

    /// `None`: the tables never agreed with anything, or with what another pgark wrote.
    fn reference(&mut self) -> Result<Option<Reference>> {
        let rows = self
            .connection
            .sql
            .query("SELECT reference::text FROM pgark.queue_policy", &[])?;
        let text: Option<String> = match rows.first() {
            Some(row) => column(row, 0)?,
            None => None,
        };
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    fn pending(&mut self) -> Result<Option<(i64, Document)>> {
        let rows = self.connection.sql.query(
            "SELECT version, document::text FROM pgark.policy_to_store()",
            &[],
        )?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        Ok(Some((column(row, 0)?, document(column(row, 1)?)?)))
    }

    /// What holds by the tables, when nothing is pending.
    fn effective(&mut self) -> Result<Document> {
        let row = self.connection.sql.query_one(
            "SELECT jsonb_build_object('format', 1,
                'schedules', (SELECT coalesce(jsonb_agg(s.definition ORDER BY s.name), '[]')
                    FROM pgark.config_schedule AS s WHERE NOT s.dropped),
                'retention', (SELECT coalesce(jsonb_agg(jsonb_build_object('component', r.component,
                        'repository', r.repository, 'policy', r.policy) ORDER BY r.component, r.repository), '[]')
                    FROM pgark.config_retention AS r))::text",
            &[],
        )?;
        document(column(&row, 0)?)
    }

    fn import(&mut self, document: &Document, new: &Reference, rewound: bool) -> Result<i32> {
        let row = self.connection.sql.query_one(
            "SELECT pgark.policy_import($1::text::jsonb, $2::text::jsonb, $3)",
            &[&json(document)?, &json(new)?, &rewound],
        )?;
        column(&row, 0)
    }

    fn stored(&mut self, version: i64, new: &Reference) -> Result<()> {
        self.connection
            .sql
            .query(
                "SELECT pgark.policy_stored($1, $2::text::jsonb)",
                &[&version, &json(new)?],
            )
            .map(drop)
    }

    /// What the repositories hold, as a document. The first one that is up to date tells the schedules.
    fn stored_document(&self, behind: &BTreeSet<String>) -> Result<Document> {
        let mut document = Document {
            format: 1,
            schedules: Vec::new(),
            retention: Vec::new(),
            recorded: BTreeSet::new(),
            schedules_recorded: false,
            covered: None,
        };
        let mut schedules: Option<Vec<Value>> = None;
        let mut by_component: BTreeMap<String, Vec<(&str, RetentionPolicy)>> = BTreeMap::new();
        let current = |r: &&&Repository| !behind.contains(r.name());
        let repositories: Vec<&&Repository> = self.open.iter().filter(current).collect();
        if !self.all_open || repositories.len() < self.open.len() {
            let names = repositories.iter().map(|r| r.name().to_owned());
            document.covered = Some(names.collect());
        }
        for repository in &repositories {
            for component in retention::numbers(repository)?.into_keys() {
                by_component.entry(component).or_default();
            }
        }
        for repository in repositories {
            for (component, policies) in &mut by_component {
                let kept = retention::current(repository, component)?;
                let schedules_here = kept.as_ref().and_then(|kept| kept.schedules.clone());
                if component == self.component {
                    schedules = schedules.or(schedules_here);
                }
                // Without a record everything is kept there: that of another repository must not spread.
                let policy = kept.map(|kept| kept.retention).unwrap_or_default();
                policies.push((repository.name(), policy));
            }
        }
        document.schedules_recorded = schedules.is_some();
        document.schedules = schedules.unwrap_or_default();
        document.recorded = by_component.keys().cloned().collect();
        for (component, policies) in by_component {
            let entries = match document.covered {
                None => entries(&component, &policies),
                Some(_) => entries_apart(&component, &policies),
            };
            document.retention.extend(entries);
        }
        Ok(document)
    }

    /// Puts what of `document` the repositories have not.
    fn put(&self, document: &Document) -> Result<()> {
        for repository in &self.open {
            let named = document.retention.iter().map(|e| e.component.clone());
            let mut components: BTreeSet<String> = named.collect();
            components.extend(retention::numbers(repository)?.into_keys());
            components.insert(self.component.to_owned());
            for component in components {
                let kept = retention::current(repository, &component)?;
                let change = self.change(document, repository.name(), &component, kept.as_ref());
                if change.retention.is_some() || change.schedules.is_some() {
                    retention::change_policy(repository, self.clock, &component, &change)?;
                }
            }
        }
        Ok(())
    }

    fn change(
        &self,
        document: &Document,
        repository: &str,
        component: &str,
        kept: Option<&Kept>,
    ) -> Change {
        let entry = |of: Option<&str>| {
            let mut entries = document.retention.iter();
            entries.find(|e| e.component == component && e.repository.as_deref() == of)
        };
        let wanted = entry(Some(repository)).or_else(|| entry(None));
        // Without an entry, everything is kept.
        let wanted = wanted.map(|e| e.policy).unwrap_or_default();
        let has = kept.map(|kept| kept.retention).unwrap_or_default();
        let schedules = kept.and_then(|kept| kept.schedules.clone());
        let news = component == self.component
            && schedules.as_deref().unwrap_or_default() != document.schedules.as_slice();
        let mut change = Change::default();
        change.retention = (wanted != has).then_some(wanted);
        change.schedules = news.then(|| document.schedules.clone());
        change
    }
}

/// One entry for each of some repositories, without rules too: what holds in general must not come there.
fn entries_apart(component: &str, policies: &[(&str, RetentionPolicy)]) -> Vec<Entry> {
    let each = policies.iter();
    each.map(|(name, policy)| entry(component, Some(name), *policy))
        .collect()
}

fn entry(component: &str, repository: Option<&str>, policy: RetentionPolicy) -> Entry {
    Entry {
        component: component.to_owned(),
        repository: repository.map(str::to_owned),
        policy,
    }
}

/// One entry for all repositories when they agree, else one for each. A policy without rules is none.
fn entries(component: &str, policies: &[(&str, RetentionPolicy)]) -> Vec<Entry> {
    let entry = |repository, policy| entry(component, repository, policy);
    let Some((_, first)) = policies.first() else {
        return Vec::new();
    };
    if policies.iter().all(|(_, policy)| policy == first) {
        let rules = first.has_rules().then(|| entry(None, *first));
        return rules.into_iter().collect();
    }
    let each = policies.iter().filter(|(_, policy)| policy.has_rules());
    each.map(|(name, policy)| entry(Some(name), *policy))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(n: u32) -> RetentionPolicy {
        RetentionPolicy {
            keep_last: Some(n),
            ..RetentionPolicy::default()
        }
    }

    #[test]
    fn what_repositories_agree_on_is_one_entry() {
        let one = entries("main", &[("local", keep(3)), ("far", keep(3))]);
        assert_eq!((one.len(), &one[0].repository), (1, &None));
        let two = entries("main", &[("local", keep(3)), ("far", keep(9))]);
        let names: Vec<_> = two.iter().map(|e| e.repository.as_deref()).collect();
        assert_eq!(names, [Some("local"), Some("far")]);
        // One that keeps everything is no reason to spread the other's rules to it.
        let one = entries(
            "main",
            &[("local", keep(3)), ("far", RetentionPolicy::default())],
        );
        assert_eq!(
            (one.len(), one[0].repository.as_deref()),
            (1, Some("local"))
        );
        // A record that holds schedules alone, or confirmed timelines, keeps everything: no entry.
        assert_eq!(
            entries("main", &[("local", RetentionPolicy::default())]),
            []
        );
    }

    fn here(timeline: u32, reasons: &[&str]) -> Here {
        let mut text = String::new();
        for (n, reason) in reasons.iter().enumerate() {
            text += &format!("{}\t0/{}000000\t{reason}\n", n + 1, n + 2);
        }
        let timeline = TimelineId(timeline);
        Here {
            system_id: SystemId(7),
            timeline,
            history: TimelineHistory::parse(timeline, text.as_bytes()).ok(),
            recovered_along: None,
        }
    }

    #[test]
    fn a_promotion_rewinds_nothing_and_a_recovery_target_does() {
        let promoted = "no recovery target specified";
        let target = "before 2026-11-20 10:00:00+00";
        let reference = Reference {
            system_identifier: 7,
            timeline: 1,
            ..Reference::default()
        };
        assert!(!here(1, &[]).is_rewound(&reference));
        assert!(!here(2, &[promoted]).is_rewound(&reference));
        assert!(here(2, &[target]).is_rewound(&reference));
        // What happened on the way counts, not the last step alone.
        assert!(here(3, &[target, promoted]).is_rewound(&reference));
        assert!(!here(3, &[promoted, promoted]).is_rewound(&reference));
        let later = Reference {
            timeline: 2,
            ..reference.clone()
        };
        assert!(!here(3, &[target, promoted]).is_rewound(&later));
        // Restored to the end of WAL: the history alone looks like a promotion. Only that step counts.
        let restored = |along, here| Here {
            recovered_along: Some(TimelineId(along)),
            ..here
        };
        assert!(restored(1, here(2, &[promoted])).is_rewound(&reference));
        assert!(restored(2, here(3, &[promoted, promoted])).is_rewound(&reference));
        assert!(!restored(1, here(3, &[promoted, promoted])).is_rewound(&later));
        // Another cluster; a timeline that is no ancestor; one without its history.
        let other = Reference {
            system_identifier: 8,
            ..reference.clone()
        };
        assert!(here(1, &[]).is_rewound(&other));
        let ahead = Reference {
            timeline: 9,
            ..reference.clone()
        };
        assert!(here(2, &[promoted]).is_rewound(&ahead));
        let lost = Here {
            history: None,
            ..here(2, &[])
        };
        assert!(lost.is_rewound(&reference));
    }
}
