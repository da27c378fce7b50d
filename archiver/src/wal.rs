//! WAL: into the repository (push), out of it (get), and what is in it (inventory, commit index).

pub mod answer;
pub mod cluster;
pub mod commit_index;
pub mod conflicts;
pub mod container;
pub mod covered;
pub mod fence;
pub mod fork;
pub mod get;
pub mod inventory;
pub mod lag;
pub mod orphan;
pub(crate) mod patience;
pub mod push;
pub mod recovery_file;
pub mod relnames;
pub mod repositories;
pub mod room;
pub mod target;
