//! The sweep: a plan that has settled is looked at once more, then carried out.

use super::{
    Candidate, Condemned, Done, FloorRecord, Plan, Report, Run, Sweep, Swept, Why, expired,
    live::{self, Live},
    lock, plan, sessions, wal,
};
use crate::Result;
use crate::repository::crypto::removal;
use crate::repository::{layout, record, sets, tombs};
use crate::storage::Key;
use std::collections::BTreeSet;

/// Objects between two looks for a newer gc.
const BATCH: usize = 1000;

/// Carries out the plan of the gc `n`; `None` while it must wait, with the reason in `report`.
pub(super) fn sweep(run: &Run<'_>, n: u32, report: &mut Report) -> Result<Option<Swept>> {
    let (plan, made) = plan::read(run, n)?;
    let open = still_open(run, &plan)?;
    if run.now < made + run.settings.settle || !open.is_empty() {
        let mut waiting = plan::waiting(run, n, plan, made);
        waiting.sessions = open;
        report.plan = Some(waiting);
        return Ok(None);
    }
    run.is_newest(n)?;
    let gone = finalize(run, n, &plan, report)?;
    crate::fault::point("gc:final");
    let going = second_look(run, &plan, &gone, report)?;
    run.decide(n, "sweep", &Sweep { at: run.now })?;
    floors(run, &plan, &going)?;
    crate::fault::point("gc:floors");
    let mut swept = Swept {
        gc: n,
        backups: gone.iter().map(ToString::to_string).collect(),
        ..Swept::default()
    };
    // From what makes a backup exist to what it consists of: a crash leaves garbage, not a backup
    // with holes.
    for condemned in &gone {
        remove_backup(run, condemned, &mut swept)?;
    }
    for batch in going.chunks(BATCH) {
        run.is_newest(n)?;
        for candidate in batch {
            crate::fault::point("gc:delete");
            run.cancel.check()?;
            remove(
                run,
                &layout::recorded(&candidate.key)?,
                candidate.size,
                &mut swept,
            )?;
        }
    }
    let done = Done {
        objects: swept.objects,
        bytes: swept.bytes,
    };
    run.decide(n, "done", &done)?;
    Ok(Some(swept))
}

/// Sessions that were open when the plan was made, and still are.
fn still_open(run: &Run<'_>, plan: &Plan) -> Result<Vec<String>> {
    let sessions = sessions::list(run)?;
    let open = plan.sessions.iter().filter(|ulid| {
        // One whose objects are all gone has ended, and was removed.
        sessions.get(ulid).is_some_and(sessions::Seen::is_open)
    });
    Ok(open.map(ToString::to_string).collect())
}

/// Decides every tomb of the plan: those that were undone meanwhile, and those that are the last of
/// their kind by now, stay.
fn finalize(run: &Run<'_>, n: u32, plan: &Plan, report: &mut Report) -> Result<Vec<Condemned>> {
    let mut gone = Vec::new();
    // What took their place when the plan was made may be gone since.
    for condemned in &expired::spare_last(run, &plan.condemned, &mut report.left)? {
        let Condemned {
            component,
            label,
            tomb,
            ..
        } = condemned;
        if tombs::finalize(run.repository, component, label, *tomb, n)? {
            gone.push(condemned.clone());
        }
    }
    Ok(gone)
}

/// What of the plan is still garbage.
fn second_look(
    run: &Run<'_>,
    plan: &Plan,
    gone: &[Condemned],
    report: &mut Report,
) -> Result<Vec<Candidate>> {
    let live = live::read(run, gone)?;
    let has_wal = plan.candidates.iter().any(|c| c.why == Why::WalExpired);
    let wal: BTreeSet<String> = if has_wal {
        let expired = wal::expired(run, gone, &mut report.left)?;
        expired.candidates.into_iter().map(|c| c.key).collect()
    } else {
        BTreeSet::new()
    };
    let folders: Vec<String> = live
        .backups
        .iter()
        .map(|(component, label)| format!("{}{label}/", layout::backups_prefix(component)))
        .collect();
    let removed = removal::garbage(run.repository)?.into_iter();
    let removed: BTreeSet<String> = removed.map(|object| object.key.to_string()).collect();
    let whole = sets_again(run, plan, &live)?;
    let mut going = plan.candidates.clone();
    going.retain(|candidate| match candidate.why {
        Why::Unreferenced => !live.objects.contains(&candidate.key),
        Why::WalExpired => wal.contains(&candidate.key),
        Why::NeverCommitted => !folders.iter().any(|f| candidate.key.starts_with(f)),
        Why::KeyRemoved => removed.contains(&candidate.key),
        Why::SetGone => !whole.contains(&candidate.key),
        // What is gone for good does not come back.
        Why::SessionEnded | Why::Superseded => true,
    });
    Ok(going)
}

/// Sets of the plan that have a member again: one that was undeleted since, or that stays after all.
fn sets_again(run: &Run<'_>, plan: &Plan, live: &Live) -> Result<BTreeSet<String>> {
    let mut again = BTreeSet::new();
    let candidates = plan.candidates.iter().filter(|c| c.why == Why::SetGone);
    for candidate in candidates {
        let Some(label) = layout::set_of(&layout::recorded(&candidate.key)?) else {
            continue;
        };
        match sets::find(run.repository, &label) {
            Ok(Some(set)) if !live.has_member_of(&set) => {}
            Ok(None) => {}
            // Damaged since: verify tells.
            Err(error) if error.kind() != crate::ErrorKind::Data => return Err(error),
            Ok(Some(_)) | Err(_) => drop(again.insert(candidate.key.clone())),
        }
    }
    Ok(again)
}

/// Says where WAL may be missing, before it is.
fn floors(run: &Run<'_>, plan: &Plan, going: &[Candidate]) -> Result<()> {
    for floor in &plan.floors {
        let prefix = layout::wal_timeline_prefix(floor.system_identifier, floor.timeline);
        let goes = |c: &Candidate| c.why == Why::WalExpired && c.key.starts_with(&prefix);
        if !going.iter().any(goes) {
            continue;
        }
        let key = layout::wal_floor(floor.system_identifier, floor.timeline, floor.number)?;
        let floor = FloorRecord {
            at: run.now,
            number: key.file_name().to_owned(),
        };
        // One that is there already says the same.
        let _ours = record::decide(run.repository, &key, &floor)?;
    }
    Ok(())
}

/// What is locked stays: the next plan names it again.
fn remove(run: &Run<'_>, key: &Key, size: u64, swept: &mut Swept) -> Result<()> {
    if let Some(until) = lock::locked_until(run, key)? {
        swept.locked.add(size, until);
        return Ok(());
    }
    run.repository.storage().delete(key)?;
    swept.objects += 1;
    swept.bytes += size;
    Ok(())
}

fn remove_backup(run: &Run<'_>, condemned: &Condemned, swept: &mut Swept) -> Result<()> {
    let prefix = layout::backups_prefix(&condemned.component);
    for object in run
        .repository
        .storage()
        .list(&format!("{prefix}{}/", condemned.label))?
    {
        crate::fault::point("gc:delete");
        remove(run, &object.key, object.size, swept)?;
    }
    let notes = layout::notes_prefix(&condemned.component);
    for object in run
        .repository
        .storage()
        .list(&format!("{notes}{}/", condemned.label))?
    {
        remove(run, &object.key, object.size, swept)?;
    }
    Ok(())
}
