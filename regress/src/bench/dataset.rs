//! The cluster that is backed up: 2 GB of text, jsonb, random vectors and their indexes, generated
//! once and kept outside the clone under a name that says what is in it.

use super::Settings;
use crate::{Cluster, Major, StopMode, TestDirectory, account};
use std::io::{BufWriter, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Changes whenever the generated content does.
const GENERATOR_VERSION: u32 = 3;
/// Rows at scale 1, so that tables and indexes together are 2 GB.
const DOCUMENTS: f64 = 600_000.0;
const EVENTS: f64 = 1_330_000.0;
const VECTORS: f64 = 440_000.0;
/// What tables and indexes may take at scale 1.
const EXPECTED_BYTES: RangeInclusive<u64> = 1_950_000_000..=2_200_000_000;
const DIMENSIONS: u32 = 384;
const WORDS: u64 = 30_000;

const TABLES: &str = "
CREATE TABLE documents (id bigint, title text, body text, metadata jsonb);
CREATE TABLE events (id bigint, at timestamptz, kind text, payload jsonb);
CREATE TABLE embeddings (id bigint, document bigint, vector float4[]);
ALTER TABLE embeddings ALTER vector SET STORAGE PLAIN;";

const INDEXES: &str = "
ALTER TABLE documents ADD PRIMARY KEY (id);
ALTER TABLE events ADD PRIMARY KEY (id);
ALTER TABLE embeddings ADD PRIMARY KEY (id);
CREATE INDEX ON documents (title);
CREATE INDEX ON documents ((metadata->>'source'));
CREATE INDEX ON events (at);
CREATE INDEX ON events USING gin (payload jsonb_path_ops);
CREATE INDEX ON embeddings (document);";

/// The settings of every server of the bench.
pub(super) const SERVER: [&str; 11] = [
    "fsync = on",
    "shared_buffers = 128MB",
    "autovacuum = off",
    "archive_mode = on",
    "archive_command = ''",
    "checkpoint_timeout = 1d",
    "max_wal_size = 64GB",
    "min_wal_size = 80MB",
    "wal_keep_size = 64GB",
    "maintenance_work_mem = 256MB",
    "synchronous_commit = off",
];

/// The cached data directory, made now if it is not there yet.
pub(super) fn cached(settings: &Settings) -> PathBuf {
    let server = crate::cluster::run(Major::Pg15.command("postgres").arg("--version"));
    let mut content = blake3::Hasher::new();
    for part in [
        &format!("{GENERATOR_VERSION} {} {}", settings.scale, settings.seed),
        &server,
        TABLES,
        INDEXES,
        &SERVER.join("\n"),
    ] {
        content.update(part.as_bytes());
        content.update(b"\0");
    }
    let name = format!("bench-{}", &content.finalize().to_hex()[..16]);
    std::fs::create_dir_all(&settings.cache).unwrap();
    let cached = settings.cache.join(name);
    if !cached.exists() {
        eprintln!("bench: generating the cluster, once");
        let directory = TestDirectory::new("bench_dataset");
        let data = generate(&directory, settings);
        let new = cached.with_extension("new");
        let _ = std::fs::remove_dir_all(&new);
        copy(&data, &new);
        std::fs::rename(&new, &cached).unwrap();
    }
    cached
}

/// Bytes of the generated tables and their indexes, as the server has it.
///
/// # Panics
/// At scale 1, when they are not 2 GB: the generator would measure something else than it says.
pub(super) fn measured(cluster: &Cluster<'_>, settings: &Settings) -> u64 {
    let sql = "SELECT sum(pg_total_relation_size(c::regclass))::bigint
               FROM unnest('{documents,events,embeddings}'::text[]) c";
    let bytes: u64 = cluster.psql(sql).trim().parse().unwrap();
    eprintln!("bench: {bytes} bytes of tables and indexes");
    let full = settings.scale >= 1.0;
    assert!(
        !full || EXPECTED_BYTES.contains(&((bytes as f64 / settings.scale) as u64)),
        "the cluster is not 2 GB per unit of scale: {bytes} bytes"
    );
    bytes
}

/// Copies a data directory, owners and modes included.
pub(super) fn copy(from: &Path, to: &Path) {
    crate::cluster::run(
        Command::new("cp")
            .args(["-a", "--reflink=auto", "--"])
            .arg(from)
            .arg(to),
    );
}

fn generate(directory: &TestDirectory, settings: &Settings) -> PathBuf {
    let mut builder = Cluster::builder(directory, Major::Pg15, "a");
    for line in SERVER {
        builder = builder.setting(line);
    }
    let mut cluster = builder
        .setting("wal_level = minimal")
        .setting("max_wal_senders = 0")
        .setting("archive_mode = off")
        .init();
    cluster.start();
    cluster.psql(TABLES);
    let rows = |at_full_scale: f64| (at_full_scale * settings.scale) as u64;
    let mut random = Random::new(settings.seed);
    load(&cluster, "documents", |out| {
        (0..rows(DOCUMENTS)).for_each(|id| document(out, id, &mut random));
    });
    load(&cluster, "events", |out| {
        (0..rows(EVENTS)).for_each(|id| event(out, id, &mut random));
    });
    let seed = (settings.seed % 1000) as f64 / 1000.0;
    cluster.psql(&format!(
        "SET max_parallel_workers_per_gather = 0; SELECT setseed({seed});
         INSERT INTO embeddings SELECT id, id / 2,
             (SELECT array_agg((random() * 2 - 1)::float4) FROM generate_series(1, {DIMENSIONS}) WHERE id >= 0)
         FROM generate_series(0, {}::bigint) id",
        rows(VECTORS).saturating_sub(1)
    ));
    cluster.psql(INDEXES);
    // Hint bits and visibility map are set now, and not in the middle of a measurement.
    cluster.psql("VACUUM (FREEZE, ANALYZE)");
    // Once more for the catalogs that ANALYZE wrote.
    cluster.psql("VACUUM (FREEZE)");
    cluster.stop(StopMode::Fast);
    let data = cluster.data().to_path_buf();
    let text = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
    let kept: Vec<&str> = text
        .lines()
        .filter(|line| {
            !matches!(
                *line,
                "wal_level = minimal" | "max_wal_senders = 0" | "archive_mode = off"
            )
        })
        .collect();
    std::fs::write(data.join("postgresql.conf"), kept.join("\n") + "\n").unwrap();
    data
}

fn load(cluster: &Cluster<'_>, table: &str, write: impl FnOnce(&mut dyn Write)) {
    let mut psql = account::command("/usr/lib/postgresql/15/bin/psql");
    psql.args(["-XAtq", "-U", "postgres", "-d", "postgres", "-h"]);
    psql.arg(cluster.sockets()).current_dir("/");
    psql.args(["-c", &format!("COPY {table} FROM STDIN")]);
    let mut child = psql.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = BufWriter::with_capacity(1 << 20, child.stdin.take().unwrap());
    write(&mut input);
    drop(input);
    assert!(child.wait().unwrap().success(), "COPY {table} failed");
}

/// splitmix64: seeded, and the same everywhere.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Few words are frequent and many are rare, as in a language.
    fn word(&mut self, text: &mut String) {
        const SYLLABLES: [&str; 16] = [
            "ta", "re", "mi", "con", "ver", "lo", "sa", "den", "ku", "pri", "on", "al", "ge",
            "sto", "fi", "um",
        ];
        let uniform = self.below(1 << 20) as f64 / f64::from(1 << 20);
        let mut number = (uniform * uniform * uniform * WORDS as f64) as u64 + 1;
        while number > 0 {
            text.push_str(SYLLABLES[(number % 16) as usize]);
            number /= 16;
        }
    }
}

pub(super) fn words(random: &mut Random, count: u64) -> String {
    let mut text = String::new();
    for n in 0..count {
        if n > 0 {
            text.push(' ');
        }
        random.word(&mut text);
    }
    text
}

fn document(out: &mut dyn Write, id: u64, random: &mut Random) {
    let length = 60 + random.below(120);
    let (title, body) = (words(random, 6), words(random, length));
    let (source, score, tag) = (random.below(500), random.below(1_000_000), random.word_of());
    writeln!(
        out,
        "{id}\t{title}\t{body}\t{{\"source\": \"site-{source}\", \"score\": {score}, \"tags\": [\"{tag}\"]}}"
    )
    .unwrap();
}

impl Random {
    fn word_of(&mut self) -> String {
        let mut text = String::new();
        self.word(&mut text);
        text
    }
}

fn event(out: &mut dyn Write, id: u64, random: &mut Random) {
    let (second, session) = (random.below(31_536_000), random.next());
    let (kind, user, amount) = (
        random.below(12),
        random.below(40_000),
        random.below(100_000),
    );
    let at = 1_700_000_000 + second;
    let text = words(random, 4);
    writeln!(
        out,
        "{id}\t{}\tkind-{kind}\t{{\"user\": {user}, \"session\": \"{session:016x}\", \"amount\": {amount}, \"note\": \"{text}\"}}",
        chrono::DateTime::from_timestamp(at as i64, 0).unwrap().to_rfc3339()
    )
    .unwrap();
}
