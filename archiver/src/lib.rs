//! The pgark archiver: WAL archiving, base backups, restore and verification for Postgres.
//!
//! The engine is synchronous: storage calls block, and parallelism is threads. Only the agent's
//! event loop and the SQL sessions use tokio (`docs/decisions/0001-synchronous-engine.md`).
#![forbid(unsafe_code)]

pub mod agent;
pub mod backup;
mod bulk_read;
pub mod cancel;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod component;
pub mod config;
pub mod crashsafe;
pub mod error;
mod examples;
pub mod exit_code;
pub mod fault;
pub mod gc;
pub mod lifecycle;
pub mod places;
pub mod postgres;
pub mod progress;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod signals;
pub mod storage;
pub mod transfer;
pub mod verify;
pub mod wal;

pub use error::{Error, ErrorKind, Result};
