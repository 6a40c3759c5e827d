//! One connection to one broker: requests out, responses in, in the same order.
//!
//! Promises: a connection is ready for use (TLS and SASL done, versions agreed) or there is none;
//! waiting for an answer ends when it is late or when nobody wants it any more; a response is
//! one buffer, read from the socket once and shared by all that is in it.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, ApiKey, ApiVersionsRequest,
    ApiVersionsResponse, DescribeProducersRequest, DescribeProducersResponse,
    DescribeTransactionsRequest, DescribeTransactionsResponse, EndTxnRequest, EndTxnResponse,
    FetchRequest, FetchResponse, FindCoordinatorRequest, FindCoordinatorResponse,
    InitProducerIdRequest, InitProducerIdResponse, ListOffsetsRequest, ListOffsetsResponse,
    MetadataRequest, MetadataResponse, RequestHeader, ResponseHeader, SaslAuthenticateRequest,
    SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Message, StrBytes};

use crate::source::native::buffer_pool::Pool;
use crate::source::native::connection_settings::Settings;
use crate::source::native::diagnostics::{Attempt, Trouble, undecodable};
use crate::source::native::sasl;
use crate::source::native::tls;

/// How long a read waits before it looks whether it is wanted still.
const LOOK: Duration = Duration::from_millis(100);
/// No response is larger: a length beyond this is a stranger's bytes.
const MOST_RESPONSE_BYTES: usize = 1 << 30;
/// Kafka's code for "I do not know this version".
const UNSUPPORTED_VERSION: i16 = 35;

/// A request and its response.
pub(super) trait Call: Message + Encodable + HeaderVersion {
    const KEY: ApiKey;
    type Answer: Decodable + HeaderVersion;
}

macro_rules! call {
    ($($request:ident => $answer:ident, $key:ident;)*) => {
        $(impl Call for $request {
            const KEY: ApiKey = ApiKey::$key;
            type Answer = $answer;
        })*
    };
}

call! {
    AddPartitionsToTxnRequest => AddPartitionsToTxnResponse, AddPartitionsToTxn;
    ApiVersionsRequest => ApiVersionsResponse, ApiVersions;
    DescribeProducersRequest => DescribeProducersResponse, DescribeProducers;
    DescribeTransactionsRequest => DescribeTransactionsResponse, DescribeTransactions;
    EndTxnRequest => EndTxnResponse, EndTxn;
    FetchRequest => FetchResponse, Fetch;
    FindCoordinatorRequest => FindCoordinatorResponse, FindCoordinator;
    InitProducerIdRequest => InitProducerIdResponse, InitProducerId;
    ListOffsetsRequest => ListOffsetsResponse, ListOffsets;
    MetadataRequest => MetadataResponse, Metadata;
    SaslHandshakeRequest => SaslHandshakeResponse, SaslHandshake;
    SaslAuthenticateRequest => SaslAuthenticateResponse, SaslAuthenticate;
}

/// A topic's name, as requests have it.
pub(super) fn topic_name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

/// What all connections of a reader, or of one who asks, share.
pub(super) struct Dial<'a> {
    pub(super) settings: &'a Settings,
    pub(super) tls: Option<&'a Arc<rustls::ClientConfig>>,
    pub(super) pool: &'a Arc<Pool>,
    /// Whether nobody wants the connection any more.
    pub(super) stopped: &'a (dyn Fn() -> bool + Sync),
}

/// A request that was sent; its answer is to be received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    id: i32,
    version: i16,
    deadline: Instant,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

/// A connection.
pub(super) struct Connection<'a> {
    stream: Stream,
    dial: &'a Dial<'a>,
    versions: HashMap<i16, (i16, i16)>,
    next_id: i32,
    /// When the brokers want the client to prove again who it is.
    expires: Option<Instant>,
}

impl<'a> Connection<'a> {
    /// Connects to a broker, up to the point where it takes requests.
    ///
    /// # Errors
    /// No such host, nobody there, TLS or SASL refused, or a broker that is too old.
    pub(super) fn open(dial: &'a Dial<'a>, host: &str, port: u16) -> Attempt<Self> {
        let socket = connect(dial.settings, host, port)?;
        let stream = match dial.tls {
            None => Stream::Plain(socket),
            Some(config) => {
                let deadline = Instant::now() + dial.settings.request_timeout;
                let stream = tls::handshake(config, socket, host, deadline, dial.stopped)?;
                Stream::Tls(Box::new(stream))
            }
        };
        let mut connection =
            Self { stream, dial, versions: HashMap::new(), next_id: 0, expires: None };
        connection.agree()?;
        if let Some(who) = &dial.settings.sasl {
            let lifetime = sasl::authenticate(&mut connection, who)?;
            // A new connection some time before the broker closes this one.
            connection.expires = lifetime.map(|lifetime| Instant::now() + lifetime.mul_f64(0.8));
        }
        Ok(connection)
    }

    /// Whether a fresh connection is due.
    pub(super) fn is_stale(&self) -> bool {
        self.expires.is_some_and(|expires| Instant::now() >= expires)
    }

    /// The newest version of a request that both sides know, up to `most`.
    pub(super) fn version<R: Call>(&self, most: i16) -> Option<i16> {
        let (least, newest) = self.versions.get(&(R::KEY as i16))?;
        let version = (*newest).min(R::VERSIONS.max).min(most);
        (version >= *least && version >= R::VERSIONS.min).then_some(version)
    }

    /// As [`Connection::version`].
    ///
    /// # Errors
    /// There is none.
    pub(super) fn agreed<R: Call>(&self, most: i16) -> Attempt<i16> {
        let version = self.version::<R>(most);
        version.ok_or_else(|| Trouble::Beyond("the brokers are too old for it".to_owned()))
    }

    /// Asks which versions of which requests the broker knows.
    fn agree(&mut self) -> Attempt<()> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("millstream"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let mut answer = self.ask(&request, 3, Duration::ZERO);
        // An older broker answers in the oldest form, of which the code is the beginning.
        if !matches!(&answer, Ok(answer) if answer.error_code == 0) {
            answer = self.ask(&ApiVersionsRequest::default(), 0, Duration::ZERO);
        }
        let answer = answer?;
        if answer.error_code != 0 {
            let code = answer.error_code;
            return Err(Trouble::Beyond(match code {
                UNSUPPORTED_VERSION => "the brokers are too old for it".to_owned(),
                _ => format!("the brokers do not tell what they know (code {code})"),
            }));
        }
        let known = answer.api_keys.iter();
        self.versions =
            known.map(|api| (api.api_key, (api.min_version, api.max_version))).collect();
        Ok(())
    }

    /// Sends a request and waits for its answer. `longer`: how long the broker may take on top
    /// of the usual time.
    pub(super) fn ask<R: Call>(
        &mut self,
        request: &R,
        version: i16,
        longer: Duration,
    ) -> Attempt<R::Answer> {
        let sent = self.send(request, version, longer)?;
        self.receive::<R>(sent)
    }

    /// Sends a request; answers come in the order of requests.
    pub(super) fn send<R: Call>(
        &mut self,
        request: &R,
        version: i16,
        longer: Duration,
    ) -> Attempt<Sent> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1) & i32::MAX;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY as i16)
            .with_request_api_version(version)
            .with_correlation_id(id)
            .with_client_id(Some(StrBytes::from_string(self.dial.settings.client_id.clone())));
        let mut bytes = vec![0; 4];
        header.encode(&mut bytes, R::header_version(version)).map_err(undecodable)?;
        request.encode(&mut bytes, version).map_err(undecodable)?;
        let length = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(&bytes)?,
            Stream::Tls(stream) => {
                stream.write_all(&bytes)?;
                stream.flush()?;
            }
        }
        let deadline = Instant::now() + self.dial.settings.request_timeout + longer;
        Ok(Sent { id, version, deadline })
    }

    /// Waits for the answer to the oldest request that has none yet.
    pub(super) fn receive<R: Call>(&mut self, sent: Sent) -> Attempt<R::Answer> {
        let mut body = self.read_response(sent.deadline)?;
        let header_version = R::Answer::header_version(sent.version);
        let header = ResponseHeader::decode(&mut body, header_version).map_err(undecodable)?;
        if header.correlation_id != sent.id {
            return Err(undecodable("it answers another request"));
        }
        R::Answer::decode(&mut body, sent.version).map_err(undecodable)
    }

    fn read_response(&mut self, deadline: Instant) -> Attempt<Bytes> {
        let mut length = Vec::with_capacity(4);
        self.read(&mut length, 4, deadline)?;
        let length = <[u8; 4]>::try_from(&length[..]).map_err(undecodable)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MOST_RESPONSE_BYTES {
            return Err(undecodable(format!("{length} bytes")));
        }
        let mut body = self.dial.pool.take(length);
        self.read(&mut body, length, deadline)?;
        Ok(self.dial.pool.share(body))
    }

    /// Reads until `buffer` holds `wanted` bytes.
    fn read(&mut self, buffer: &mut Vec<u8>, wanted: usize, deadline: Instant) -> Attempt<()> {
        while buffer.len() < wanted {
            let rest = (wanted - buffer.len()) as u64;
            // Reads into the buffer's room, which is never cleared first.
            let outcome = match &mut self.stream {
                Stream::Plain(stream) => stream.take(rest).read_to_end(buffer),
                Stream::Tls(stream) => stream.take(rest).read_to_end(buffer),
            };
            match outcome {
                Ok(_) if buffer.len() < wanted => {
                    return Err(Trouble::Lost("the broker closed the connection".to_owned()));
                }
                Ok(_) => {}
                Err(error) if is_wait(&error) => {
                    if (self.dial.stopped)() {
                        return Err(Trouble::Stopped);
                    }
                    if Instant::now() >= deadline {
                        return Err(Trouble::Lost("no answer in time".to_owned()));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Whether a read only ran into the time after which we look around.
pub(super) fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn connect(settings: &Settings, host: &str, port: u16) -> Attempt<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, settings.connect_timeout.max(LOOK)) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                if settings.keepalive {
                    socket2::SockRef::from(&stream).set_keepalive(true)?;
                }
                stream.set_read_timeout(Some(LOOK))?;
                stream.set_write_timeout(Some(settings.request_timeout.max(LOOK)))?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed.into())
}
