//! Redis and Valkey.
//!
//! A backup is an RDB file, taken as a replica takes it: of one instant, with its exact replication offset,
//! without a trace on the server. Where the server lets nobody replicate it is put together key by key.
//! It is verified while it is taken. A restore goes into a running server, whole or in part, or into the
//! directory of one that is down.

pub mod aof;
mod capture;
mod check;
mod connection;
mod evidence;
mod keys;
mod offline;
mod psync;
pub mod rdb;
mod restore;
mod scan;
mod select;
mod server;
mod settings;
mod stream;
mod summary;

pub use settings::{Address, Method, Settings};

use crate::component::{
    CheckLine, Context, Driver, Evidence, Lever, Point, Request, Sink, Source, Stage,
};
use crate::{Error, Result};
use connection::Connection;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The word that asks a restore to mend the append-only file instead.
const REPAIR: &str = "@repair-aof";

/// The driver.
#[derive(Debug)]
pub struct Redis {
    settings: Settings,
}

/// Where a restore goes.
enum Target {
    Server(Address),
    Folder(PathBuf),
}

impl Redis {
    /// The driver of a component with these settings.
    ///
    /// # Errors
    /// Kind Invalid: `redis_url`, `component_settings`.
    pub fn new(settings: Settings) -> Result<Self> {
        settings.check()?;
        Ok(Self { settings })
    }

    /// Whether the server's files are meant, and no keys.
    fn is_of_folder(request: &Request) -> bool {
        request.select == [select::APPEND_ONLY] || request.select == [REPAIR]
    }

    /// `to` is a directory or a URL; without it, the server if it answers, else its directory.
    fn target(&self, request: &Request, context: &Context<'_>) -> Result<Target> {
        let folder_alone = Self::is_of_folder(request);
        match (&request.to, &self.settings.data_dir) {
            (Some(to), _) if to.starts_with('/') => Ok(Target::Folder(to.into())),
            (Some(to), _) => Address::parse(to).map(Target::Server),
            (None, Some(folder)) => {
                let address = Address::parse(&self.settings.url)?;
                let answers = match Connection::open(&self.settings, &address, context.cancel) {
                    Err(error) if error.code() == "redis_unreachable" => false,
                    Err(error) => return Err(error),
                    Ok(_) => true,
                };
                Ok(match answers && !folder_alone {
                    true => Target::Server(address),
                    false => Target::Folder(folder.clone()),
                })
            }
            (None, None) if folder_alone => Err(Error::invalid(
                "component_select",
                "this needs the server's directory",
            )
            .with_hint("Set data_dir of the component, or name a directory.")),
            (None, None) => Address::parse(&self.settings.url).map(Target::Server),
        }
    }

    /// How the append-only file in the component's `data_dir` is. Every byte is read.
    ///
    /// # Errors
    /// Kind Invalid when the component has no `data_dir`; those of [`aof::check`].
    pub fn check_append_only(&self, context: &Context<'_>) -> Result<aof::State> {
        aof::check(self.data_dir()?, context.scratch)
    }

    /// Cuts a damaged append-only file back to its last whole command, and keeps the original.
    ///
    /// # Errors
    /// Kind Invalid, `redis_running`, while the server runs; those of [`aof::repair()`].
    pub fn repair_append_only(&self, context: &Context<'_>) -> Result<aof::Repair> {
        self.repair(self.data_dir()?, context)
    }

    fn repair(&self, folder: &Path, context: &Context<'_>) -> Result<aof::Repair> {
        offline::refuse_when_running(&self.settings, folder, context)?;
        aof::repair(folder, context.scratch, chrono::Utc::now())
    }

    fn data_dir(&self) -> Result<&Path> {
        self.settings.data_dir.as_deref().ok_or_else(|| {
            Error::invalid("component_settings", "the component has no data_dir")
                .with_hint("Set it to the server's own directory: CONFIG GET dir.")
        })
    }

    fn connect<'a>(&self, context: &Context<'a>) -> Result<Connection<'a>> {
        let address = Address::parse(&self.settings.url)?;
        Connection::open(&self.settings, &address, context.cancel)
    }
}

impl Driver for Redis {
    fn kind(&self) -> &'static str {
        "redis"
    }

    fn stage(&self) -> Stage {
        Stage::Derived
    }

    fn check(&self, context: &Context<'_>) -> Result<Vec<CheckLine>> {
        check::check(&self.settings, context)
    }

    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
        capture::capture(&self.settings, context, sink)
    }

    fn vet(&self, context: &Context<'_>, source: &dyn Source, request: &Request) -> Result<()> {
        match Self::is_of_folder(request) {
            true => Ok(()),
            false => restore::vet(context, source, request),
        }
    }

    /// Mending copies the damaged file aside, and is for a server that does not start: there is nothing to back
    /// up from.
    fn keeps_what_is_there(&self, request: &Request) -> bool {
        request.select == [REPAIR]
    }

    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>> {
        let settings = &self.settings;
        match self.target(request, context)? {
            Target::Folder(_) if request.select == [REPAIR] && !request.overwrite => {
                Err(Error::invalid(
                    "confirmation_required",
                    format!("component \"{}\": an append-only file is cut where it lies", context.component),
                )
                .with_hint(format!(
                    "Run \"pgark restore --component {} --select {REPAIR} --yes\" on its host; a copy of the original is kept.",
                    context.component
                )))
            }
            Target::Folder(folder) if request.select == [REPAIR] => {
                Ok(vec![match self.repair(&folder, context)? {
                    aof::Repair::Nothing => "the append-only file is whole".to_owned(),
                    aof::Repair::Cut {
                        path,
                        original,
                        lost_bytes,
                    } => format!(
                        "cut {lost_bytes} bytes off {}; the original is {}",
                        path.display(),
                        original.display()
                    ),
                }])
            }
            Target::Folder(folder) => offline::restore(settings, &folder, context, source, request),
            Target::Server(address) => {
                restore::restore(settings, &address, context, source, request)
            }
        }
    }

    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence> {
        match self.target(request, context)? {
            Target::Folder(folder) => {
                let restored = match request.select.as_slice() {
                    [one] if one == REPAIR => evidence::Restored::Mended,
                    [one] if one == select::APPEND_ONLY => evidence::Restored::AppendOnly,
                    _ => evidence::Restored::DataSet,
                };
                evidence::compare_folder(&folder, context, source, restored)
            }
            Target::Server(address) => {
                evidence::compare(&self.settings, &address, context, source, request)
            }
        }
    }

    fn ids(
        &self,
        context: &Context<'_>,
        part: &str,
        visit: &mut dyn FnMut(String) -> Result<()>,
    ) -> Result<bool> {
        let mut connection = self.connect(context)?;
        keys::ids(&mut connection, context.cancel, part, visit).map(|()| true)
    }

    fn lever(&self, seconds: u64) -> Option<Lever> {
        let undo = BTreeMap::from([("command".to_owned(), "CLIENT UNPAUSE".to_owned())]);
        Some(Lever {
            undo,
            expires_seconds: Some(seconds),
        })
    }

    /// `CLIENT PAUSE … WRITE` (6.2 and later): it ends by itself.
    fn hold(&self, context: &Context<'_>, lever: &Lever) -> Result<()> {
        let milliseconds = lever.expires_seconds.unwrap_or(1).saturating_mul(1000);
        let mut connection = self.connect(context)?;
        connection.ok(&["CLIENT", "PAUSE", &milliseconds.to_string(), "WRITE"])?;
        Ok(())
    }

    fn release(&self, context: &Context<'_>, _lever: &Lever) -> Result<()> {
        self.connect(context)?.ok(&["CLIENT", "UNPAUSE"])?;
        Ok(())
    }
}
