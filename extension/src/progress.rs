//! Progress of running jobs, and who evaluates the schedules: in shared memory, so that neither writes
//! WAL. There is such memory only with pgark in shared_preload_libraries.

use crate::server;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::lwlock::PgLwLock;
use pgrx::prelude::*;
use pgrx::shmem::AssertPGRXSharedMemory;
use pgrx::{pg_shmem_init, pg_sys};
use std::sync::atomic::{AtomicBool, Ordering};

/// More jobs than this do not run at once.
const SLOTS: usize = 16;
/// Bytes of a phase's name.
const PHASE_BYTES_MAX: usize = 64;
/// Who evaluated the schedules counts as doing so for this long.
const TICK_MICROSECONDS: i64 = 90_000_000;
/// Who evaluates schedules, the most wanted first.
const SOURCES: [&str; 3] = ["pg_cron", "worker", "agent"];

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// 0: free.
    job_id: i64,
    phase: [u8; PHASE_BYTES_MAX],
    phase_len: usize,
    /// backup_total, backup_streamed, tablespaces_total, tablespaces_streamed, bytes_stored; negative: NULL.
    numbers: [i64; 5],
    updated_at: i64,
}

const FREE: Slot = Slot {
    job_id: 0,
    phase: [0; PHASE_BYTES_MAX],
    phase_len: 0,
    numbers: [-1; 5],
    updated_at: 0,
};

#[derive(Debug, Clone, Copy)]
struct Memory {
    slots: [Slot; SLOTS],
    ticks: [i64; SOURCES.len()],
}

static MEMORY: PgLwLock<AssertPGRXSharedMemory<Memory>> = server::shared(c"pgark");
static RESERVED: AtomicBool = AtomicBool::new(false);

/// Asks for the memory; in the postmaster alone.
#[allow(unexpected_cfgs)] // pgrx's macro asks for majors that it knows and we do not.
pub(crate) fn reserve() {
    pg_shmem_init!(
        MEMORY = server::plain(Memory {
            slots: [FREE; SLOTS],
            ticks: [i64::MIN; SOURCES.len()],
        })
    );
    RESERVED.store(true, Ordering::Relaxed);
}

fn reserved() -> bool {
    RESERVED.load(Ordering::Relaxed)
}

#[pg_extern(sql = false)]
fn is_preloaded() -> bool {
    reserved()
}

#[pg_extern(sql = false)]
fn set_progress(
    job_id: Option<i64>,
    phase: Option<&str>,
    backup_total: Option<i64>,
    backup_streamed: Option<i64>,
    tablespaces_total: Option<i64>,
    tablespaces_streamed: Option<i64>,
    bytes_stored: Option<i64>,
) -> bool {
    let Some(job_id) = job_id.filter(|id| *id > 0 && reserved()) else {
        return false;
    };
    let mut memory = MEMORY.exclusive();
    let Some(phase) = phase else {
        let mut slots = memory.slots.iter_mut();
        let found = slots.find(|slot| slot.job_id == job_id);
        return found.map(|slot| *slot = FREE).is_some();
    };
    // Its own slot, else a free one, else the one that was silent for the longest time.
    let choice = memory.slots.iter_mut().min_by_key(|slot| {
        let rank = match slot.job_id {
            id if id == job_id => 0,
            0 => 1,
            _ => 2,
        };
        (rank, slot.updated_at)
    });
    let Some(slot) = choice else {
        return false;
    };
    let mut kept = FREE;
    kept.job_id = job_id;
    // Whole characters alone.
    let mut end = phase.len().min(PHASE_BYTES_MAX);
    while !phase.is_char_boundary(end) {
        end -= 1;
    }
    for (to, from) in kept.phase.iter_mut().zip(phase.bytes().take(end)) {
        *to = from;
    }
    kept.phase_len = end;
    let numbers = [
        backup_total,
        backup_streamed,
        tablespaces_total,
        tablespaces_streamed,
        bytes_stored,
    ];
    kept.numbers = numbers.map(|n| n.unwrap_or(-1));
    kept.updated_at = server::now();
    *slot = kept;
    true
}

type Row = (
    i64,
    String,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<TimestampWithTimeZone>,
);

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)] // pgrx wants the columns spelled out.
fn progress() -> TableIterator<
    'static,
    (
        name!(job_id, i64),
        name!(phase, String),
        name!(backup_total, Option<i64>),
        name!(backup_streamed, Option<i64>),
        name!(tablespaces_total, Option<i64>),
        name!(tablespaces_streamed, Option<i64>),
        name!(bytes_stored, Option<i64>),
        name!(updated_at, Option<TimestampWithTimeZone>),
    ),
> {
    let slots = if reserved() {
        MEMORY.share().slots
    } else {
        [FREE; SLOTS]
    };
    let used = slots.into_iter().filter(|slot| slot.job_id != 0);
    TableIterator::new(used.map(row).collect::<Vec<Row>>())
}

fn row(slot: Slot) -> Row {
    let phase = slot.phase.get(..slot.phase_len).unwrap_or_default();
    let [total, streamed, tablespaces, done, stored] = slot.numbers.map(|n| (n >= 0).then_some(n));
    (
        slot.job_id,
        String::from_utf8_lossy(phase).into_owned(),
        total,
        streamed,
        tablespaces,
        done,
        stored,
        TimestampWithTimeZone::try_from(slot.updated_at).ok(),
    )
}

/// Notes that `source` evaluates the schedules; who does so before it, if somebody does.
pub(crate) fn tick(source: &str) -> Option<&'static str> {
    if !reserved() {
        return None;
    }
    let now = server::now();
    let mut memory = MEMORY.exclusive();
    let place = SOURCES.iter().position(|name| *name == source);
    if let Some(at) = place.and_then(|at| memory.ticks.get_mut(at)) {
        *at = now;
    }
    let before = place.unwrap_or(0);
    let others = SOURCES.iter().zip(memory.ticks).take(before);
    others
        .filter(|(_, at)| now.saturating_sub(*at) < TICK_MICROSECONDS)
        .map(|(name, _)| *name)
        .next()
}

#[pg_extern(sql = false)]
fn note_tick(source: &str) -> Option<&'static str> {
    tick(source)
}
