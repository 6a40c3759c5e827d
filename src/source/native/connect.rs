//! Opening a connection: TCP, TLS, version negotiation, SASL.
//!
//! Promise: the result is a connection that is ready for requests, or an error.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Instant;

use crate::source::native::connection_settings::ConnectionSettings;
use crate::source::native::diagnostics::ClientResult;
use crate::source::native::sasl;
use crate::source::native::tls;
use crate::source::native::wire::{Connection, ConnectionContext, POLL_INTERVAL, Transport};

/// The share of a SASL session's lifetime after which a connection is replaced, so that the
/// client replaces it before the broker closes it.
const SESSION_SHARE: f64 = 0.8;

/// Connects to a broker, up to the point where it accepts requests.
///
/// # Errors
/// An unknown host, a refused connection, a failed TLS handshake, rejected credentials, or a
/// broker that is too old.
pub(super) fn open<'a>(
    context: &'a ConnectionContext<'a>,
    host: &str,
    port: u16,
) -> ClientResult<Connection<'a>> {
    let socket = connect_socket(context.settings, host, port)?;
    let transport = match context.tls {
        None => Transport::Plain(socket),
        Some(config) => {
            let deadline = Instant::now() + context.settings.request_timeout;
            let stream = tls::handshake(config, socket, host, deadline, context.is_stopped)?;
            Transport::Tls(Box::new(stream))
        }
    };
    let mut connection = Connection::new(transport, context);
    connection.negotiate_versions()?;
    if let Some(credentials) = &context.settings.sasl {
        let lifetime = sasl::authenticate(&mut connection, credentials)?;
        if let Some(lifetime) = lifetime {
            connection.expire_at(Instant::now() + lifetime.mul_f64(SESSION_SHARE));
        }
    }
    Ok(connection)
}

/// Tries the addresses of a host one after the other.
fn connect_socket(settings: &ConnectionSettings, host: &str, port: u16) -> ClientResult<TcpStream> {
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, settings.connect_timeout.max(POLL_INTERVAL)) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                if settings.keepalive {
                    socket2::SockRef::from(&stream).set_keepalive(true)?;
                }
                stream.set_read_timeout(Some(POLL_INTERVAL))?;
                stream.set_write_timeout(Some(settings.request_timeout.max(POLL_INTERVAL)))?;
                return Ok(stream);
            }
            Err(error) => last_error = error,
        }
    }
    Err(last_error.into())
}
