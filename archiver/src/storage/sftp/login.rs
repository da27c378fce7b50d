//! From a TCP connection to an SFTP session: the server's key, the user's key, the subsystem.

use super::failure::{Failure, words};
use super::settings::{AgentSocket, Authentication, HostKey, Settings};
use crate::storage::s3::settings::secret;
use crate::{Error, Result};
use russh::client::{self, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::key::PrivateKeyWithHashAlg;
use russh::keys::ssh_key::private::PrivateKey;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKeyOrCertificate};
use russh::{ChannelMsg, Preferred};
use std::borrow::Cow;
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long a server may be silent before it is asked for a sign of life, and, three times that,
/// before it counts as gone.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Keys of an ssh-agent that are offered: a server hangs up after six by default.
const IDENTITIES_MAX: usize = 5;

/// How long the reason for the end of a session is waited for.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Kinds of host keys, the one asked for first first.
const KINDS: [&[Algorithm]; 5] = [
    &[Algorithm::Ed25519],
    &[Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    }],
    &[Algorithm::Rsa {
        hash: Some(HashAlg::Sha512),
    }],
    &[Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP384,
    }],
    &[Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP521,
    }],
];

/// Compares the server's key with the pinned one.
#[derive(Debug)]
pub(super) struct HostKeyCheck {
    pinned: HostKey,
    /// The fingerprint of what the server showed.
    seen: Arc<Mutex<Option<String>>>,
    /// Dropped with the task that holds the connection: what waits for an answer is not always told.
    _alive: watch::Sender<()>,
}

impl client::Handler for HostKeyCheck {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let key = shown.public_key();
        let fingerprint = key.fingerprint(HashAlg::Sha256);
        let seen = format!("{} {fingerprint}", key.algorithm());
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok(match &self.pinned {
            HostKey::Key(pinned) => pinned.key_data() == key.key_data(),
            HostKey::Fingerprint(pinned) => *pinned == fingerprint,
        })
    }
}

/// A session over the network, not yet spoken SFTP over.
pub(super) type Session = Handle<HostKeyCheck>;
/// Closed when the session has ended.
pub(super) type Alive = watch::Receiver<()>;

/// Does `work` while the connection lasts.
pub(super) async fn while_alive<T>(
    alive: &Alive,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut alive = alive.clone();
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        _ = alive.changed() => {}
    }
    // It may be about to say why.
    match tokio::time::timeout(LAST_WORDS, work).await {
        Ok(done) => done,
        Err(_) => Err(Failure::broken("the connection broke")),
    }
}

/// Connects, and makes sure that it is the right server. A server has several keys and shows the one
/// that it is asked for: with a fingerprint alone, each kind is asked for until one fits.
pub(super) async fn connect(settings: &Settings) -> Result<(Session, Alive), Failure> {
    let kinds: Vec<&'static [Algorithm]> = match &settings.host_key {
        HostKey::Key(key) => {
            let family = |a: &Algorithm| std::mem::discriminant(a);
            let wanted = key.algorithm();
            let fits = |kind: &&[Algorithm]| {
                kind.iter().any(|a| match (a, &wanted) {
                    (Algorithm::Ecdsa { curve: a }, Algorithm::Ecdsa { curve: b }) => a == b,
                    (a, b) => family(a) == family(b),
                })
            };
            KINDS.into_iter().filter(|kind| fits(kind)).collect()
        }
        HostKey::Fingerprint(_) => KINDS.to_vec(),
    };
    let mut shown = Vec::new();
    for kind in kinds {
        let seen = Arc::new(Mutex::new(None));
        let (sender, alive) = watch::channel(());
        let check = HostKeyCheck {
            pinned: settings.host_key.clone(),
            seen: Arc::clone(&seen),
            _alive: sender,
        };
        let address = (settings.host.as_str(), settings.port);
        let config = Arc::new(config(kind));
        let connecting = Box::pin(client::connect(config, address, check));
        match while_alive(&alive, async { Ok(connecting.await) }).await? {
            Ok(session) => return Ok((session, alive)),
            Err(russh::Error::UnknownKey) => {
                let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
                shown.extend(seen);
            }
            Err(russh::Error::NoCommonAlgo {
                kind: russh::AlgorithmKind::Key,
                ..
            }) => {}
            Err(error) => return Err(Failure::unreached(error)),
        }
    }
    Err(Failure::Final(host_key_changed(settings, &shown)))
}

fn config(kind: &'static [Algorithm]) -> client::Config {
    client::Config {
        preferred: Preferred {
            key: Cow::Borrowed(kind),
            ..Preferred::default()
        },
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: 3,
        nodelay: true,
        ..client::Config::default()
    }
}

fn host_key_changed(settings: &Settings, shown: &[String]) -> Error {
    let pinned = match &settings.host_key {
        HostKey::Key(key) => {
            format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
        }
        HostKey::Fingerprint(fingerprint) => fingerprint.to_string(),
    };
    let shown = match shown {
        [] => "The server has no key of that kind.".to_owned(),
        shown => format!("The server shows {}.", shown.join(", ")),
    };
    Error::unavailable(
        "sftp_host_key_changed",
        format!(
            "the server at {}:{} does not have the pinned host key",
            settings.host, settings.port
        ),
    )
    .with_detail(format!("{shown} Pinned is {pinned}."))
    .with_hint("Somebody may be in between: nothing was sent. If the server was given a new key, compare it on the server with \"ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub\" and change host_key in [repository.*].")
}

/// Proves who the user is.
pub(super) async fn authenticate(
    session: &mut Session,
    settings: &Settings,
) -> Result<(), Failure> {
    match &settings.authentication {
        Authentication::KeyFile { path, passphrase } => {
            let key = private_key(path, passphrase.as_deref())?;
            let what = format!("the key in \"{}\"", path.display());
            let hash = rsa_hash(session, &key.algorithm()).await?;
            let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
            let answer = session.authenticate_publickey(&settings.user, key).await;
            match answer.map_err(Failure::unreached)?.success() {
                true => Ok(()),
                false => Err(refused(session, settings, &what)),
            }
        }
        Authentication::Agent(socket) => agent(session, settings, socket).await,
    }
}

/// The hash to sign with, where the key's kind leaves a choice.
async fn rsa_hash(session: &Session, key: &Algorithm) -> Result<Option<HashAlg>, Failure> {
    if !matches!(key, Algorithm::Rsa { .. }) {
        return Ok(None);
    }
    let best = session.best_supported_rsa_hash().await;
    // SHA-1 is not used, whatever the server would take.
    Ok(best
        .map_err(Failure::unreached)?
        .flatten()
        .or(Some(HashAlg::Sha512)))
}

fn refused(session: &Session, settings: &Settings, what: &str) -> Failure {
    // A connection that broke looks like a refusal here.
    if session.is_closed() {
        return Failure::unreached("the connection broke during log-in");
    }
    Failure::Final(
        Error::unavailable(
            "sftp_authentication_failed",
            format!(
                "the server at {}:{} does not let user \"{}\" in with {what}",
                settings.host, settings.port, settings.user
            ),
        )
        .with_hint("Check user and key in [repository.*]; the public key belongs into ~/.ssh/authorized_keys of that user, writable by nobody else. The server's log says more."),
    )
}

async fn agent(
    session: &mut Session,
    settings: &Settings,
    socket: &AgentSocket,
) -> Result<(), Failure> {
    let unavailable = |why: String| {
        Failure::Final(
            Error::unavailable(
                "sftp_agent_unavailable",
                "could not get a key from the ssh-agent",
            )
            .with_detail(why)
            .with_hint("Check ssh_agent in [repository.*]: the agent must run, hold a key (\"ssh-add -l\"), and be reachable for the user that pgark runs as."),
        )
    };
    let path = match socket {
        AgentSocket::Path(path) => path.clone(),
        AgentSocket::Env(name) => match std::env::var_os(name) {
            Some(path) => PathBuf::from(path),
            None => return Err(unavailable(format!("${name} is not set."))),
        },
    };
    let failed = |e: russh::keys::Error| unavailable(format!("\"{}\": {e}.", path.display()));
    let mut client = AgentClient::connect_uds(&path).await.map_err(failed)?;
    let identities = client.request_identities().await.map_err(failed)?;
    let keys = identities
        .into_iter()
        .filter_map(|identity| match identity {
            AgentIdentity::PublicKey { key, .. } => Some(key),
            AgentIdentity::Certificate { .. } => None,
        });
    let keys: Vec<_> = keys.take(IDENTITIES_MAX).collect();
    if keys.is_empty() {
        return Err(unavailable("The agent holds no key.".to_owned()));
    }
    for key in keys {
        let hash = rsa_hash(session, &key.algorithm()).await?;
        let answer = session
            .authenticate_publickey_with(&settings.user, key, hash, &mut client)
            .await;
        if answer.map_err(|e| unavailable(format!("{e}.")))?.success() {
            return Ok(());
        }
    }
    Err(refused(session, settings, "any key of the ssh-agent"))
}

/// The key of a file that nobody else may read.
fn private_key(path: &Path, passphrase: Option<&str>) -> Result<PrivateKey> {
    let unreadable = |why: String, hint: &'static str| {
        Error::invalid(
            "sftp_key_unreadable",
            format!("could not read the private key in \"{}\"", path.display()),
        )
        .with_detail(why)
        .with_hint(hint)
    };
    let look = || -> std::io::Result<(u32, String)> {
        let mode = std::fs::metadata(path)?.permissions().mode();
        Ok((mode, std::fs::read_to_string(path)?))
    };
    let (mode, text) = look().map_err(|e| {
        unreadable(
            format!("{e}."),
            "key_file in [repository.*] must name a private key that pgark's user can read.",
        )
    })?;
    let text = zeroize::Zeroizing::new(text);
    if mode & 0o077 != 0 {
        return Err(unreadable(
            format!(
                "Its mode is {:04o}: others can read or write it.",
                mode & 0o7777
            ),
            "Give it to pgark's user and chmod it to 0600.",
        ));
    }
    let passphrase = passphrase
        .map(|reference| secret("key_passphrase", reference))
        .transpose()?
        .map(zeroize::Zeroizing::new);
    let passphrase = passphrase.as_ref().map(|p| p.as_str());
    russh::keys::decode_secret_key(&text, passphrase).map_err(|e| match (e, passphrase) {
        (russh::keys::Error::KeyIsEncrypted, None) => unreadable(
            "It is encrypted.".to_owned(),
            "Set key_passphrase in [repository.*] to \"file:/path\" or \"env:NAME\".",
        ),
        (e, Some(_)) => unreadable(
            format!("{}.", words(&e.to_string())),
            "Check that the passphrase is the key's.",
        ),
        (e, None) => unreadable(
            format!("{}.", words(&e.to_string())),
            "It must be a private key as ssh-keygen writes it, not the .pub file.",
        ),
    })
}

/// Asks for the SFTP subsystem on a new channel.
pub(super) async fn subsystem(
    session: &Session,
    settings: &Settings,
) -> Result<russh::ChannelStream<client::Msg>, Failure> {
    let missing = |why: &str| {
        Failure::Final(
            Error::unavailable(
                "sftp_subsystem_missing",
                format!(
                    "the server at {}:{} does not offer SFTP to user \"{}\"",
                    settings.host, settings.port, settings.user
                ),
            )
            .with_detail(why)
            .with_hint("The server's sshd_config needs \"Subsystem sftp internal-sftp\", or the user a ForceCommand of it."),
        )
    };
    let mut channel = session
        .channel_open_session()
        .await
        .map_err(Failure::unreached)?;
    channel
        .request_subsystem(true, "sftp")
        .await
        .map_err(Failure::unreached)?;
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Success) => return Ok(channel.into_stream()),
            Some(ChannelMsg::Failure) => return Err(missing("The request was refused.")),
            Some(ChannelMsg::Close | ChannelMsg::Eof | ChannelMsg::ExitStatus { .. }) => {
                return Err(missing("The server closed the channel."));
            }
            Some(_) => {}
            None => return Err(Failure::unreached("the connection broke during log-in")),
        }
    }
}
