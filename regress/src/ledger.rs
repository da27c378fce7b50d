//! The ledger: writers that commit rows while something is done to their server, and that keep a
//! record of every commit outside the database. After a recovery the record says what must be
//! there: every transaction committed before the target and none after.
//!
//! Exactness comes from [`Ledger::mark`], which lets no transaction be in flight for a moment: what
//! is recorded by then is before the mark, what comes later is after it.

use crate::cluster::Cluster;
use crate::directory::TestDirectory;
use crate::session::Session;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// A transaction that the server reported committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Which writer; each counts its transactions from 1 without a gap.
    pub writer: u32,
    /// Its number within the writer.
    pub number: u32,
    /// Its transaction id.
    pub xid: u64,
}

/// A moment between transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The insert LSN: every commit before the mark ends at or before it, as text.
    pub lsn: String,
    /// The server's clock, RFC 3339 with microseconds, in UTC.
    pub time: String,
    /// The timeline.
    pub timeline: u32,
    /// How many transactions of each writer are before the mark.
    pub counts: BTreeMap<u32, u32>,
    /// The last transaction before the mark, over all writers.
    pub last: Option<Committed>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// Read-locked by a writer for the length of a transaction; a mark takes it for itself.
    gate: RwLock<()>,
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    file: std::fs::File,
    committed: Vec<Committed>,
    /// Transactions whose COMMIT was sent but never answered, by writer.
    in_doubt: BTreeMap<u32, u32>,
}

/// A running ledger workload.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
    numbers: RangeInclusive<u32>,
    writers: Vec<JoinHandle<()>>,
    path: PathBuf,
}

impl Ledger {
    /// Makes the table `ledger` and starts `writers` sessions that insert into it, each a row per
    /// transaction, with `pause` between transactions.
    pub fn start(
        directory: &TestDirectory,
        cluster: &Cluster<'_>,
        writers: u32,
        pause: Duration,
    ) -> Self {
        Self::start_as(directory, cluster, 1..=writers, pause)
    }

    /// As [`Ledger::start`], with writers of other numbers: on another timeline, say, whose rows must
    /// be told from those of the first.
    pub fn start_as(
        directory: &TestDirectory,
        cluster: &Cluster<'_>,
        writers: RangeInclusive<u32>,
        pause: Duration,
    ) -> Self {
        cluster.psql(
            "CREATE TABLE IF NOT EXISTS ledger
             (writer int, number int, body text NOT NULL, PRIMARY KEY (writer, number))",
        );
        let path = directory.join(&format!("commits-{}.ledger", writers.start()));
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            gate: RwLock::new(()),
            record: Mutex::new(Record {
                file: std::fs::File::create(&path).unwrap(),
                committed: Vec::new(),
                in_doubt: BTreeMap::new(),
            }),
        });
        let numbers = writers.clone();
        let writers = writers
            .map(|writer| {
                let (shared, session) = (Arc::clone(&shared), cluster.session("postgres"));
                std::thread::spawn(move || write(&shared, session, writer, pause))
            })
            .collect();
        Self {
            shared,
            numbers,
            writers,
            path,
        }
    }

    /// Runs `action` while no transaction is in flight; returns beside its result how many
    /// transactions of each writer are before it.
    #[track_caller]
    pub fn still<T>(&self, action: impl FnOnce() -> T) -> (BTreeMap<u32, u32>, T) {
        let _closed = self.shared.gate.write().unwrap();
        let result = action();
        let record = self.shared.record.lock().unwrap();
        (counts(&record.committed), result)
    }

    /// Takes a mark while no transaction is in flight.
    #[track_caller]
    pub fn mark(&self, cluster: &Cluster<'_>) -> Mark {
        let _closed = self.shared.gate.write().unwrap();
        // The clock is read between two pauses, so that no commit shares its microsecond.
        std::thread::sleep(Duration::from_millis(5));
        let answer = cluster.psql(
            "SELECT pg_current_wal_insert_lsn(),
                    to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
                    (SELECT timeline_id FROM pg_control_checkpoint())",
        );
        std::thread::sleep(Duration::from_millis(5));
        let mut fields = answer.split('|');
        let mut next = || fields.next().unwrap().to_owned();
        let record = self.shared.record.lock().unwrap();
        Mark {
            lsn: next(),
            time: next(),
            timeline: next().parse().unwrap(),
            counts: counts(&record.committed),
            last: record.committed.last().cloned(),
        }
    }

    /// Waits until every writer has committed `count` transactions more.
    #[track_caller]
    pub fn advance(&self, count: u32) {
        let numbers = || counts(&self.shared.record.lock().unwrap().committed);
        let before = numbers();
        crate::process::wait_until("the ledger advances", Duration::from_secs(60), || {
            let now = numbers();
            self.numbers.clone().all(|writer| {
                let number = |map: &BTreeMap<u32, u32>| map.get(&writer).copied().unwrap_or(0);
                number(&now) >= number(&before) + count
            })
        });
    }

    /// Ends the writers. What is left in doubt is what a server that died did not answer.
    pub fn stop(mut self) -> Finished {
        self.end();
        let record = self.shared.record.lock().unwrap();
        Finished {
            committed: record.committed.clone(),
            in_doubt: record.in_doubt.clone(),
            path: self.path.clone(),
        }
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            let _ = writer.join();
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.end();
    }
}

/// The record of a workload that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Every transaction that was reported committed, in the order of the reports.
    pub committed: Vec<Committed>,
    /// By writer, the transaction that nobody can tell about.
    pub in_doubt: BTreeMap<u32, u32>,
    /// The record's file.
    pub path: PathBuf,
}

impl Finished {
    /// How many transactions of each writer were committed.
    pub fn counts(&self) -> BTreeMap<u32, u32> {
        counts(&self.committed)
    }
}

fn counts(committed: &[Committed]) -> BTreeMap<u32, u32> {
    committed.iter().map(|c| (c.writer, c.number)).collect()
}

fn write(shared: &Shared, mut session: Session, writer: u32, pause: Duration) {
    for number in 1.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let open = shared.gate.read().unwrap();
        let sql = format!(
            "BEGIN; INSERT INTO ledger VALUES ({writer}, {number}, '{}');\n\
             SELECT pg_current_xact_id(); COMMIT;",
            body(writer, number)
        );
        let answer = session.query(&sql);
        let mut record = shared.record.lock().unwrap();
        match answer.as_deref().map(str::parse::<u64>) {
            Ok(Ok(xid)) => {
                writeln!(record.file, "{writer} {number} {xid}").unwrap();
                record.committed.push(Committed {
                    writer,
                    number,
                    xid,
                });
            }
            _ => {
                record.in_doubt.insert(writer, number);
                return;
            }
        }
        drop(record);
        drop(open);
        std::thread::sleep(pause);
    }
}

/// What the row of transaction `number` of `writer` holds: told by its key, about 400 bytes.
fn body(writer: u32, number: u32) -> String {
    let digest = blake3::hash(format!("{writer}:{number}").as_bytes());
    digest.to_hex().repeat(6)
}

/// Asserts that the table `ledger` holds exactly what is before `mark`, content included.
#[track_caller]
pub fn assert_at(cluster: &Cluster<'_>, mark: &Mark) {
    assert_counts(cluster, &mark.counts);
}

/// Asserts that the table holds exactly the first `counts[w]` transactions of each writer `w`.
#[track_caller]
pub fn assert_counts(cluster: &Cluster<'_>, counts: &BTreeMap<u32, u32>) {
    let found = cluster.psql(
        "SELECT writer, min(number), max(number), count(*) FROM ledger GROUP BY 1 ORDER BY 1",
    );
    let expected: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(writer, count)| format!("{writer}|1|{count}|{count}"))
        .collect();
    assert_eq!(
        found,
        expected.join("\n"),
        "writer|first|last|rows in the ledger"
    );
    assert_eq!(
        digest(cluster),
        expected_digest(counts),
        "the rows' content differs"
    );
}

/// The digest of the table's content, computed outside the database.
#[track_caller]
pub fn digest(cluster: &Cluster<'_>) -> String {
    let rows = cluster.psql("SELECT writer, number, body FROM ledger ORDER BY 1, 2");
    blake3::hash(rows.as_bytes()).to_hex().to_string()
}

fn expected_digest(counts: &BTreeMap<u32, u32>) -> String {
    let mut rows = String::new();
    for (writer, count) in counts {
        for number in 1..=*count {
            writeln!(rows, "{writer}|{number}|{}", body(*writer, number)).unwrap();
        }
    }
    blake3::hash(rows.trim_end().as_bytes())
        .to_hex()
        .to_string()
}
