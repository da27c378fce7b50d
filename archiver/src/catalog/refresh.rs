//! The tables brought in line with the repositories.

use super::points::Letters;
use super::table::{self, Changed, Table};
use super::{Alert, Connection, Snapshot, alert, audit, points};
use crate::component::drivers;
use crate::config::{Config, RepositoryKind};
use crate::repository::Repository;
use crate::repository::sets::SetStage;
use crate::wal::repositories::Repositories;
use crate::{Error, Result};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// `checked_at` moves as often at most: moving it writes WAL.
const STAMP_EVERY: TimeDelta = TimeDelta::minutes(10);
/// News of WAL alone wait for so many refreshes: writing them is WAL itself, and with `archive_timeout` an
/// idle cluster would archive a segment because the one before was cataloged.
const WAL_EVERY: u64 = 5;
/// How many segments of a cluster one refresh looks at for restore points: an agent that begins over years
/// of WAL in a bucket does its other work meanwhile.
const SEGMENTS_MAX: usize = 256;
/// Two that refresh at once wait for one another: agents of two hosts, or one and `catalog rebuild`.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7091113152601)";
/// Tables whose rows come from repositories.
const FROM_REPOSITORIES: [Table; 6] = [
    table::CLUSTER,
    table::TIMELINE,
    table::WAL_RANGE,
    table::BACKUP,
    table::BACKUP_SET,
    table::WINDOW,
];

/// What a refresh wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mended {
    /// Rows of the catalog, by table.
    pub tables: BTreeMap<&'static str, Changed>,
    /// Audit records that were put into the repositories.
    pub audit_stored: usize,
    /// Audit records that came from them.
    pub audit_loaded: usize,
    /// Repositories that could not be read: their rows are as before.
    pub unknown: Vec<String>,
    /// Alerts that hold.
    pub alerts: usize,
}

impl Mended {
    /// How many rows changed.
    #[must_use]
    pub fn rows(&self) -> u64 {
        let changed = self.tables.values();
        changed
            .map(|changed| changed.removed + changed.written)
            .sum()
    }
}

/// The catalog, and what is remembered between two refreshes.
#[derive(Debug)]
pub struct Catalog {
    node: String,
    snapshots: BTreeMap<String, Snapshot>,
    stamp: Option<DateTime<Utc>>,
    /// When everything was last written.
    complete_at: Option<DateTime<Utc>>,
    /// Objects and bytes of the repositories, as they were then.
    objects: BTreeMap<String, (i64, i64)>,
    segments_max: usize,
}

/// Why the catalog is refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// It is time to.
    Routine,
    /// A job has ended, and somebody may look at what it made.
    Job,
    /// Everything is to be read again.
    Thorough,
}

/// One repository as it was found.
struct Seen {
    name: String,
    error: Option<Error>,
}

impl Catalog {
    /// For the agent of the host `node`.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            snapshots: BTreeMap::new(),
            stamp: None,
            complete_at: None,
            objects: BTreeMap::new(),
            segments_max: SEGMENTS_MAX,
        }
    }

    /// Looks for restore points in all WAL at once, however long that takes.
    #[must_use]
    pub fn patient(mut self) -> Self {
        self.segments_max = usize::MAX;
        self
    }

    /// Looks at every repository and writes what differs. One whose objects have the names they had is not
    /// read again, unless the occasion asks for it.
    ///
    /// # Errors
    /// The server's; kind Invalid for a configuration without a required repository. What a repository lets
    /// nobody read is an alert.
    pub fn refresh(
        &mut self,
        config: &Config,
        connection: &mut Connection,
        now: DateTime<Utc>,
        occasion: Occasion,
    ) -> Result<Mended> {
        let repositories = Repositories::open(config)?;
        let (seen, news) = self.look(&repositories, occasion == Occasion::Thorough);
        let pause = config
            .agent
            .catalog_refresh_seconds
            .saturating_mul(WAL_EVERY);
        let pause = TimeDelta::seconds(i64::try_from(pause).unwrap_or(i64::MAX / 1000));
        let waited = self.complete_at.is_none_or(|at| now - at >= pause);
        // A restore point that is shown is to be in WAL that is shown.
        let marked = self.snapshots.values().any(|s| s.points.has_news);
        let complete = news || waited || marked || occasion != Occasion::Routine;
        if complete {
            let counted = self.snapshots.iter();
            let counted = counted.filter_map(|(name, s)| Some((name.clone(), s.objects?)));
            self.objects = counted.collect();
        }
        let unknown = seen.iter().filter(|seen| seen.error.is_some());
        let unknown: Vec<String> = unknown.map(|seen| seen.name.clone()).collect();
        if self.stamp.is_none_or(|stamp| now - stamp >= STAMP_EVERY) {
            self.stamp = Some(now);
        }
        let alerts = self.alerts(&seen);
        let components = components(config, &self.node);
        let states = self.repositories(config, &seen);
        let mut mended = Mended {
            alerts: alerts.len(),
            ..Mended::default()
        };
        mended.tables = connection.transaction(|sql| {
            let mut tables = BTreeMap::new();
            sql.query(LOCK, &[])?;
            tables.insert(
                "component",
                table::COMPONENT.replace(sql, &components, &[])?,
            );
            tables.insert("repository", table::REPOSITORY.replace(sql, &states, &[])?);
            for of in FROM_REPOSITORIES.into_iter().filter(|_| complete) {
                let rows: Vec<Value> = self
                    .snapshots
                    .iter()
                    .filter(|(name, _)| !unknown.contains(name))
                    .flat_map(|(_, snapshot)| snapshot.rows(&of))
                    .cloned()
                    .collect();
                let name = of.name.trim_start_matches("catalog_");
                tables.insert(name, of.replace(sql, &rows, &unknown)?);
            }
            alert::write(sql, &alerts, &unknown)?;
            Ok(tables)
        })?;
        if complete {
            self.complete_at = Some(now);
            let points = self.restore_points(connection, unknown.is_empty())?;
            mended.tables.insert("restore_point", points);
        }
        let open: Vec<&Repository> = repositories
            .open
            .iter()
            .map(|(repository, _)| repository)
            .filter(|repository| !unknown.iter().any(|name| name == repository.name()))
            .collect();
        if !open.is_empty() {
            mended.audit_stored = audit::store(&mut connection.sql, &open)?;
        }
        for repository in open {
            mended.audit_loaded += audit::load(&mut connection.sql, repository)?;
        }
        mended.unknown = unknown;
        Ok(mended)
    }

    /// What was found, and whether there is news of more than WAL.
    fn look(&mut self, repositories: &Repositories, thorough: bool) -> (Vec<Seen>, bool) {
        let (mut seen, mut news) = (Vec::new(), false);
        for failed in &repositories.failed {
            seen.push(Seen {
                name: failed.name.clone(),
                error: Some(failed.to_error()),
            });
        }
        for (repository, _) in &repositories.open {
            let name = repository.name().to_owned();
            let read = self.read(repository, thorough);
            news |= matches!(read, Ok(true));
            let error = read.err();
            if let Some(error) = &error {
                tracing::warn!(
                    code = error.code(),
                    "catalog: repository \"{name}\": {error}"
                );
            }
            seen.push(Seen { name, error });
        }
        let known = |name: &str| seen.iter().any(|seen| seen.name == name);
        self.snapshots.retain(|name, _| known(name));
        (seen, news)
    }

    fn read(&mut self, repository: &Repository, thorough: bool) -> Result<bool> {
        let snapshot = self.snapshots.entry(repository.name().to_owned());
        snapshot
            .or_default()
            .update(repository, thorough, self.segments_max)
    }

    /// Those of the WAL that was looked at. Their names are whatever anybody called them: one that the
    /// database has no letters for must not keep the rest of the catalog from being written.
    fn restore_points(&mut self, connection: &mut Connection, whole: bool) -> Result<Changed> {
        // Whatever comes of it: what could not be written is tried again now and then, not at once.
        for snapshot in self.snapshots.values_mut() {
            snapshot.points.has_news = false;
        }
        let known = || self.snapshots.values().map(|snapshot| &snapshot.points);
        let mut written = points::write(&mut connection.sql, known(), whole, Letters::All);
        if written.is_err() && connection.is_alive() {
            written = points::write(&mut connection.sql, known(), whole, Letters::Ascii);
        }
        match written {
            Ok(changed) => Ok(changed),
            Err(error) if connection.is_alive() => {
                tracing::warn!(code = error.code(), "catalog: restore points: {error}");
                Ok(Changed::default())
            }
            Err(error) => Err(error),
        }
    }

    fn alerts(&self, seen: &[Seen]) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for Seen { name, error } in seen {
            match (error, self.snapshots.get(name)) {
                (Some(error), _) => {
                    let alert = Alert::of(error, alert::Severity::Critical).at(None, name);
                    alerts.push(alert);
                }
                (None, Some(snapshot)) => alerts.extend(snapshot.alerts().cloned()),
                (None, None) => {}
            }
        }
        alerts
    }

    fn repositories(&self, config: &Config, seen: &[Seen]) -> Vec<Value> {
        let rows = seen.iter().filter_map(|Seen { name, error }| {
            let section = config.repository.get(name)?;
            let snapshot = self.snapshots.get(name);
            let damaged = snapshot.is_some_and(Snapshot::is_damaged);
            let state = match error {
                Some(error) if error.kind() == crate::ErrorKind::Data => "damaged",
                Some(_) => "unavailable",
                None if damaged => "damaged",
                None => "ok",
            };
            let kind = match section.kind {
                RepositoryKind::Posix => "posix",
                RepositoryKind::S3 => "s3",
                RepositoryKind::Sftp => "sftp",
            };
            Some(json!({
                "name": name,
                "kind": kind,
                "required": section.required,
                "state": state,
                "detail": error.as_ref().map(ToString::to_string),
                "hint": error.as_ref().and_then(|e| e.hint()),
                "backup_count": snapshot.map(Snapshot::backup_count),
                "object_count": self.objects.get(name).map(|(count, _)| count),
                "stored_bytes": self.objects.get(name).map(|(_, bytes)| bytes),
                "last_verified_at": snapshot.and_then(|s| s.verified_at),
                "checked_at": self.stamp,
            }))
        });
        rows.collect()
    }
}

/// What the configuration has.
fn components(config: &Config, node: &str) -> Vec<Value> {
    let groups = |name: &str| {
        let groups = config.group.iter();
        let groups = groups.filter(|(_, group)| group.components.iter().any(|c| c == name));
        groups.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let row = |name: &str, kind: &str, stage: SetStage| {
        // The cluster's stage has another name in records of sets.
        let stage = match stage {
            SetStage::Base => "cluster",
            SetStage::Derived => "derived",
            SetStage::Blob => "blob",
        };
        json!({"name": name, "kind": kind, "stage": stage, "node": node, "groups": groups(name)})
    };
    let cluster = config
        .cluster
        .iter()
        .map(|c| row(&c.name, "postgres", SetStage::Base));
    let others = config.component.iter().map(|(name, component)| {
        let kind = component.common.kind.as_str();
        // One whose section its driver does not understand cannot be backed up either.
        let driver = drivers::open(name, kind, &component.settings);
        let stage = driver.map_or(SetStage::Blob, |driver| driver.stage().into());
        row(name, kind, stage)
    });
    cluster.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_have_the_stage_of_their_driver() {
        let config = Config::parse(
            "[cluster]\nname = \"main\"\n[repository.local]\nkind = \"posix\"\npath = \"/r\"\n\
             [component.files]\nkind = \"files\"\npaths = [\"/f\"]\n\
             [component.cache]\nkind = \"redis\"\nurl = \"redis://here:6379\"\n\
             [component.dump]\nkind = \"postgres_dump\"\ndatabases = [\"shop\"]\n\
             [component.broken]\nkind = \"redis\"\nno_such_key = 1\n\
             [group.all]\ncomponents = [\"main\", \"files\"]\n",
        )
        .unwrap();
        let rows = components(&config, "here");
        let told = |key: &str| {
            let rows = rows.iter();
            let texts = rows.map(|row| row[key].as_str().unwrap_or_default().to_owned());
            texts.collect::<Vec<_>>()
        };
        assert_eq!(told("name"), ["main", "broken", "cache", "dump", "files"]);
        assert_eq!(
            told("stage"),
            ["cluster", "blob", "derived", "derived", "blob"]
        );
        assert_eq!(rows[4]["groups"], json!(["all"]));
    }
}
