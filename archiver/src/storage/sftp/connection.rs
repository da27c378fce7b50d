//! One connection: the requests of SFTP version 3 and OpenSSH's extensions, many in flight where that
//! is what takes time. Whoever has a connection has it alone.

use super::failure::{Failure, Fault, Refusal};
use super::login::{self, Alive, Session};
use super::settings::Settings;
use crate::storage::policy::Limiter;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::{Config, RawSftpSession};
use russh_sftp::protocol::{FileAttributes, OpenFlags, StatusCode};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Bytes of one read or write: every server takes packets of 34,000 bytes.
const CHUNK_BYTES: usize = 32 << 10;
/// Reads or writes in flight.
const IN_FLIGHT_MAX: usize = 64;
/// The largest packet that is taken from a server.
const PACKET_BYTES_MAX: u32 = 256 << 10;
/// Names that one directory may have.
const NAMES_MAX: usize = 50_000_000;
/// No request of ours times out by itself: attempts do.
const REQUEST_TIMEOUT_SECONDS: u64 = 366 * 86_400;
/// Files: the owner writes, the group may read. The server's umask may take more away.
const FILE_MODE: u32 = 0o640;
/// Directories, likewise.
const DIRECTORY_MODE: u32 = 0o750;

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Other,
}

/// What the server says of a name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) kind: Kind,
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) modified: u32,
}

impl Attributes {
    /// `None` when the server does not say what it is.
    fn of(found: &FileAttributes) -> Option<Self> {
        let kind = match found.permissions? & 0xF000 {
            0x8000 => Kind::File,
            0x4000 => Kind::Directory,
            0xA000 => Kind::Symlink,
            _ => Kind::Other,
        };
        Some(Self {
            kind,
            size: found.size.unwrap_or(0),
            modified: found.mtime.unwrap_or(0),
        })
    }
}

/// Room on the server's file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) bytes: u64,
    pub(super) files: u64,
    pub(super) read_only: bool,
}

/// A session that is ready for requests.
pub(super) struct Connection {
    sftp: RawSftpSession,
    session: Session,
    alive: Alive,
    /// `hardlink@openssh.com`.
    pub(super) links: bool,
    /// `fsync@openssh.com`.
    pub(super) syncs: bool,
    room: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects, logs in, and asks for SFTP.
    pub(super) async fn open(settings: &Settings) -> Result<Self, Failure> {
        let (mut session, alive) = login::connect(settings).await?;
        let logged_in = Box::pin(async {
            login::authenticate(&mut session, settings).await?;
            let stream = login::subsystem(&session, settings).await?;
            let config = Config {
                max_packet_len: PACKET_BYTES_MAX,
                request_timeout_secs: REQUEST_TIMEOUT_SECONDS,
                ..Config::default()
            };
            let sftp = RawSftpSession::new_with_config(stream, config);
            let version = sftp.init().await.map_err(Failure::unreached)?;
            Ok((sftp, version))
        });
        let (sftp, version) = login::while_alive(&alive, logged_in).await?;
        let knows = |name: &str| version.extensions.contains_key(name);
        Ok(Self {
            links: knows("hardlink@openssh.com"),
            syncs: knows("fsync@openssh.com"),
            room: knows("statvfs@openssh.com"),
            sftp,
            session,
            alive,
        })
    }

    /// Whether it is known to have ended.
    pub(super) fn is_closed(&self) -> bool {
        self.session.is_closed()
    }

    /// Does `work` on this connection while it lasts.
    pub(super) async fn hold<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        login::while_alive(&self.alive, work).await
    }

    /// What is under `path` itself, links not followed; `None` for nothing.
    pub(super) async fn look(&self, path: &str) -> Result<Option<Attributes>, Fault> {
        match self.sftp.lstat(path).await.map_err(Fault::from) {
            Ok(found) => match Attributes::of(&found.attrs) {
                Some(found) => Ok(Some(found)),
                None => Err(Fault::Refused(Refusal::Failed(
                    "the server does not say what kind of file it is".to_owned(),
                ))),
            },
            Err(Fault::Refused(Refusal::Absent)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// A new file with these bytes, fsynced where the server can; fails where there is something.
    pub(super) async fn create(
        &self,
        path: &str,
        bytes: &[u8],
        limiter: &Limiter,
    ) -> Result<(), Fault> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        let mode = FileAttributes {
            permissions: Some(FILE_MODE),
            ..no_attributes()
        };
        let handle = self.sftp.open(path, flags, mode).await?.handle;
        let written = self.write(&handle, bytes, limiter).await;
        let synced = match (&written, self.syncs) {
            (Ok(()), true) => self.sftp.fsync(&handle).await.map(drop),
            _ => Ok(()),
        };
        // Closed whatever happened; some servers report write errors only here.
        let closed = self.sftp.close(&handle).await;
        written?;
        synced?;
        closed?;
        Ok(())
    }

    async fn write(&self, handle: &str, bytes: &[u8], limiter: &Limiter) -> Result<(), Fault> {
        let mut window = Window::new();
        let mut offset = 0_u64;
        for chunk in bytes.chunks(CHUNK_BYTES) {
            if window.is_full() {
                window.oldest().await.transpose()?;
            }
            let request = self.sftp.write(handle, offset, chunk.to_vec());
            window.send(Box::pin(request)).await;
            offset = offset.saturating_add(chunk.len() as u64);
            pause(limiter, chunk.len()).await;
        }
        while let Some(answer) = window.oldest().await {
            answer?;
        }
        Ok(())
    }

    /// Bytes `offset .. offset + length` of a file; fewer where it ends.
    pub(super) async fn read(
        &self,
        path: &str,
        offset: u64,
        length: usize,
        limiter: &Limiter,
    ) -> Result<Vec<u8>, Fault> {
        let opened = self.sftp.open(path, OpenFlags::READ, no_attributes()).await;
        let handle = opened?.handle;
        let read = self.read_handle(&handle, offset, length, limiter).await;
        // What was read is what counts.
        let _ = self.sftp.close(&handle).await;
        read
    }

    async fn read_handle(
        &self,
        handle: &str,
        offset: u64,
        length: usize,
        limiter: &Limiter,
    ) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::with_capacity(length);
        let mut window = Window::new();
        let mut asked = 0_usize;
        while bytes.len() < length {
            while !window.is_full() && asked < length {
                let wanted = CHUNK_BYTES.min(length - asked);
                let request = self.read_chunk(handle, offset + asked as u64, wanted);
                window.send(Box::pin(request)).await;
                asked += wanted;
            }
            let Some(chunk) = window.oldest().await else {
                break;
            };
            let (chunk, ended) = chunk?;
            bytes.extend_from_slice(&chunk);
            if ended {
                // Answers to what was asked for behind the end are let go.
                break;
            }
            pause(limiter, chunk.len()).await;
        }
        Ok(bytes)
    }

    /// A server may answer with less than was asked for. With the chunk, whether the file ended in it.
    async fn read_chunk(
        &self,
        handle: &str,
        offset: u64,
        length: usize,
    ) -> Result<(Vec<u8>, bool), SftpError> {
        let mut chunk = Vec::new();
        while chunk.len() < length {
            let left = u32::try_from(length - chunk.len()).unwrap_or(u32::MAX);
            let at = offset.saturating_add(chunk.len() as u64);
            match self.sftp.read(handle, at, left).await {
                Ok(answer) if answer.data.is_empty() => return Ok((chunk, true)),
                Ok(answer) if answer.data.len() > length - chunk.len() => {
                    return Err(SftpError::UnexpectedPacket);
                }
                Ok(answer) => chunk.extend_from_slice(&answer.data),
                Err(SftpError::Status(status)) if status.status_code == StatusCode::Eof => {
                    return Ok((chunk, true));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((chunk, false))
    }

    /// A second name for a file: fails when the name is taken.
    pub(super) async fn link(&self, from: &str, to: &str) -> Result<(), Fault> {
        self.sftp.hardlink(from, to).await?;
        Ok(())
    }

    /// SFTP's own rename: version 3 says that it fails when the name is taken.
    pub(super) async fn rename(&self, from: &str, to: &str) -> Result<(), Fault> {
        self.sftp.rename(from, to).await?;
        Ok(())
    }

    /// Removes a file; its absence is success.
    pub(super) async fn remove(&self, path: &str) -> Result<(), Fault> {
        match self.sftp.remove(path).await.map_err(Fault::from) {
            Ok(_) | Err(Fault::Refused(Refusal::Absent)) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    pub(super) async fn remove_directory(&self, path: &str) -> Result<(), Fault> {
        self.sftp.rmdir(path).await?;
        Ok(())
    }

    /// Makes a directory, or finds one there.
    pub(super) async fn make_directory(&self, path: &str) -> Result<(), Fault> {
        let mode = FileAttributes {
            permissions: Some(DIRECTORY_MODE),
            ..no_attributes()
        };
        match self.sftp.mkdir(path, mode).await.map_err(Fault::from) {
            Ok(_) => Ok(()),
            // SFTP has no word for "there already".
            Err(Fault::Refused(refusal)) => match self.look(path).await? {
                Some(found) if found.kind == Kind::Directory => Ok(()),
                _ => Err(Fault::Refused(refusal)),
            },
            Err(fault) => Err(fault),
        }
    }

    /// fsync of a file or a directory, opened for reading.
    pub(super) async fn sync(&self, path: &str) -> Result<(), Fault> {
        let opened = self.sftp.open(path, OpenFlags::READ, no_attributes()).await;
        let handle = opened?.handle;
        let synced = self.sftp.fsync(&handle).await;
        let _ = self.sftp.close(&handle).await;
        synced?;
        Ok(())
    }

    /// The names in a directory, without `.` and `..`; `None` when it is not there.
    pub(super) async fn names(
        &self,
        directory: &str,
    ) -> Result<Option<Vec<(String, Option<Attributes>)>>, Fault> {
        let handle = match self.sftp.opendir(directory).await.map_err(Fault::from) {
            Ok(opened) => opened.handle,
            Err(Fault::Refused(Refusal::Absent)) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let mut names = Vec::new();
        let end = loop {
            match self.sftp.readdir(&handle).await.map_err(Fault::from) {
                Ok(some) => names.extend(some.files.into_iter().filter_map(|file| {
                    let own = matches!(file.filename.as_str(), "." | "..");
                    (!own).then(|| {
                        let attributes = Attributes::of(&file.attrs);
                        (file.filename, attributes)
                    })
                })),
                Err(Fault::Refused(Refusal::End)) => break Ok(()),
                Err(fault) => break Err(fault),
            }
            if names.len() > NAMES_MAX {
                break Err(Fault::Lost("the listing does not end".to_owned()));
            }
        };
        let _ = self.sftp.close(&handle).await;
        end.map(|()| Some(names))
    }

    /// The room on the file system of `path`, where the server tells.
    pub(super) async fn room(&self, path: &str) -> Option<Room> {
        if !self.room {
            return None;
        }
        let found = self.sftp.statvfs(path).await.ok()?;
        Some(Room {
            bytes: found.blocks_avail.saturating_mul(found.fragment_size),
            // Some file systems count no inodes.
            files: match found.inodes {
                0 => u64::MAX,
                _ => found.inodes_avail,
            },
            read_only: found.flags & 1 != 0,
        })
    }
}

/// Says nothing about a file: the server decides.
fn no_attributes() -> FileAttributes {
    FileAttributes {
        size: None,
        uid: None,
        user: None,
        gid: None,
        group: None,
        permissions: None,
        atime: None,
        mtime: None,
    }
}

async fn pause(limiter: &Limiter, bytes: usize) {
    let pause = limiter.pay(bytes);
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

type Request<'a, T> = Pin<Box<dyn Future<Output = Result<T, SftpError>> + 'a>>;

/// Requests that are on their way, the oldest first.
struct Window<'a, T> {
    waiting: VecDeque<Waiting<'a, T>>,
}

enum Waiting<'a, T> {
    Answered(Result<T, SftpError>),
    Sent(Request<'a, T>),
}

impl<'a, T> Window<'a, T> {
    fn new() -> Self {
        Self {
            waiting: VecDeque::with_capacity(IN_FLIGHT_MAX),
        }
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= IN_FLIGHT_MAX
    }

    /// Polls it once: that sends it.
    async fn send(&mut self, mut request: Request<'a, T>) {
        let first = poll_fn(|context| Poll::Ready(request.as_mut().poll(context))).await;
        self.waiting.push_back(match first {
            Poll::Ready(answer) => Waiting::Answered(answer),
            Poll::Pending => Waiting::Sent(request),
        });
    }

    /// The answer to the oldest.
    async fn oldest(&mut self) -> Option<Result<T, Fault>> {
        let answer = match self.waiting.pop_front()? {
            Waiting::Answered(answer) => answer,
            Waiting::Sent(request) => request.await,
        };
        Some(answer.map_err(Fault::from))
    }
}
