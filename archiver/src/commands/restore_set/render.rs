//! The plan and the evidence, for people and programs.

use super::cluster::Cluster;
use crate::Result;
use crate::commands::output::{human_bytes, on_one_line, print_json, print_text};
use crate::component::Evidence;
use crate::component::reconcile::{Difference, Side};
use crate::component::restore_set::{ComponentReport, Drift, Plan, Report, Step};
use crate::repository::sets::SetStage;
use serde_json::{Value, json};

pub(super) fn print_plan(plan: &Plan, cluster: Option<&Cluster<'_>>) {
    match &plan.set {
        Some(set) => print_text(format_args!(
            "restore to set {}, {}",
            set.label,
            plan.at.to_rfc3339()
        )),
        None => print_text(format_args!("restore to {}", plan.at.to_rfc3339())),
    }
    if let Some(lsn) = plan.lsn {
        print_text(format_args!("  the cluster's WAL is at {lsn} then"));
    }
    if let Some(cluster) = cluster {
        let own = cluster.restore_plan();
        print_text(format_args!(
            "  1. {} (postgres): exactly; backup {}, {} WAL segments, {}, about {} s",
            own.manifest.component,
            own.manifest.label,
            own.segment_count,
            human_bytes(own.bytes),
            own.seconds_estimate
        ));
        for warning in &own.warnings {
            print_text(format_args!("     WARNING: {warning}"));
        }
    }
    for (at, step) in plan.steps.iter().enumerate() {
        let number = at + 1 + usize::from(cluster.is_some());
        let backup = &step.choice.backup;
        print_text(format_args!(
            "  {number}. {} ({}): backup {}, {}, {}",
            step.component,
            step.kind,
            backup.label,
            backup.consistency.as_str(),
            drift(step)
        ));
        if let Some(flag) = step.choice.flag {
            print_text(format_args!("     WARNING: {flag}"));
        }
    }
}

/// Between what the backup is of, and the most WAL that may be in one of the two alone.
fn drift(step: &Step) -> String {
    let mut text = span(step.drift_seconds);
    if let Some(bytes) = step.drift_wal_bytes {
        let most = bytes.min.unsigned_abs().max(bytes.max.unsigned_abs());
        let size = u64::try_from(most).unwrap_or(u64::MAX);
        text += &format!(" (at most {} of WAL)", human_bytes(size));
    }
    if step.choice.of_set {
        text += ", member of the set";
    }
    text
}

fn span(seconds: Drift<f64>) -> String {
    let side = |seconds: f64| if seconds > 0.0 { "later" } else { "earlier" };
    let (min, max) = (seconds.min.abs(), seconds.max.abs());
    if side(seconds.min) != side(seconds.max) {
        return format!("{min:.1} s earlier to {max:.1} s later");
    }
    let (near, far) = (min.min(max), min.max(max));
    let text = match (format!("{near:.1}"), format!("{far:.1}")) {
        (near, far) if near == far => far,
        (near, far) => format!("{near} to {far}"),
    };
    format!("{text} s {}", side(seconds.min))
}

fn plan_json(plan: &Plan, cluster: Option<&Cluster<'_>>) -> Value {
    let cluster = cluster.map(|cluster| {
        let own = cluster.restore_plan();
        json!({
            "component": own.manifest.component,
            "backup": own.manifest.label,
            "target": {"lsn": own.target_lsn, "timeline": own.timeline, "time": own.time},
            "wal_segments": own.segment_count,
            "bytes": own.bytes,
            "seconds_estimate": own.seconds_estimate,
            "warnings": own.warnings,
        })
    });
    let steps = plan.steps.iter().map(|step| {
        let (backup, wal) = (&step.choice.backup, step.drift_wal_bytes);
        json!({
            "component": step.component,
            "kind": step.kind,
            "stage": SetStage::from(step.stage),
            "restore_order": step.order,
            "backup": backup.label,
            "of_set": step.choice.of_set,
            "consistency": backup.consistency,
            "from": backup.from,
            "until": backup.until,
            "drift_seconds_min": step.drift_seconds.min,
            "drift_seconds_max": step.drift_seconds.max,
            "drift_wal_bytes_min": wal.and_then(|wal| i64::try_from(wal.min).ok()),
            "drift_wal_bytes_max": wal.and_then(|wal| i64::try_from(wal.max).ok()),
            "flag": step.choice.flag,
        })
    });
    json!({
        "set": plan.set.as_ref().map(|set| &set.label),
        "at": plan.at,
        "lsn": plan.lsn,
        "cluster": cluster,
        "components": steps.collect::<Vec<_>>(),
    })
}

pub(super) fn print_plan_json(plan: &Plan, cluster: Option<&Cluster<'_>>) {
    print_json(plan_json(plan, cluster));
}

pub(super) fn print_report_json(plan: &Plan, cluster: Option<&Cluster<'_>>, report: &Report) {
    let restored = cluster.and_then(Cluster::restored);
    let cluster_report = report.cluster.as_ref().map(|own| {
        json!({
            "outcome": if own.error.is_none() { "restored" } else { "failed" },
            "went_back": own.went_back,
            "started": own.started,
            "start_command": restored.map(|r| &r.outcome.start_command),
            "bytes_written": restored.map(|r| r.outcome.bytes_written),
            "evidence": own.evidence,
            "code": own.error.as_ref().map(crate::Error::code),
            "detail": own.error.as_ref().map(ToString::to_string),
        })
    });
    let components = report.components.iter().map(|one| {
        json!({
            "component": one.component,
            "backup": one.backup,
            "outcome": if one.error.is_none() { "restored" } else { "failed" },
            "safety_backup": one.safety,
            "notes": one.notes,
            "evidence": one.evidence,
            "reconcile": one.reconcile.as_ref().map(reconcile_json),
            "code": one.error.as_ref().map(crate::Error::code),
            "detail": one.error.as_ref().map(ToString::to_string),
        })
    });
    print_json(json!({
        "plan": plan_json(plan, cluster),
        "cluster": cluster_report,
        "components": components.collect::<Vec<_>>(),
        "stopped": report.stopped.iter().map(|one| {
            json!({"component": one.component, "reason": one.reason})
        }).collect::<Vec<_>>(),
    }));
}

fn reconcile_json(compared: &Result<Difference>) -> Value {
    match compared {
        Ok(found) => {
            let side = |side: &Side| json!({"count": side.count, "ids": side.ids});
            json!({
                "outcome": "compared",
                "postgres": found.wanted,
                "store": found.found,
                "missing": side(&found.missing),
                "orphaned": side(&found.orphaned),
            })
        }
        Err(error) => json!({
            "outcome": "failed",
            "code": error.code(),
            "detail": error.to_string(),
        }),
    }
}

/// What was restored, and the table of evidence.
pub(super) fn print_report(cluster: Option<&Cluster<'_>>, report: &Report) {
    print_text("");
    if let Some(own) = &report.cluster {
        let name = cluster.map_or("cluster", |c| c.restore_plan().manifest.component.as_str());
        match &own.error {
            Some(error) => {
                print_text(format_args!(
                    "{name}: FAILED: {error} (code {})",
                    error.code()
                ));
                if own.went_back {
                    print_text("  it was restored all the same: what depends on it stays stopped");
                }
                if report.components.is_empty() {
                    print_text("  no other component was restored");
                }
            }
            None if own.started => print_text(format_args!("{name}: restored, and running")),
            None => {
                print_text(format_args!("{name}: restored; start it with:"));
                if let Some(restored) = cluster.and_then(Cluster::restored) {
                    print_text(format_args!("  {}", restored.outcome.start_command));
                }
                print_text("  it is ready when SELECT pg_is_in_recovery() answers f");
            }
        }
    }
    for one in &report.components {
        print_component(one);
    }
    for one in &report.stopped {
        print_text(format_args!(
            "STOPPED STILL: {}: {}",
            one.component,
            on_one_line(&one.reason)
        ));
    }
    print_evidence(cluster, report);
    for one in &report.components {
        print_reconcile(one);
    }
}

fn print_reconcile(one: &ComponentReport) {
    let name = &one.component;
    match &one.reconcile {
        None => {}
        Some(Ok(found)) => {
            let (missing, orphaned) = (found.missing.count, found.orphaned.count);
            print_text(format_args!(
                "{name}: {} ids by Postgres, {missing} of them missing; {orphaned} in the store alone",
                found.wanted
            ));
            if missing + orphaned > 0 {
                print_text(format_args!(
                    "  pgark reconcile --component {name} lists them"
                ));
            }
        }
        Some(Err(error)) => print_text(format_args!(
            "{name}: NOT COMPARED WITH POSTGRES: {error} (code {})",
            error.code()
        )),
    }
}

fn print_component(one: &ComponentReport) {
    match &one.error {
        Some(error) => print_text(format_args!(
            "{}: FAILED: {error} (code {})",
            one.component,
            error.code()
        )),
        None => print_text(format_args!(
            "{}: restored from {}",
            one.component, one.backup
        )),
    }
    if let Some(safety) = &one.safety {
        print_text(format_args!(
            "  what was replaced or removed is in backup {safety}"
        ));
    }
    for note in &one.notes {
        print_text(format_args!("  {note}"));
    }
}

fn print_evidence(cluster: Option<&Cluster<'_>>, report: &Report) {
    let mut rows: Vec<[String; 5]> = Vec::new();
    let mut add = |name: &str, evidence: &Evidence| {
        for line in &evidence.lines {
            rows.push([
                if line.ok { "ok" } else { "DIFFERS" }.to_owned(),
                name.to_owned(),
                on_one_line(&line.what),
                shortened(&line.expected),
                shortened(&line.found),
            ]);
        }
    };
    let own = report.cluster.as_ref().and_then(|c| c.evidence.as_ref());
    if let (Some(cluster), Some(evidence)) = (cluster, own) {
        add(&cluster.restore_plan().manifest.component, evidence);
    }
    for one in &report.components {
        if let Some(evidence) = &one.evidence {
            add(&one.component, evidence);
        }
    }
    if rows.is_empty() {
        return;
    }
    let head = ["", "component", "what", "backup", "store"].map(str::to_owned);
    rows.insert(0, head);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..4).map(width).collect();
    print_text("\nevidence:");
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:width$}  ");
        }
        line += row.last().map_or("", String::as_str);
        print_text(format_args!("  {}", line.trim_end()));
    }
}

/// Digests are told apart by their beginning.
fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 32;
    let text = on_one_line(text);
    match text.char_indices().nth(CHARS_MAX) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_edges_of_a_drift_are_told() {
        let span = |min, max| span(Drift { min, max });
        assert_eq!(span(-60.0, -0.01), "0.0 to 60.0 s earlier");
        assert_eq!(span(-8.01, -8.0), "8.0 s earlier");
        assert_eq!(span(8.0, 12.0), "8.0 to 12.0 s later");
        assert_eq!(span(-1.0, 2.0), "1.0 s earlier to 2.0 s later");
        assert_eq!(span(-2.0, 0.0), "0.0 to 2.0 s earlier");
        assert_eq!(span(0.0, 2.0), "0.0 s earlier to 2.0 s later");
    }
}
