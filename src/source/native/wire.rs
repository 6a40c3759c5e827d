//! One connection to one broker: requests are sent and responses received in the same order.
//!
//! Promises: waiting for a response ends at its deadline or when the caller requests a stop; a
//! response is one buffer, read from the socket once and shared by everything decoded from it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
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

use crate::source::native::buffer_pool::BufferPool;
use crate::source::native::connection_settings::ConnectionSettings;
use crate::source::native::diagnostics::{
    ClientError, ClientResult, is_timeout, too_old, undecodable,
};

/// How long a read waits before it checks whether the caller requested a stop.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The largest response. A greater length means that the peer is not a Kafka broker.
const MAX_RESPONSE_BYTES: usize = 1 << 30;
/// Kafka's error code UNSUPPORTED_VERSION.
const UNSUPPORTED_VERSION: i16 = 35;

/// A request type with its response type.
pub(super) trait ApiRequest: Message + Encodable + HeaderVersion {
    const KEY: ApiKey;
    type Response: Decodable + HeaderVersion;
}

macro_rules! api_requests {
    ($($request:ident => $response:ident, $key:ident;)*) => {
        $(impl ApiRequest for $request {
            const KEY: ApiKey = ApiKey::$key;
            type Response = $response;
        })*
    };
}

api_requests! {
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

/// The name of a topic in the type of the requests.
pub(super) fn topic_name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

/// What all connections of a client share.
pub(super) struct ConnectionContext<'a> {
    pub(super) settings: &'a ConnectionSettings,
    pub(super) tls: Option<&'a Arc<rustls::ClientConfig>>,
    pub(super) pool: &'a Arc<BufferPool>,
    /// Whether the caller requested a stop.
    pub(super) is_stopped: &'a (dyn Fn() -> bool + Sync),
}

/// A request that was sent and whose response is to be received.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingResponse {
    correlation_id: i32,
    version: i16,
    deadline: Instant,
}

/// The byte stream of a connection.
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

/// A connection to one broker.
pub(super) struct Connection<'a> {
    transport: Transport,
    context: &'a ConnectionContext<'a>,
    /// The versions that the broker supports, by API key: the lowest and the highest.
    versions: HashMap<i16, (i16, i16)>,
    next_correlation_id: i32,
    /// When the SASL session has to be renewed by a new connection.
    expires: Option<Instant>,
}

impl<'a> Connection<'a> {
    /// Wraps a transport. The versions of requests are not negotiated yet.
    pub(super) fn new(transport: Transport, context: &'a ConnectionContext<'a>) -> Self {
        Self { transport, context, versions: HashMap::new(), next_correlation_id: 0, expires: None }
    }

    /// Sets the instant from which [`Connection::is_stale`] returns `true`.
    pub(super) fn expire_at(&mut self, instant: Instant) {
        self.expires = Some(instant);
    }

    /// Whether the connection has to be replaced.
    pub(super) fn is_stale(&self) -> bool {
        self.expires.is_some_and(|expires| Instant::now() >= expires)
    }

    /// The highest version of a request that both sides support, up to `max`.
    pub(super) fn supported_version<R: ApiRequest>(&self, max: i16) -> Option<i16> {
        let (lowest, highest) = self.versions.get(&(R::KEY as i16))?;
        let version = (*highest).min(R::VERSIONS.max).min(max);
        (version >= *lowest && version >= R::VERSIONS.min).then_some(version)
    }

    /// As [`Connection::supported_version`].
    ///
    /// # Errors
    /// There is no such version.
    pub(super) fn require_version<R: ApiRequest>(&self, max: i16) -> ClientResult<i16> {
        let version = self.supported_version::<R>(max);
        version.ok_or_else(|| too_old(&format!("a compatible version of {:?}", R::KEY)))
    }

    /// Requests the versions that the broker supports.
    pub(super) fn negotiate_versions(&mut self) -> ClientResult<()> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("millstream"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let mut response = self.call(&request, 3, Duration::ZERO);
        // An older broker responds in version 0, which begins with the error code.
        if !matches!(&response, Ok(response) if response.error_code == 0) {
            response = self.call(&ApiVersionsRequest::default(), 0, Duration::ZERO);
        }
        let response = response?;
        match response.error_code {
            0 => {}
            UNSUPPORTED_VERSION => return Err(too_old("ApiVersions version 0")),
            code => {
                let reason = format!("the brokers rejected ApiVersions (error code {code})");
                return Err(ClientError::Unsupported(reason));
            }
        }
        let supported = response.api_keys.iter();
        self.versions =
            supported.map(|api| (api.api_key, (api.min_version, api.max_version))).collect();
        Ok(())
    }

    /// Sends a request and waits for its response. `extra_wait`: how long the broker may delay the
    /// response in addition to the request timeout.
    pub(super) fn call<R: ApiRequest>(
        &mut self,
        request: &R,
        version: i16,
        extra_wait: Duration,
    ) -> ClientResult<R::Response> {
        let pending = self.send(request, version, extra_wait)?;
        self.receive::<R>(pending)
    }

    /// Sends a request. Responses arrive in the order of the requests.
    pub(super) fn send<R: ApiRequest>(
        &mut self,
        request: &R,
        version: i16,
        extra_wait: Duration,
    ) -> ClientResult<PendingResponse> {
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id = self.next_correlation_id.wrapping_add(1) & i32::MAX;
        let client_id = StrBytes::from_string(self.context.settings.client_id.clone());
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY as i16)
            .with_request_api_version(version)
            .with_correlation_id(correlation_id)
            .with_client_id(Some(client_id));
        let mut bytes = vec![0; 4];
        header.encode(&mut bytes, R::header_version(version)).map_err(undecodable)?;
        request.encode(&mut bytes, version).map_err(undecodable)?;
        let length = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        match &mut self.transport {
            Transport::Plain(stream) => stream.write_all(&bytes)?,
            Transport::Tls(stream) => {
                stream.write_all(&bytes)?;
                stream.flush()?;
            }
        }
        let deadline = Instant::now() + self.context.settings.request_timeout + extra_wait;
        Ok(PendingResponse { correlation_id, version, deadline })
    }

    /// Waits for the response to the oldest request that has none yet.
    pub(super) fn receive<R: ApiRequest>(
        &mut self,
        pending: PendingResponse,
    ) -> ClientResult<R::Response> {
        let mut body = self.read_response(pending.deadline)?;
        let header_version = R::Response::header_version(pending.version);
        let header = ResponseHeader::decode(&mut body, header_version).map_err(undecodable)?;
        if header.correlation_id != pending.correlation_id {
            return Err(undecodable("it belongs to another request"));
        }
        R::Response::decode(&mut body, pending.version).map_err(undecodable)
    }

    fn read_response(&mut self, deadline: Instant) -> ClientResult<Bytes> {
        let mut length = Vec::with_capacity(4);
        self.read(&mut length, 4, deadline)?;
        let length = <[u8; 4]>::try_from(&length[..]).map_err(undecodable)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_RESPONSE_BYTES {
            return Err(undecodable(format!("its length of {length} bytes is above the limit")));
        }
        let mut body = self.context.pool.acquire(length);
        self.read(&mut body, length, deadline)?;
        Ok(self.context.pool.share(body))
    }

    /// Reads until `buffer` holds `wanted` bytes.
    fn read(&mut self, buffer: &mut Vec<u8>, wanted: usize, deadline: Instant) -> ClientResult<()> {
        while buffer.len() < wanted {
            let missing = (wanted - buffer.len()) as u64;
            // Reads into the spare capacity of the buffer, which is not zeroed first.
            let outcome = match &mut self.transport {
                Transport::Plain(stream) => stream.take(missing).read_to_end(buffer),
                Transport::Tls(stream) => stream.take(missing).read_to_end(buffer),
            };
            match outcome {
                Ok(_) if buffer.len() < wanted => {
                    return Err(ClientError::Retriable("the broker closed the connection".into()));
                }
                Ok(_) => {}
                Err(error) if is_timeout(&error) => {
                    if (self.context.is_stopped)() {
                        return Err(ClientError::Stopped);
                    }
                    if Instant::now() >= deadline {
                        return Err(ClientError::Retriable("the broker did not respond within the request timeout (socket.timeout.ms)".into()));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
