//! Containers that are paused or stopped while their volumes are captured. Which ones stands in the ledger
//! before the first is touched; whoever finds it there undoes it. A hold that lasts too long is let go.

use super::engine::{Engine, short};
use super::volume::{User, names};
use super::{DockerVolume, OnCapture, socket_path, volume};
use crate::component::{Context, Lever};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two tries to let go.
const RETRY: Duration = Duration::from_secs(5);

/// What a driver holds right now.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<Option<Hold>>);

#[derive(Debug, Clone)]
struct Hold {
    lever: Lever,
    since: Instant,
    /// What was touched, in this order: others may have stopped the rest.
    touched: Vec<String>,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Option<Hold>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What would be held: the containers that write to the volumes now. `None`: none does.
///
/// # Errors
/// Kind Invalid, `container_auto_remove`; those of [`volume::chosen`].
pub(super) fn lever(driver: &DockerVolume) -> Result<Option<Lever>> {
    let engine = driver.engine(None)?;
    let mut users: BTreeMap<String, User> = BTreeMap::new();
    for volume in volume::chosen(driver, &engine)? {
        let at_work = volume::users(&engine, &volume.name)?;
        let at_work = at_work.into_iter().filter(User::is_at_work);
        users.extend(at_work.map(|user| (user.id.clone(), user)));
    }
    // pgark in a container would wait for itself.
    users.retain(|id, _| !is_this_container(id));
    let stop = driver.settings.on_capture == OnCapture::Stop;
    let removed = users.values().filter(|user| user.auto_remove);
    let removed: Vec<&User> = removed.collect();
    if stop && !removed.is_empty() {
        return Err(Error::invalid(
            "container_auto_remove",
            format!("stopping would remove containers: {}", names(removed)),
        )
        .with_detail("They were started with --rm.")
        .with_hint("Start them without it, or set on_capture = \"pause\"."));
    }
    if users.is_empty() {
        return Ok(None);
    }
    let action = if stop { "stop" } else { "pause" };
    let ids: Vec<String> = users.into_keys().collect();
    Ok(Some(Lever {
        undo: BTreeMap::from([
            ("socket".to_owned(), driver.settings.socket.clone()),
            ("action".to_owned(), action.to_owned()),
            ("containers".to_owned(), ids.join(",")),
        ]),
        expires_seconds: None,
    }))
}

/// What a lever says.
struct Plan<'l> {
    socket: &'l str,
    stop: bool,
    ids: Vec<&'l str>,
}

impl<'l> Plan<'l> {
    fn of(lever: &'l Lever) -> Result<Self> {
        let text = |key: &str| lever.undo.get(key).map(String::as_str);
        let damaged = || {
            Error::data(
                "ledger_damaged",
                "a ledger does not tell which containers were held",
            )
            .with_hint("\"docker ps -a\" shows paused and stopped ones: set them right, then remove the ledger's file.")
        };
        Ok(Self {
            socket: text("socket").ok_or_else(damaged)?,
            stop: match text("action") {
                Some("stop") => true,
                Some("pause") => false,
                _ => return Err(damaged()),
            },
            ids: text("containers")
                .ok_or_else(damaged)?
                .split(',')
                .filter(|id| !id.is_empty())
                .collect(),
        })
    }
}

/// Pauses or stops the containers of a lever.
///
/// # Errors
/// The engine's; `cancelled`. Then what was done has to be released.
pub(super) fn hold(driver: &DockerVolume, context: &Context<'_>, lever: &Lever) -> Result<()> {
    let plan = Plan::of(lever)?;
    let engine = driver.engine(Some(plan.socket))?;
    *driver.held.lock() = Some(Hold {
        lever: lever.clone(),
        since: Instant::now(),
        touched: Vec::new(),
    });
    for id in plan.ids {
        context.cancel.check()?;
        if engine.inspect(id)?.is_some_and(|user| user.is_at_work()) {
            if let Some(hold) = driver.held.lock().as_mut() {
                hold.touched.push(id.to_owned());
            }
            engine.act(id, if plan.stop { "stop" } else { "pause" })?;
        }
    }
    Ok(())
}

/// Lets the containers of a lever go on; one that is gone, or works again, is fine.
///
/// # Errors
/// The engine's: the first, after all were tried.
pub(super) fn release(driver: &DockerVolume, lever: &Lever) -> Result<()> {
    let plan = Plan::of(lever)?;
    let socket = socket_path(plan.socket)?;
    let engine = Engine::connect(&socket, driver.settings.timeout_seconds)?;
    let mut failure = None;
    let held = driver.held.lock().clone();
    let held = held.filter(|hold| hold.lever == *lever);
    // Of a process that died nobody knows how far it came.
    let touched = |id: &&str| {
        let held = held.as_ref();
        held.is_none_or(|hold| hold.touched.iter().any(|own| own == id))
    };
    // The last that was stopped is the first that starts.
    for id in plan.ids.into_iter().rev().filter(touched) {
        let done = engine.inspect(id).and_then(|user| match user {
            Some(user) if !plan.stop && user.paused => engine.act(id, "unpause"),
            Some(user) if plan.stop && !user.running => engine.act(id, "start"),
            _ => Ok(true),
        });
        if let Err(error) = done {
            let error = error.context(format_args!("container {}", short(id)));
            failure.get_or_insert(error);
        }
    }
    match failure {
        Some(error) => Err(error),
        None => {
            // Once more, as the ledger's entry asks for, is then no reason to start what others stop.
            if let Some(hold) = driver.held.lock().as_mut().filter(|h| h.lever == *lever) {
                hold.touched.clear();
            }
            Ok(())
        }
    }
}

/// Does `act` while what is held stays so, for its time at most. Whether that was over before.
///
/// # Errors
/// Those of `act`.
pub(super) fn during<T>(
    driver: &DockerVolume,
    act: impl FnOnce() -> Result<T>,
) -> Result<(T, bool)> {
    let held = driver.held.lock().clone();
    let Some(Hold { lever, since, .. }) = held.filter(|hold| !hold.touched.is_empty()) else {
        return act().map(|done| (done, false));
    };
    let limit = Duration::from_secs(driver.settings.hold_seconds_max);
    let (finished, wake) = (Mutex::new(false), Condvar::new());
    let expired = AtomicBool::new(false);
    // How long to wait before the next look; `None`: they were let go.
    let look = || {
        let left = limit.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Some(left);
        }
        if !expired.swap(true, Ordering::SeqCst) {
            tracing::error!(
                alert = "hold_expired",
                "containers were held for {} s: they are let go, and the backup is less exact",
                limit.as_secs()
            );
        }
        let error = release(driver, &lever).err()?;
        tracing::error!(code = error.code(), "they were not let go: {error}");
        Some(RETRY)
    };
    let mut next = look();
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut over = finished.lock().unwrap_or_else(PoisonError::into_inner);
            while let Some(wait) = next.filter(|_| !*over) {
                let woken = wake.wait_timeout(over, wait);
                over = woken.unwrap_or_else(PoisonError::into_inner).0;
                next = if *over { None } else { look() };
            }
        });
        let done = act();
        *finished.lock().unwrap_or_else(PoisonError::into_inner) = true;
        wake.notify_all();
        done
    });
    done.map(|done| (done, expired.load(Ordering::SeqCst)))
}

/// Whether this process runs in the container of that id: its name is mounted from the engine's directory
/// for it. (The engine's own host sees other mounts of every container.)
fn is_this_container(id: &str) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounts = mounts.lines();
    mounts.any(|mount| mount.contains(id) && mount.contains(" /etc/hostname "))
}
