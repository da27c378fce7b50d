//! `pgark backup` of components other than the cluster alone.

use crate::cancel::CancelToken;
use crate::clock::{SharedClock, SystemClock};
use crate::commands::output::{Output, human_bytes, print_json, print_text};
use crate::component::coordinator::{Outcome, Placed};
use crate::component::host::{self, Plan, Request};
use crate::config::Config;
use crate::config::component::Quiesce;
use crate::repository::sets::{MemberOutcome, SetMember, SetOutcome, SetStage};
use crate::{Error, Result, exit_code};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Takes it, prints what came of it, and returns the exit code.
///
/// # Errors
/// As [`host::take`]; of one component alone, its own.
pub(super) fn take(
    config: &Config,
    request: &Request,
    output: Output,
    cancel: &CancelToken,
) -> Result<u8> {
    let began = Instant::now();
    let clock: SharedClock = Arc::new(SystemClock);
    let mut outcome = host::take(config, request, &clock, cancel)?;
    let is_set = request.is_set();
    if !is_set && let Some(name) = request.components.first() {
        let committed = outcome
            .set
            .member(name)
            .is_some_and(|m| m.outcome == MemberOutcome::Committed);
        if !committed && let Some(error) = outcome.failures.remove(name) {
            return Err(error);
        }
    }
    match (output, is_set) {
        (Output::Json, true) => print_json(set_json(&outcome, began.elapsed())),
        (Output::Json, false) => {
            let member = outcome.set.members.first();
            let mut value = member.map_or(Value::Null, |member| member_json(&outcome, member));
            if let Value::Object(fields) = &mut value {
                fields.insert("seconds".to_owned(), json!(began.elapsed().as_secs_f64()));
            }
            print_json(value);
        }
        (Output::Text, _) => print(&outcome, is_set, began.elapsed()),
    }
    Ok(exit(&outcome))
}

/// That of the first member that failed, of a required repository without the set, of what could not be
/// undone; else 3 when something was less than asked for.
fn exit(outcome: &Outcome) -> u8 {
    let members = outcome.set.members.iter();
    let failed = members.filter_map(|m| outcome.failures.get(&m.component));
    let lost = outcome.sealed.iter().filter(|place| place.required);
    let lost = lost.filter_map(|place| place.result.as_ref().err());
    if let Some(error) = failed.chain(lost).chain(&outcome.not_undone).next() {
        return exit_code::of(error);
    }
    let lacking = |place: &Placed| place.result.is_err();
    let less = outcome.sealed.iter().any(lacking)
        || outcome.places.values().flatten().any(lacking)
        || outcome.set.quiesce.achieved != outcome.set.quiesce.asked;
    match less {
        true => exit_code::FINDINGS,
        false => exit_code::DONE,
    }
}

fn set_json(outcome: &Outcome, elapsed: Duration) -> Value {
    let set = &outcome.set;
    let members = set
        .members
        .iter()
        .map(|member| member_json(outcome, member));
    let not_undone = outcome.not_undone.iter();
    json!({
        "set": set.label,
        "outcome": set.outcome,
        "started_at": set.started_at,
        "stopped_at": set.stopped_at,
        "quiesce": set.quiesce,
        "postgres": set.postgres,
        "members": members.collect::<Vec<_>>(),
        "repositories": outcome.sealed.iter().map(|p| place_json(p, "sealed")).collect::<Vec<_>>(),
        "notes": set.notes,
        "not_undone": not_undone.map(ToString::to_string).collect::<Vec<_>>(),
        "seconds": elapsed.as_secs_f64(),
    })
}

fn member_json(outcome: &Outcome, member: &SetMember) -> Value {
    let mut value = json!(member);
    let Value::Object(fields) = &mut value else {
        return value;
    };
    let name = &member.component;
    fields.insert(
        "bytes_source".to_owned(),
        json!(outcome.bytes_source.get(name)),
    );
    let places = outcome.places.get(name).map_or(&[][..], Vec::as_slice);
    let places: Vec<Value> = places.iter().map(|p| place_json(p, "committed")).collect();
    fields.insert("repositories".to_owned(), json!(places));
    if let Some(error) = outcome.failures.get(name) {
        fields.insert("code".to_owned(), json!(error.code()));
        fields.insert("detail".to_owned(), json!(error.to_string()));
        fields.insert("hint".to_owned(), json!(error.hint()));
    }
    value
}

fn place_json(place: &Placed, done: &str) -> Value {
    match &place.result {
        Ok(bytes_stored) => json!({
            "name": place.name,
            "required": place.required,
            "outcome": done,
            "bytes_stored": bytes_stored,
        }),
        Err(error) => json!({
            "name": place.name,
            "required": place.required,
            "outcome": "failed",
            "code": error.code(),
            "detail": error.to_string(),
        }),
    }
}

fn print(outcome: &Outcome, is_set: bool, elapsed: Duration) {
    let set = &outcome.set;
    if is_set {
        let state = match set.outcome {
            SetOutcome::Complete => "is complete".to_owned(),
            SetOutcome::Failed => {
                let failed: Vec<&str> = outcome.failures.keys().map(String::as_str).collect();
                format!("FAILED: {}", failed.join(", "))
            }
        };
        print_text(format_args!("set {} {state}", set.label));
    }
    for member in &set.members {
        print_member(outcome, member);
    }
    if let Some(postgres) = &set.postgres {
        print_text(format_args!(
            "  one moment: restore points {} to {} on timeline {}",
            postgres.begin.lsn, postgres.end.lsn, postgres.timeline
        ));
    }
    print_quiesce(outcome);
    for note in &set.notes {
        print_text(format_args!("  NOTE: {note}"));
    }
    for error in &outcome.not_undone {
        print_text(format_args!("  WARNING: {error}"));
    }
    for place in &outcome.sealed {
        match &place.result {
            Ok(_) => print_text(format_args!("  repository {}: sealed", place.name)),
            Err(error) => print_text(format_args!(
                "  WARNING: repository {} lacks the set: {error} (code {})",
                place.name,
                error.code()
            )),
        }
    }
    print_text(format_args!("  took {:.1} s", elapsed.as_secs_f64()));
}

fn print_member(outcome: &Outcome, member: &SetMember) {
    let name = &member.component;
    let error = outcome.failures.get(name);
    let (Some(label), MemberOutcome::Committed) = (&member.label, member.outcome) else {
        let why = error.map_or_else(
            || "not taken".to_owned(),
            |e| format!("{e} (code {})", e.code()),
        );
        print_text(format_args!("  {name}: FAILED: {why}"));
        if let Some(detail) = error.and_then(Error::detail) {
            print_text(format_args!("    DETAIL: {detail}"));
        }
        if let Some(hint) = error.and_then(Error::hint) {
            print_text(format_args!("    HINT: {hint}"));
        }
        return;
    };
    let what = match member.stage {
        SetStage::Base => "base backup",
        SetStage::Derived | SetStage::Blob => "backup",
    };
    let bytes = outcome.bytes_source.get(name).copied().unwrap_or_default();
    let consistency = member
        .consistency
        .map_or("unknown", crate::component::Consistency::as_str);
    print_text(format_args!(
        "  {name}: {what} {label}, {}, {consistency}",
        human_bytes(bytes)
    ));
    for note in &member.notes {
        print_text(format_args!("    {note}"));
    }
    for place in outcome.places.get(name).into_iter().flatten() {
        if let Err(error) = &place.result {
            print_text(format_args!(
                "    WARNING: repository {} lacks it: {error} (code {})",
                place.name,
                error.code()
            ));
        }
    }
}

fn print_quiesce(outcome: &Outcome) {
    let quiesce = &outcome.set.quiesce;
    let word = |q| match q {
        Quiesce::None => "none",
        Quiesce::Stores => "stores",
        Quiesce::App => "app",
    };
    if quiesce.asked == Quiesce::None {
        return;
    }
    let held = quiesce.held_seconds.unwrap_or_default();
    if quiesce.achieved == quiesce.asked {
        print_text(format_args!(
            "  writers were held back for {held:.1} s (quiesce = {})",
            word(quiesce.asked)
        ));
    } else {
        print_text(format_args!(
            "  WARNING: quiesce = {} was asked for; writers were held back for {held:.1} s, and not to the end",
            word(quiesce.asked)
        ));
    }
    if !quiesce.not_held.is_empty() {
        print_text(format_args!(
            "  WARNING: of no one instant, for nothing held back who writes to them: {}",
            quiesce.not_held.join(", ")
        ));
    }
}

/// Prints what would be taken.
///
/// # Errors
/// As [`host::plan`].
pub(super) fn plan(config: &Config, request: &Request, output: Output) -> Result<u8> {
    let plan = host::plan(config, request)?;
    match output {
        Output::Json => print_json(plan_json(&plan)),
        Output::Text => print_plan(&plan),
    }
    Ok(exit_code::DONE)
}

fn plan_json(plan: &Plan) -> Value {
    let members = plan.members.iter().map(|member| {
        json!({
            "component": member.name,
            "kind": member.kind,
            "stage": SetStage::from(member.stage),
            "held_back": member.lever.is_some(),
            "hooks": member.has_hooks,
            "holds_for_capture": member.holds_for_capture,
        })
    });
    json!({
        "cluster": plan.cluster,
        "base_backup": plan.base.as_ref().map(|base| &base.label),
        "new_base_backup": plan.cluster.is_some() && plan.base.is_none(),
        "quiesce": plan.quiesce,
        "members": members.collect::<Vec<_>>(),
    })
}

fn print_plan(plan: &Plan) {
    print_text("a set would be taken of:");
    if let Some(cluster) = &plan.cluster {
        match &plan.base {
            Some(base) => print_text(format_args!(
                "  {cluster} (postgres): on base backup {} of {}",
                base.label,
                base.stopped_at.to_rfc3339()
            )),
            None => print_text(format_args!(
                "  {cluster} (postgres): a new base backup first"
            )),
        }
    }
    for member in &plan.members {
        let when = match SetStage::from(member.stage) {
            SetStage::Blob => "after the second restore point",
            SetStage::Base | SetStage::Derived => "between the restore points",
        };
        let mut more = String::new();
        if member.lever.is_some() {
            more += ", its writers held back";
        }
        if member.has_hooks {
            more += ", with hooks";
        }
        if member.holds_for_capture {
            more += ", its users held while it is captured";
        }
        print_text(format_args!(
            "  {} ({}): {when}{more}",
            member.name, member.kind
        ));
    }
}
