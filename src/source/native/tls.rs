//! TLS by rustls, under librdkafka's setting names.
//!
//! Promise: a broker's certificate is checked against the CAs and the broker's host unless a
//! setting says otherwise.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore,
    SignatureScheme, StreamOwned,
};

use crate::source::native::connection_settings::Tls;
use crate::source::native::diagnostics::{Attempt, Trouble};
use crate::source::native::wire::is_wait;
use crate::{Error, Result};

/// The cryptography: the one that the rest of the program uses already.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The client's side of every handshake.
///
/// # Errors
/// A file that cannot be read or holds something else.
pub(super) fn config(settings: &Tls) -> Result<Arc<ClientConfig>> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal("TLS cannot be set up").because(error))?;
    let builder = if settings.verified && settings.named {
        builder.with_root_certificates(roots(settings.ca.as_deref())?)
    } else {
        let chain = match settings.verified {
            true => {
                let roots = Arc::new(roots(settings.ca.as_deref())?);
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
                Some(verifier.build().map_err(|error| {
                    Error::config("no CA for the brokers' certificates").because(error)
                })?)
            }
            false => None,
        };
        let lenient = Lenient { chain, provider };
        builder.dangerous().with_custom_certificate_verifier(Arc::new(lenient))
    };
    let config = match (&settings.certificate, &settings.key) {
        (Some(certificate), key) => {
            let key = key.as_ref().unwrap_or(certificate);
            builder
                .with_client_auth_cert(certificates("ssl.certificate.location", certificate)?, {
                    PrivateKeyDer::from_pem_file(key)
                        .map_err(|error| unreadable("ssl.key.location", key, error))?
                })
                .map_err(|error| {
                    Error::config("the client's certificate and key do not fit").because(error)
                })?
        }
        (None, _) => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn unreadable(
    setting: &str,
    file: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::config(format!("Kafka setting {setting}: {file} cannot be read as PEM")).because(error)
}

fn certificates(setting: &str, file: &str) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let read: Vec<_> = read.map_err(|error| unreadable(setting, file, error))?;
    if read.is_empty() {
        let error = io::Error::new(io::ErrorKind::InvalidData, "there is no certificate in it");
        return Err(unreadable(setting, file, error));
    }
    Ok(read)
}

/// The CAs of a file, or those of the system.
fn roots(file: Option<&str>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(file) => {
            for certificate in certificates("ssl.ca.location", file)? {
                roots
                    .add(certificate)
                    .map_err(|error| unreadable("ssl.ca.location", file, error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

/// Shakes hands.
///
/// # Errors
/// The broker refuses, or its certificate is refused.
pub(super) fn handshake(
    config: &Arc<ClientConfig>,
    socket: TcpStream,
    host: &str,
    deadline: Instant,
    stopped: &dyn Fn() -> bool,
) -> Attempt<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Trouble::Lost(format!("{host} is no name that a certificate can have")))?;
    let client = ClientConnection::new(Arc::clone(config), name)
        .map_err(|error| Trouble::Lost(error.to_string()))?;
    let mut stream = StreamOwned::new(client, socket);
    while stream.conn.is_handshaking() {
        match stream.conn.complete_io(&mut stream.sock) {
            Ok(_) => {}
            Err(error) if is_wait(&error) => {
                if stopped() {
                    return Err(Trouble::Stopped);
                }
                if Instant::now() >= deadline {
                    return Err(Trouble::Lost("the TLS handshake takes too long".to_owned()));
                }
            }
            Err(error) => {
                return Err(Trouble::Lost(format!(
                    "the TLS handshake failed: {error}; look at the ssl.* settings"
                )));
            }
        }
    }
    Ok(stream)
}

/// Checks less than it should, because a setting says so.
#[derive(Debug)]
struct Lenient {
    /// Checks all but the host's name; `None`: nothing is checked.
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        // The name is looked at last: this error says that all else is well.
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
