//! Unsafe bindings to librdkafka that rdkafka's safe API lacks: its batch queue and topic ids.
//!
//! `rd_kafka_consume_batch_queue` returns thousands of messages in one call. Messages are lent to a
//! closure and destroyed right after it, so no pointer leaves this file. All calls of librdkafka's C
//! API are in this file. The crate contains two more unsafe expressions: `decode::column` skips a
//! second UTF-8 validation, and `failpoint` sends SIGKILL to its own process.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaType;
use rdkafka::{Offset, TopicPartitionList};

use crate::source::client::{KafkaClientContext, kafka_error};
use crate::types::TopicPartition;
use crate::{Error, Kind, Result};

/// A reference to one of a client's queues.
struct QueueHandle(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka documents its queues as thread-safe; the handle has no other state.
unsafe impl Send for QueueHandle {}
// SAFETY: as above.
unsafe impl Sync for QueueHandle {}

impl Drop for QueueHandle {
    fn drop(&mut self) {
        // SAFETY: this handle owns the reference, which is released once.
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) }
    }
}

/// A consumer with manual assignment that is polled in batches. Its methods may be called from any
/// thread; only one thread polls.
pub(super) struct BatchConsumer {
    // Fields drop in this order: the queues refer to the client.
    messages: QueueHandle,
    events: QueueHandle,
    client: Client<KafkaClientContext>,
}

/// The array that a poll fills with messages.
pub(super) struct MessageBuffer(Vec<*mut sys::rd_kafka_message_t>);

// SAFETY: between polls, no pointer in the array is read.
unsafe impl Send for MessageBuffer {}

impl MessageBuffer {
    /// Allocates room for `capacity` messages per poll.
    pub(super) fn new(capacity: usize) -> Self {
        Self(vec![ptr::null_mut(); capacity.max(2)])
    }

    /// The maximum number of messages per poll.
    pub(super) fn capacity(&self) -> usize {
        self.0.len()
    }
}

impl BatchConsumer {
    /// Creates a consumer, which connects in the background. `config` must contain a `group.id`,
    /// because librdkafka assigns partitions by group.
    pub(super) fn new(config: &ClientConfig, context: KafkaClientContext) -> Result<Self> {
        let failed = |error| kafka_error("cannot create a Kafka consumer", error);
        let native = config.create_native_config().map_err(failed)?;
        let client =
            Client::new(config, native, RDKafkaType::RD_KAFKA_CONSUMER, context).map_err(failed)?;
        // SAFETY: the client is alive; both calls return a reference that we own, or null.
        let (messages, events) = unsafe {
            (
                sys::rd_kafka_queue_get_consumer(client.native_ptr()),
                sys::rd_kafka_queue_get_main(client.native_ptr()),
            )
        };
        match (NonNull::new(messages), NonNull::new(events)) {
            (Some(messages), Some(events)) => {
                Ok(Self { messages: QueueHandle(messages), events: QueueHandle(events), client })
            }
            _ => Err(Error::internal("the Kafka consumer has no queue: is group.id set?")),
        }
    }

    /// The client, for rdkafka's safe calls.
    pub(super) fn client(&self) -> &Client<KafkaClientContext> {
        &self.client
    }

    /// Adds partitions, each with the first offset to read.
    pub(super) fn assign(&self, add: &[(TopicPartition, i64)]) -> Result<()> {
        let mut list = TopicPartitionList::with_capacity(add.len());
        for (tp, offset) in add {
            list.add_partition_offset(&tp.topic, tp.partition, Offset::Offset(*offset)).map_err(
                |error| kafka_error(format!("cannot assign {tp} at offset {offset}"), error),
            )?;
        }
        // SAFETY: client and list are alive during the call, which copies the list.
        check_error(unsafe {
            sys::rd_kafka_incremental_assign(self.client.native_ptr(), list.ptr())
        })
    }

    /// Removes partitions; librdkafka drops the messages that it has fetched of them.
    pub(super) fn unassign(&self, remove: &[TopicPartition]) -> Result<()> {
        let mut list = TopicPartitionList::with_capacity(remove.len());
        for tp in remove {
            list.add_partition(&tp.topic, tp.partition);
        }
        // SAFETY: client and list are alive during the call, which copies the list.
        check_error(unsafe {
            sys::rd_kafka_incremental_unassign(self.client.native_ptr(), list.ptr())
        })
    }

    /// Waits up to `wait` for a first message, then passes all available messages, up to the buffer's
    /// capacity, to `each`. Returns their number.
    pub(super) fn poll(
        &self,
        buffer: &mut MessageBuffer,
        wait: Duration,
        mut each: impl FnMut(&Message<'_>),
    ) -> usize {
        let wait_ms = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        // The call waits for a *full* array, so it first waits for one message, then does not wait at all.
        let mut count = self.consume_into(&mut buffer.0[..1], wait_ms);
        if count == 1 {
            count += self.consume_into(&mut buffer.0[1..], 0);
        }
        for &message in &buffer.0[..count] {
            // SAFETY: librdkafka returned `count` valid messages; each lives until it is destroyed below, and
            // the closure cannot store the borrowed message.
            unsafe {
                each(&Message { raw: message, lifetime: PhantomData });
                sys::rd_kafka_message_destroy(message);
            }
        }
        count
    }

    fn consume_into(&self, slots: &mut [*mut sys::rd_kafka_message_t], wait_ms: c_int) -> usize {
        // SAFETY: the array has room for `slots.len()` pointers; the queue is alive.
        let count = unsafe {
            sys::rd_kafka_consume_batch_queue(
                self.messages.0.as_ptr(),
                wait_ms,
                slots.as_mut_ptr(),
                slots.len(),
            )
        };
        usize::try_from(count).unwrap_or(0)
    }

    /// Forwards the log lines and errors of librdkafka.
    ///
    /// # Errors
    /// A fatal error: the client cannot be used any more.
    pub(super) fn poll_events(&self) -> Result<()> {
        loop {
            // SAFETY: the queue is alive; we own a non-null event until it is destroyed below.
            let event = unsafe { sys::rd_kafka_queue_poll(self.events.0.as_ptr(), 0) };
            if event.is_null() {
                return Ok(());
            }
            // SAFETY: the event is valid until the destroy call, and not used after it.
            let handled = unsafe {
                let handled = self.handle_event(event);
                sys::rd_kafka_event_destroy(event);
                handled
            };
            handled?;
        }
    }

    /// Handles a log line or an error.
    ///
    /// # Safety
    /// `event` must be valid.
    unsafe fn handle_event(&self, event: *mut sys::rd_kafka_event_t) -> Result<()> {
        // SAFETY: the caller guarantees that the event is valid; its strings live as long as it does.
        unsafe {
            match sys::rd_kafka_event_type(event) {
                sys::RD_KAFKA_EVENT_LOG => {
                    let (mut facility, mut text, mut level): (*const c_char, *const c_char, c_int) =
                        (ptr::null(), ptr::null(), 7);
                    if sys::rd_kafka_event_log(event, &mut facility, &mut text, &mut level) == 0 {
                        self.client.context().log(
                            log_level(level),
                            &copy_text(facility),
                            &copy_text(text),
                        );
                    }
                }
                sys::RD_KAFKA_EVENT_ERROR => {
                    let code = RDKafkaErrorCode::from(sys::rd_kafka_event_error(event));
                    let text = copy_text(sys::rd_kafka_event_error_string(event));
                    if sys::rd_kafka_event_error_is_fatal(event) != 0 {
                        return Err(Error::new(
                            Kind::Kafka,
                            "the Kafka consumer failed permanently",
                        )
                        .detail(text));
                    }
                    self.client.context().record_transport_error(code, &text);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Converts the error object that a call returned; null is success.
fn check_error(error: *mut sys::rd_kafka_error_t) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: we own a non-null error, and destroy it once after reading it.
    let text = unsafe {
        let text = copy_text(sys::rd_kafka_error_string(error));
        sys::rd_kafka_error_destroy(error);
        text
    };
    Err(Error::new(Kind::Kafka, "cannot assign Kafka partitions").detail(text))
}

/// Requests the id that Kafka assigned when the topic was created; `None`: the brokers have no
/// topic ids.
pub(super) fn topic_id(
    client: &Client<KafkaClientContext>,
    topic: &str,
    timeout: Duration,
) -> std::result::Result<Option<String>, RDKafkaErrorCode> {
    let name = CString::new(topic).map_err(|_| RDKafkaErrorCode::InvalidArgument)?;
    let mut names = [name.as_ptr()];
    let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: the client is alive. Queue, options and collection are created here and released once;
    // the request copies what it needs of them. The names outlive the call.
    let (queue, event) = unsafe {
        let raw = NonNull::new(sys::rd_kafka_queue_new(client.native_ptr()));
        let queue = QueueHandle(raw.ok_or(RDKafkaErrorCode::Fail)?);
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = sys::rd_kafka_AdminOptions_new(client.native_ptr(), operation);
        sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, ptr::null_mut(), 0);
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        sys::rd_kafka_DescribeTopics(client.native_ptr(), topics, options, queue.0.as_ptr());
        sys::rd_kafka_TopicCollection_destroy(topics);
        sys::rd_kafka_AdminOptions_destroy(options);
        let event = sys::rd_kafka_queue_poll(queue.0.as_ptr(), timeout_ms.saturating_add(1000));
        (queue, event)
    };
    if event.is_null() {
        return Err(RDKafkaErrorCode::OperationTimedOut);
    }
    // SAFETY: the event is valid until it is destroyed, after the text of the id was copied.
    let id = unsafe {
        let id = described_id(event);
        sys::rd_kafka_event_destroy(event);
        id
    };
    drop(queue);
    id
}

/// Reads the topic id from the result of DescribeTopics.
///
/// # Safety
/// `event` must be valid.
unsafe fn described_id(
    event: *mut sys::rd_kafka_event_t,
) -> std::result::Result<Option<String>, RDKafkaErrorCode> {
    /// The nil topic id in librdkafka's base64.
    const NIL: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    // SAFETY: the caller guarantees that the event is valid; results, descriptions and ids belong to
    // it, and the array has `count` descriptions.
    unsafe {
        let code = RDKafkaErrorCode::from(sys::rd_kafka_event_error(event));
        if code != RDKafkaErrorCode::NoError {
            return Err(code);
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(RDKafkaErrorCode::Fail);
        }
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if count == 0 {
            return Err(RDKafkaErrorCode::UnknownTopicOrPartition);
        }
        let error = sys::rd_kafka_TopicDescription_error(*topics);
        if !error.is_null() {
            let code = RDKafkaErrorCode::from(sys::rd_kafka_error_code(error));
            if code != RDKafkaErrorCode::NoError {
                return Err(code);
            }
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(*topics);
        let text =
            if id.is_null() { String::new() } else { copy_text(sys::rd_kafka_Uuid_base64str(id)) };
        Ok((!text.is_empty() && text != NIL).then_some(text))
    }
}

fn log_level(level: c_int) -> RDKafkaLogLevel {
    match level {
        0 => RDKafkaLogLevel::Emerg,
        1 => RDKafkaLogLevel::Alert,
        2 => RDKafkaLogLevel::Critical,
        3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        _ => RDKafkaLogLevel::Debug,
    }
}

/// Copies a C string; null is an empty text.
///
/// # Safety
/// `text` must be null or a C string that is valid during the call.
unsafe fn copy_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the pointer is not null, and the caller guarantees that it is valid.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

/// A borrowed message: a record, the end of a partition, or an error.
pub(super) struct Message<'a> {
    raw: *const sys::rd_kafka_message_t,
    lifetime: PhantomData<&'a sys::rd_kafka_message_t>,
}

impl Message<'_> {
    fn raw(&self) -> &sys::rd_kafka_message_t {
        // SAFETY: a Message exists only while its pointer is valid (see `poll`).
        unsafe { &*self.raw }
    }

    /// The error instead of a record; `PartitionEOF` at the end of a partition.
    pub(super) fn error(&self) -> Option<RDKafkaErrorCode> {
        let code = self.raw().err;
        (code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| code.into())
    }

    /// librdkafka's text of the error.
    pub(super) fn error_text(&self) -> String {
        // SAFETY: the message is valid, and so is the string while it is.
        unsafe { copy_text(sys::rd_kafka_message_errstr(self.raw)) }
    }

    /// A number that identifies the topic while one of its partitions is assigned; 0: no topic.
    pub(super) fn topic_handle(&self) -> usize {
        self.raw().rkt.addr()
    }

    /// The name of the topic.
    pub(super) fn topic(&self) -> String {
        let topic = self.raw().rkt;
        if topic.is_null() {
            return String::new();
        }
        // SAFETY: a non-null topic is valid while its message is.
        unsafe { copy_text(sys::rd_kafka_topic_name(topic)) }
    }

    pub(super) fn partition(&self) -> i32 {
        self.raw().partition
    }

    pub(super) fn offset(&self) -> i64 {
        self.raw().offset
    }

    pub(super) fn key(&self) -> Option<&[u8]> {
        // SAFETY: pointer and length of the key belong together.
        unsafe { byte_slice(self.raw().key, self.raw().key_len) }
    }

    pub(super) fn value(&self) -> Option<&[u8]> {
        // SAFETY: pointer and length of the payload belong together.
        unsafe { byte_slice(self.raw().payload, self.raw().len) }
    }

    /// The timestamp in milliseconds since the Unix epoch (-1: none), and whether the broker set it.
    pub(super) fn timestamp(&self) -> (i64, bool) {
        use sys::rd_kafka_timestamp_type_t::{
            RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME, RD_KAFKA_TIMESTAMP_NOT_AVAILABLE,
        };
        let mut kind = RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid; `kind` is written before it is read.
        let time = unsafe { sys::rd_kafka_message_timestamp(self.raw, &mut kind) };
        match kind {
            RD_KAFKA_TIMESTAMP_NOT_AVAILABLE => (-1, false),
            kind => (time, kind == RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME),
        }
    }

    /// Passes the name and value of each header to `each`, in order.
    pub(super) fn headers(&self, mut each: impl FnMut(&[u8], Option<&[u8]>)) {
        const OK: sys::rd_kafka_resp_err_t = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        let mut headers = ptr::null_mut();
        // SAFETY: the message is valid and owns its headers; `headers` is set if the call succeeds.
        if unsafe { sys::rd_kafka_message_headers(self.raw, &mut headers) } != OK {
            return;
        }
        for index in 0.. {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: an index beyond the end returns an error; otherwise name is a C string, and value is
            // null or `size` bytes, both valid while the message is.
            unsafe {
                if sys::rd_kafka_header_get_all(headers, index, &mut name, &mut value, &mut size)
                    != OK
                {
                    return;
                }
                each(CStr::from_ptr(name).to_bytes(), byte_slice(value.cast_mut(), size));
            }
        }
    }
}

/// A slice of C memory; null is `None`.
///
/// # Safety
/// `start` must be null, or the start of `length` bytes that live as long as the result.
unsafe fn byte_slice<'a>(start: *const c_void, length: usize) -> Option<&'a [u8]> {
    if start.is_null() {
        return None;
    }
    // SAFETY: the pointer is not null, and the caller guarantees that it is valid.
    Some(unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) })
}
