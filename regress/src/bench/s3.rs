//! The same tools on S3: radosgw behind TLS on the same cores, a fresh one for each round, a new bucket
//! for each repository.
//!
//! `s3_full_backup` and `s3_restore` stand beside `full_backup` and `restore` of the same run: their ratios are
//! what S3 costs. `s3_archive_push_<n>ms` pushes full segments through a proxy that makes the server n
//! milliseconds away.

use super::digest::Relations;
use super::measure::{Watch, drop_caches, measure};
use super::tool::{PgBackRest, PgarkTool, Tool};
use super::{About, Bench, complete};
use crate::TestDirectory;
use crate::delay_proxy::DelayProxy;
use crate::s3_server::{ACCESS_KEY, S3Server, SECRET_KEY, authority, section};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How far away the server is, in milliseconds, and what the operation is called.
const DELAYS: [(u64, &str); 3] = [
    (0, "s3_archive_push_0ms"),
    (20, "s3_archive_push_20ms"),
    (200, "s3_archive_push_200ms"),
];

/// A server, the way to it, and its buckets.
pub(super) struct Buckets {
    server: Arc<S3Server>,
    /// Where it is reached.
    port: u16,
    authority: PathBuf,
    /// The keys of pgark's section, without the bucket.
    section: String,
    bucket: String,
}

impl Buckets {
    /// Makes a bucket, in which the next repository is.
    pub(super) fn fresh(&mut self, what: &str) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        self.bucket = format!("{what}-{n}");
        self.python(&format!("s3.create_bucket(Bucket='{}')", self.bucket));
    }

    fn python(&self, code: &str) -> String {
        self.server.python(&format!(
            "import boto3\nfrom botocore.config import Config\n\
             s3 = boto3.client('s3', endpoint_url='https://localhost:{}', region_name='us-east-1', \
             verify='{}', aws_access_key_id='{ACCESS_KEY}', aws_secret_access_key='{SECRET_KEY}', \
             config=Config(s3={{'addressing_style': 'path'}}, request_checksum_calculation='when_required'))\n{code}\n",
            self.server.port(),
            self.authority.display()
        ))
    }

    /// The section of pgark's configuration.
    pub(super) fn pgark(&self) -> String {
        self.section.replace("BUCKET", &self.bucket)
    }

    /// The lines of pgBackRest's.
    pub(super) fn pgbackrest(&self) -> String {
        format!(
            "repo1-type=s3\nrepo1-path=/repository\nrepo1-s3-bucket={}\nrepo1-s3-endpoint=localhost\n\
             repo1-s3-region=us-east-1\nrepo1-s3-key={ACCESS_KEY}\nrepo1-s3-key-secret={SECRET_KEY}\n\
             repo1-s3-uri-style=path\nrepo1-storage-host=localhost\nrepo1-storage-port={}\n\
             repo1-storage-ca-file={}\n",
            self.bucket,
            self.port,
            self.authority.display()
        )
    }

    /// Bytes of the objects: all but those below `wal`, and those.
    pub(super) fn bytes(&self, wal: &str) -> (u64, u64) {
        let told = self.python(&format!(
            "rest = wal = 0\n\
             for page in s3.get_paginator('list_objects_v2').paginate(Bucket='{}'):\n\
             \x20for o in page.get('Contents', []):\n\
             \x20 if o['Key'].startswith('{wal}'): wal += o['Size']\n\
             \x20 else: rest += o['Size']\n\
             print(rest, wal)",
            self.bucket
        ));
        let mut numbers = told.split_whitespace().map(|n| n.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }
}

/// A server for one round, and both tools on it.
struct Round {
    tools: [Box<dyn Tool>; 2],
    // Ends after the tools.
    _proxy: Option<DelayProxy>,
}

fn round(bench: &Bench<'_>, name: &str, delay: Option<Duration>) -> Round {
    let directory: &TestDirectory = bench.directory;
    let [ca, certificate, key] = authority(directory, name);
    let both = [certificate, key].map(|path| std::fs::read_to_string(path).unwrap());
    let both = directory.file(&format!("{name}-both.pem"), &both.concat());
    let server = Arc::new(S3Server::radosgw_tls(directory, &both));
    let proxy = delay.map(|delay| DelayProxy::start(server.port(), delay));
    let port = proxy.as_ref().map_or(server.port(), DelayProxy::port);
    let buckets = || {
        let keys = section(directory, &format!("https://localhost:{port}"), "BUCKET");
        Buckets {
            server: Arc::clone(&server),
            port,
            section: format!("{keys}ca_file = \"{}\"\n", ca.display()),
            authority: ca.clone(),
            bucket: String::new(),
        }
    };
    let cluster = bench.cluster;
    let ours = PgarkTool::on_s3(directory, cluster, &format!("{name}-pgark"), buckets());
    let theirs = PgBackRest::on_s3(directory, cluster, &format!("{name}-pgbackrest"), buckets());
    Round {
        tools: [Box::new(ours), Box::new(theirs)],
        _proxy: proxy,
    }
}

impl Bench<'_> {
    /// Backups and restores, of what the local ones are of: before WAL is written for the others.
    pub(super) fn s3_backups_and_restores(&mut self) {
        let settings = self.settings;
        if !settings.wants("s3_full_backup") && !settings.wants("s3_restore") {
            return;
        }
        let source = Relations::of(self.cluster.data());
        for run in 1..=settings.runs {
            let mut round = round(self, &format!("s3-{run}"), None);
            for at in self.order_of_two(run) {
                self.s3_copies(round.tools[at].as_mut(), run, &source);
            }
        }
    }

    pub(super) fn s3_pushes(&mut self) {
        let settings = self.settings;
        let wanted = DELAYS.into_iter().filter(|(_, name)| settings.wants(name));
        let wanted: Vec<(u64, &'static str)> = wanted.collect();
        if wanted.is_empty() {
            return;
        }
        let segments = self.archiving.write_segments(settings.segments);
        for run in 1..=settings.runs {
            for (millis, operation) in &wanted {
                let name = format!("s3-{run}-{millis}");
                let mut round = round(self, &name, Some(Duration::from_millis(*millis)));
                for at in self.order_of_two(run) {
                    let tool = round.tools[at].as_mut();
                    self.s3_push(tool, operation, run, &segments);
                }
            }
        }
    }

    fn order_of_two(&self, run: u32) -> [usize; 2] {
        match run.is_multiple_of(2) {
            true => [1, 0],
            false => [0, 1],
        }
    }

    fn s3_copies(&mut self, tool: &mut dyn Tool, run: u32, source: &Relations) {
        self.archiving.off();
        self.archiving.forget();
        tool.fresh();
        self.archiving.set(&tool.archive_command(), "");
        let watch = Watch {
            agent: tool.agent(),
            archiver: Some(self.archiving.archiver()),
            startup: None,
        };
        let mut command = tool.backup();
        let _ = drop_caches();
        let (argv, cost) = measure(watch, tool.name(), self.directory.path(), || {
            (complete(&mut command), watch)
        });
        let mut about = About {
            operation: "s3_full_backup",
            run,
            argv,
            stored_bytes: tool.disk_bytes().0,
            segments: 0,
            digest: source.digest(),
        };
        if self.settings.wants("s3_full_backup") {
            self.record_of(tool, cost, about);
        }
        self.archiving.off();
        let target = self.directory.join("restored-s3");
        let mut command = tool.restore(&target, None);
        let watch = Watch::default();
        let _ = drop_caches();
        let (argv, cost) = measure(watch, tool.name(), self.directory.path(), || {
            (complete(&mut command), watch)
        });
        let restored = Relations::of(&target);
        source.assert_same(&restored, tool.name());
        std::fs::remove_dir_all(&target).unwrap();
        about = About {
            operation: "s3_restore",
            run,
            argv,
            stored_bytes: tool.disk_bytes().0,
            segments: 0,
            digest: restored.digest(),
        };
        if self.settings.wants("s3_restore") {
            self.record_of(tool, cost, about);
        }
        tool.stop();
    }

    fn s3_push(
        &mut self,
        tool: &mut dyn Tool,
        operation: &'static str,
        run: u32,
        segments: &[String],
    ) {
        self.archiving.off();
        self.archiving.forget();
        tool.fresh();
        self.archiving.use_library("");
        let watch = Watch {
            agent: tool.agent(),
            archiver: Some(self.archiving.archiver()),
            startup: None,
        };
        let command = tool.archive_command();
        let archiving = &mut self.archiving;
        let _ = drop_caches();
        let ((), cost) = measure(watch, tool.name(), self.directory.path(), || {
            archiving.make_ready(segments);
            archiving.set(&command, "");
            archiving.wait_done(segments);
            ((), watch)
        });
        let about = About {
            operation,
            run,
            argv: vec![command],
            stored_bytes: tool.disk_bytes().1,
            segments: u32::try_from(segments.len()).unwrap(),
            digest: self.source_digest(segments),
        };
        self.record_of(tool, cost, about);
        self.archiving.off();
        tool.stop();
    }
}
