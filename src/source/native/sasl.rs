//! SASL: PLAIN, and SCRAM with SHA-256 or SHA-512 (RFC 5802, RFC 7677).
//!
//! Promise: with SCRAM the password never leaves the process, and a broker that does not know
//! it is refused too.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::StrBytes;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

use crate::source::native::connection_settings::{Mechanism, Sasl};
use crate::source::native::diagnostics::{Attempt, Trouble};
use crate::source::native::wire::Connection;

/// RFC 5802 asks for no less; a broker that wants very many would keep the client busy.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4096..=10_000_000;

/// Proves to a broker who the client is. Returns for how long that counts; `None`: for ever.
///
/// # Errors
/// The broker refuses, or does not prove that it knows the password.
pub(super) fn authenticate(
    connection: &mut Connection<'_>,
    who: &Sasl,
) -> Attempt<Option<Duration>> {
    let name = match who.mechanism {
        Mechanism::Plain => "PLAIN",
        Mechanism::ScramSha256 => "SCRAM-SHA-256",
        Mechanism::ScramSha512 => "SCRAM-SHA-512",
    };
    let version = connection
        .version::<SaslHandshakeRequest>(1)
        .filter(|version| *version == 1)
        .ok_or_else(|| Trouble::Beyond("the brokers are too old for its SASL".to_owned()))?;
    let request = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(name));
    let answer = connection.ask(&request, version, Duration::ZERO)?;
    if answer.error_code != 0 {
        let known: Vec<_> = answer.mechanisms.iter().map(|known| known.as_str()).collect();
        let known = known.join(", ");
        return Err(Trouble::Lost(format!("the broker takes no {name}; it takes: {known}")));
    }
    let sha = match who.mechanism {
        Mechanism::Plain => {
            let token = format!("\0{}\0{}", who.username, who.password);
            return Ok(exchange(connection, token.into_bytes())?.1);
        }
        Mechanism::ScramSha256 => &SHA_256,
        Mechanism::ScramSha512 => &SHA_512,
    };
    let mut random = [0; 24];
    let filled = SystemRandom::new().fill(&mut random);
    filled.map_err(|_| Trouble::Lost("the system has no random numbers".to_owned()))?;
    let scram = Scram::new(sha, who, &BASE64_STANDARD.encode(random));
    let (first, _) = exchange(connection, scram.first_message().into_bytes())?;
    let refused =
        |why: &str| Trouble::Lost(format!("the broker's {name} exchange is wrong: {why}"));
    let (last_message, proof) = scram.last_message(&first).map_err(refused)?;
    let (last, lifetime) = exchange(connection, last_message.into_bytes())?;
    verify(&last, &proof).map_err(refused)?;
    Ok(lifetime)
}

/// Sends a token; gives the broker's and for how long the session counts.
fn exchange(connection: &mut Connection<'_>, token: Vec<u8>) -> Attempt<(Bytes, Option<Duration>)> {
    let version = connection
        .version::<SaslAuthenticateRequest>(2)
        .ok_or_else(|| Trouble::Beyond("the brokers are too old for its SASL".to_owned()))?;
    let request = SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from(token));
    let answer = connection.ask(&request, version, Duration::ZERO)?;
    if answer.error_code != 0 {
        let why = answer.error_message.map(|why| why.to_string()).unwrap_or_default();
        return Err(Trouble::Lost(format!(
            "the brokers refused the credentials: {why}; look at the sasl.* settings"
        )));
    }
    let lifetime = u64::try_from(answer.session_lifetime_ms).ok().filter(|ms| *ms > 0);
    Ok((answer.auth_bytes, lifetime.map(Duration::from_millis)))
}

/// The hash of a mechanism.
struct Sha {
    hmac: hmac::Algorithm,
    pbkdf2: pbkdf2::Algorithm,
    digest: &'static digest::Algorithm,
}

static SHA_256: Sha =
    Sha { hmac: hmac::HMAC_SHA256, pbkdf2: pbkdf2::PBKDF2_HMAC_SHA256, digest: &digest::SHA256 };
static SHA_512: Sha =
    Sha { hmac: hmac::HMAC_SHA512, pbkdf2: pbkdf2::PBKDF2_HMAC_SHA512, digest: &digest::SHA512 };

/// One SCRAM exchange, the client's side. It binds no channel ("n,,").
struct Scram<'a> {
    sha: &'static Sha,
    password: &'a str,
    nonce: String,
    first_bare: String,
}

impl<'a> Scram<'a> {
    fn new(sha: &'static Sha, who: &'a Sasl, nonce: &str) -> Self {
        let name = who.username.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={name},r={nonce}");
        Self { sha, password: &who.password, nonce: nonce.to_owned(), first_bare }
    }

    fn first_message(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// The answer to the broker's first message, and the signature that its last must hold.
    fn last_message(&self, first: &[u8]) -> Result<(String, Vec<u8>), &'static str> {
        let first = std::str::from_utf8(first).map_err(|_| "it is no text")?;
        let nonce = attribute(first, 'r').filter(|nonce| nonce.starts_with(&self.nonce));
        let nonce = nonce.ok_or("its nonce does not begin with ours")?;
        let salt = attribute(first, 's').and_then(|salt| BASE64_STANDARD.decode(salt).ok());
        let salt = salt.ok_or("it has no salt")?;
        let iterations = attribute(first, 'i').and_then(|count| count.parse().ok());
        let iterations = iterations
            .filter(|count| ITERATIONS.contains(count))
            .and_then(std::num::NonZeroU32::new)
            .ok_or("its number of iterations is out of bounds")?;

        let mut salted = vec![0; self.sha.digest.output_len()];
        pbkdf2::derive(self.sha.pbkdf2, iterations, &salt, self.password.as_bytes(), &mut salted);
        let unproven = format!("c=biws,r={nonce}");
        let message = format!("{},{first},{unproven}", self.first_bare);
        let client_key = self.mac(&salted, b"Client Key");
        let stored_key = digest::digest(self.sha.digest, &client_key);
        let signature = self.mac(stored_key.as_ref(), message.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let server_key = self.mac(&salted, b"Server Key");
        let expected = self.mac(&server_key, message.as_bytes());
        Ok((format!("{unproven},p={}", BASE64_STANDARD.encode(proof)), expected))
    }

    fn mac(&self, key: &[u8], message: &[u8]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(self.sha.hmac, key), message).as_ref().to_vec()
    }
}

/// Whether the broker's last message holds the signature.
fn verify(last: &[u8], expected: &[u8]) -> Result<(), &'static str> {
    let last = std::str::from_utf8(last).map_err(|_| "it is no text")?;
    let signature = attribute(last, 'v').and_then(|v| BASE64_STANDARD.decode(v).ok());
    match signature {
        Some(signature) if signature == expected => Ok(()),
        _ => Err("it does not know the password either"),
    }
}

fn attribute(message: &str, name: char) -> Option<&str> {
    message.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(username: &str) -> Sasl {
        let mechanism = Mechanism::ScramSha256;
        Sasl { mechanism, username: username.into(), password: "pencil".into() }
    }

    /// The example of RFC 7677, section 3.
    #[test]
    fn the_rfcs_example_comes_out() {
        let who = who("user");
        let scram = Scram::new(&SHA_256, &who, "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(scram.first_message(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (last, expected) = scram.last_message(first.as_bytes()).unwrap();
        assert_eq!(
            last,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", &expected).unwrap();
        assert!(verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=", &expected).is_err());
        assert!(verify(b"e=invalid-proof", &expected).is_err());
    }

    #[test]
    fn a_name_with_a_comma_is_quoted_and_a_strange_first_message_refused() {
        let who = who("a=b,c");
        let scram = Scram::new(&SHA_512, &who, "abc");
        assert_eq!(scram.first_message(), "n,,n=a=3Db=2Cc,r=abc");
        for bad in ["", "r=xyz,s=AAAA,i=4096", "r=abcd,s=AAAA,i=1", "r=abcd,s=?,i=4096"] {
            assert!(scram.last_message(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(scram.last_message(b"r=abcd,s=AAAA,i=4096").is_ok());
    }
}
