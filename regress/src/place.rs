//! Places for a repository: one scene runs unchanged on each of them.

use crate::directory::TestDirectory;
use crate::process::wait_until;
use crate::s3_server::{S3Server, section};
use crate::sftp_server::SftpServer;
use std::path::PathBuf;
use std::time::Duration;

/// The bucket that holds the repositories of every test of a server.
const BUCKET: &str = "places";

/// A server that keeps repositories.
#[derive(Debug)]
pub enum Place {
    /// A bucket.
    S3(S3Server),
    /// A directory of an SSH server.
    Sftp(SftpServer, PathBuf),
}

impl Place {
    /// A bucket of moto, in memory: what lies in it takes no disk.
    pub fn moto(directory: &TestDirectory) -> Self {
        Self::bucket(S3Server::moto(directory))
    }

    /// A bucket of radosgw.
    pub fn radosgw(directory: &TestDirectory) -> Self {
        Self::bucket(S3Server::radosgw(directory))
    }

    fn bucket(server: S3Server) -> Self {
        server.create_bucket(BUCKET);
        Self::S3(server)
    }

    /// A directory of sshd.
    pub fn sftp(directory: &TestDirectory) -> Self {
        let server = SftpServer::start(directory, "");
        Self::Sftp(server, directory.folder("srv"))
    }

    /// From now on the installations of `directory` have their repository here, by the name `name`.
    pub fn keep(&self, directory: &TestDirectory, name: &str) {
        directory.set_repository(match self {
            Self::S3(server) => {
                let keys = section(directory, &server.endpoint(), BUCKET);
                format!("{keys}prefix = \"tests/{name}\"\n")
            }
            Self::Sftp(server, folder) => server.section(server.port(), &folder.join(name)),
        });
    }

    /// Fails when a command left its connection open; agents' end a moment after them.
    #[track_caller]
    pub fn assert_left(&self) {
        if let Self::Sftp(server, _) = self {
            let limit = Duration::from_secs(20);
            wait_until("all connections end", limit, || server.clients() == 0);
        }
    }
}
