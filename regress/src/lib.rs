//! pgark's end-to-end harness: real Postgres servers of several majors, made and thrown away by the
//! test that needs them.
//!
//! Everything a test makes lies in one [`TestDirectory`], and everything it starts mentions that
//! directory; dropping it ends the processes and removes the files. Postgres refuses to run as
//! root, so as root the harness runs servers and pgark itself as the user `pgark-test`
//! ([`account`]).
//!
//! The harness is test code: it panics, loudly, where a library would return an error.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

pub mod account;
pub mod bench;
pub mod chroma_server;
pub mod cluster;
pub mod delay_proxy;
pub mod directory;
pub mod docker_server;
pub mod evidence;
pub mod fake_agent;
pub mod fake_docker;
pub mod fake_grafana;
pub mod fuzz;
mod http;
pub mod ledger;
pub mod major;
pub mod minio_server;
pub mod pgark;
pub mod place;
pub mod process;
pub mod prometheus_server;
pub mod qdrant_server;
pub mod recovery;
pub mod redis_server;
pub mod s3_proxy;
pub mod s3_server;
pub mod search_server;
pub mod server_log;
pub mod session;
pub mod sftp_server;
pub mod store_set;
pub mod tcp_proxy;
pub mod tier;
pub mod tmpfs;
pub mod tools;

pub use cluster::{Cluster, ClusterBuilder, StopMode};
pub use directory::TestDirectory;
pub use ledger::{Ledger, Mark};
pub use major::Major;
pub use pgark::{Agent, Output, Pgark};
pub use session::Session;
