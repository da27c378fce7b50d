//! An SSH server of a test: Debian's sshd with a configuration and keys of its own, on loopback, at a port
//! that the system chooses, as the account. Nothing of the system's is touched. Ended when dropped.

use crate::account;
use crate::cluster::run;
use crate::directory::TestDirectory;
use crate::process::{kill_tree, wait_until};
use crate::s3_server::storage;
use pgark_archiver::storage::SharedStorage;
use pgark_archiver::storage::sftp::{Settings, SftpStorage};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The passphrase of the key `encrypted`.
pub const PASSPHRASE: &str = "correct horse battery";

/// A running server.
#[derive(Debug)]
pub struct SftpServer {
    child: Child,
    port: u16,
    folder: PathBuf,
}

/// Makes the key `name` in `folder`.
fn keygen(folder: &Path, name: &str, kind: &str, passphrase: &str) {
    let mut command = account::command("/usr/bin/ssh-keygen");
    command
        .args(["-q", "-t", kind, "-C", name, "-N", passphrase])
        .args(
            (kind == "rsa")
                .then_some(["-b", "2048"])
                .into_iter()
                .flatten(),
        )
        .arg("-f")
        .arg(folder.join(name));
    run(&mut command);
}

impl SftpServer {
    /// Starts one; its clients get `internal-sftp` with these arguments (sftp-server(8)): `-P hardlink`
    /// takes an extension away, `-R` makes it read-only.
    pub fn start(directory: &TestDirectory, arguments: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = directory.folder(&format!("sshd{count}"));
        for (name, kind, passphrase) in [
            ("host_ed25519", "ed25519", ""),
            ("host_rsa", "rsa", ""),
            ("user", "ed25519", ""),
            ("rsa", "rsa", ""),
            ("encrypted", "ed25519", PASSPHRASE),
            ("stranger", "ed25519", ""),
        ] {
            keygen(&folder, name, kind, passphrase);
        }
        let allowed = ["user", "rsa", "encrypted"]
            .map(|name| std::fs::read_to_string(folder.join(format!("{name}.pub"))).unwrap());
        let name = folder.strip_prefix(directory.path()).unwrap();
        let in_folder = |file: &str| format!("{}/{file}", name.display());
        directory.file(&in_folder("authorized_keys"), &allowed.concat());
        directory.file(&in_folder("passphrase"), PASSPHRASE);
        // Another process may take the port before the server does; the test then fails.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        let at = folder.display();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\n\
             HostKey {at}/host_ed25519\nHostKey {at}/host_rsa\nPidFile none\n\
             AuthorizedKeysFile {at}/authorized_keys\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PubkeyAuthentication yes\nPrintMotd no\nMaxStartups 20:30:100\nLogLevel VERBOSE\n\
             Subsystem sftp internal-sftp {arguments}\nForceCommand internal-sftp {arguments}\n"
        );
        directory.file(&in_folder("sshd_config"), &config);
        let mut command = account::command("/usr/sbin/sshd");
        command
            .args(["-D", "-e", "-f"])
            .arg(folder.join("sshd_config"));
        let log = std::fs::File::create(folder.join("sshd.log")).unwrap();
        let child = command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("sshd runs: regress/setup/install.sh installs it");
        let server = Self {
            child,
            port,
            folder,
        };
        wait_until("sshd answers", Duration::from_secs(30), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        server
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A file of the server: the key `user` and others, `user.pub`, `passphrase`, `sshd.log`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The public key `name` as `host_key` has it, without its comment.
    pub fn public_key(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.file(&format!("{name}.pub"))).unwrap();
        let words: Vec<&str> = text.split_whitespace().take(2).collect();
        words.join(" ")
    }

    /// The keys of `[repository.*]` for the directory `path`, by the server's port or a proxy's.
    pub fn section(&self, port: u16, path: &Path) -> String {
        let key = format!("key_file = \"{}\"\n", self.file("user").display());
        self.section_without_key(port, path) + &key
    }

    /// The same, without the user's key.
    pub fn section_without_key(&self, port: u16, path: &Path) -> String {
        format!(
            "kind = \"sftp\"\nhost = \"127.0.0.1\"\nport = {port}\nuser = \"{}\"\npath = \"{}\"\n\
             host_key = \"{}\"\n",
            user(),
            path.display(),
            self.public_key("host_ed25519"),
        )
    }

    /// Makes storages, each in a directory of its own below `parent`.
    pub fn below(&self, parent: &Path) -> impl Fn() -> SharedStorage {
        let count = AtomicU32::new(0);
        move || {
            let n = count.fetch_add(1, Ordering::SeqCst);
            made(&self.section(self.port, &parent.join(n.to_string())))
        }
    }

    /// How many clients it serves.
    pub fn clients(&self) -> usize {
        let pid = i32::try_from(self.child.id()).unwrap();
        crate::process::tree(pid).len() - 1
    }
}

/// The storage of a section, its directory made.
pub fn made(section: &str) -> SharedStorage {
    let config = pgark_archiver::config::Config::parse(&format!("[repository.s]\n{section}"));
    let settings = Settings::from_config("s", &config.unwrap().repository["s"]).unwrap();
    SftpStorage::new(settings).create_directory().unwrap();
    storage(section)
}

/// The account's name.
fn user() -> String {
    run(account::command("/usr/bin/id").arg("-un"))
        .trim()
        .to_owned()
}

impl Drop for SftpServer {
    fn drop(&mut self) {
        kill_tree(i32::try_from(self.child.id()).unwrap());
        let _ = self.child.wait();
    }
}

/// An ssh-agent that holds the key `name` of the server; ended when dropped.
#[derive(Debug)]
pub struct KeyAgent {
    child: Child,
    /// Its socket.
    pub socket: PathBuf,
}

impl KeyAgent {
    /// Starts it, with the key `name` unless that is empty.
    pub fn start(server: &SftpServer, name: &str) -> Self {
        let socket = server.file(&format!("agent-{name}.sock"));
        let mut command = account::command("/usr/bin/ssh-agent");
        let child = command
            .args(["-D", "-a"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { child, socket };
        wait_until("the ssh-agent listens", Duration::from_secs(20), || {
            agent.socket.exists()
        });
        if !name.is_empty() {
            let mut add: Command = account::command("/usr/bin/ssh-add");
            add.env("SSH_AUTH_SOCK", &agent.socket);
            run(add.arg("-q").arg(server.file(name)));
        }
        agent
    }
}

impl Drop for KeyAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
