//! One file per verb: arguments, domain call, rendering.

pub mod agent;
pub mod archive_get;
pub mod archive_push;
pub mod assess;
pub mod backup;
pub mod catalog;
pub mod check;
pub mod cluster;
pub mod config;
pub mod doctor;
pub mod expire;
pub mod gc;
pub mod info;
pub mod init;
pub mod key;
pub mod mark;
pub mod promote;
pub mod reconcile;
pub mod repo;
pub mod restore;
pub mod restore_set;
pub mod retention;
pub mod verify;
pub mod wal;

mod key_file;
mod output;

pub use output::{Output, lost, print_text, visible};
