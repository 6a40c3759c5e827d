//! SASL authentication: PLAIN, and SCRAM with SHA-256 or SHA-512 (RFC 5802, RFC 7677).
//!
//! Promise: with SCRAM, the password never leaves the process, and a broker that does not know it
//! is rejected.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::StrBytes;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

use crate::source::native::connection_settings::{SaslMechanism, SaslSettings};
use crate::source::native::diagnostics::{ClientError, ClientResult, too_old};
use crate::source::native::wire::Connection;

/// The allowed iteration counts. RFC 5802 requires at least 4096; the upper bound limits the CPU time that a broker can cause.
const ALLOWED_ITERATIONS: std::ops::RangeInclusive<u32> = 4096..=10_000_000;

/// Authenticates the client. Returns the lifetime of the session; `None`: unlimited.
///
/// # Errors
/// The broker rejects the client, or does not prove that it knows the password.
pub(super) fn authenticate(
    connection: &mut Connection<'_>,
    credentials: &SaslSettings,
) -> ClientResult<Option<Duration>> {
    let name = match credentials.mechanism {
        SaslMechanism::Plain => "PLAIN",
        SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
        SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
    };
    let version = connection
        .supported_version::<SaslHandshakeRequest>(1)
        .filter(|version| *version == 1)
        .ok_or_else(|| too_old("SASL over Kafka requests"))?;
    let request = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(name));
    let response = connection.call(&request, version, Duration::ZERO)?;
    if response.error_code != 0 {
        let supported: Vec<_> = response.mechanisms.iter().map(|name| name.as_str()).collect();
        let supported = supported.join(", ");
        return Err(ClientError::Retriable(format!(
            "the broker does not support {name}; it supports: {supported}"
        )));
    }
    let sha = match credentials.mechanism {
        SaslMechanism::Plain => {
            let token = format!("\0{}\0{}", credentials.username, credentials.password);
            return Ok(exchange_token(connection, token.into_bytes())?.1);
        }
        SaslMechanism::ScramSha256 => &SHA_256,
        SaslMechanism::ScramSha512 => &SHA_512,
    };
    let mut random = [0; 24];
    let filled = SystemRandom::new().fill(&mut random);
    filled.map_err(|_| {
        ClientError::Retriable("cannot get random numbers from the system".to_owned())
    })?;
    let scram = Scram::new(sha, credentials, &BASE64_STANDARD.encode(random));
    let (server_first, _) = exchange_token(connection, scram.client_first_message().into_bytes())?;
    let failed = |reason: &str| {
        ClientError::Retriable(format!("the {name} exchange with the broker failed: {reason}"))
    };
    let (final_message, signature) = scram.client_final_message(&server_first).map_err(failed)?;
    let (server_final, lifetime) = exchange_token(connection, final_message.into_bytes())?;
    verify_server_signature(&server_final, &signature).map_err(failed)?;
    Ok(lifetime)
}

/// Sends a token. Returns the token of the broker and the lifetime of the session.
fn exchange_token(
    connection: &mut Connection<'_>,
    token: Vec<u8>,
) -> ClientResult<(Bytes, Option<Duration>)> {
    let version = connection
        .supported_version::<SaslAuthenticateRequest>(2)
        .ok_or_else(|| too_old("SASL over Kafka requests"))?;
    let request = SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from(token));
    let response = connection.call(&request, version, Duration::ZERO)?;
    if response.error_code != 0 {
        let reason = response.error_message.map(|text| text.to_string()).unwrap_or_default();
        return Err(ClientError::Retriable(format!(
            "the brokers rejected the credentials: {reason}; check the sasl.* settings"
        )));
    }
    let lifetime = u64::try_from(response.session_lifetime_ms).ok().filter(|ms| *ms > 0);
    Ok((response.auth_bytes, lifetime.map(Duration::from_millis)))
}

/// The hash algorithm of a mechanism.
struct Sha {
    hmac: hmac::Algorithm,
    pbkdf2: pbkdf2::Algorithm,
    digest: &'static digest::Algorithm,
}

static SHA_256: Sha =
    Sha { hmac: hmac::HMAC_SHA256, pbkdf2: pbkdf2::PBKDF2_HMAC_SHA256, digest: &digest::SHA256 };
static SHA_512: Sha =
    Sha { hmac: hmac::HMAC_SHA512, pbkdf2: pbkdf2::PBKDF2_HMAC_SHA512, digest: &digest::SHA512 };

/// The client's side of one SCRAM exchange. It uses no channel binding ("n,,").
struct Scram<'a> {
    sha: &'static Sha,
    password: &'a str,
    nonce: String,
    first_bare: String,
}

impl<'a> Scram<'a> {
    fn new(sha: &'static Sha, credentials: &'a SaslSettings, nonce: &str) -> Self {
        let name = credentials.username.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={name},r={nonce}");
        Self { sha, password: &credentials.password, nonce: nonce.to_owned(), first_bare }
    }

    fn client_first_message(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// Returns the client's final message and the signature that the server's final message must have.
    fn client_final_message(&self, first: &[u8]) -> Result<(String, Vec<u8>), &'static str> {
        let first = std::str::from_utf8(first).map_err(|_| "the message is not UTF-8")?;
        let nonce = attribute(first, 'r').filter(|nonce| nonce.starts_with(&self.nonce));
        let nonce = nonce.ok_or("its nonce does not begin with the client's nonce")?;
        let salt = attribute(first, 's').and_then(|salt| BASE64_STANDARD.decode(salt).ok());
        let salt = salt.ok_or("the salt is missing or invalid")?;
        let iterations = attribute(first, 'i').and_then(|count| count.parse().ok());
        let iterations = iterations
            .filter(|count| ALLOWED_ITERATIONS.contains(count))
            .and_then(std::num::NonZeroU32::new)
            .ok_or("the number of iterations is missing or out of bounds")?;

        let mut salted = vec![0; self.sha.digest.output_len()];
        pbkdf2::derive(self.sha.pbkdf2, iterations, &salt, self.password.as_bytes(), &mut salted);
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{first},{without_proof}", self.first_bare);
        let client_key = self.mac(&salted, b"Client Key");
        let stored_key = digest::digest(self.sha.digest, &client_key);
        let signature = self.mac(stored_key.as_ref(), message.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let server_key = self.mac(&salted, b"Server Key");
        let expected = self.mac(&server_key, message.as_bytes());
        Ok((format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)), expected))
    }

    fn mac(&self, key: &[u8], message: &[u8]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(self.sha.hmac, key), message).as_ref().to_vec()
    }
}

/// Checks the signature in the server's final message.
fn verify_server_signature(last: &[u8], expected: &[u8]) -> Result<(), &'static str> {
    let last = std::str::from_utf8(last).map_err(|_| "the message is not UTF-8")?;
    let signature = attribute(last, 'v').and_then(|v| BASE64_STANDARD.decode(v).ok());
    match signature {
        Some(signature) if signature == expected => Ok(()),
        _ => Err("the broker did not prove that it knows the password"),
    }
}

fn attribute(message: &str, name: char) -> Option<&str> {
    message.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(username: &str) -> SaslSettings {
        let mechanism = SaslMechanism::ScramSha256;
        SaslSettings { mechanism, username: username.into(), password: "pencil".into() }
    }

    /// The example of RFC 7677, section 3.
    #[test]
    fn the_example_of_the_rfc_is_reproduced() {
        let credentials = credentials("user");
        let scram = Scram::new(&SHA_256, &credentials, "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(scram.client_first_message(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (last, expected) = scram.client_final_message(first.as_bytes()).unwrap();
        assert_eq!(
            last,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        verify_server_signature(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", &expected)
            .unwrap();
        assert!(
            verify_server_signature(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=", &expected)
                .is_err()
        );
        assert!(verify_server_signature(b"e=invalid-proof", &expected).is_err());
    }

    #[test]
    fn a_name_with_a_comma_is_escaped_and_an_invalid_server_message_rejected() {
        let credentials = credentials("a=b,c");
        let scram = Scram::new(&SHA_512, &credentials, "abc");
        assert_eq!(scram.client_first_message(), "n,,n=a=3Db=2Cc,r=abc");
        for bad in ["", "r=xyz,s=AAAA,i=4096", "r=abcd,s=AAAA,i=1", "r=abcd,s=?,i=4096"] {
            assert!(scram.client_final_message(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(scram.client_final_message(b"r=abcd,s=AAAA,i=4096").is_ok());
    }
}
