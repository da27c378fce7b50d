//! The vectors of a collection as Chroma keeps them on disk: an index of hnswlib (Chroma's fork), and a
//! pickle that tells which id has which label. Layout: `hnswalg.h`, `saveIndex`/`persistDirty`:
//! a header of 100 bytes, then elements of one size: links, vector, label.

use super::pickle::{self, Value};
use super::record::floats;
use crate::{Error, Result};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const PICKLE: &str = "index_metadata.pickle";
const HEADER_BYTES: usize = 100;
/// The pickle of some ten million ids.
const PICKLE_BYTES_MAX: u64 = 1 << 30;
/// Longer than any vector: a limit for what a damaged header may ask for.
const ELEMENT_BYTES_MAX: u64 = 16 << 20;
/// The second byte of an element's links: it was deleted.
const DELETED_AT: u64 = 2;

/// An open index.
pub(super) struct Index {
    data: File,
    lengths: Option<File>,
    element_bytes: u64,
    vector_at: u64,
    vector_bytes: u64,
    position: HashMap<String, u64>,
}

fn damaged(folder: &Path, why: &str) -> Error {
    Error::data(
        "chroma_index_damaged",
        format!("the index \"{}\" is damaged: {why}", folder.display()),
    )
    .with_hint(
        "When the server is well, back it up over HTTP (url instead of data_dir); else rebuild the collection.",
    )
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let eight = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(eight.try_into().ok()?))
}

impl Index {
    /// The index in `folder`; `None`: there is none yet. `cosine`: its vectors are normalised, their
    /// lengths in a file of their own.
    ///
    /// # Errors
    /// Kind Data; I/O.
    pub(super) fn open(folder: &Path, cosine: bool) -> Result<Option<Self>> {
        let header_path = folder.join("header.bin");
        // The pickle comes last: an index without one was begun and holds nothing that counts.
        if !header_path.exists() || !folder.join(PICKLE).exists() {
            return Ok(None);
        }
        let open = |name: &str| {
            let path = folder.join(name);
            File::open(&path)
                .map_err(|e| Error::io(format!("could not open file \"{}\"", path.display()), e))
        };
        let header = std::fs::read(&header_path).map_err(|e| {
            Error::io(
                format!("could not read file \"{}\"", header_path.display()),
                e,
            )
        })?;
        if header.len() != HEADER_BYTES {
            return Err(damaged(folder, "its header has another length"));
        }
        // A version (4 bytes), the offset of level 0, then: room, elements, bytes per element, where the label
        // and where the vector stand in one.
        let field = |at| number(&header, at).ok_or_else(|| damaged(folder, "its header is short"));
        let (elements, element_bytes) = (field(20)?, field(28)?);
        let (label_at, vector_at) = (field(36)?, field(44)?);
        let vector_bytes = label_at
            .checked_sub(vector_at)
            .filter(|bytes| bytes % 4 == 0);
        let vector_bytes =
            vector_bytes.ok_or_else(|| damaged(folder, "its header makes no sense"))?;
        if element_bytes > ELEMENT_BYTES_MAX || label_at.checked_add(8) != Some(element_bytes) {
            return Err(damaged(folder, "its header makes no sense"));
        }
        let data = open("data_level0.bin")?;
        let length = data
            .metadata()
            .map_err(|e| Error::io("could not look at the index", e))?
            .len();
        if elements
            .checked_mul(element_bytes)
            .is_none_or(|n| n > length)
        {
            return Err(damaged(folder, "it has fewer elements than it says"));
        }
        let mut index = Self {
            data,
            lengths: cosine.then(|| open("length.bin")).transpose()?,
            element_bytes,
            vector_at,
            vector_bytes,
            position: HashMap::new(),
        };
        let by_label = index.labels(folder, elements, label_at)?;
        index.position = positions(folder, &by_label)?;
        Ok(Some(index))
    }

    /// Where the element of each label is.
    fn labels(&self, folder: &Path, elements: u64, label_at: u64) -> Result<HashMap<u64, u64>> {
        let mut found = HashMap::new();
        for element in 0..elements {
            let start = element * self.element_bytes;
            let deleted: [u8; 1] = self.at(folder, start + DELETED_AT)?;
            let label: [u8; 8] = self.at(folder, start + label_at)?;
            if deleted == [0] {
                found.insert(u64::from_le_bytes(label), element);
            }
        }
        Ok(found)
    }

    fn at<const N: usize>(&self, folder: &Path, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.data
            .read_exact_at(&mut bytes, at)
            .map_err(|e| damaged(folder, "it could not be read").with_source(e))?;
        Ok(bytes)
    }

    /// Whether it has a vector of `id`.
    pub(super) fn has(&self, id: &str) -> bool {
        self.position.contains_key(id)
    }

    /// The vector of `id`, as the server returns it; `None`: it has none.
    ///
    /// # Errors
    /// I/O.
    pub(super) fn vector(&self, id: &str) -> Result<Option<Vec<f32>>> {
        let Some(element) = self.position.get(id) else {
            return Ok(None);
        };
        let failed = |e| Error::io("could not read the index", e);
        let mut bytes = vec![0; usize::try_from(self.vector_bytes).unwrap_or(0)];
        self.data
            .read_exact_at(&mut bytes, element * self.element_bytes + self.vector_at)
            .map_err(failed)?;
        let mut vector = floats(&bytes);
        if let Some(lengths) = &self.lengths {
            let mut length = [0; 4];
            lengths
                .read_exact_at(&mut length, element * 4)
                .map_err(failed)?;
            let length = f32::from_le_bytes(length);
            for number in &mut vector {
                *number *= length;
            }
        }
        Ok(Some(vector))
    }
}

/// Where the element of each id is.
fn positions(folder: &Path, by_label: &HashMap<u64, u64>) -> Result<HashMap<String, u64>> {
    let path = folder.join(PICKLE);
    let failed = |e| Error::io(format!("could not read file \"{}\"", path.display()), e);
    let size = std::fs::metadata(&path).map_err(failed)?.len();
    if size > PICKLE_BYTES_MAX {
        return Err(damaged(folder, "index_metadata.pickle is above 1 GiB"));
    }
    let pickle = pickle::parse(&std::fs::read(&path).map_err(failed)?)
        .map_err(|e| e.context(folder.display()))?;
    let Some(Value::Dict(pairs)) = pickle.get("id_to_label") else {
        return Err(damaged(folder, "its ids are missing"));
    };
    let mut found = HashMap::with_capacity(pairs.len());
    for (id, label) in pairs {
        let (Value::Text(id), Value::Int(label)) = (id, label) else {
            return Err(damaged(folder, "its ids are not understood"));
        };
        let element = by_label.get(&label.cast_unsigned()).ok_or_else(|| {
            damaged(
                folder,
                &format!("record \"{id}\" has no vector (label {label})"),
            )
        })?;
        found.insert(id.to_string(), *element);
    }
    Ok(found)
}
