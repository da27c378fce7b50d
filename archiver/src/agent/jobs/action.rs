//! What a job does. It looks into the repository first: what is there was done, whoever did it.

use super::fallback::Fallback;
use crate::backup::{self, Spread};
use crate::cancel::CancelToken;
use crate::catalog::queue::{Job, Outcome};
use crate::clock::{Clock as _, SharedClock, SystemClock};
use crate::component::{coordinator, host, levers};
use crate::config::Config;
use crate::gc::{self, Settings};
use crate::progress::Meter;
use crate::repository::format::component::Record;
use crate::repository::format::manifest::{JOB_ANNOTATION, NODE_ANNOTATION, OWN_ANNOTATIONS};
use crate::repository::sets::{self, Set, SetOutcome};
use crate::repository::{Repository, backups};
use crate::schedule::{self, Occurrence};
use crate::verify::{self, Level, Scope};
use crate::wal::repositories::Repositories;
use crate::{Error, Result, retention};
use chrono::{DateTime, TimeDelta};
use pgark_types::BackupLabel;
use pgark_types::job::{self, Action, BackupOptions, JobOptions, SweepOptions, VerifyOptions};
use pgark_types::schedule::ScheduleError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use ulid::Ulid;

/// Findings that a failed verification names.
const FINDINGS_TOLD: usize = 5;

/// How often it is looked whether the agent is done with an occurrence that it began without the server.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The server's clock, which names jobs, may be ahead of this host's by so much.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::minutes(5);

/// A job and what it needs.
pub(super) struct Work {
    pub(super) config: Arc<Config>,
    pub(super) node: String,
    pub(super) fallback: Arc<Fallback>,
    pub(super) job: Job,
    pub(super) cancel: CancelToken,
    pub(super) meter: Meter,
}

impl Work {
    /// Runs the job to its end.
    pub(super) fn run(self) -> Outcome {
        match self.attempt() {
            Ok(outcome) => outcome,
            Err(error) if error.code() == "cancelled" || self.cancel.is_cancelled() => {
                Outcome::Canceled(error)
            }
            Err(error) => Outcome::Failed(error),
        }
    }

    fn attempt(&self) -> Result<Outcome> {
        if let Some(elsewhere) = self.claim_occurrence()? {
            return Ok(elsewhere);
        }
        match self.options()? {
            JobOptions::Backup(options) => self.backup(options),
            JobOptions::Verify(options) => self.verify(&options),
            JobOptions::Expire(options) => self.expire(options),
            JobOptions::Gc(options) => self.gc(options),
            JobOptions::Restore(options) => self.restore(&options),
        }
    }

    /// The tables checked them with the extension's own version of the same code.
    fn options(&self) -> Result<JobOptions> {
        let unknown = |error: ScheduleError| {
            Error::invalid("job_unknown", error.message)
                .with_detail(error.detail)
                .with_hint("Upgrade pgark on this host to the version of the extension.")
        };
        let action: Action = self.job.action.parse().map_err(unknown)?;
        let options = Value::Object(self.job.options.clone()).to_string();
        JobOptions::parse(action, &options).map_err(unknown)
    }

    /// Decides in the repository who runs the occurrence of a schedule. `Some`: somebody else did.
    fn claim_occurrence(&self) -> Result<Option<Outcome>> {
        let Some((name, due_at)) = &self.job.occurrence else {
            return Ok(None);
        };
        let mut repositories = Repositories::open(&self.config)?.open;
        repositories.sort_by(|(a, _), (b, _)| a.name().cmp(b.name()));
        let repositories: Vec<&Repository> = repositories.iter().map(|(r, _)| r).collect();
        let mine = Occurrence {
            cluster: self.config.cluster_name().to_owned(),
            schedule: name.clone(),
            due_at: *due_at,
            job: self.job.ulid,
            node: self.node.clone(),
            claimed_at: SystemClock.now(),
        };
        let stands = schedule::claim(&repositories, &mine)?;
        if stands.job == self.job.ulid {
            return Ok(None);
        }
        // This agent began it while the server was down: whether it ran is known when that has ended.
        while self.fallback.is_running(&stands, &self.node) {
            self.cancel.check()?;
            SystemClock.sleep(LOOK_EVERY);
        }
        // Whoever made it may have died before it said so: first what there is, then who lives.
        if let Some((label, _)) = self.found(&repositories, stands.job)? {
            let result = json!({"elsewhere": {"job": stands.job.to_string(), "node": stands.node}});
            return Ok(Some(Outcome::Succeeded {
                label: Some(label),
                result,
            }));
        }
        if self.fallback.is_unfinished(&stands, &self.node) {
            return Ok(None);
        }
        let error = Error::conflict(
            "occurrence_taken",
            format!(
                "schedule \"{name}\", due {}, was run by another job",
                due_at.to_rfc3339()
            ),
        )
        .with_detail(format!(
            "Job {} on {} claimed it at {}: the repository remembers what these tables have forgotten, or the agent ran it while the server was down.",
            stands.job,
            stands.node,
            stands.claimed_at.to_rfc3339()
        ));
        Ok(Some(Outcome::Canceled(error)))
    }

    fn repositories(&self) -> Result<Vec<Repository>> {
        let repositories = Repositories::open(&self.config)?;
        let wanted = |name: &str| self.job.repository.as_deref().is_none_or(|w| w == name);
        if let Some(name) = &self.job.repository
            && !self.config.repository.contains_key(name)
        {
            return Err(Error::invalid(
                "repository_unknown",
                format!("the configuration has no repository \"{name}\""),
            )
            .with_hint("Repositories are the [repository.NAME] sections."));
        }
        let mut failed = repositories.failed.iter();
        if let Some(failed) = failed.find(|failed| wanted(&failed.name)) {
            return Err(failed.to_error());
        }
        let open = repositories
            .open
            .into_iter()
            .map(|(repository, _)| repository);
        Ok(open
            .filter(|repository| wanted(repository.name()))
            .collect())
    }

    /// What a backup is of.
    fn components(&self) -> Result<Vec<String>> {
        let (groups, names): (Vec<String>, Vec<String>) = self
            .job
            .components
            .iter()
            .flatten()
            .cloned()
            .partition(|name| self.config.group.contains_key(name));
        self.config.select_components(&names, &groups)
    }

    fn backup(&self, options: BackupOptions) -> Result<Outcome> {
        let cluster = self.config.cluster_name();
        let components = self.components()?;
        let open = Repositories::open(&self.config)?.open;
        let open: Vec<&Repository> = open.iter().map(|(repository, _)| repository).collect();
        if let Some((label, result)) = self.found(&open, self.job.ulid)? {
            tracing::info!(job = %self.job.ulid, "an earlier attempt has made backup {label}");
            return Ok(Outcome::Succeeded {
                label: Some(label),
                result,
            });
        }
        let mut annotations = options.annotations;
        annotations.retain(|key, _| !key.starts_with(OWN_ANNOTATIONS));
        annotations.insert(JOB_ANNOTATION.to_owned(), self.job.ulid.to_string());
        annotations.insert(NODE_ANNOTATION.to_owned(), self.node.clone());
        let options = backup::Options {
            annotations,
            spread_checkpoint: options.spread_checkpoint,
            parallel: None,
            read_bytes_per_second_max: None,
            meter: Some(self.meter.clone()),
        };
        let repositories: Vec<String> = self.job.repository.iter().cloned().collect();
        let clock: SharedClock = Arc::new(SystemClock);
        if components != [cluster] {
            let request = host::Request {
                components,
                repositories,
                options,
                full: false,
            };
            self.meter.phase("backing up components");
            return told_set(
                &request,
                host::take(&self.config, &request, &clock, &self.cancel)?,
            );
        }
        // What a set that died has left must not wait for the next set. What fails is logged.
        levers::recover(&self.config);
        let (config, cancel) = (&self.config, &self.cancel);
        let spread = backup::everywhere(config, &repositories, &options, &clock, cancel)?;
        Ok(Outcome::Succeeded {
            result: told(&spread),
            label: Some(spread.label.label),
        })
    }

    /// What an earlier attempt has made, or another job for the same occurrence: `ulid` names it.
    fn found(&self, open: &[&Repository], ulid: Ulid) -> Result<Option<(BackupLabel, Value)>> {
        if self.job.action != Action::Backup.as_str() {
            return Ok(None);
        }
        Ok(match self.components()?.as_slice() {
            [component] => {
                let made = made_by(open, component, ulid)?;
                made.map(|made| {
                    let result = json!({
                        "bytes_source": made.bytes_source(), "bytes_stored": made.bytes_stored(),
                    });
                    (made.label().clone(), result)
                })
            }
            _ => set_made_by(open, ulid)?.map(|set| (set.label.clone(), members(&set))),
        })
    }

    fn verify(&self, options: &VerifyOptions) -> Result<Outcome> {
        let level = match options.level {
            Some(job::Level::Existence) => Level::Existence,
            Some(job::Level::Pages) => Level::Pages,
            Some(job::Level::Bytes) | None => Level::Bytes,
        };
        let scope = match (&options.backup, options.oldest_percent) {
            (Some(label), _) => {
                let component = self.job.components.as_ref().and_then(|names| names.first());
                let component = component.map_or(self.config.cluster_name(), String::as_str);
                Scope::Backup(component.to_owned(), label.clone())
            }
            (None, Some(percent)) => Scope::Oldest(format!("{percent}%").parse()?),
            (None, None) => Scope::All,
        };
        self.meter.phase("verifying");
        let (mut told, mut findings) = (Vec::new(), Vec::new());
        for repository in self.repositories()? {
            let now = SystemClock.now();
            let report = verify::verify(&repository, &scope, level, now, &self.cancel)?;
            if options.backup.is_none() {
                verify::remember(&repository, &SystemClock, level, &report)?;
            }
            told.push(json!({
                "repository": repository.name(), "objects": report.objects, "bytes": report.bytes,
                "findings": report.findings.len(),
            }));
            let name = repository.name();
            let lines = report.findings.iter();
            findings
                .extend(lines.map(|f| format!("{name}: {}: {}: {}", f.kind, f.object, f.detail)));
        }
        if findings.is_empty() {
            return Ok(done(json!({"repositories": told})));
        }
        let count = findings.len();
        findings.truncate(FINDINGS_TOLD);
        Err(Error::data(
            "verify_findings",
            format!("the verification has {count} findings"),
        )
        .with_detail(findings.join("\n"))
        .with_hint(
            "Run \"pgark verify\" to see all of them; then see docs/runbooks/damaged-object.md.",
        ))
    }

    fn expire(&self, options: SweepOptions) -> Result<Outcome> {
        self.meter.phase("expiring");
        let mut told = Vec::new();
        for repository in self.repositories()? {
            let components = match &self.job.components {
                Some(names) => self.config.members(names),
                None => retention::numbers(&repository)?.into_keys().collect(),
            };
            for component in components {
                self.cancel.check()?;
                told.push(self.expire_one(&repository, &component, options.dry_run)?);
            }
        }
        Ok(done(json!({"components": told})))
    }

    fn expire_one(&self, repository: &Repository, component: &str, dry: bool) -> Result<Value> {
        let expired = if dry {
            let preview = retention::preview(repository, component, SystemClock.now())?;
            let going = preview.decisions.backups.into_iter().filter(|d| !d.keep);
            going.map(|decision| decision.label).collect()
        } else {
            let request = retention::Request::default();
            retention::expire(repository, &SystemClock, component, &request)?.expired
        };
        Ok(json!({
            "repository": repository.name(), "component": component, "expired": expired,
            "dry_run": dry,
        }))
    }

    fn gc(&self, options: SweepOptions) -> Result<Outcome> {
        self.meter.phase("collecting garbage");
        let mut told = Vec::new();
        for repository in self.repositories()? {
            let settings = Settings::default();
            let report = match options.dry_run {
                true => gc::dry_run(&repository, &SystemClock, &settings, &self.cancel)?,
                false => gc::run(&repository, &SystemClock, &settings, &self.cancel)?,
            };
            told.push(json!({
                "repository": repository.name(),
                "removed": report.swept.as_ref().map(|swept| swept.objects),
                "removed_bytes": report.swept.as_ref().map(|swept| swept.bytes),
                "planned": report.plan.as_ref().map(|plan| plan.candidates.len()),
                "not_before": report.plan.as_ref().and_then(|plan| plan.not_before),
            }));
        }
        Ok(done(json!({"repositories": told})))
    }
}

fn done(result: Value) -> Outcome {
    Outcome::Succeeded {
        label: None,
        result,
    }
}

fn told(spread: &Spread) -> Value {
    let places = spread.places.iter().map(|place| match &place.result {
        Ok(_) => json!({"name": place.name, "outcome": "committed"}),
        Err(error) => json!({
            "name": place.name, "outcome": "failed", "code": error.code(), "detail": error.to_string(),
        }),
    });
    json!({
        "repositories": places.collect::<Vec<_>>(),
        "bytes_source": spread.label.bytes_source,
        "bytes_stored": spread.label.bytes_stored,
        "corrupt_pages": spread.label.corrupt_page_count,
        "seconds": spread.elapsed.as_secs_f64(),
    })
}

/// The committed backup that the job `ulid` made.
fn made_by(repositories: &[&Repository], component: &str, ulid: Ulid) -> Result<Option<Record>> {
    let wanted = ulid.to_string();
    for repository in repositories {
        let records = backups::records(repository, component)?;
        let mut records = records.into_iter().rev();
        let found = records.find(|r| r.annotations().get(JOB_ANNOTATION) == Some(&wanted));
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The complete set whose members the job `ulid` made. Older sets than the job are not looked at: their
/// labels say the second, by which alone they are in order, and clocks differ.
fn set_made_by(repositories: &[&Repository], ulid: Ulid) -> Result<Option<Set>> {
    let wanted = ulid.to_string();
    let requested = i64::try_from(ulid.timestamp_ms()).ok();
    let requested = requested.and_then(DateTime::from_timestamp_millis);
    let oldest = requested.unwrap_or_default() - CLOCKS_DIFFER;
    let oldest = BackupLabel::new(oldest, 0);
    for repository in repositories {
        for found in sets::list(repository)?.into_iter().rev() {
            let Ok(set) = found.set else { continue };
            if set.label.second() < oldest.second() {
                break;
            }
            if set.outcome != SetOutcome::Complete {
                continue;
            }
            for member in &set.members {
                let Some(label) = &member.label else { continue };
                let label = backups::find_label(repository, &member.component, label)?;
                let job = label.and_then(|label| label.annotations().get(JOB_ANNOTATION).cloned());
                if job.as_ref() == Some(&wanted) {
                    return Ok(Some(set));
                }
            }
        }
    }
    Ok(None)
}

fn members(set: &Set) -> Value {
    let members = set.members.iter().map(|member| {
        json!({
            "component": member.component, "label": member.label, "outcome": member.outcome,
            "code": member.code,
        })
    });
    json!({"members": members.collect::<Vec<_>>()})
}

/// A set that lacks a member has failed; what it has is kept and named.
fn told_set(request: &host::Request, mut outcome: coordinator::Outcome) -> Result<Outcome> {
    let set = &outcome.set;
    if set.outcome == SetOutcome::Failed {
        let named = outcome
            .failures
            .keys()
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        let first = outcome.failures.pop_first();
        return Err(match first {
            Some((name, error)) if request.is_set() => error.context(format_args!(
                "set {} lacks {named}; component \"{name}\"",
                outcome.set.label
            )),
            Some((_, error)) => error,
            None => Error::internal("set_failed", "a set failed and nobody says why"),
        });
    }
    let label = match (request.is_set(), set.members.first()) {
        (false, Some(member)) => member.label.clone(),
        _ => Some(set.label.clone()),
    };
    Ok(Outcome::Succeeded {
        label,
        result: members(set),
    })
}
