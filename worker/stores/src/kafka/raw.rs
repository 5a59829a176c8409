//! The few librdkafka calls that the safe API lacks. The only unsafe code of the project.
//!
//! - [`flush`]: the safe flush sleeps in slices of 100 ms while something is in flight, which makes a commit of 2 ms take 100 ms.
//! - [`add_brokers`]: the safe clients take brokers only when they are made.
//! - [`Topic`]: the safe producer looks a topic up by its name, in an allocation of its own, for every message.
//! - [`topic_id`]: the safe admin client has no DescribeTopics.
//! - [`Reader`]: the safe consumer hands over one message per call, in an allocation of its own, and reports the end of a partition
//!   without topic and offset.

#![allow(unsafe_code)]

use super::client::{Reading, milliseconds};
use super::consumer::{Item, item};
use millstream_shard::log::Outgoing;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as sys;
use std::ffi::{CStr, CString};
use std::ptr::{null, null_mut};
use std::time::Duration;

const NO_ERROR: sys::rd_kafka_resp_err_t = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;

/// Waits until the producer has nothing in flight, sending at once what lingers. Failed messages count as in flight until they are polled.
pub(super) fn flush<C: ClientContext>(client: &Client<C>, wait: Duration) -> bool {
    // SAFETY: the client lives as long as the borrow, and rd_kafka_flush may be called from any thread.
    unsafe { sys::rd_kafka_flush(client.native_ptr(), milliseconds(wait)) == NO_ERROR }
}

/// These brokers, `host:port` with commas between, are where the client may begin, unless it knows them already.
pub(super) fn add_brokers<C: ClientContext>(client: &Client<C>, servers: &str) {
    let servers = CString::new(servers).unwrap_or_default();
    // SAFETY: the client lives as long as the borrow and copies the list, and brokers may be added from any thread.
    unsafe { sys::rd_kafka_brokers_add(client.native_ptr(), servers.as_ptr()) };
}

/// A topic of one producer.
pub(super) struct Topic {
    handle: *mut sys::rd_kafka_topic_t,
}

// SAFETY: librdkafka's handles may be used from any thread.
unsafe impl Send for Topic {}

impl Topic {
    /// It must be dropped before the client.
    pub(super) fn new<C: ClientContext>(client: &Client<C>, name: &str) -> Result<Topic, RDKafkaErrorCode> {
        let name = CString::new(name).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
        // SAFETY: the client is live and copies the name.
        let handle = unsafe { sys::rd_kafka_topic_new(client.native_ptr(), name.as_ptr(), null_mut()) };
        // SAFETY: it only reads a variable of this thread.
        if handle.is_null() { Err(unsafe { sys::rd_kafka_last_error() }.into()) } else { Ok(Topic { handle }) }
    }

    /// Queues a message, copying it; `client` is the topic's own.
    pub(super) fn produce<C: ClientContext>(
        &self,
        client: &Client<C>,
        partition: i32,
        message: &Outgoing<'_>,
    ) -> Result<(), RDKafkaErrorCode> {
        type Kind = sys::rd_kafka_vtype_t;
        type Union = sys::rd_kafka_vu_s__bindgen_ty_1;
        let part = |vtype, u| sys::rd_kafka_vu_s { vtype, u };
        let memory = |bytes: &[u8]| Union {
            mem: sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr: bytes.as_ptr() as *mut _, size: bytes.len() },
        };
        let headers = native_headers(message.headers);
        let parts = [
            part(Kind::RD_KAFKA_VTYPE_RKT, Union { rkt: self.handle }),
            part(Kind::RD_KAFKA_VTYPE_PARTITION, Union { i32_: partition }),
            part(Kind::RD_KAFKA_VTYPE_MSGFLAGS, Union { i: sys::RD_KAFKA_MSG_F_COPY }),
            part(Kind::RD_KAFKA_VTYPE_VALUE, memory(message.payload)),
            part(Kind::RD_KAFKA_VTYPE_HEADERS, Union { headers }),
            part(Kind::RD_KAFKA_VTYPE_KEY, memory(message.key)),
        ];
        let count = if message.key.is_empty() { parts.len() - 1 } else { parts.len() };
        // SAFETY: the first `count` parts are set as their kinds say, and what they point to outlives the call, which copies it; the client owns the
        // headers only when it succeeds.
        unsafe {
            let error = sys::rd_kafka_produceva(client.native_ptr(), parts.as_ptr(), count);
            if error.is_null() {
                return Ok(());
            }
            let code = sys::rd_kafka_error_code(error);
            sys::rd_kafka_error_destroy(error);
            if !headers.is_null() {
                sys::rd_kafka_headers_destroy(headers);
            }
            Err(code.into())
        }
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: the handle is live and destroyed once.
        unsafe { sys::rd_kafka_topic_destroy(self.handle) };
    }
}

/// Null when there are none.
fn native_headers(headers: &[(&str, &str)]) -> *mut sys::rd_kafka_headers_t {
    if headers.is_empty() {
        return null_mut();
    }
    // SAFETY: names and values are copied.
    unsafe {
        let native = sys::rd_kafka_headers_new(headers.len());
        for (name, value) in headers {
            let (name_len, value_len) = (name.len() as isize, value.len() as isize);
            sys::rd_kafka_header_add(native, name.as_ptr().cast(), name_len, value.as_ptr().cast(), value_len);
        }
        native
    }
}

/// The id that a topic got when it was created.
pub(super) fn topic_id<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    wait: Duration,
) -> Result<String, RDKafkaErrorCode> {
    let name = CString::new(topic).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
    // SAFETY: `name` outlives the call that copies it; queue, collection and event are destroyed once, below, and what the
    // event owns is not used after that. A null event means that nothing came in time.
    unsafe {
        let client = client.native_ptr();
        let queue = sys::rd_kafka_queue_new(client);
        let mut names = [name.as_ptr()];
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1);
        sys::rd_kafka_DescribeTopics(client, topics, null(), queue);
        sys::rd_kafka_TopicCollection_destroy(topics);
        let event = sys::rd_kafka_queue_poll(queue, milliseconds(wait));
        let answer = if event.is_null() { Err(RDKafkaErrorCode::OperationTimedOut) } else { described(event) };
        if !event.is_null() {
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_queue_destroy(queue);
        answer
    }
}

/// # Safety
/// `event` must be a live event.
unsafe fn described(event: *mut sys::rd_kafka_event_t) -> Result<String, RDKafkaErrorCode> {
    // SAFETY: the result and what hangs on it live as long as the event; the array has `count` elements.
    unsafe {
        let code = sys::rd_kafka_event_error(event);
        if code != NO_ERROR {
            return Err(code.into());
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        let mut count = 0;
        let topics = if result.is_null() {
            null_mut()
        } else {
            sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count)
        };
        if topics.is_null() || count == 0 {
            return Err(RDKafkaErrorCode::UnknownTopicOrPartition);
        }
        let error = sys::rd_kafka_TopicDescription_error(*topics);
        let code = sys::rd_kafka_error_code(error);
        if code != NO_ERROR {
            return Err(code.into());
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(*topics);
        let most = sys::rd_kafka_Uuid_most_significant_bits(id);
        let least = sys::rd_kafka_Uuid_least_significant_bits(id);
        Ok(format!("{most:016x}{least:016x}"))
    }
}

pub(super) struct Source {
    pub(super) topic: *mut sys::rd_kafka_topic_t,
    pub(super) partition: i32,
}

/// Several partitions read through one queue, in batches, without copies.
pub(super) struct Reader {
    queue: *mut sys::rd_kafka_queue_t,
    pub(super) sources: Vec<Source>,
    batch: Vec<*mut sys::rd_kafka_message_t>,
    pub(super) with_headers: bool,
    pub(super) consumer: Reading,
}

// SAFETY: librdkafka's handles may be used from any thread; the reader is used by one at a time, as it is not Sync.
unsafe impl Send for Reader {}

impl Reader {
    /// A reader of nothing yet.
    pub(super) fn new(consumer: Reading, with_headers: bool) -> Reader {
        // SAFETY: the client lives as long as the reader, which destroys the queue before it lets go of it.
        let queue = unsafe { sys::rd_kafka_queue_new(consumer.client().native_ptr()) };
        Reader { queue, sources: Vec::new(), batch: Vec::new(), with_headers, consumer }
    }

    /// Starts to read a partition; its index is the number of those started before.
    pub(super) fn start(&mut self, topic: &str, partition: i32, offset: i64) -> Result<(), RDKafkaErrorCode> {
        let name = CString::new(topic).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
        // SAFETY: client and queue are live, the name is copied. The topic handle is kept in `sources`, whose entries `drop` destroys once.
        unsafe {
            let topic = sys::rd_kafka_topic_new(self.consumer.client().native_ptr(), name.as_ptr(), null_mut());
            if topic.is_null() {
                return Err(sys::rd_kafka_last_error().into());
            }
            if sys::rd_kafka_consume_start_queue(topic, partition, offset, self.queue) != 0 {
                let code = sys::rd_kafka_last_error();
                sys::rd_kafka_topic_destroy(topic);
                return Err(code.into());
            }
            self.sources.push(Source { topic, partition });
        }
        Ok(())
    }

    /// Waits up to `wait` for the first item, then takes what is there, at most `max` in all. Returns how many.
    ///
    /// (librdkafka's batch call with a time-out returns only when the batch is full or the time is over: it would add `wait` to the latency of
    /// every batch.)
    pub(super) fn read(&mut self, max: usize, wait: Duration, each: &mut dyn FnMut(Item<'_>)) -> usize {
        let first = self.take(1, wait, each);
        if first == 0 || max <= 1 { first } else { first + self.take(max - 1, Duration::ZERO, each) }
    }

    fn take(&mut self, max: usize, wait: Duration, each: &mut dyn FnMut(Item<'_>)) -> usize {
        self.batch.resize(self.batch.len().max(max), null_mut());
        // SAFETY: the buffer has at least `max` elements.
        let count =
            unsafe { sys::rd_kafka_consume_batch_queue(self.queue, milliseconds(wait), self.batch.as_mut_ptr(), max) };
        let count = usize::try_from(count).unwrap_or(0);
        for &message in self.batch.iter().take(count) {
            // SAFETY: librdkafka filled the first `count` elements with messages that are ours; each is used until it is destroyed here.
            unsafe {
                each(item(self, &*message));
                sys::rd_kafka_message_destroy(message);
            }
        }
        count
    }
}

/// Milliseconds since 1970.
pub(super) fn timestamp(message: &sys::rd_kafka_message_t) -> u64 {
    let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: the message is live and `kind` is ours.
    let ms = unsafe { sys::rd_kafka_message_timestamp(message, &raw mut kind) };
    u64::try_from(ms).unwrap_or(0)
}

/// Names and values of a message's headers.
pub(super) fn headers(message: &sys::rd_kafka_message_t) -> Vec<(String, String)> {
    let (mut all, mut headers, mut name, mut value, mut size) = (Vec::new(), null_mut(), null(), null(), 0);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // SAFETY: the message is live; its headers, with their names, which end with a zero, and their values, belong to it.
    unsafe {
        let mut code = sys::rd_kafka_message_headers(message, &raw mut headers);
        while code == NO_ERROR {
            code = sys::rd_kafka_header_get_all(headers, all.len(), &raw mut name, &raw mut value, &raw mut size);
            let header = || (text(CStr::from_ptr(name).to_bytes()), text(bytes(value, size, message)));
            all.extend((code == NO_ERROR).then(header));
        }
    }
    all
}

/// A part of a message, borrowed from it; empty when there is none.
pub(super) fn bytes(start: *const libc::c_void, len: usize, _message: &sys::rd_kafka_message_t) -> &[u8] {
    if start.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: key and payload of a live message are `len` bytes that nobody changes; the result borrows from the message.
    unsafe { std::slice::from_raw_parts(start.cast::<u8>(), len) }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // SAFETY: each partition was started once with a live handle; handles and queue are destroyed once, before the client,
        // which is a field and dropped after this.
        unsafe {
            for source in &self.sources {
                sys::rd_kafka_consume_stop(source.topic, source.partition);
                sys::rd_kafka_topic_destroy(source.topic);
            }
            sys::rd_kafka_queue_destroy(self.queue);
        }
    }
}
