//! What a server says of itself.

use super::connection::{Connection, Reply, info_field};
use crate::Result;
use chrono::{DateTime, Utc};

/// A server as it is now.
#[derive(Debug, Clone)]
pub(super) struct Server {
    info: String,
    /// Its clock minus ours, in seconds.
    pub(super) clock_skew_seconds: Option<f64>,
    /// Its clock when it was asked.
    pub(super) time: Option<DateTime<Utc>>,
}

impl Server {
    /// Asks.
    ///
    /// # Errors
    /// Those of the connection; kind Invalid, `redis_rights`, when it may not be asked.
    pub(super) fn ask(connection: &mut Connection<'_>) -> Result<Self> {
        let info = connection.text(&["INFO"])?;
        let before = Utc::now();
        // Not every user may ask for it.
        let time = match connection.ask(&["TIME"])? {
            Reply::Array(parts) => parse_time(&parts),
            _ => None,
        };
        let after = Utc::now();
        let middle = before + (after - before) / 2;
        let skew = time.and_then(|time| (time - middle).num_microseconds());
        Ok(Self {
            info,
            #[expect(
                clippy::cast_precision_loss,
                reason = "microseconds of a clock's error"
            )]
            clock_skew_seconds: skew.map(|micros| micros as f64 / 1e6),
            time,
        })
    }

    /// A field of `INFO`.
    #[must_use]
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        info_field(&self.info, name)
    }

    fn is(&self, name: &str, value: &str) -> bool {
        self.field(name) == Some(value)
    }

    /// A number of `INFO`.
    #[must_use]
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }

    /// `Redis 7.0.15`, `Valkey 8.1.1`.
    #[must_use]
    pub(super) fn version(&self) -> String {
        match (self.field("valkey_version"), self.field("redis_version")) {
            (Some(version), _) => format!("Valkey {version}"),
            (None, Some(version)) => format!("Redis {version}"),
            (None, None) => "Redis, version unknown".to_owned(),
        }
    }

    /// The first number of the version whose behaviour it has: Valkey says which Redis that is.
    #[must_use]
    pub(super) fn major(&self) -> u32 {
        let version = self.field("redis_version").unwrap_or_default();
        let major = version.split('.').next().unwrap_or_default();
        major.parse().unwrap_or(0)
    }

    /// Whether `PEXPIRETIME` and functions are there.
    #[must_use]
    pub(super) fn is_7(&self) -> bool {
        self.major() >= 7
    }

    /// Whether it is a replica.
    #[must_use]
    pub(super) fn is_replica(&self) -> bool {
        self.is("role", "slave")
    }

    /// Whether it is one of several that share the keys.
    #[must_use]
    pub(super) fn is_cluster(&self) -> bool {
        self.is("cluster_enabled", "1")
    }

    /// Whether it writes an append-only file.
    #[must_use]
    pub(super) fn has_append_only(&self) -> bool {
        self.is("aof_enabled", "1")
    }

    /// The databases that hold keys, and how many.
    #[must_use]
    pub(super) fn databases(&self) -> Vec<(u32, u64)> {
        self.info
            .lines()
            .filter_map(|line| {
                let (db, fields) = line.trim_end().strip_prefix("db")?.split_once(':')?;
                let keys = fields.split(',').next()?.strip_prefix("keys=")?;
                Some((db.parse().ok()?, keys.parse().ok()?))
            })
            .collect()
    }
}

fn parse_time(parts: &[Reply]) -> Option<DateTime<Utc>> {
    let number = |reply: &Reply| match reply {
        Reply::Bulk(Some(bytes)) => std::str::from_utf8(bytes).ok()?.parse::<i64>().ok(),
        _ => None,
    };
    let [seconds, micros] = parts else {
        return None;
    };
    let micros = number(seconds)?
        .checked_mul(1_000_000)?
        .checked_add(number(micros)?)?;
    DateTime::from_timestamp_micros(micros)
}
