//! Create-exclusive on any S3 server.
//!
//! *Native*: the server honours `If-None-Match: *`. *Claims*, where it does not: who wants to put `key`
//! first puts a claim of a unique name, then lists the claims for `key`; alone, it looks whether the
//! object is there, puts it, and removes its claim; not alone, it removes its claim, waits a random
//! while and begins again. Of two that overlap, at least one sees the other's claim, and who comes later
//! sees the object: listing and looking come after claiming. A put without an answer leaves its claim,
//! for its bytes may still arrive; such a claim holds others off until [`CLAIM_LIFE`] has passed.
//! Claims for the same bytes do not exclude each other: whoever of them puts, the object is the same.

use super::{Inner, TEMPORARY, jitter, nonce};
use crate::config::ConditionalPut;
use crate::repository::layout;
use crate::storage::Put;
use crate::{Error, Result};
use bytes::Bytes;
use chrono::TimeDelta;
use std::time::{Duration, Instant};

/// How long a claim holds others off. Far above the deadline of a put.
const CLAIM_LIFE: TimeDelta = TimeDelta::hours(2);
/// A claim older than this is not acted on by its own maker, who may have slept.
const CLAIM_USE: Duration = Duration::from_secs(60);
/// The object that tells whether the server honours `If-None-Match`.
const CANARY: &str = "tmp/conditional-put";

/// How puts are made exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exclusiveness {
    /// By the server.
    Native,
    /// By claims.
    Claims,
}

impl Inner {
    /// Creates `name`, unless it is there.
    pub(super) fn put_exclusively(&self, name: &str, bytes: &Bytes) -> Result<Put> {
        match self.exclusiveness()? {
            Exclusiveness::Native => self.put(name, bytes, true),
            Exclusiveness::Claims => self.put_with_claim(name, bytes),
        }
    }

    /// As configured, or found out once by each process that writes: a second put of one object with
    /// the same bytes is refused or it is not. (Whether of two at once one wins is for `probe`.)
    pub(super) fn exclusiveness(&self) -> Result<Exclusiveness> {
        if let Some(known) = self.exclusiveness.get() {
            return Ok(*known);
        }
        let found = match self.settings.conditional_put {
            ConditionalPut::Native => Exclusiveness::Native,
            ConditionalPut::Emulated => Exclusiveness::Claims,
            ConditionalPut::Probe => self.look_for_exclusiveness()?,
        };
        Ok(*self.exclusiveness.get_or_init(|| found))
    }

    fn look_for_exclusiveness(&self) -> Result<Exclusiveness> {
        for _ in 0..2 {
            match self.put(CANARY, &Bytes::from_static(b"pgark\n"), true) {
                // Who says "exists" has looked.
                Ok(Put::Exists) => return Ok(Exclusiveness::Native),
                // New, or replaced: the second time tells.
                Ok(Put::Created) => {}
                Err(e) if e.code() == "s3_unexpected_reply" => return self.refuses_header(e),
                Err(e) => return Err(e),
            }
        }
        tracing::warn!(
            code = "s3_conditional_put_ignored",
            "{} ignores If-None-Match: puts are made exclusive by claims, at several requests each",
            self.place
        );
        Ok(Exclusiveness::Claims)
    }

    /// A server that does not know the header may refuse it; without it the put must work.
    fn refuses_header(&self, error: Error) -> Result<Exclusiveness> {
        match self.put(CANARY, &Bytes::from_static(b"pgark\n"), false) {
            Ok(_) => Ok(Exclusiveness::Claims),
            Err(_) => Err(error),
        }
    }

    pub(super) fn put_with_claim(&self, name: &str, bytes: &Bytes) -> Result<Put> {
        let deadline = Instant::now() + self.settings.deadline;
        let digest = layout::short_digest(&blake3::hash(bytes));
        let prefix = format!("{TEMPORARY}claims/{name}/");
        loop {
            if self.head(name)?.is_some() {
                return Ok(Put::Exists);
            }
            let claim = format!("{prefix}{digest}-{}", nonce()?);
            let claimed_at = Instant::now();
            if let Err(e) = self.put(&claim, &Bytes::new(), false) {
                // Of use to nobody, but in the way of others.
                let _ = self.delete(&claim);
                return Err(e);
            }
            // Nothing was put yet: until then a claim is withdrawn whatever happens.
            let standing = self.is_alone(&prefix, &claim, &digest).and_then(|alone| {
                let there = alone && self.head(name)?.is_some();
                Ok((alone, there))
            });
            match standing {
                Err(error) => {
                    self.withdraw(&claim);
                    return Err(error);
                }
                Ok((true, true)) => {
                    self.withdraw(&claim);
                    return Ok(Put::Exists);
                }
                Ok((true, false)) if claimed_at.elapsed() < CLAIM_USE => {
                    // After an error the claim stays: the bytes may still arrive.
                    let _ = self.put(name, bytes, false)?;
                    self.withdraw(&claim);
                    return Ok(Put::Created);
                }
                Ok(_) => {}
            }
            self.withdraw(&claim);
            if Instant::now() >= deadline {
                return Err(Error::unavailable(
                    "s3_put_contended",
                    format!("others claim object \"{name}\" in {}", self.place),
                )
                .with_hint("A writer that broke off holds a name for two hours; other writers must not use this name at all."));
            }
            std::thread::sleep(jitter(600));
        }
    }

    /// Whether no claim for other bytes is in force. Times are the server's, on both sides.
    fn is_alone(&self, prefix: &str, claim: &str, digest: &str) -> Result<bool> {
        let claims = self.list_names(prefix)?;
        let Some(own) = claims.iter().find(|(name, _)| name == claim) else {
            return Err(Error::unavailable(
                "s3_listing_late",
                format!("{} does not list what was just put", self.place),
            )
            .with_hint("A server without If-None-Match needs listings that are up to date: pgark cannot use this one."));
        };
        let own_time = own.1.modified;
        Ok(claims.iter().all(|(name, found)| {
            let rest = name.strip_prefix(prefix).unwrap_or_default();
            rest.starts_with(digest) || own_time - found.modified > CLAIM_LIFE
        }))
    }

    fn withdraw(&self, claim: &str) {
        if let Err(error) = self.delete(claim) {
            tracing::warn!(%error, "could not withdraw a claim: it holds others off for two hours");
        }
    }
}
