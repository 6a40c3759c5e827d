//! librdkafka's batch queue: the only unsafe code of Millstream.
//!
//! `rd_kafka_consume_batch_queue` hands over thousands of messages in one call, which rdkafka's
//! safe interface does not offer. Messages are lent to a closure and given back at once, so no
//! pointer leaves this file.
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

use crate::source::client::{Context, kafka_error};
use crate::types::TopicPartition;
use crate::{Error, Kind, Result};

/// A reference to one of a client's queues.
struct Queue(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues are thread-safe by its documentation; the handle has no other state.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the reference was given to us and is given back once.
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) }
    }
}

/// A consumer with manual assignment that is polled in batches. Its methods may be called from
/// any thread; polling is one thread's work.
pub(super) struct BatchConsumer {
    // Fields drop in this order: queues hold references to the client.
    messages: Queue,
    events: Queue,
    client: Client<Context>,
}

/// The array that a poll fills.
pub(super) struct Buffer(Vec<*mut sys::rd_kafka_message_t>);

// SAFETY: between polls the array holds no pointer that anybody reads.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Room for `capacity` messages a poll.
    pub(super) fn new(capacity: usize) -> Self {
        Self(vec![ptr::null_mut(); capacity.max(2)])
    }

    /// The most messages of a poll.
    pub(super) fn capacity(&self) -> usize {
        self.0.len()
    }
}

impl BatchConsumer {
    /// Connects in the background. `config` must name a `group.id`: librdkafka assigns by group.
    pub(super) fn new(config: &ClientConfig, context: Context) -> Result<Self> {
        let failed = |error| kafka_error("cannot make a Kafka consumer", error);
        let native = config.create_native_config().map_err(failed)?;
        let client =
            Client::new(config, native, RDKafkaType::RD_KAFKA_CONSUMER, context).map_err(failed)?;
        // SAFETY: the client is alive; both calls give us a reference of our own, or null.
        let (messages, events) = unsafe {
            (
                sys::rd_kafka_queue_get_consumer(client.native_ptr()),
                sys::rd_kafka_queue_get_main(client.native_ptr()),
            )
        };
        match (NonNull::new(messages), NonNull::new(events)) {
            (Some(messages), Some(events)) => {
                Ok(Self { messages: Queue(messages), events: Queue(events), client })
            }
            _ => Err(Error::internal("a Kafka consumer without a queue: is group.id set?")),
        }
    }

    /// The safe rest of the client.
    pub(super) fn client(&self) -> &Client<Context> {
        &self.client
    }

    /// Adds partitions, each from an offset.
    pub(super) fn assign(&self, add: &[(TopicPartition, i64)]) -> Result<()> {
        let mut list = TopicPartitionList::with_capacity(add.len());
        for (tp, offset) in add {
            list.add_partition_offset(&tp.topic, tp.partition, Offset::Offset(*offset)).map_err(
                |error| kafka_error(format!("cannot read {tp} from offset {offset}"), error),
            )?;
        }
        // SAFETY: client and list are alive during the call, which copies the list.
        outcome(unsafe { sys::rd_kafka_incremental_assign(self.client.native_ptr(), list.ptr()) })
    }

    /// Takes partitions away; what librdkafka holds of them is dropped.
    pub(super) fn unassign(&self, remove: &[TopicPartition]) -> Result<()> {
        let mut list = TopicPartitionList::with_capacity(remove.len());
        for tp in remove {
            list.add_partition(&tp.topic, tp.partition);
        }
        // SAFETY: client and list are alive during the call, which copies the list.
        outcome(unsafe { sys::rd_kafka_incremental_unassign(self.client.native_ptr(), list.ptr()) })
    }

    /// Waits up to `wait` for a first message, then lends every message at hand, up to the
    /// buffer's capacity, to `each`. Returns how many there were.
    pub(super) fn poll(
        &self,
        buffer: &mut Buffer,
        wait: Duration,
        mut each: impl FnMut(&Message<'_>),
    ) -> usize {
        let wait_ms = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        // The call waits for a *full* array: so for one message first, then for no time at all.
        let mut count = self.take(&mut buffer.0[..1], wait_ms);
        if count == 1 {
            count += self.take(&mut buffer.0[1..], 0);
        }
        for &message in &buffer.0[..count] {
            // SAFETY: librdkafka gave us `count` valid messages; each lives until it is destroyed
            // below, and the closure cannot keep the loan.
            unsafe {
                each(&Message { raw: message, loan: PhantomData });
                sys::rd_kafka_message_destroy(message);
            }
        }
        count
    }

    fn take(&self, into: &mut [*mut sys::rd_kafka_message_t], wait_ms: c_int) -> usize {
        // SAFETY: the array has room for `into.len()` pointers; the queue is alive.
        let count = unsafe {
            sys::rd_kafka_consume_batch_queue(
                self.messages.0.as_ptr(),
                wait_ms,
                into.as_mut_ptr(),
                into.len(),
            )
        };
        usize::try_from(count).unwrap_or(0)
    }

    /// Passes on librdkafka's log lines and errors.
    ///
    /// # Errors
    /// A fatal one: the client is of no more use.
    pub(super) fn serve(&self) -> Result<()> {
        loop {
            // SAFETY: the queue is alive; a non-null event is ours until it is destroyed below.
            let event = unsafe { sys::rd_kafka_queue_poll(self.events.0.as_ptr(), 0) };
            if event.is_null() {
                return Ok(());
            }
            // SAFETY: the event is valid until the destroy call, and not used after it.
            let outcome = unsafe {
                let outcome = self.event(event);
                sys::rd_kafka_event_destroy(event);
                outcome
            };
            outcome?;
        }
    }

    /// # Safety
    /// `event` must be valid.
    unsafe fn event(&self, event: *mut sys::rd_kafka_event_t) -> Result<()> {
        // SAFETY: the caller vouches for the event; its strings live as long as it does.
        unsafe {
            match sys::rd_kafka_event_type(event) {
                sys::RD_KAFKA_EVENT_LOG => {
                    let (mut facility, mut text, mut level): (*const c_char, *const c_char, c_int) =
                        (ptr::null(), ptr::null(), 7);
                    if sys::rd_kafka_event_log(event, &mut facility, &mut text, &mut level) == 0 {
                        self.client.context().log(
                            log_level(level),
                            &text_of(facility),
                            &text_of(text),
                        );
                    }
                }
                sys::RD_KAFKA_EVENT_ERROR => {
                    let code = RDKafkaErrorCode::from(sys::rd_kafka_event_error(event));
                    let text = text_of(sys::rd_kafka_event_error_string(event));
                    if sys::rd_kafka_event_error_is_fatal(event) != 0 {
                        return Err(Error::new(Kind::Kafka, "the Kafka consumer failed for good")
                            .detail(text));
                    }
                    self.client.context().disturbed(code, &text);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What a call that gives back an error object says.
fn outcome(error: *mut sys::rd_kafka_error_t) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null error is ours to read and then to destroy, once.
    let text = unsafe {
        let text = text_of(sys::rd_kafka_error_string(error));
        sys::rd_kafka_error_destroy(error);
        text
    };
    Err(Error::new(Kind::Kafka, "Kafka partitions could not be assigned").detail(text))
}

/// The id that Kafka gave a topic when it was made; `None`: a broker without ids.
pub(super) fn topic_id(
    client: &Client<Context>,
    topic: &str,
    wait: Duration,
) -> std::result::Result<Option<String>, RDKafkaErrorCode> {
    let name = CString::new(topic).map_err(|_| RDKafkaErrorCode::InvalidArgument)?;
    let mut names = [name.as_ptr()];
    let wait_ms = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: the client is alive. Queue, options and collection are made here, and each is
    // given back once; the request copies what it needs of them. The names outlive the call.
    let (queue, event) = unsafe {
        let raw = NonNull::new(sys::rd_kafka_queue_new(client.native_ptr()));
        let queue = Queue(raw.ok_or(RDKafkaErrorCode::Fail)?);
        let what = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = sys::rd_kafka_AdminOptions_new(client.native_ptr(), what);
        sys::rd_kafka_AdminOptions_set_request_timeout(options, wait_ms, ptr::null_mut(), 0);
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        sys::rd_kafka_DescribeTopics(client.native_ptr(), topics, options, queue.0.as_ptr());
        sys::rd_kafka_TopicCollection_destroy(topics);
        sys::rd_kafka_AdminOptions_destroy(options);
        let event = sys::rd_kafka_queue_poll(queue.0.as_ptr(), wait_ms.saturating_add(1000));
        (queue, event)
    };
    if event.is_null() {
        return Err(RDKafkaErrorCode::OperationTimedOut);
    }
    // SAFETY: the event is valid until it is destroyed, and the id's text is copied before.
    let id = unsafe {
        let id = described_id(event);
        sys::rd_kafka_event_destroy(event);
        id
    };
    drop(queue);
    id
}

/// # Safety
/// `event` must be valid.
unsafe fn described_id(
    event: *mut sys::rd_kafka_event_t,
) -> std::result::Result<Option<String>, RDKafkaErrorCode> {
    /// The id of no topic, in librdkafka's base64.
    const NONE: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    // SAFETY: the caller vouches for the event; results, descriptions and ids belong to it, and
    // the array has `count` descriptions.
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
            if id.is_null() { String::new() } else { text_of(sys::rd_kafka_Uuid_base64str(id)) };
        Ok((!text.is_empty() && text != NONE).then_some(text))
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

/// # Safety
/// `text` must be null or a C string that is valid during the call.
unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and valid as the caller says.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

/// A message on loan: a record, the end of a partition, or an error.
pub(super) struct Message<'a> {
    raw: *const sys::rd_kafka_message_t,
    loan: PhantomData<&'a sys::rd_kafka_message_t>,
}

impl Message<'_> {
    fn raw(&self) -> &sys::rd_kafka_message_t {
        // SAFETY: a Message exists only while its pointer is valid (see `poll`).
        unsafe { &*self.raw }
    }

    /// The error in place of a record; `PartitionEOF` for an end.
    pub(super) fn error(&self) -> Option<RDKafkaErrorCode> {
        let code = self.raw().err;
        (code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| code.into())
    }

    /// The error in librdkafka's words.
    pub(super) fn error_text(&self) -> String {
        // SAFETY: the message is valid, and so is the string while it is.
        unsafe { text_of(sys::rd_kafka_message_errstr(self.raw)) }
    }

    /// A number that stands for the topic while one of its partitions is assigned; 0: no topic.
    pub(super) fn topic_handle(&self) -> usize {
        self.raw().rkt.addr()
    }

    /// The topic's name.
    pub(super) fn topic(&self) -> String {
        let topic = self.raw().rkt;
        if topic.is_null() {
            return String::new();
        }
        // SAFETY: a non-null topic is valid while its message is.
        unsafe { text_of(sys::rd_kafka_topic_name(topic)) }
    }

    pub(super) fn partition(&self) -> i32 {
        self.raw().partition
    }

    pub(super) fn offset(&self) -> i64 {
        self.raw().offset
    }

    pub(super) fn key(&self) -> Option<&[u8]> {
        // SAFETY: librdkafka's pointer and length of the key belong together.
        unsafe { slice_of(self.raw().key, self.raw().key_len) }
    }

    pub(super) fn value(&self) -> Option<&[u8]> {
        // SAFETY: librdkafka's pointer and length of the payload belong together.
        unsafe { slice_of(self.raw().payload, self.raw().len) }
    }

    /// Milliseconds since the epoch (-1: none), and whether the broker set them.
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

    /// Lends every header's name and value, in order.
    pub(super) fn headers(&self, mut each: impl FnMut(&[u8], Option<&[u8]>)) {
        const OK: sys::rd_kafka_resp_err_t = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        let mut headers = ptr::null_mut();
        // SAFETY: the message is valid and keeps its headers; `headers` is valid when the call says so.
        if unsafe { sys::rd_kafka_message_headers(self.raw, &mut headers) } != OK {
            return;
        }
        for index in 0.. {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: an index beyond the end is answered with an error; otherwise name is a C
            // string, and value null or `size` bytes, both valid while the message is.
            unsafe {
                if sys::rd_kafka_header_get_all(headers, index, &mut name, &mut value, &mut size)
                    != OK
                {
                    return;
                }
                each(CStr::from_ptr(name).to_bytes(), slice_of(value.cast_mut(), size));
            }
        }
    }
}

/// # Safety
/// `start` must be null, or the start of `length` bytes that live as long as the result.
unsafe fn slice_of<'a>(start: *const c_void, length: usize) -> Option<&'a [u8]> {
    if start.is_null() {
        return None;
    }
    // SAFETY: not null, and valid as the caller says.
    Some(unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) })
}
