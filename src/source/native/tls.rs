//! TLS with rustls, under librdkafka's setting names.
//!
//! Promise: the certificate of a broker is verified against the CAs and the host name of the broker
//! unless a setting disables that.

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

use crate::source::native::connection_settings::TlsSettings;
use crate::source::native::diagnostics::{ClientError, ClientResult, is_timeout};
use crate::{Error, Result};

/// Returns the cryptography provider that the rest of the program also uses.
fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Builds the TLS configuration of the client.
///
/// # Errors
/// A file that cannot be read or is not valid PEM.
pub(super) fn client_config(settings: &TlsSettings) -> Result<Arc<ClientConfig>> {
    let provider = crypto_provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal("cannot set up TLS").because(error))?;
    let builder = if settings.verify_certificate && settings.verify_hostname {
        builder.with_root_certificates(load_root_certificates(settings.ca.as_deref())?)
    } else {
        let chain = match settings.verify_certificate {
            true => {
                let roots = Arc::new(load_root_certificates(settings.ca.as_deref())?);
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
                Some(verifier.build().map_err(|error| {
                    Error::config("there is no usable CA certificate to verify brokers")
                        .because(error)
                })?)
            }
            false => None,
        };
        let lenient = LenientVerifier { chain, provider };
        builder.dangerous().with_custom_certificate_verifier(Arc::new(lenient))
    };
    let config = match (&settings.certificate, &settings.key) {
        (Some(certificate), key) => {
            let key = key.as_ref().unwrap_or(certificate);
            builder
                .with_client_auth_cert(
                    read_certificates("ssl.certificate.location", certificate)?,
                    {
                        PrivateKeyDer::from_pem_file(key)
                            .map_err(|error| pem_error("ssl.key.location", key, error))?
                    },
                )
                .map_err(|error| {
                    Error::config("the client certificate and key do not match").because(error)
                })?
        }
        (None, _) => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn pem_error(
    setting: &str,
    file: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::config(format!("Kafka setting {setting}: cannot read {file} as PEM")).because(error)
}

fn read_certificates(setting: &str, file: &str) -> Result<Vec<CertificateDer<'static>>> {
    let parsed = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let certificates: Vec<_> = parsed.map_err(|error| pem_error(setting, file, error))?;
    if certificates.is_empty() {
        let error = io::Error::new(io::ErrorKind::InvalidData, "the file contains no certificate");
        return Err(pem_error(setting, file, error));
    }
    Ok(certificates)
}

/// Loads the CA certificates of a file, or those of the system.
fn load_root_certificates(file: Option<&str>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(file) => {
            for certificate in read_certificates("ssl.ca.location", file)? {
                roots
                    .add(certificate)
                    .map_err(|error| pem_error("ssl.ca.location", file, error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

/// Performs the TLS handshake.
///
/// # Errors
/// The broker rejects the client, or its certificate is invalid.
pub(super) fn handshake(
    config: &Arc<ClientConfig>,
    socket: TcpStream,
    host: &str,
    deadline: Instant,
    is_stopped: &dyn Fn() -> bool,
) -> ClientResult<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        ClientError::Retriable(format!(
            "cannot verify a certificate for {host}: not a valid server name"
        ))
    })?;
    let client = ClientConnection::new(Arc::clone(config), name)
        .map_err(|error| ClientError::Retriable(error.to_string()))?;
    let mut stream = StreamOwned::new(client, socket);
    while stream.conn.is_handshaking() {
        match stream.conn.complete_io(&mut stream.sock) {
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {
                if is_stopped() {
                    return Err(ClientError::Stopped);
                }
                if Instant::now() >= deadline {
                    return Err(ClientError::Retriable("the TLS handshake timed out".to_owned()));
                }
            }
            Err(error) => {
                return Err(ClientError::Retriable(format!(
                    "the TLS handshake failed: {error}; check the ssl.* settings"
                )));
            }
        }
    }
    Ok(stream)
}

/// A verifier that skips the checks that the settings disable.
#[derive(Debug)]
struct LenientVerifier {
    /// Verifies all but the host name; `None`: nothing is verified.
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for LenientVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        // The name is checked last, so this error means that all other checks passed.
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
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
