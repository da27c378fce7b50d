//! What the engine says of the volumes, in a file of the backup: driver, options, labels. Options may be
//! secrets (a password of CIFS): as content they are encrypted as everything else.

use super::volume::{Volume, check_name};
use crate::component::{Entry, Sink, Source, read_whole};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// No volume can be called so.
pub(super) const PATH: &[u8] = b".pgark-volumes.json";
/// A volume has a few hundred bytes.
const BYTES_MAX: u64 = 64 << 20;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    format: u32,
    pub(super) volumes: BTreeMap<String, Volume>,
}

impl Index {
    pub(super) fn of(volumes: &[Volume]) -> Self {
        let volumes = volumes.iter();
        Self {
            format: 1,
            volumes: volumes.map(|v| (v.name.clone(), v.clone())).collect(),
        }
    }

    /// # Errors
    /// The sink's.
    pub(super) fn store(&self, sink: &dyn Sink) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|e| {
            Error::internal("serialize", "could not serialize what volumes are").with_source(e)
        })?;
        let entry = Entry {
            size: bytes.len() as u64,
            ..Entry::file(PATH)
        };
        sink.file(entry, &mut bytes.as_slice()).map(drop)
    }

    /// # Errors
    /// Kind Data, `volume_index`; the source's.
    pub(super) fn load(source: &dyn Source) -> Result<Self> {
        let damaged = |why: String| {
            Error::data("volume_index", "the backup does not tell its volumes").with_detail(why)
        };
        let bytes = read_whole(source, PATH, BYTES_MAX)?;
        let index: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(format!("{e}.")))?;
        if index.format != 1 {
            return Err(damaged(format!("Its format is {}, not 1.", index.format)));
        }
        for (name, volume) in &index.volumes {
            if check_name(name).is_err() || *name != volume.name {
                return Err(damaged(format!("{name:?} is no name of a volume.")));
            }
        }
        Ok(index)
    }
}
