//! `[component.<name>]` and `[group.<name>]`: what is backed up beside the Postgres cluster.

use serde::{Deserialize, Deserializer, de::Error as _};

/// `[component.<name>]`: the keys that every component has, and those of its driver.
#[derive(Debug, Clone)]
pub struct Component {
    /// What every component has.
    pub common: Common,
    /// The rest: parsed by the driver of this kind, strictly.
    pub settings: toml::Table,
}

/// The keys that every component has.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Common {
    /// What it is: the driver.
    pub kind: String,
}

/// The keys of [`Common`]; any other one is the driver's.
const COMMON_KEYS: [&str; 1] = ["kind"];

impl<'de> Deserialize<'de> for Component {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut settings = toml::Table::deserialize(deserializer)?;
        let mut common = toml::Table::new();
        for key in COMMON_KEYS {
            if let Some(value) = settings.remove(key) {
                common.insert(key.to_owned(), value);
            }
        }
        let common = common.try_into().map_err(D::Error::custom)?;
        Ok(Self { common, settings })
    }
}

/// `[group.<name>]`: components that are named together.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Names of components, the cluster's among them.
    pub components: Vec<String>,
}
