//! Which server answers, and whether it can take what a backup holds.

use super::server::{Server, list, text};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Distribution {
    Elasticsearch,
    #[serde(rename = "opensearch")]
    OpenSearch,
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Elasticsearch => "Elasticsearch",
            Self::OpenSearch => "OpenSearch",
        })
    }
}

/// `8.19.0`; what follows a hyphen does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
    patch: u32,
}

impl Version {
    pub(super) const fn new(major: u32, minor: u32) -> Self {
        Self {
            major,
            minor,
            patch: 0,
        }
    }
}

impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let plain = text.split('-').next().unwrap_or_default();
        let mut numbers = plain.split('.').map(str::parse);
        let mut next = || numbers.next().and_then(std::result::Result::ok).ok_or(());
        Ok(Self {
            major: next()?,
            minor: next()?,
            patch: next()?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// What the nodes say of themselves.
#[derive(Debug)]
pub(super) struct About {
    pub(super) distribution: Distribution,
    /// The oldest node's.
    pub(super) version: Version,
    pub(super) nodes: usize,
    /// `path.repo` of each node.
    pub(super) path_repo: Vec<Vec<String>>,
}

impl About {
    /// Asks every node.
    ///
    /// # Errors
    /// The client's; kind Invalid, `elasticsearch_version`, for a server that is too old.
    pub(super) fn of(server: &Server) -> Result<Self> {
        let filter = "nodes.*.version,nodes.*.build_flavor,nodes.*.settings.path.repo";
        let answer = server.get(&["_nodes", "settings"], &[("filter_path", filter)])?;
        let nodes = answer.get("nodes").and_then(Value::as_object);
        let mut oldest = None;
        let mut distribution = Distribution::OpenSearch;
        let mut path_repo = Vec::new();
        for node in nodes.into_iter().flat_map(|nodes| nodes.values()) {
            let version = text(node, "version");
            let version: Version = version.parse().map_err(|()| {
                let why = format!("\"{version}\" is no version");
                server.http.not_understood(&why)
            })?;
            // OpenSearch dropped it; the root's answer lies where a compatible version is configured.
            if node.get("build_flavor").is_some() {
                distribution = Distribution::Elasticsearch;
            }
            oldest = Some(oldest.map_or(version, |other: Version| other.min(version)));
            let paths = node.pointer("/settings/path/repo");
            path_repo.push(paths.map(list).unwrap_or_default());
        }
        let Some(version) = oldest else {
            return Err(server.http.not_understood("it names no nodes"));
        };
        let least = match distribution {
            Distribution::Elasticsearch => Version::new(7, 12),
            Distribution::OpenSearch => Version::new(1, 0),
        };
        if version < least {
            return Err(Error::invalid(
                "elasticsearch_version",
                format!(
                    "{} is {distribution} {version}: too old for pgark",
                    server.http.name()
                ),
            )
            .with_detail(format!("{least} is the oldest.")));
        }
        Ok(Self {
            distribution,
            version,
            nodes: path_repo.len(),
            path_repo,
        })
    }

    /// `Elasticsearch 8.19.0`.
    pub(super) fn shown(&self) -> String {
        format!("{} {}", self.distribution, self.version)
    }

    /// Why this server cannot take a backup of another: its own rules, asked before anything is touched.
    ///
    /// # Errors
    /// Kind Invalid: `elasticsearch_version`, `elasticsearch_distribution`.
    pub(super) fn takes(&self, from: Distribution, version: &str) -> Result<()> {
        let made: Version = version.parse().map_err(|()| {
            Error::data(
                "elasticsearch_manifest",
                format!("\"{version}\" of the backup is no version"),
            )
        })?;
        if from != self.distribution && !self.takes_from_elasticsearch(made) {
            return Err(Error::invalid(
                "elasticsearch_distribution",
                format!(
                    "a backup of {from} {made} cannot be restored into {}",
                    self.shown()
                ),
            )
            .with_hint(format!("Restore it into {from} {made} or newer.")));
        }
        let (here, there) = (self.version, made);
        let newer =
            from == self.distribution && (there.major, there.minor) > (here.major, here.minor);
        let ancient = from == self.distribution && there.major.saturating_add(1) < here.major;
        if newer || ancient {
            let why = match newer {
                true => "a server reads no snapshot of a newer version",
                false => "a server reads snapshots of its own and of the previous major version",
            };
            return Err(Error::invalid(
                "elasticsearch_version",
                format!(
                    "a backup of {from} {made} cannot be restored into {}",
                    self.shown()
                ),
            )
            .with_detail(format!("It is the rule that {why}."))
            .with_hint(match newer {
                true => format!("Restore it into {from} {made} or newer."),
                false => format!(
                    "Restore it into {from} {}, and upgrade that.",
                    there.major.saturating_add(1)
                ),
            }));
        }
        Ok(())
    }
}

impl About {
    /// OpenSearch began as 7.10, and reads indices of one major version before its own: it counts from 7.
    fn takes_from_elasticsearch(&self, made: Version) -> bool {
        let oldest = match (self.distribution, self.version.major) {
            (Distribution::OpenSearch, 1) => Version::new(6, 0),
            (Distribution::OpenSearch, 2) => Version::new(7, 0),
            _ => return false,
        };
        (oldest..Version::new(7, 11)).contains(&made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(distribution: Distribution, version: &str) -> About {
        About {
            distribution,
            version: version.parse().unwrap(),
            nodes: 1,
            path_repo: Vec::new(),
        }
    }

    #[test]
    fn versions_parse_or_not() {
        for (text, shown) in [("8.19.0", "8.19.0"), ("3.0.0-beta1", "3.0.0")] {
            assert_eq!(text.parse::<Version>().unwrap().to_string(), shown);
        }
        for text in ["", "8", "8.1", "8.x.1", "-8.1.1", "99999999999.1.1"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_server_takes_what_its_rules_allow() {
        use Distribution::{Elasticsearch as E, OpenSearch as O};
        for (here, version, from, made, code) in [
            (E, "8.19.0", E, "8.19.4", ""),
            (E, "8.19.0", E, "7.17.1", ""),
            (E, "9.1.0", E, "7.17.1", "elasticsearch_version"),
            (E, "8.18.9", E, "8.19.0", "elasticsearch_version"),
            (E, "8.19.0", O, "2.19.0", "elasticsearch_distribution"),
            (O, "2.19.0", E, "8.19.0", "elasticsearch_distribution"),
            (O, "2.19.0", E, "7.10.2", ""),
            (O, "2.19.0", E, "6.8.0", "elasticsearch_distribution"),
            (O, "3.0.0", E, "7.10.2", "elasticsearch_distribution"),
            (O, "2.19.0", O, "3.0.0", "elasticsearch_version"),
            (O, "3.0.0", O, "2.19.0", ""),
            (O, "3.0.0", O, "x", "elasticsearch_manifest"),
        ] {
            let result = about(here, version).takes(from, made);
            let found = result.err().map_or("", |error| error.code());
            assert_eq!(found, code, "{here} {version} {from} {made}");
        }
    }
}
