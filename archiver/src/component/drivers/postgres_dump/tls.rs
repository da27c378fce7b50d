//! TLS for a connection to Postgres: asked for first, in the clear, then as anywhere else.

use super::wire::Address;
use crate::{Error, Result};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};
use serde::Deserialize;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Not at all.
    Disable,
    /// Encrypted, the server's certificate unchecked (libpq's `require`).
    Require,
    /// The certificate is checked against `ca_file`, and its name (libpq's `verify-full`).
    VerifyFull,
}

impl Mode {
    /// The word that libpq has for it.
    pub(super) fn sslmode(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Require => "require",
            Self::VerifyFull => "verify-full",
        }
    }
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::invalid("tls_failed", "could not set up TLS to the server")
        .with_detail(format!("{why}."))
}

/// Turns the connection into an encrypted one.
pub(super) fn wrap(
    mut stream: TcpStream,
    address: &Address,
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut buffer = BytesMut::new();
    frontend::ssl_request(&mut buffer);
    let mut answer = [0];
    stream
        .write_all(&buffer)
        .and_then(|()| stream.read_exact(&mut answer))
        .map_err(|e| Error::io("the server broke off before TLS", e))?;
    if answer != *b"S" {
        return Err(failed("The server has no TLS")
            .with_hint("Turn ssl on in the server, or set tls = \"disable\"."));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let config = match &address.ca_file {
        Some(path) if address.tls == Mode::VerifyFull => {
            let mut roots = RootCertStore::empty();
            let certificates = CertificateDer::pem_file_iter(path)
                .map_err(|e| failed(format!("\"{}\": {e}", path.display())))?;
            for certificate in certificates {
                roots.add(certificate.map_err(failed)?).map_err(failed)?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        _ => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unchecked(provider)))
            .with_no_client_auth(),
    };
    let name = ServerName::try_from(address.host.clone()).map_err(failed)?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(failed)?;
    // Now, so that a wrong certificate is told from a server that goes away.
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(failed)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// libpq's `require`: encrypted, whoever it is.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
