//! S3 servers of a test: moto, an emulator, within a second; Ceph's radosgw, a real one, within half a
//! minute. On loopback, at ports that the system chooses, ended when dropped.

use crate::directory::TestDirectory;
use crate::process::wait_until;
use pgark_archiver::config::Config;
use pgark_archiver::storage::SharedStorage;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The access key id of every test.
pub const ACCESS_KEY: &str = "PGARKTESTKEY";
/// The secret access key of every test.
pub const SECRET_KEY: &str = "pgark-test-secret";

/// The access key id of somebody without rights, on radosgw.
pub const READER_KEY: &str = "PGARKTESTREADER";
/// The secret access key of that one.
pub const READER_SECRET: &str = "pgark-reader-secret";

/// A running server.
#[derive(Debug)]
pub struct S3Server {
    child: Child,
    port: u16,
    folder: PathBuf,
    boto: Mutex<Option<Boto>>,
}

fn setup(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("setup")
        .join(script)
}

/// What a set-up script has made already.
fn made(what: &str) -> PathBuf {
    let mut command = Command::new(setup("s3-servers.sh"));
    let output = command.args(["--path", what]).output().unwrap();
    assert!(
        output.status.success(),
        "{what} is not installed: run regress/setup/s3-servers.sh {what}"
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn moto(port: u16) -> Command {
    let mut command = Command::new(made("moto").with_file_name("python"));
    command.arg(setup("moto.py")).arg(port.to_string());
    command
}

/// A port that is free now. Another process may take it before the server does; the test then fails.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn answers(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

impl S3Server {
    /// Starts moto.
    pub fn moto(directory: &TestDirectory) -> Self {
        Self::start_moto(directory, None)
    }

    /// Starts moto with listings of few keys a page.
    pub fn moto_of_small_pages(directory: &TestDirectory) -> Self {
        let folder = new_folder(directory, "moto");
        let port = free_port();
        let mut command = moto(port);
        command.env("MOTO_S3_DEFAULT_MAX_KEYS", "4");
        Self::start(command, folder, port, Duration::from_secs(60))
    }

    /// Starts moto behind TLS, with the certificate and the key in these files. [`S3Server::boto`] does
    /// not reach it.
    pub fn moto_tls(directory: &TestDirectory, certificate: &Path, key: &Path) -> Self {
        Self::start_moto(directory, Some((certificate, key)))
    }

    fn start_moto(directory: &TestDirectory, tls: Option<(&Path, &Path)>) -> Self {
        let folder = new_folder(directory, "moto");
        let port = free_port();
        let mut command = moto(port);
        if let Some((certificate, key)) = tls {
            command.args([certificate, key]);
        }
        Self::start(command, folder, port, Duration::from_secs(60))
    }

    /// Starts radosgw with its monitor and its OSD. Needs root. Its chroot is made when it is missing: that
    /// takes minutes.
    pub fn radosgw(directory: &TestDirectory) -> Self {
        Self::start_radosgw(directory, None)
    }

    /// Starts radosgw behind TLS, with the certificate and the key in this file. [`S3Server::boto`] does not
    /// reach it.
    pub fn radosgw_tls(directory: &TestDirectory, certificate_and_key: &Path) -> Self {
        Self::start_radosgw(directory, Some(certificate_and_key))
    }

    fn start_radosgw(directory: &TestDirectory, tls: Option<&Path>) -> Self {
        crate::cluster::run(Command::new(setup("s3-servers.sh")).arg("radosgw"));
        let folder = new_folder(directory, "rgw");
        if let Some(tls) = tls {
            std::fs::copy(tls, folder.join("tls.pem")).unwrap();
        }
        let port = free_port();
        // Two in a row.
        let monitor = (0..100)
            .map(|_| free_port())
            .find(|port| *port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok())
            .unwrap();
        let mut command = Command::new(setup("radosgw.sh"));
        command
            .arg(&folder)
            .args([port.to_string(), monitor.to_string()])
            .args([ACCESS_KEY, SECRET_KEY, READER_KEY, READER_SECRET]);
        Self::start(command, folder, port, Duration::from_secs(180))
    }

    /// Starts it in `folder`, its output in `start.log` there, and waits until it answers.
    fn start(mut command: Command, folder: PathBuf, port: u16, limit: Duration) -> Self {
        let log = std::fs::File::create(folder.join("start.log")).unwrap();
        let child = command
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self {
            child,
            port,
            folder,
            boto: Mutex::new(None),
        };
        wait_until("the S3 server answers", limit, || answers(server.port));
        server
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a bucket, as somebody else's tool.
    #[track_caller]
    pub fn create_bucket(&self, bucket: &str) {
        self.boto(&format!("s3.create_bucket(Bucket='{bucket}')"));
    }

    /// Makes a bucket with versions and object lock.
    #[track_caller]
    pub fn create_locked_bucket(&self, bucket: &str) {
        self.boto(&format!(
            "s3.create_bucket(Bucket='{bucket}', ObjectLockEnabledForBucket=True)"
        ));
    }

    /// Runs Python with a boto3 client `s3`; what it prints.
    #[track_caller]
    pub fn boto(&self, code: &str) -> String {
        // One program for all calls: boto3 takes a second to begin.
        let mut boto = self.boto.lock().unwrap_or_else(PoisonError::into_inner);
        let boto = boto.get_or_insert_with(|| Boto::start(self));
        match boto.run(code) {
            Ok(printed) => printed,
            Err(trace) => panic!("{code}\n{trace}"),
        }
    }

    /// Runs Python with a boto3 client `s3` and one argument, until what is returned is dropped: then its
    /// standard input ends, and it has to.
    pub fn boto_in_background(&self, code: &str, argument: &Path) -> Background {
        let child = Command::new(made("moto").with_file_name("python"))
            .arg("-c")
            .arg(self.with_client(code))
            .arg(argument)
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .spawn();
        Background(child.unwrap())
    }

    fn with_client(&self, code: &str) -> String {
        format!(
            "import boto3\nfrom botocore.config import Config\n\
             s3 = boto3.client('s3', endpoint_url='{}', region_name='us-east-1', \
             aws_access_key_id='{ACCESS_KEY}', aws_secret_access_key='{SECRET_KEY}', \
             config=Config(s3={{'addressing_style': 'path'}}, request_checksum_calculation='when_required'))\n{code}\n",
            self.endpoint()
        )
    }

    /// Runs `radosgw-admin` beside radosgw, as its administrator could.
    #[track_caller]
    pub fn radosgw_admin(&self, arguments: &[&str]) -> String {
        // The first process of its namespace: unshare's child.
        let unshare = i32::try_from(self.child.id()).unwrap();
        let inner = crate::process::tree(unshare)
            .into_iter()
            .find(|pid| *pid != unshare);
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--pid", "--target", &inner.unwrap().to_string()])
            .arg("chroot")
            .arg(made("radosgw"))
            .args(["env", "LC_ALL=C", "CEPH_CONF=/mnt/ceph.conf"])
            .arg("radosgw-admin");
        crate::cluster::run(command.args(arguments))
    }

    /// Runs Python where boto3 is installed; what it prints.
    #[track_caller]
    pub fn python(&self, program: &str) -> String {
        let mut command = Command::new(made("moto").with_file_name("python"));
        crate::cluster::run(command.arg("-c").arg(program).current_dir(&self.folder))
    }
}

/// Runs pieces of Python, one after the other, each with the client alone.
#[derive(Debug)]
struct Boto {
    child: Child,
    answers: BufReader<ChildStdout>,
}

/// Reads pieces as JSON, a line each; answers with what was printed, and with what went wrong.
const RUN_PIECES: &str = r#"
import contextlib, io, json, sys, traceback
for line in sys.stdin:
    printed, failed = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            exec(json.loads(line), {"s3": s3, "boto3": boto3})
    except BaseException:
        failed = traceback.format_exc()
    print(json.dumps([printed.getvalue(), failed]), flush=True)
"#;

impl Boto {
    fn start(server: &S3Server) -> Self {
        let mut child = Command::new(made("moto").with_file_name("python"))
            .arg("-c")
            .arg(server.with_client(RUN_PIECES))
            .current_dir(&server.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    fn run(&mut self, code: &str) -> Result<String, String> {
        let mut piece = serde_json::to_string(code).unwrap();
        piece.push('\n');
        let mut input = self.child.stdin.as_ref().unwrap();
        input.write_all(piece.as_bytes()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        let (printed, failed): (String, Option<String>) = serde_json::from_str(&answer).unwrap();
        match failed {
            None => Ok(printed),
            Some(trace) => Err(trace),
        }
    }
}

impl Drop for Boto {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A program in the background.
#[derive(Debug)]
pub struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // radosgw.sh became unshare, whose end ends all of its namespace.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authority `<name>.pem` in the test's directory, and a certificate for loopback that it signed:
/// `<name>-server.pem`, `<name>-server.key`.
pub fn authority(directory: &TestDirectory, name: &str) -> [PathBuf; 3] {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        command.args(arguments.split_whitespace());
        crate::cluster::run(command.current_dir(directory.path()));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(&format!(
        "req -x509 {key} -keyout {name}.key -out {name}.pem -subj /CN={name}"
    ));
    openssl(&format!(
        "req -x509 {key} -keyout {name}-server.key -out {name}-server.pem -subj /CN=localhost \
         -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
         -addext basicConstraints=critical,CA:FALSE -CA {name}.pem -CAkey {name}.key"
    ));
    [".pem", "-server.pem", "-server.key"].map(|end| directory.join(&format!("{name}{end}")))
}

fn new_folder(directory: &TestDirectory, what: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    directory.folder(&format!("{what}{count}"))
}

/// The keys of `[repository.*]` for `bucket` at `endpoint`, with the credentials in files of `directory`.
pub fn section(directory: &TestDirectory, endpoint: &str, bucket: &str) -> String {
    // Once: somebody may be reading them.
    let file = |name: &str, content| match directory.join(name) {
        path if path.exists() => path,
        _ => directory.file(name, content),
    };
    let (id, secret) = (file("s3.id", ACCESS_KEY), file("s3.secret", SECRET_KEY));
    format!(
        "kind = \"s3\"\nbucket = \"{bucket}\"\nendpoint = \"{endpoint}\"\n\
         access_key_id = \"file:{}\"\nsecret_access_key = \"file:{}\"\n",
        id.display(),
        secret.display()
    )
}

/// The storage that a configuration section describes.
pub fn storage(section: &str) -> SharedStorage {
    let config = Config::parse(&format!("[repository.s]\n{section}")).unwrap();
    let (_, _, storage) = config.storages().unwrap().pop().unwrap();
    storage
}

/// Makes storages, each below a prefix of its own, in one bucket.
pub fn below_prefixes(section: String) -> impl Fn() -> SharedStorage {
    let count = AtomicU32::new(0);
    move || {
        let n = count.fetch_add(1, Ordering::SeqCst);
        storage(&format!("{section}prefix = \"case/{n}\"\n"))
    }
}
