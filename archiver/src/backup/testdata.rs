//! A small data directory made by hand, over the real WAL of `wal::commit_index::testdata`, and a
//! backup of it through the engine: everything that [`super::run`] does, with a server's answers
//! that stand here. For the crash and flip tests of this crate.

use super::complete::{self, Finished};
use super::copy::{self, Shared};
use super::lane::Target;
use super::scan::{self, Found};
use super::server::{Server, Started, Stopped};
use super::throttle::Throttle;
use crate::Result;
use crate::cancel::CancelToken;
use crate::clock::{Clock, SharedClock};
use crate::postgres::backup_label::BackupLabelFile;
use crate::postgres::control_file::ControlFile;
use crate::postgres::page::{self, BLOCK_SIZE};
use crate::progress::Progress;
use crate::repository::format::manifest::{FileKind, Label, PathText};
use crate::repository::session::{Session, WalPin};
use crate::repository::{Repository, layout};
use crate::wal::cluster::{self, Identity, Reason};
use crate::wal::commit_index::testdata as wal;
use crate::wal::covered::{self, Sample};
use crate::wal::push::{self, PushOptions};
use chrono::{DateTime, Utc};
use pgark_types::{ArchiveFile, BackupLabel, Lsn, TimelineId};
use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The component of the synthetic cluster.
pub(crate) const NAME: &str = "main";
/// Its only tablespace.
pub(crate) const TABLESPACE: u32 = 16400;
/// Where `pg_backup_start` and `pg_backup_stop` say the backup of the test WAL began and ended.
const START: Lsn = Lsn(0x90_0028);
const STOP: Lsn = Lsn(0x90_0100);
/// Below every [`START`]: pages that no replay would touch, so that their checksums count.
const PAGE_LSN: u64 = 0x10_0000;
const CONTROL: &[u8] = include_bytes!("../../tests/fixtures/pg_control.15");

/// A clock that stands still but for the random numbers: one seed, one run.
pub(crate) struct SeededClock(AtomicU64);

impl SeededClock {
    pub(crate) fn shared(seed: u64) -> SharedClock {
        Arc::new(Self(AtomicU64::new(seed << 32)))
    }
}

impl Clock for SeededClock {
    fn now(&self) -> DateTime<Utc> {
        at("2026-11-20T19:38:00Z")
    }

    fn sleep(&self, _: Duration) {}

    fn random(&self) -> [u8; 16] {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        *blake3::hash(&n.to_le_bytes())
            .as_bytes()
            .first_chunk()
            .unwrap()
    }
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// The configuration file outside, by its original path.
pub(crate) const CONFIG: &str = "/etc/postgresql/15/main/pg_hba.conf";

/// The data directory and what belongs to it.
pub(crate) struct Source {
    directory: tempfile::TempDir,
}

impl Source {
    /// Relation files with and without zero pages, longer than a frame, empty, with a torn tail;
    /// a tablespace; a name that is not UTF-8; empty and tiny files; a file outside.
    pub(crate) fn new() -> Self {
        let source = Self {
            directory: in_memory(),
        };
        let data = source.data();
        for directory in [
            "",
            "base",
            "base/1",
            "global",
            "pg_wal",
            "pg_wal/archive_status",
            "pg_xact",
            "pg_tblspc",
            "pg_replslot",
        ] {
            std::fs::create_dir(data.join(directory)).unwrap();
        }
        let write = |path: &str, bytes: &[u8]| std::fs::write(data.join(path), bytes).unwrap();
        write("base/1/1259", &relation(1, 5, &[2]));
        write("base/1/1249", &relation(2, 70, &[0, 33, 34, 69]));
        write("base/1/2600", b"");
        let mut torn = relation(3, 2, &[]);
        torn.extend_from_slice(&[7; 100]);
        write("base/1/2601", &torn);
        write("base/1/2602", &relation(4, 3, &[0, 1, 2]));
        write("global/1260", &relation(5, 1, &[]));
        write("global/pg_control", &control());
        for path in ["PG_VERSION", "base/1/PG_VERSION"] {
            write(path, b"15\n");
        }
        write("base/1/pg_filenode.map", &noise(6, 512));
        write("pg_xact/0000", &noise(7, 40_000));
        write(
            "postgresql.auto.conf",
            b"work_mem = '4MB'\nrecovery_target_name = 'old'\n",
        );
        write("postgresql.conf", b"port = 5432\n");
        write("standby.signal", b"");
        let odd = std::ffi::OsStr::from_bytes(b"odd\xff name");
        std::fs::write(data.join(odd), b"odd").unwrap();
        std::fs::create_dir_all(source.tablespace().join("PG_15_202209061/5")).unwrap();
        let table = source.tablespace().join("PG_15_202209061/5/16500");
        std::fs::write(table, relation(8, 4, &[1])).unwrap();
        symlink(
            source.tablespace(),
            data.join(format!("pg_tblspc/{TABLESPACE}")),
        )
        .unwrap();
        std::fs::write(source.config(), b"local all all trust\n").unwrap();
        for path in ["base/1/1259", "PG_VERSION", "postgresql.conf"] {
            let mode = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(data.join(path), mode).unwrap();
        }
        source
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(crate) fn tablespace(&self) -> PathBuf {
        self.directory.path().join("tablespace")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("pg_hba.conf")
    }

    /// Changes pages, lengths and files, as a server would between two backups.
    pub(crate) fn change(&self) {
        let data = self.data();
        let write = |path: &str, bytes: &[u8]| std::fs::write(data.join(path), bytes).unwrap();
        write("base/1/1259", &relation(11, 7, &[0]));
        write("base/1/1249", &relation(2, 40, &[1, 33]));
        write("base/1/2600", &relation(12, 1, &[]));
        write("base/1/3000", &relation(13, 2, &[]));
        write("pg_xact/0000", &noise(14, 30_000));
        std::fs::remove_file(data.join("global/1260")).unwrap();
        std::fs::create_dir(data.join("base/9")).unwrap();
        write("base/9/1259", &relation(15, 1, &[]));
        write("pg_wal/000000010000000000000008", &noise(16, 5000));
    }

    /// Takes a backup into `repository`.
    pub(crate) fn back_up(&self, repository: &Repository, clock: &SharedClock) -> Result<Label> {
        let (control, control_bytes) = ControlFile::read(&self.data())?;
        let [a, b, c, d, ..] = clock.random();
        let label = BackupLabel::new(clock.now(), u32::from_le_bytes([a, b, c, d]));
        cluster::register_or_check(
            repository,
            NAME,
            identity(),
            Reason::FirstBackup,
            clock.as_ref(),
        )?;
        let session = Session::begin(repository, SharedClock::clone(clock), NAME, &label)?;
        let repository = &session.repository().clone();
        session.pin_wal(&WalPin {
            system_identifier: control.system_identifier,
            timeline: TimelineId(1),
            start_lsn: START,
        })?;
        let mut scan = scan::scan(&self.data(), "PG_15_202209061")?;
        scan.entries.push(self.config_entry());
        scan.entries.sort_by(|a, b| a.path.cmp(&b.path));
        let shared = shared(repository, clock, &control);
        let copy = copy::copy(&shared, &scan.entries, 1)?.remove(0)?;
        let stopped = stopped(&label);
        let label_file = BackupLabelFile::parse(&stopped.backup_label)?;
        let sample = Sample {
            time: stopped.at,
            lsn: stopped.lsn,
        };
        covered::store(repository, control.system_identifier, TimelineId(1), sample)?;
        let finished = Finished {
            component: NAME,
            label: &label,
            scan: &scan.entries,
            tablespaces: scan.tablespaces,
            copy,
            server: &self.server(),
            control: &control,
            control_bytes,
            started: Started {
                at: at("2026-11-20T19:37:40Z"),
                lsn: START,
            },
            stopped,
            label_file,
            last_segment: wal::SEGMENTS[0].parse()?,
            annotations: BTreeMap::from([("why".to_owned(), "test".to_owned())]),
        };
        let (record, digest) = complete::write(repository, clock, &session, finished)?;
        session.commit(&layout::manifest(NAME, &label)?, &digest)?;
        Ok(record)
    }

    fn config_entry(&self) -> Found {
        let path = self.config();
        Found {
            path: PathText(CONFIG.to_owned()),
            kind: FileKind::Config,
            size: std::fs::metadata(&path).unwrap().len(),
            source: path,
            mode: 0o640,
            mtime: 0,
            segment_no: 0,
        }
    }

    fn server(&self) -> Server {
        Server {
            version_num: 150_008,
            in_recovery: false,
            data_directory: self.data(),
            archive_mode: "on".to_owned(),
            config_files: vec![self.config()],
            config_inside: Vec::new(),
            config_file: None,
            hba_file: String::new(),
            ident_file: String::new(),
        }
    }
}

use std::os::unix::ffi::OsStrExt as _;

/// A directory on a file system without a disk, where there is one: these tests sync often.
pub(crate) fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn shared(repository: &Repository, clock: &SharedClock, control: &ControlFile) -> Shared {
    Shared {
        targets: vec![Target::new(repository)],
        clock: SharedClock::clone(clock),
        cancel: CancelToken::default(),
        throttle: Throttle::new(0),
        progress: Progress::start("backup", 0),
        data_checksums: true,
        segment_blocks: control.segment_blocks,
        compression_level: 1,
        pages_reread: std::sync::atomic::AtomicU64::new(0),
    }
}

fn stopped(label: &BackupLabel) -> Stopped {
    Stopped {
        at: at("2026-11-20T19:37:41Z"),
        insert_lsn: None,
        lsn: STOP,
        backup_label: format!(
            "START WAL LOCATION: 0/900028 (file {})\nCHECKPOINT LOCATION: 0/900060\n\
             BACKUP METHOD: streamed\nBACKUP FROM: primary\n\
             START TIME: 2026-11-20 19:37:40 UTC\nLABEL: {label}\nSTART TIMELINE: 1\n",
            wal::SEGMENTS[0]
        ),
        tablespace_map: format!("{TABLESPACE} /original/place\n"),
    }
}

pub(crate) fn identity() -> Identity {
    Identity {
        system_identifier: wal::system_id(),
        segment_size: wal::size(),
        postgres_major: Some(15),
    }
}

/// The WAL files of the test data, `.backup` and `.partial` made up: name and content.
pub(crate) fn wal_files() -> Vec<(ArchiveFile, Vec<u8>)> {
    let mut files: Vec<(ArchiveFile, Vec<u8>)> = wal::SEGMENTS
        .iter()
        .map(|name| wal::segment(name))
        .map(|(segment, bytes)| (ArchiveFile::Segment(segment), bytes))
        .collect();
    let history = std::fs::read(wal::path("00000002.history")).unwrap();
    files.insert(3, (ArchiveFile::History(TimelineId(2)), history));
    let backup = format!("{}.00000028.backup", wal::SEGMENTS[0]);
    files.insert(1, (backup.parse().unwrap(), b"START WAL LOCATION".to_vec()));
    files
}

/// Pushes a file as archive-push does, commit index included.
pub(crate) fn push(
    repository: &Repository,
    file: ArchiveFile,
    bytes: &[u8],
    clock: &SharedClock,
) -> Result<()> {
    let repos = [(repository.clone(), true)];
    let options = PushOptions {
        level: 1,
        identity: Some(identity()),
    };
    let outcome = push::push_bytes(
        &repos,
        NAME,
        file,
        &Arc::new(bytes.to_vec()),
        options,
        clock,
    )?;
    push::index(&repos, &outcome, file, bytes);
    Ok(())
}

fn control() -> Vec<u8> {
    let mut bytes = CONTROL.to_vec();
    bytes[..8].copy_from_slice(&wal::system_id().0.to_le_bytes());
    bytes[228..232].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..288]);
    bytes[288..292].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Bytes that no compressor shortens, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// A relation file whose pages are sound; those in `zero` were never used.
fn relation(seed: u64, blocks: u32, zero: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in 0..blocks {
        let mut page = [0; BLOCK_SIZE];
        if !zero.contains(&block) {
            page[..8].copy_from_slice(&PAGE_LSN.rotate_left(32).to_le_bytes());
            page[12..14].copy_from_slice(&100_u16.to_le_bytes());
            page[14..16].copy_from_slice(&8000_u16.to_le_bytes());
            page[16..18].copy_from_slice(&8192_u16.to_le_bytes());
            page[18..20].copy_from_slice(&8196_u16.to_le_bytes());
            let content = noise(seed << 32 | u64::from(block), 192);
            page[8000..].copy_from_slice(&content);
            let checksum = page::checksum(&page, block);
            page[8..10].copy_from_slice(&checksum.to_le_bytes());
        }
        bytes.extend_from_slice(&page);
    }
    bytes
}

/// Every name below `root` with its mode and its content; a link with where it leads.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    fn walk(root: &Path, at: &Path, found: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_dir() {
                walk(root, &path, found);
                Vec::new()
            } else if meta.is_symlink() {
                let to = std::fs::read_link(&path).unwrap();
                to.as_os_str().as_bytes().to_vec()
            } else {
                std::fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(root).unwrap().to_path_buf();
            found.insert(name, (meta.permissions().mode(), content));
        }
    }
    let mut found = BTreeMap::new();
    if root.exists() {
        walk(root, root, &mut found);
    }
    found
}
