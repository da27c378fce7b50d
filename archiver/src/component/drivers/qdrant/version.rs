//! Versions of Qdrant, and which snapshots go into which.

/// `major.minor.patch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

/// Whether a snapshot of one version can be restored into a server of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// The vendor says so: the same minor version, and no older patch.
    Good,
    /// The server is newer: it may, and nobody has promised it.
    Newer,
    /// The server is older than the snapshot.
    Older,
}

impl Version {
    /// Reads `1.19.0`, also with `-dev` and the like behind it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let number = text.split(['-', '+']).next()?;
        let mut parts = number.strip_prefix('v').unwrap_or(number).split('.');
        let mut next = || parts.next()?.parse().ok();
        let version = Self {
            major: next()?,
            minor: next()?,
            patch: next()?,
        };
        parts.next().is_none().then_some(version)
    }

    /// Whether pgark knows how to talk to it: checksums came with 1.8.
    pub(super) const fn is_known(self) -> bool {
        self.major == 1 && self.minor >= 8
    }

    /// How a snapshot of this version goes into `server`.
    pub(super) fn into_server(self, server: Self) -> Fit {
        if server < self {
            Fit::Older
        } else if (server.major, server.minor) == (self.major, self.minor) {
            Fit::Good
        } else {
            Fit::Newer
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let version = |text: &str| Version::parse(text).unwrap();
        assert_eq!(version("1.19.0").to_string(), "1.19.0");
        assert_eq!(version("v1.19.0-dev"), version("1.19.0"));
        assert!(version("1.9.9") < version("1.10.0"));
        assert!(version("1.8.0").is_known() && version("1.120.0").is_known());
        assert!(!version("1.7.9").is_known() && !version("2.0.0").is_known());
        for none in ["", "1", "1.2", "1.2.3.4", "1.x.0", "-1.2.3"] {
            assert_eq!(Version::parse(none), None, "{none}");
        }
        let fit = |from: &str, to: &str| version(from).into_server(version(to));
        assert_eq!(fit("1.19.0", "1.19.3"), Fit::Good);
        assert_eq!(fit("1.19.1", "1.19.0"), Fit::Older);
        assert_eq!(fit("1.20.0", "1.19.9"), Fit::Older);
        assert_eq!(fit("1.18.4", "1.19.0"), Fit::Newer);
    }
}
