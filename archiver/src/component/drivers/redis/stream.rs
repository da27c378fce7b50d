//! The bytes to and from a server: TCP, TLS, or a socket of this host.

use super::settings::{Address, Settings};
use crate::{Error, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a read or write waits before we look whether we were cancelled.
const SLICE: Duration = Duration::from_millis(200);

/// Where Debian, Red Hat and Alpine keep the certificates of the system.
const SYSTEM_CERTIFICATES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// A connection. Reads and writes fail with `WouldBlock` after a fraction of a second.
pub(super) enum Stream {
    /// Plain.
    Tcp(TcpStream),
    /// Encrypted.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// Of this host.
    Unix(UnixStream),
}

impl Stream {
    /// Connects.
    ///
    /// # Errors
    /// Kind Unavailable, `redis_unreachable`; kind Invalid, `redis_tls`, for wrong TLS settings.
    pub(super) fn open(settings: &Settings, address: &Address) -> Result<Self> {
        let unreachable = |e: std::io::Error| {
            Error::unavailable(
                "redis_unreachable",
                format!("could not connect to the Redis server at {address}"),
            )
            .with_source(e)
            .with_hint("Look whether it runs, and at url of the component.")
        };
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(unreachable)?;
                stream.set_read_timeout(Some(SLICE)).map_err(unreachable)?;
                stream.set_write_timeout(Some(SLICE)).map_err(unreachable)?;
                Ok(Self::Unix(stream))
            }
            Address::Tcp {
                host, port, tls, ..
            } => {
                let stream = connect(host, *port, settings.timeout()).map_err(unreachable)?;
                stream.set_read_timeout(Some(SLICE)).map_err(unreachable)?;
                stream.set_write_timeout(Some(SLICE)).map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                match tls {
                    true => Self::encrypt(settings, host, stream),
                    false => Ok(Self::Tcp(stream)),
                }
            }
        }
    }

    fn encrypt(settings: &Settings, host: &str, stream: TcpStream) -> Result<Self> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|e| wrong("the host's name cannot be in a certificate").with_source(e))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong("no protocol version").with_source(e))?
            .with_root_certificates(roots(settings)?);
        let config = match (&settings.tls_certificate_file, &settings.tls_key_file) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate)?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable(key, e))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|e| wrong("our certificate and key do not fit").with_source(e))?
            }
            _ => builder.with_no_client_auth(),
        };
        let connection = ClientConnection::new(Arc::new(config), name)
            .map_err(|e| wrong("TLS cannot begin").with_source(e))?;
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, stream))))
    }
}

fn connect(host: &str, port: u16, timeout: Duration) -> std::io::Result<TcpStream> {
    let mut last = None;
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| std::io::Error::other("the host has no address")))
}

fn wrong(why: &str) -> Error {
    Error::invalid("redis_tls", format!("could not set up TLS to Redis: {why}"))
}

fn unreadable(path: &Path, error: rustls::pki_types::pem::Error) -> Error {
    wrong(&format!("\"{}\" cannot be read", path.display())).with_source(error)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| unreadable(path, e))
}

fn roots(settings: &Settings) -> Result<RootCertStore> {
    let system = || {
        let mut paths = SYSTEM_CERTIFICATES.iter().map(Path::new);
        paths.find(|path| path.exists())
    };
    let path = settings.tls_ca_file.as_deref().or_else(system);
    let path = path.ok_or_else(|| {
        wrong("this system has no certificates").with_hint("Set tls_ca_file of the component.")
    })?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(path)?);
    if added == 0 {
        return Err(wrong(&format!(
            "\"{}\" holds no certificate",
            path.display()
        )));
    }
    Ok(roots)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
        }
    }
}
