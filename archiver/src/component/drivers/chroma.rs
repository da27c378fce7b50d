//! Chroma, a single node of version 1.x: as files under a lock, or over HTTP.
//!
//! What a count says of Chroma is not worth much: counts come from SQLite, vectors lie in files beside it.
//! Every capture therefore reads every record, and every comparison compares them.

mod folder;
mod ids;
mod index;
mod leftovers;
mod manifest;
mod pickle;
mod record;
mod remote;
mod restore;
mod stored;

use self::folder::LockLimits;
use self::manifest::{Collection, Manifest, Mode};
use self::record::Digest;
use self::remote::Remote;
use self::stored::Stored;
use super::http::{Access, Http};
use crate::component::{
    CheckLine, Consistency, Context, Driver, Entry, Evidence, Lever, Point, Request, Sink, Source,
    Stage,
};
use crate::{Error, Result};
use chrono::Utc;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// `[component.<name>]` with `kind = "chroma"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The directory that the server was started with (`--path`), as this host sees it: the backup is a
    /// copy of its files of one instant. Restores go there while the server is stopped.
    pub data_dir: Option<PathBuf>,
    /// The server's address: without `data_dir` the backup is an export over HTTP; with it, restores
    /// of single collections and the comparison afterwards go there.
    pub url: Option<String>,
    /// The token that a proxy before the server asks for: `file:/path` or `env:NAME`.
    pub token: Option<String>,
    /// The header that it goes into; `authorization` is sent as `Bearer`.
    #[serde(default = "default_token_header")]
    pub token_header: String,
    /// Certificates (PEM) to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Tenants to export over HTTP: Chroma cannot list them.
    #[serde(default = "default_tenants")]
    pub tenants: Vec<String>,
    /// How long an answer of the server may take.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u64,
    /// How long to wait for the lock on the data directory.
    #[serde(default = "default_wait")]
    pub lock_wait_seconds: u64,
    /// How long the lock may be held: for so long the server's writers wait.
    #[serde(default = "default_hold")]
    pub lock_hold_seconds: u64,
}

fn default_token_header() -> String {
    "x-chroma-token".to_owned()
}

fn default_tenants() -> Vec<String> {
    vec!["default_tenant".to_owned()]
}

const fn default_timeout() -> u64 {
    120
}

const fn default_wait() -> u64 {
    60
}

const fn default_hold() -> u64 {
    60
}

/// The driver.
pub struct Chroma {
    settings: Settings,
}

/// Where a restore goes.
enum Target {
    Folder(PathBuf),
    Server(String),
}

impl Chroma {
    /// Of a component's section.
    ///
    /// # Errors
    /// Kind Invalid, `config_invalid`.
    pub fn new(settings: Settings) -> Result<Self> {
        let invalid = |what: &str| Err(Error::invalid("config_invalid", what));
        if settings.data_dir.is_none() && settings.url.is_none() {
            return invalid("a chroma component needs data_dir, url, or both");
        }
        if settings
            .data_dir
            .as_ref()
            .is_some_and(|dir| !dir.is_absolute())
        {
            return invalid("data_dir of a chroma component must be an absolute path");
        }
        if settings.timeout_seconds == 0 || settings.lock_hold_seconds == 0 {
            return invalid("timeout_seconds and lock_hold_seconds must be at least 1");
        }
        let driver = Self { settings };
        if let Some(url) = &driver.settings.url {
            // A token may come later; an address that is none should not.
            Http::new("Chroma", url, &Access::default(), None, 1)?;
        }
        Ok(driver)
    }

    fn remote(&self, url: &str) -> Result<Remote> {
        let mut access = Access::default();
        if let Some(token) = &self.settings.token {
            match self
                .settings
                .token_header
                .eq_ignore_ascii_case("authorization")
            {
                true => access.scheme = Some(("Bearer", token)),
                false => access.header = Some((&self.settings.token_header, token)),
            }
        }
        let ca_file = self.settings.ca_file.as_deref();
        let timeout = self.settings.timeout_seconds;
        Ok(Remote {
            http: Http::new("Chroma", url, &access, ca_file, timeout)?,
        })
    }

    /// The server of our own data directory, when it has an address and answers.
    fn running(&self, request: &Request) -> Result<Option<Remote>> {
        let url = self.settings.url.as_ref().filter(|_| request.to.is_none());
        let Some(url) = url else { return Ok(None) };
        let remote = self.remote(url)?;
        Ok(remote.version().is_ok().then_some(remote))
    }

    fn limits(&self) -> LockLimits {
        LockLimits {
            wait_seconds: self.settings.lock_wait_seconds,
            hold_seconds: self.settings.lock_hold_seconds,
        }
    }

    /// Where `request` leads.
    fn target(&self, manifest: &Manifest, request: &Request) -> Result<Target> {
        let part = !request.select.is_empty() || !request.rename.is_empty();
        let whole_folder = manifest.mode == Mode::DataDir && !part;
        let target = match &request.to {
            Some(to) if to.starts_with("http://") || to.starts_with("https://") => {
                Target::Server(to.clone())
            }
            Some(to) => Target::Folder(PathBuf::from(to)),
            None => match (&self.settings.data_dir, &self.settings.url) {
                (Some(folder), _) if whole_folder => Target::Folder(folder.clone()),
                (_, Some(url)) => Target::Server(url.clone()),
                (Some(folder), None) => Target::Folder(folder.clone()),
                (None, None) => return Err(Error::internal("chroma_target", "no target")),
            },
        };
        if matches!(target, Target::Folder(_)) && !whole_folder {
            let what = match manifest.mode {
                Mode::DataDir => "single collections",
                Mode::Http => "a backup that was taken over HTTP",
            };
            return Err(Error::invalid(
                "chroma_needs_server",
                format!("{what} can be restored into a running server alone"),
            )
            .with_hint("Set the component's url, or name the server's address as the target."));
        }
        Ok(target)
    }

    fn capture_folder(
        &self,
        context: &Context<'_>,
        data_dir: &Path,
        sink: &dyn Sink,
    ) -> Result<Point> {
        let copied = folder::copy(context, data_dir, self.limits())?;
        let stored = Stored::open(&copied.folder)?;
        stored.check()?;
        let collections = stored.collections(context.cancel)?;
        let manifest = Manifest::new(Mode::DataDir, stored.databases()?, collections);
        let position = BTreeMap::from([
            ("mode".to_owned(), json!("data_dir")),
            ("seq_id".to_owned(), json!(stored.seq_id_max()?)),
        ]);
        drop(stored);
        folder::store(context, &copied.folder, data_dir, sink)?;
        store_manifest(&manifest, sink)?;
        Ok(Point {
            consistency: Consistency::PointInTime,
            from: copied.locked.0,
            until: copied.locked.1,
            clock_skew_seconds: None,
            position,
            evidence: evidence_of(&manifest),
            notes: Vec::new(),
            server_version: None,
        })
    }

    fn capture_server(&self, context: &Context<'_>, url: &str, sink: &dyn Sink) -> Result<Point> {
        let remote = self.remote(url)?;
        let version = remote.version()?;
        let from = Utc::now();
        let mut databases = Vec::new();
        for tenant in &self.settings.tenants {
            databases.extend(remote.databases(tenant)?);
        }
        let mut collections = Vec::new();
        let mut notes = vec![
            "taken over HTTP: records written meanwhile may be in it or not; data_dir is exact"
                .to_owned(),
        ];
        for database in &databases {
            collections.extend(remote.collections(database)?);
            notes.extend(leftovers::left_out(&remote, database)?);
        }
        for collection in &mut collections {
            export(context, &remote, collection, sink)?;
        }
        let manifest = Manifest::new(Mode::Http, databases, collections);
        store_manifest(&manifest, sink)?;
        Ok(Point {
            consistency: Consistency::Fuzzy,
            from,
            until: Utc::now(),
            clock_skew_seconds: None,
            position: BTreeMap::from([("mode".to_owned(), json!("http"))]),
            evidence: evidence_of(&manifest),
            notes,
            server_version: Some(version),
        })
    }
}

/// Exports a collection through a file in the scratch directory: memory holds a batch of records.
fn export(
    context: &Context<'_>,
    remote: &Remote,
    collection: &mut Collection,
    sink: &dyn Sink,
) -> Result<()> {
    let path = context.scratch.join("records.jsonl");
    let failed = |e| Error::io(format!("could not write file \"{}\"", path.display()), e);
    let file = std::fs::File::create(&path).map_err(failed)?;
    let mut file = std::io::BufWriter::with_capacity(1 << 20, file);
    let mut digest = Digest::default();
    remote.records(context, collection, &mut |record| {
        let line = record.line()?;
        digest.add(&line);
        file.write_all(&line).map_err(failed)
    })?;
    file.flush().map_err(failed)?;
    drop(file);
    (collection.records, collection.digest) = digest.finish();
    let mut file = std::fs::File::open(&path).map_err(failed)?;
    sink.file(Entry::file(collection.path()), &mut file)?;
    Ok(())
}

fn store_manifest(manifest: &Manifest, sink: &dyn Sink) -> Result<()> {
    let text = serde_json::to_vec(manifest).map_err(|e| {
        Error::internal("chroma_manifest", "could not write the manifest").with_source(e)
    })?;
    sink.file(Entry::file(manifest::PATH), &mut text.as_slice())?;
    Ok(())
}

fn evidence_of(manifest: &Manifest) -> BTreeMap<String, serde_json::Value> {
    manifest
        .collections
        .iter()
        .map(|collection| {
            let key = format!("collection {}", collection.full_name());
            let value = json!({ "records": collection.records, "digest": collection.digest });
            (key, value)
        })
        .collect()
}

fn line(name: &str, result: Result<String>) -> CheckLine {
    match result {
        Ok(detail) => CheckLine::well(name, detail),
        Err(error) => CheckLine::failed(name, &error, ""),
    }
}

impl Driver for Chroma {
    fn kind(&self) -> &'static str {
        "chroma"
    }

    fn stage(&self) -> Stage {
        Stage::Derived
    }

    fn check(&self, context: &Context<'_>) -> Result<Vec<CheckLine>> {
        let mut lines = Vec::new();
        if let Some(data_dir) = &self.settings.data_dir {
            // Not for as long as a backup may wait: somebody looks at this.
            let locked = folder::try_lock(data_dir, context.cancel, 5)
                .and_then(|()| Stored::open(data_dir)?.seq_id_max())
                .map(|seq_id| format!("{}, at seq_id {seq_id}", data_dir.display()));
            lines.push(line("chroma data directory", locked));
        }
        if let Some(url) = &self.settings.url {
            let found = self.remote(url).and_then(|remote| {
                let version = remote.version()?;
                let mut collections = 0;
                for tenant in &self.settings.tenants {
                    for database in remote.databases(tenant)? {
                        collections += remote.collections(&database)?.len();
                    }
                }
                Ok(format!(
                    "{}, version {version}, {collections} collections",
                    remote.http.name()
                ))
            });
            let answers = found.is_ok();
            lines.push(line("chroma server", found));
            if answers {
                let remote = self.remote(url)?;
                lines.push(leftovers::check(&remote, &self.settings.tenants));
            }
        }
        Ok(lines)
    }

    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
        match (&self.settings.data_dir, &self.settings.url) {
            (Some(data_dir), _) => self.capture_folder(context, data_dir, sink),
            (None, Some(url)) => self.capture_server(context, url, sink),
            (None, None) => Err(Error::internal("chroma_target", "no source")),
        }
    }

    fn vet(&self, _context: &Context<'_>, source: &dyn Source, request: &Request) -> Result<()> {
        Manifest::read(source)?.wanted(request).map(drop)
    }

    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>> {
        let manifest = Manifest::read(source)?;
        match self.target(&manifest, request)? {
            Target::Server(url) => {
                let remote = self.remote(&url)?;
                restore::into_server(context, &remote, &manifest, source, request)
            }
            Target::Folder(folder) => {
                folder::restore(context, source, &folder, request.overwrite)?;
                let collections = manifest.collections.len();
                Ok(vec![format!(
                    "\"{}\": {collections} collections; start Chroma on it",
                    folder.display()
                )])
            }
        }
    }

    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence> {
        let manifest = Manifest::read(source)?;
        match self.target(&manifest, request)? {
            Target::Server(url) => {
                let remote = self.remote(&url)?;
                restore::compare_server(context, &remote, &manifest, source, request)
            }
            Target::Folder(folder) => match self.running(request)? {
                // What its server loaded counts.
                Some(remote) => {
                    restore::compare_server(context, &remote, &manifest, source, request)
                }
                None => restore::compare_folder(context, &manifest, &folder),
            },
        }
    }

    /// A server that has an address is asked; reading its files would hold its writers back.
    fn ids(
        &self,
        context: &Context<'_>,
        part: &str,
        visit: &mut dyn FnMut(String) -> Result<()>,
    ) -> Result<bool> {
        match (&self.settings.url, &self.settings.data_dir) {
            (Some(url), _) => {
                let (remote, tenants) = (self.remote(url)?, &self.settings.tenants);
                ids::of_server(context, &remote, tenants, part, visit)?;
            }
            (None, Some(data_dir)) => {
                ids::of_folder(context, data_dir, self.limits(), part, visit)?;
            }
            (None, None) => return Err(Error::internal("chroma_target", "no source")),
        }
        Ok(true)
    }

    fn lever(&self, _seconds: u64) -> Option<Lever> {
        // The copy of a data directory is exact by itself; a server has nothing that holds writers back.
        None
    }

    fn hold(&self, _context: &Context<'_>, _lever: &Lever) -> Result<()> {
        Ok(())
    }

    fn release(&self, _context: &Context<'_>, _lever: &Lever) -> Result<()> {
        Ok(())
    }
}
