//! An agent is killed while everything is blocked for a set that was asked for in SQL.
//!
//! What: Redis by its lever, OpenSearch by its lever (full tier), an application by a hook, all at once; and
//! an application alone, when all members are captured. Each has somebody who writes, or waits.
//! Trap: a store that stays blocked because whoever blocked it is gone.
//! Expectation: Redis takes writes again by itself, as long as no agent is there; the others when the next
//! agent has started; and then the job is done after all.

use crate::stack::is_full_tier;
use crate::t510_sets::{Application, End, ledgers};
use crate::t610_jobs::installed;
use pgark_regress::process::{is_alive, kill, wait_until};
use pgark_regress::redis_server::{Make, RedisServer};
use pgark_regress::search_server::{self, SearchServer};
use pgark_regress::{Cluster, Major, Pgark, TestDirectory};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(90);
/// Without an agent: 30 s, and a moment to see it; also after the start of one.
const RELEASED: Duration = Duration::from_secs(33);

struct Scene<'a> {
    cluster: Cluster<'a>,
    pgark: Pgark,
    application: Application,
    end: AtomicBool,
    /// How many documents the application has written.
    documents: AtomicU64,
    /// How many writes Redis has taken.
    entries: AtomicU64,
}

impl<'a> Scene<'a> {
    fn new(directory: &'a TestDirectory) -> Self {
        let (cluster, mut pgark) = installed(directory, Major::Pg15);
        cluster
            .psql("CREATE EXTENSION pgark; CREATE TABLE document (id int PRIMARY KEY, hash text)");
        let application = Application::new(directory);
        pgark.configure(&application.component());
        Self {
            cluster,
            pgark,
            application,
            end: AtomicBool::new(false),
            documents: AtomicU64::new(0),
            entries: AtomicU64::new(0),
        }
    }

    fn documents(&self) -> u64 {
        self.documents.load(Ordering::SeqCst)
    }

    fn entries(&self) -> u64 {
        self.entries.load(Ordering::SeqCst)
    }

    /// Whoever was told of it begins a set once the agent knows the components.
    fn request(&self, components: &str) -> String {
        let known = "SELECT count(*) FROM pgark.component";
        self.cluster.wait_for(known, components, PATIENCE);
        self.cluster.psql("SELECT pgark.request_backup()")
    }

    /// The job is tried again, and makes a whole set.
    fn done_after_all(&self, job: &str) {
        let again =
            format!("SELECT state <> 'running' OR attempts = 2 FROM pgark.job WHERE id = {job}");
        self.cluster.wait_for(&again, "t", PATIENCE);
        self.cluster
            .psql("UPDATE pgark.queue_job SET not_before = NULL");
        let waited = format!("SELECT pgark.wait({job}, '90 s')");
        assert_eq!(self.cluster.psql(&waited), "succeeded");
        let info = self.pgark.run(&["--output", "json", "info"]);
        let info = info.expect(0).json();
        let newest = info["sets"].as_array().unwrap().last().unwrap();
        assert_eq!(newest["outcome"], "complete", "{newest:#}");
        self.assert_free();
    }

    #[track_caller]
    fn assert_free(&self) {
        assert!(!self.application.stop_file().exists());
        assert!(
            ledgers(&self.pgark).is_empty(),
            "{:?}",
            ledgers(&self.pgark)
        );
    }

    /// Waits until the application writes, nothing stops it and nothing is left to undo.
    #[track_caller]
    fn wait_until_free(&self) {
        wait_until("the next agent lets go", RELEASED, || {
            !self.application.stop_file().exists() && ledgers(&self.pgark).is_empty()
        });
        let before = self.documents();
        wait_until("the application writes", RELEASED, || {
            self.documents() > before
        });
    }
}

/// Whether the index takes writes; `None`: there is none.
fn takes_writes(search: Option<&SearchServer>) -> Option<bool> {
    let (status, answer) = search?.ask_any("PUT", "/documents/_doc/1", "{\"n\": 1}");
    assert!(status < 300 || status == 403, "{status} {answer}");
    Some(status < 300)
}

#[test]
fn stores_are_let_go_by_themselves_or_by_the_next_agent() {
    let directory = TestDirectory::new("t512_stores");
    let mut scene = Scene::new(&directory);
    let redis = RedisServer::start(&directory, "redis", Make::Redis7, &[]);
    let snapshots = directory.folder("snapshots");
    let search = is_full_tier().then(|| {
        let make = search_server::Make::OpenSearch;
        let server = SearchServer::start(&directory, "search", make, &snapshots, None);
        let settings = "{\"settings\": {\"number_of_replicas\": 0}}";
        server.ask("PUT", "/documents", settings);
        server
    });
    let components = configure_stores(&mut scene, &redis, search.as_ref());
    let held = scene.application.folder.join("held");
    std::thread::scope(|scope| {
        let scene = &scene;
        scope.spawn(|| {
            scene
                .application
                .run(&scene.cluster, &scene.end, &scene.documents);
        });
        scope.spawn(|| {
            let mut client = redis.client();
            while !scene.end.load(Ordering::SeqCst) {
                client.ask(&["INCR", "count"]);
                scene.entries.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let _end = End(&scene.end);
        let agent = scene.pgark.agent(&[]);
        let job = scene.request(components);
        wait_until("all is held", PATIENCE, || held.exists());
        let since = Instant::now();
        let before = (scene.documents(), scene.entries());
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!((scene.documents(), scene.entries()), before, "not held");
        assert_ne!(takes_writes(search.as_ref()), Some(true));
        kill(agent.pid());
        drop(agent);
        wait_until("Redis takes writes again", RELEASED, || {
            scene.entries() > before.1
        });
        println!("Redis was held for {:?}", since.elapsed());
        // Nobody was there to let the others go.
        assert_eq!(scene.documents(), before.0);
        assert_ne!(takes_writes(search.as_ref()), Some(true));
        assert!(!ledgers(&scene.pgark).is_empty());

        let agent = scene.pgark.agent(&[]);
        scene.wait_until_free();
        assert_ne!(takes_writes(search.as_ref()), Some(false));
        scene.done_after_all(&job);
        drop(agent);

        // Just when the first was held.
        let agent = scene
            .pgark
            .agent(&[("PGARK_FAULT_CRASH", "quiesce:pulled")]);
        let job = scene.request(components);
        wait_until("the agent dies", PATIENCE, || !is_alive(agent.pid()));
        drop(agent);
        let before = scene.entries();
        wait_until("Redis takes writes again", RELEASED, || {
            scene.entries() > before
        });
        assert!(!ledgers(&scene.pgark).is_empty());
        let _agent = scene.pgark.agent(&[]);
        scene.wait_until_free();
        scene.done_after_all(&job);
        assert_ne!(takes_writes(search.as_ref()), Some(false));
    });
}

/// Redis, whose hook stops the application and hangs the first time, and the index. How many components
/// there are.
fn configure_stores(
    scene: &mut Scene<'_>,
    redis: &RedisServer,
    search: Option<&SearchServer>,
) -> &'static str {
    let [_, release] = scene.application.hooks();
    let hold = scene.application.script(
        "hold.sh",
        "/bin/sh $1/quiesce.sh $1\n[ -e $1/held ] && exit 0\ntouch $1/held\nexec sleep 60\n",
    );
    // Time is short in every change's tests; the full tier has the default.
    let seconds = if is_full_tier() { 30 } else { 10 };
    scene.pgark.configure(&format!(
        "[component.cache]\nkind = \"redis\"\nurl = \"{}\"\n\
         before_backup = {hold}\nafter_backup = {release}\n\
         [backup_set]\nquiesce = \"stores\"\nquiesce_seconds_max = {seconds}\n",
        redis.url()
    ));
    let Some(search) = search else { return "3" };
    scene.pgark.configure(&format!(
        "[component.search]\nkind = \"elasticsearch\"\nurl = \"{}\"\nrepository_dir = \"{}\"\n\
         write_block = true\n",
        search.url(),
        search.repository_dir().display()
    ));
    "4"
}

#[test]
fn an_application_is_let_go_by_the_next_agent() {
    let directory = TestDirectory::new("t512_app");
    let mut scene = Scene::new(&directory);
    let section = scene.application.section();
    scene.pgark.configure(&section);
    std::thread::scope(|scope| {
        let scene = &scene;
        scope.spawn(|| {
            scene
                .application
                .run(&scene.cluster, &scene.end, &scene.documents);
        });
        let _end = End(&scene.end);
        for point in ["quiesce:pulled", "set:stage_captured"] {
            let agent = scene.pgark.agent(&[("PGARK_FAULT_CRASH", point)]);
            let job = scene.request("2");
            wait_until("the agent dies", PATIENCE, || !is_alive(agent.pid()));
            drop(agent);
            let before = scene.documents();
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(scene.documents(), before, "{point}: not held");
            assert!(!ledgers(&scene.pgark).is_empty(), "{point}");
            let _agent = scene.pgark.agent(&[]);
            scene.wait_until_free();
            scene.done_after_all(&job);
        }
    });
}
