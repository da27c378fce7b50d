//! Base backups. (to be written)
