//! Postgres's bytes and protocols. Offsets and rules follow the Postgres sources, named per item.

pub mod backup_label;
pub mod control_file;
pub(crate) mod data_directory;
pub mod history_file;
pub mod manifest;
pub mod page;
pub mod session;
pub mod tablespace_map;
pub mod wal_page;
pub mod wal_record;
