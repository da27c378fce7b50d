//! An S3 bucket, or the part of one below a prefix, as storage.
//!
//! An object is one PUT with `If-None-Match: *`, so it appears whole and never replaces; where the
//! server ignores that header, claims decide who may put (`exclusive`). Each PUT carries a nonce:
//! when an answer was lost and the next attempt is told "exists", the nonce says whether that is our
//! own. Calls block on a runtime that the first of them makes.

/// Adds the headers of a customer's key to a request, where there is one.
macro_rules! with_customer_key {
    ($request:expr, $key:expr) => {
        match &$key {
            Some(customer) => $request
                .sse_customer_algorithm("AES256")
                .sse_customer_key(customer.key.clone())
                .sse_customer_key_md5(customer.md5.clone()),
            None => $request,
        }
    };
}

mod client;
mod content_md5;
mod exclusive;
pub(super) mod failure;
mod lifecycle;
mod lock;
pub mod objects;
mod probe;
mod requests;
pub mod settings;
mod throttle;
mod versions;

pub use settings::Settings;

use super::bucket::{Covered, Lifecycle, ObjectLock, ObjectState, Rule, Tier};
use super::policy::{self, Attempt, Limiter, Operation};
use super::{Bucket, Capabilities, Key, ObjectMeta, ObjectWriter, Put, Storage};
use crate::repository::layout::{self, ObjectClass};
use crate::{Error, Result};
use aws_sdk_s3::Client;
use aws_sdk_s3::types::StorageClass;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use exclusive::Exclusiveness;
use failure::Failure;
use settings::CustomerKey;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Names below the prefix that are no objects of the repository: claims and probes. In no listing.
const TEMPORARY: &str = "tmp/";
/// Objects of at least this size are put side by side no more than [`LARGE_PUTS_MAX`] at once.
const LARGE_BYTES: usize = 24 << 20;
/// See [`LARGE_BYTES`].
const LARGE_PUTS_MAX: usize = 2;
/// Objects being written at once, each up to a pack of memory.
const WRITERS_MAX: usize = 4;
/// No object of any S3 server ends behind this offset.
const OFFSET_MAX: u64 = 1 << 50;

/// Objects in a bucket.
#[derive(Debug, Clone)]
pub struct S3Storage {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    place: String,
    /// Made at the first call, and again after credentials were refused: they may have been renewed.
    client: Mutex<Option<Client>>,
    exclusiveness: OnceLock<Exclusiveness>,
    capabilities: OnceLock<Capabilities>,
    versions: versions::Versions,
    customer_key: OnceLock<Arc<CustomerKey>>,
    large_puts: Semaphore,
    upload: Arc<Limiter>,
    download: Limiter,
}

impl S3Storage {
    /// A storage; talks to nobody yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let limit = settings.bytes_per_second_max;
        Self {
            inner: Arc::new(Inner {
                place: settings.describe(),
                client: Mutex::new(None),
                exclusiveness: OnceLock::new(),
                capabilities: OnceLock::new(),
                versions: versions::Versions::default(),
                customer_key: OnceLock::new(),
                large_puts: Semaphore::new(LARGE_PUTS_MAX),
                upload: Arc::new(Limiter::new(limit)),
                download: Limiter::new(limit),
                settings,
            }),
        }
    }
}

impl Storage for S3Storage {
    fn describe(&self) -> String {
        match self.inner.exclusiveness.get() {
            Some(Exclusiveness::Claims) => {
                format!("{} (If-None-Match is ignored: claims)", self.inner.place)
            }
            _ => self.inner.place.clone(),
        }
    }

    /// Probes at the first call. While the probe fails the answer is "nothing" and is not kept.
    fn capabilities(&self) -> Capabilities {
        if let Some(known) = self.inner.capabilities.get() {
            return *known;
        }
        match self.inner.probe() {
            Ok(found) => *self.inner.capabilities.get_or_init(|| found),
            Err(error) => {
                tracing::warn!(%error, code = error.code(), detail = error.detail(), hint = error.hint(), "could not probe the storage");
                Capabilities {
                    exclusive_put: false,
                    durable_put: false,
                }
            }
        }
    }

    /// Finds out by trying whether the server honours `If-None-Match`, whether of several puts at once
    /// one wins, and whether what was put is there at once.
    fn probe(&self) -> Result<Capabilities> {
        self.inner.probe()
    }

    fn put_if_absent(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.inner
            .put_exclusively(key.as_str(), &Bytes::copy_from_slice(bytes))
    }

    fn put_shared_if_absent(&self, key: &Key, bytes: &Bytes) -> Result<Put> {
        self.inner.put_exclusively(key.as_str(), bytes)
    }

    fn start_object(&self) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(Writer {
            inner: Arc::clone(&self.inner),
            bytes: Vec::new(),
        }))
    }

    fn object_writers_max(&self) -> usize {
        WRITERS_MAX
    }

    fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        self.inner.get(key, size_max)
    }

    fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.inner.get_range(key, offset, length)
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectMeta>> {
        let found = self.inner.head(key.as_str())?;
        Ok(found.map(|found| ObjectMeta {
            key: key.clone(),
            size: found.size,
            modified: found.modified,
        }))
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.inner.list_objects(prefix)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key.as_str())
    }

    /// A put is durable when it was answered, whoever made it; that the object is there is looked at.
    fn make_durable(&self, key: &Key) -> Result<()> {
        match self.inner.head(key.as_str())? {
            Some(_) => Ok(()),
            None => Err(not_found(key)),
        }
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn bucket(&self) -> Option<&dyn Bucket> {
        Some(self)
    }
}

impl Bucket for S3Storage {
    fn object_lock(&self) -> Option<ObjectLock> {
        self.inner.settings.object_lock
    }

    fn locks(&self) -> bool {
        self.inner.settings.object_lock.is_some() || self.inner.first_version_counts()
    }

    fn check_object_lock(&self) -> Result<()> {
        match self.inner.settings.object_lock {
            Some(_) => self.inner.check_object_lock(),
            None => Ok(()),
        }
    }

    fn state(&self, key: &Key) -> Result<Option<ObjectState>> {
        let version = self.inner.version(key.as_str())?;
        match version {
            versions::Version::Absent => Ok(None),
            version => self.inner.state(key.as_str(), &version),
        }
    }

    fn lock_until(&self, key: &Key, state: &ObjectState, until: DateTime<Utc>) -> Result<()> {
        self.inner.lock_until(key.as_str(), state, until)
    }

    fn covered(&self) -> Result<Vec<Covered>> {
        self.inner.covered()
    }

    fn archived(&self, prefix: &str) -> Result<Vec<(Key, String)>> {
        let names = self.inner.list_names(prefix)?;
        let archived = names.into_iter().filter_map(|(name, found)| {
            let class = found.class.filter(|class| lock::is_archive(class))?;
            Some((Key::new(name).ok()?, class))
        });
        Ok(archived.collect())
    }

    fn retrieve(&self, key: &Key, tier: Tier, days: u16) -> Result<()> {
        self.inner.retrieve(key.as_str(), tier, days)
    }

    fn place(&self) -> (String, String) {
        (self.inner.settings.bucket.clone(), self.inner.full(""))
    }

    fn lifecycle(&self) -> Result<Lifecycle> {
        self.inner.lifecycle()
    }

    fn set_lifecycle(&self, own: &str, rules: &[Rule]) -> Result<()> {
        self.inner.set_lifecycle(own, rules)
    }
}

struct Writer {
    inner: Arc<Inner>,
    bytes: Vec<u8>,
}

impl ObjectWriter for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn publish(self: Box<Self>, key: &Key) -> Result<Put> {
        self.inner
            .put_exclusively(key.as_str(), &Bytes::from(self.bytes))
    }
}

fn not_found(key: &Key) -> Error {
    Error::data(
        "object_not_found",
        format!("object \"{key}\" does not exist"),
    )
}

impl Inner {
    /// The name in the bucket of `name` below the prefix.
    fn full(&self, name: &str) -> String {
        match self.settings.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }

    fn storage_class(&self, name: &str) -> Option<StorageClass> {
        let classes = &self.settings.storage_class;
        let class = match layout::object_class(name) {
            ObjectClass::Wal => &classes.wal,
            ObjectClass::Pack => &classes.packs,
            ObjectClass::Metadata => &classes.metadata,
        };
        class.as_deref().map(StorageClass::from)
    }

    /// What is about to be done with `subject`, moving about `bytes`.
    fn operation(
        &self,
        verb: &'static str,
        permission: &'static str,
        subject: &str,
        bytes: u64,
    ) -> Operation {
        let allowance = policy::allowance(bytes, self.settings.bytes_per_second_max);
        Operation {
            verb,
            permission,
            subject: subject.to_owned(),
            attempt: self.settings.attempt_timeout + allowance,
            deadline: self.settings.deadline + allowance * 2,
            patience: self.settings.deadline,
            attempt_patience: self.settings.attempt_timeout,
        }
    }

    /// Runs an operation to its end.
    fn block<T>(
        &self,
        operation: &Operation,
        mut attempt: impl AsyncFnMut(&Client, Attempt) -> Result<T, Failure>,
    ) -> Result<T> {
        let runtime = policy::runtime()?;
        let client = self.client()?;
        let result = runtime.block_on(policy::retrying(
            operation,
            &self.place,
            async |known: Attempt| attempt(&client, known).await,
        ));
        if let Err(error) = &result
            && error.code().starts_with("s3_credentials")
        {
            *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        result
    }

    /// The customer's key, where there is one; read once.
    fn customer_key(&self) -> Result<Option<Arc<CustomerKey>>> {
        let Some(reference) = &self.settings.customer_key else {
            return Ok(None);
        };
        if let Some(known) = self.customer_key.get() {
            return Ok(Some(Arc::clone(known)));
        }
        let read = Arc::new(CustomerKey::read(reference)?);
        Ok(Some(Arc::clone(self.customer_key.get_or_init(|| read))))
    }

    fn client(&self) -> Result<Client> {
        let mut slot = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = slot.as_ref() {
            return Ok(client.clone());
        }
        let made = policy::runtime()?.block_on(client::connect(&self.settings, &self.upload));
        let made = made.map_err(|e| e.context(&self.place))?;
        *slot = Some(made.clone());
        Ok(made)
    }
}

/// A random name: 32 hex digits.
fn nonce() -> Result<String> {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("could not get random bytes", e.into()))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The time that attempts leave between two looks at something contended.
fn jitter(millis_max: u64) -> Duration {
    Duration::from_millis(millis_max).mul_f64(policy::random_fraction())
}
