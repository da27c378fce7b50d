//! Schedules by the real clock, while somebody is killed at the second at which they are due.
//!
//! What: pg_cron, the worker and the agent are alive, each by itself; several schedules are due at each full
//! minute; from two seconds before it to two seconds after it the server, the agent or both get SIGKILL, and
//! come back at once or after an outage, in which the agent runs what needs no server.
//! Trap: two of them run an occurrence; nobody does; one that ran while the server was down runs again when it
//! is back; one that was skipped runs after all.
//! Expectation: each occurrence has one committed backup, by the repository's own records, and the tables say
//! the same. Of what was missed the last occurrence runs, once.

use chrono::{DateTime, TimeDelta, Utc};
use pgark_regress::process::wait_until;
use pgark_regress::recovery::archived;
use pgark_regress::{Agent, Cluster, Major, Pgark, TestDirectory, account, tier};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is killed at a minute, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    /// Back at once: no outage, by the agent.
    Server,
    Agent,
    Both,
    /// For so long that the agent runs the schedules.
    Outage,
    /// The agent is killed meanwhile, while it does so.
    OutageAndAgent,
    /// Everything, past the next full minute and past `missed_after`.
    LongOutage,
}

/// The rounds of the short test.
const SHORT: [Kill; 2] = [Kill::OutageAndAgent, Kill::Agent];
/// And of the full one.
const FULL: [Kill; 12] = [
    Kill::Server,
    Kill::Agent,
    Kill::Outage,
    Kill::Both,
    Kill::OutageAndAgent,
    Kill::Agent,
    Kill::LongOutage,
    Kill::OutageAndAgent,
    Kill::Server,
    Kill::Outage,
    Kill::Agent,
    Kill::Both,
];
/// Schedules of the long outage alone, each with a component of its name: what becomes of one that is found
/// due later than `missed_after`.
const LATE: [&str; 2] = ["run", "skip"];
/// The lease is 6 s, and the agent polls each 5 s: an attempt that was killed begins again in time.
const SETTLED: Duration = Duration::from_secs(50);
const PATIENCE: Duration = Duration::from_secs(100);

/// Numbers from 0 to `below`, the same in each run; the clock adds chance enough.
struct Chance(u64);

impl Chance {
    fn below(&mut self, below: u64) -> u64 {
        let mixed = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = mixed.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn sleep_until(at: DateTime<Utc>) {
    std::thread::sleep((at - Utc::now()).to_std().unwrap_or_default());
}

/// The next full minute that is at least five seconds away.
fn next_minute() -> DateTime<Utc> {
    let from = (Utc::now() + TimeDelta::seconds(5)).timestamp();
    DateTime::from_timestamp((from / 60 + 1) * 60, 0).unwrap()
}

/// A schedule and the instant at which it was due.
type Occurrence = (String, DateTime<Utc>);

struct Scene<'a> {
    cluster: Cluster<'a>,
    pgark: Pgark,
    agent: Option<Agent>,
    /// Each has the component of its name: so a component's backups are those of a schedule.
    schedules: Vec<String>,
    chance: Chance,
    directory: &'a TestDirectory,
}

impl<'a> Scene<'a> {
    fn new(directory: &'a TestDirectory, count: usize) -> Self {
        let builder = Cluster::builder(directory, Major::Pg15, "a")
            .setting("shared_preload_libraries = 'pg_cron,pgark'")
            .setting("cron.use_background_workers = on")
            .setting("pgark.worker_interval = 1")
            .setting("pgark.job_lease = '6s'")
            .setting("pgark.job_attempts_max = 20")
            .setting("pgark.missed_after = '60s'");
        let (mut cluster, mut pgark) = archived(directory, builder);
        for allowed in [
            "ERROR:  ",
            "FATAL:  ",
            "aborting backup",
            "terminating",
            "connection to client lost",
        ] {
            cluster.log_mut().allow(allowed);
        }
        pgark.in_agent("catalog_refresh_seconds = 1");
        let files: Vec<String> = (1..count).map(|n| format!("f{n}")).collect();
        for name in files.iter().map(String::as_str).chain(LATE) {
            let folder = directory.folder(name);
            let file = folder.join("one");
            std::fs::write(&file, "1").unwrap();
            account::give(&file);
            pgark.configure(&format!(
                "[component.{name}]\nkind = \"files\"\npaths = [\"{}\"]\n",
                folder.display()
            ));
        }
        let schedules = [vec!["main".to_owned()], files].concat();
        cluster.psql("CREATE EXTENSION pg_cron; CREATE EXTENSION pgark");
        let agent = Some(pgark.agent(&[]));
        let named = "SELECT count(*) FROM pgark.component";
        let components = schedules.len() + LATE.len();
        cluster.wait_for(named, &components.to_string(), PATIENCE);
        Self {
            cluster,
            pgark,
            agent,
            schedules,
            // Of the short test's kills one comes before the minute, and one after it.
            chance: Chance(11),
            directory,
        }
    }

    /// One backup for each minute; what was missed is skipped of the last two schedules.
    fn schedule(&self) {
        for (n, name) in self.schedules.iter().enumerate() {
            let missed = if n + 2 < self.schedules.len() {
                "run"
            } else {
                "skip"
            };
            self.cluster.psql(&format!(
                "SELECT pgark.schedule('{name}', '* * * * *', 'backup', ARRAY['{name}'], '{{\"missed\": \"{missed}\"}}')"
            ));
        }
        self.in_effect();
        // All three are there.
        let worker = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pgark schedules'";
        self.cluster.wait_for(worker, "1", PATIENCE);
        let cron = "SELECT count(*) FROM cron.job WHERE jobname = 'pgark' AND active";
        assert_eq!(self.cluster.psql(cron), "1");
    }

    /// Due at `minute` alone, for a day.
    fn schedule_late(&self, minute: DateTime<Utc>) {
        for missed in LATE {
            let cron = minute.format("%M %H * * *");
            self.cluster.psql(&format!(
                "SELECT pgark.schedule('{missed}', '{cron}', 'backup', ARRAY['{missed}'],
                    '{{\"missed\": \"{missed}\", \"time_zone\": \"UTC\"}}')"
            ));
        }
        self.in_effect();
        assert!(
            Utc::now() < minute - TimeDelta::seconds(5),
            "too slow for {minute}"
        );
    }

    fn in_effect(&self) {
        let holds = "SELECT bool_and(in_effect AND NOT pending) FROM pgark.schedule";
        self.cluster.wait_for(holds, "t", PATIENCE);
    }

    fn kill_agent(&mut self) {
        // Dropping it kills it, and waits until all of its threads are gone.
        self.agent = None;
    }

    fn start_agent(&mut self) {
        self.agent = Some(self.pgark.agent(&[]));
    }

    /// Up to two seconds before `minute`, or after it.
    fn strike(&mut self, kill: Kill, minute: DateTime<Utc>) {
        let mut milliseconds = i64::try_from(self.chance.below(4001)).unwrap() - 2000;
        if kill == Kill::LongOutage {
            // Nothing of that minute is begun.
            milliseconds = milliseconds.min(-500);
        }
        sleep_until(minute + TimeDelta::milliseconds(milliseconds));
        let killed_at = Utc::now();
        match kill {
            Kill::Server => {
                self.cluster.kill();
                self.cluster.start();
            }
            Kill::Agent => {
                self.kill_agent();
                self.start_agent();
            }
            Kill::Both => {
                self.cluster.kill();
                self.kill_agent();
                self.cluster.start();
                self.start_agent();
            }
            Kill::Outage => {
                self.cluster.kill();
                sleep_until(minute + TimeDelta::seconds(14));
                self.cluster.start();
            }
            Kill::OutageAndAgent => {
                self.cluster.kill();
                // It begins when it has missed the server for five seconds.
                let some = i64::try_from(self.chance.below(6000)).unwrap();
                sleep_until(minute + TimeDelta::milliseconds(5000 + some));
                self.kill_agent();
                if self.chance.below(2) == 0 {
                    self.start_agent();
                    sleep_until(minute + TimeDelta::seconds(14));
                    self.cluster.start();
                } else {
                    self.cluster.start();
                    self.start_agent();
                }
            }
            Kill::LongOutage => {
                self.cluster.kill();
                self.kill_agent();
                sleep_until(minute + TimeDelta::seconds(66));
                self.cluster.start();
                self.start_agent();
            }
        }
        println!(
            "{minute}: {kill:?} at {killed_at}, all are back at {}",
            Utc::now()
        );
    }

    /// Waits until what was due up to `minute` is decided and done. An attempt that failed is not to wait for
    /// half a minute.
    fn settle(&self, minute: DateTime<Utc>) {
        let decided = format!(
            "SELECT (SELECT count(*) FROM pgark.queue_occurrence WHERE due_at = '{minute}') = {}
                AND NOT EXISTS (SELECT FROM pgark.queue_job WHERE state IN ('queued', 'running') AND due_at <= '{minute}')",
            self.schedules.len()
        );
        wait_until(
            &format!("what was due at {minute} is done"),
            PATIENCE,
            || {
                let hurry =
                    "UPDATE pgark.queue_job SET not_before = NULL WHERE not_before IS NOT NULL";
                let _ = self.cluster.try_psql("postgres", hurry);
                self.cluster
                    .try_psql("postgres", &decided)
                    .is_ok_and(|is| is == "t")
            },
        );
        if Utc::now() > minute + SETTLED {
            println!("{minute}: done at {} only", Utc::now());
        }
    }

    /// Nothing is due any more.
    fn end(&self) {
        self.cluster
            .psql("SELECT pgark.unschedule(name) FROM pgark.schedule");
        self.cluster
            .wait_for("SELECT count(*) FROM pgark.schedule", "0", PATIENCE);
        let open = "SELECT count(*) FROM pgark.job WHERE state IN ('queued', 'running')";
        wait_until("the queue is empty", PATIENCE, || {
            self.cluster
                .psql("UPDATE pgark.queue_job SET not_before = NULL WHERE not_before IS NOT NULL");
            self.cluster.psql(open) == "0"
        });
    }

    fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        let text = self.cluster.psql(sql);
        let rows = text
            .lines()
            .map(|line| line.split('|').map(str::to_owned).collect());
        rows.collect()
    }

    /// Which occurrence each job is of: by the tables, and by the claims in the repository.
    fn occurrences(&self) -> BTreeMap<String, Occurrence> {
        let queue =
            "SELECT ulid, schedule, extract(epoch FROM due_at)::bigint FROM pgark.queue_job";
        let at = |text: &str| DateTime::from_timestamp(text.parse().unwrap(), 0).unwrap();
        let rows = self.rows(queue).into_iter();
        let mut all: BTreeMap<_, _> = rows
            .map(|row| (row[0].clone(), (row[1].clone(), at(&row[2]))))
            .collect();
        let mut claimed = BTreeSet::new();
        let folders =
            std::fs::read_dir(self.directory.join("repository/occurrences/main")).unwrap();
        for folder in folders.map(|folder| folder.unwrap()) {
            let schedule = folder.file_name().into_string().unwrap();
            for entry in std::fs::read_dir(folder.path()).unwrap() {
                let bytes = std::fs::read(entry.unwrap().path()).unwrap();
                let claim: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                let due: DateTime<Utc> = claim["due_at"].as_str().unwrap().parse().unwrap();
                let this = (schedule.clone(), due);
                assert!(claimed.insert(this.clone()), "{this:?}");
                all.insert(claim["job"].as_str().unwrap().to_owned(), this);
            }
        }
        all
    }

    /// The committed backups of each occurrence, by the repository.
    fn backups(&self) -> BTreeMap<Occurrence, Vec<String>> {
        let of_jobs = self.occurrences();
        let info = self
            .pgark
            .run(&["--output", "json", "info"])
            .expect(0)
            .json();
        let mut found: BTreeMap<Occurrence, Vec<String>> = BTreeMap::new();
        for component in info["components"].as_array().unwrap() {
            for backup in component["backups"].as_array().unwrap() {
                let job = backup["annotations"]["pgark.job"].as_str().unwrap();
                let occurrence = of_jobs
                    .get(job)
                    .unwrap_or_else(|| panic!("of nobody: {backup}"));
                assert_eq!(component["name"], occurrence.0.as_str());
                let label = backup["label"].as_str().unwrap().to_owned();
                found.entry(occurrence.clone()).or_default().push(label);
            }
        }
        found
    }

    /// What became of each occurrence, by the tables: outcome, and state and code of its one job.
    fn told(&self) -> BTreeMap<Occurrence, (String, String)> {
        let sql = "SELECT o.schedule, extract(epoch FROM o.due_at)::bigint, o.outcome,
            coalesce(string_agg(concat_ws(' ', j.state, j.error_code), ', '), '')
            FROM pgark.queue_occurrence AS o LEFT JOIN pgark.queue_job AS j USING (schedule, due_at) GROUP BY 1, o.due_at, 3";
        let at = |text: &str| DateTime::from_timestamp(text.parse().unwrap(), 0).unwrap();
        let rows = self.rows(sql).into_iter();
        rows.map(|row| {
            let occurrence = (row[0].clone(), at(&row[1]));
            (occurrence, (row[2].clone(), row[3].clone()))
        })
        .collect()
    }
}

/// Each occurrence of `minutes` ran once; every other one at most once. Those of the `missed` minute, when
/// nobody was there and a later one was due on return, did not run. How many ran.
fn account_for(scene: &Scene<'_>, minutes: &[DateTime<Utc>], missed: &[DateTime<Utc>]) -> usize {
    let (backups, told) = (scene.backups(), scene.told());
    for (occurrence, labels) in &backups {
        assert_eq!(labels.len(), 1, "{occurrence:?} ran twice: {labels:?}");
        assert!(
            told.contains_key(occurrence),
            "the tables do not know {occurrence:?}"
        );
    }
    let (mut ran, mut overlapped) = (0, 0);
    for minute in minutes {
        for schedule in &scene.schedules {
            let this = (schedule.clone(), *minute);
            let (ran_here, said) = (backups.contains_key(&this), told.get(&this));
            if missed.contains(minute) {
                assert!(!ran_here, "{this:?} ran; {said:?}");
                continue;
            }
            let (outcome, job) = said.unwrap_or_else(|| panic!("nobody decided on {this:?}"));
            // The one before was at work still, on a slow machine.
            if outcome == "overlapped" {
                overlapped += 1;
                assert!(!ran_here, "{this:?} ran beside another one");
                continue;
            }
            assert!(ran_here, "{this:?} did not run: {outcome}, {job}");
            // By its job, or while the server was down.
            let by_job = outcome == "queued" && job == "succeeded";
            let elsewhere = (outcome == "elsewhere" && job.is_empty())
                || (outcome == "queued" && job == "canceled occurrence_taken");
            assert!(
                by_job || elsewhere,
                "{this:?} ran, and is told to be {outcome}, {job}"
            );
            ran += 1;
        }
    }
    let due = minutes.len() * scene.schedules.len();
    assert!(overlapped * 10 <= due, "{overlapped} of {due} overlapped");
    ran
}

#[test]
fn once_whoever_is_killed() {
    let directory = TestDirectory::new("t617_clock");
    let (kills, count) = match tier::is_full() {
        true => (&FULL[..], 10),
        false => (&SHORT[..], 4),
    };
    let mut scene = Scene::new(&directory, count);
    scene.schedule();
    let first = next_minute();
    let (mut last, mut missed) = (first, Vec::new());
    for kill in kills {
        let mut minute = next_minute();
        if *kill == Kill::LongOutage {
            minute += TimeDelta::minutes(1);
            scene.schedule_late(minute);
        }
        scene.strike(*kill, minute);
        last = minute;
        if *kill == Kill::LongOutage {
            missed.push(minute);
            last = minute + TimeDelta::minutes(1);
        }
        scene.settle(last);
    }
    scene.end();
    let count = (last - first).num_minutes();
    let minutes: Vec<_> = (0..=count).map(|n| first + TimeDelta::minutes(n)).collect();
    let ran = account_for(&scene, &minutes, &missed);
    if let Some(minute) = missed.first() {
        // Nothing else was due since: what was missed runs once on return, or is skipped for good.
        let (backups, told) = (scene.backups(), scene.told());
        let [run, skip] = LATE.map(|name| (name.to_owned(), *minute));
        assert!(
            backups.contains_key(&run) && told[&run].1 == "succeeded",
            "{told:?}"
        );
        assert!(!backups.contains_key(&skip), "{told:?}");
        assert_eq!(told[&skip], ("skipped".to_owned(), String::new()));
    }
    println!("cases: occurrences by the clock {ran}");
    // What the catalog tells is what the repository holds.
    let labels: usize = scene.backups().len();
    let cataloged = "SELECT count(*) FROM pgark.backup WHERE state = 'live'";
    scene
        .cluster
        .wait_for(cataloged, &labels.to_string(), PATIENCE);
    let sources = scene.cluster.psql(
        "SELECT string_agg(source || ' ' || outcome || ' ' || n, ', ') FROM
            (SELECT source, outcome, count(*) AS n FROM pgark.queue_occurrence GROUP BY 1, 2 ORDER BY 1, 2) AS x",
    );
    println!("{sources}");
    // Everybody was at work, and the agent alone while the server was down.
    let ticks = "SELECT count(*) > 0 FROM cron.job_run_details WHERE status = 'succeeded'";
    assert_eq!(scene.cluster.psql(ticks), "t");
    assert!(
        sources.contains("elsewhere") || sources.contains("worker"),
        "{sources}"
    );
    scene.pgark.run(&["verify", "--all"]).expect(0);
}
