//! From a request's body to the texts of its records.

use super::probe::{malformed, scalar};
use super::{DataApiKind, Endpoint, Limits, Request, SegmentKind, times};
use bytes::Bytes;
use millstream_model::reject::{Reason, Refusal};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A request, taken apart.
pub(super) struct Batch<'a> {
    /// Each record's text, or why it has none.
    pub(super) records: Vec<Result<&'a str, Refusal>>,
    /// What the request says about all of them, JSON, or nothing; shared by their envelopes.
    pub(super) context: Bytes,
    /// The sender's clock when it sent the request, milliseconds since 1970.
    pub(super) sent_ms: Option<i64>,
}

/// A body that holds a list of records.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    batch: Option<&'a RawValue>,
    #[serde(borrow)]
    elements: Option<&'a RawValue>,
    #[serde(borrow)]
    merge_data: Option<&'a RawValue>,
    #[serde(borrow)]
    context: Option<&'a RawValue>,
    #[serde(borrow, rename = "sentAt")]
    segment_sent_at: Option<&'a RawValue>,
    #[serde(borrow)]
    sent_at: Option<&'a RawValue>,
}

/// Takes a request apart.
///
/// # Errors
/// The request as a whole is no good.
pub(super) fn read<'a>(request: &Request<'a>, limits: &Limits) -> Result<Batch<'a>, Refusal> {
    let text = text(request.body)?;
    match request.endpoint {
        Endpoint::NativeBatch if request.ndjson => lines(text, limits),
        Endpoint::NativeBatch => list(text, "batch", BY_LINE, limits),
        Endpoint::Segment(SegmentKind::Batch) => list(text, "batch", WHOLE, limits),
        Endpoint::DataApi(DataApiKind::Transition) => list(text, "elements", WHOLE, limits),
        Endpoint::DataApi(DataApiKind::Merge) => list(text, "merge_data", WHOLE, limits),
        Endpoint::DataApi(_) | Endpoint::Segment(_) => single(text),
    }
}

fn text(body: &[u8]) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let message = format!("the body is not UTF-8 (at byte {}); encode it as UTF-8", error.valid_up_to());
        Refusal::new(Reason::MalformedJson, message)
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn single(text: &str) -> Result<Batch<'_>, Refusal> {
    let record: &RawValue = serde_json::from_str(text).map_err(|error| malformed(&error))?;
    if !record.get().starts_with('{') {
        return Err(Refusal::new(Reason::WrongType, "the body must be one JSON object `{...}`"));
    }
    Ok(Batch { records: vec![Ok(record.get())], context: Bytes::new(), sent_ms: None })
}

/// Where an error in the syntax of one record makes all of them unreadable: what to do.
const WHOLE: &str = "none of its records was taken";
const BY_LINE: &str =
    "none of its records was taken; send NDJSON (application/x-ndjson, one record per line) to have good records taken";

/// `hint`: what an error in the syntax means, which cannot be told from the records around it.
fn list<'a>(text: &'a str, name: &'static str, hint: &str, limits: &Limits) -> Result<Batch<'a>, Refusal> {
    let malformed = |error: serde_json::Error| {
        let Refusal { message, .. } = malformed(&error);
        Refusal::new(Reason::MalformedJson, format!("{message}; {hint}"))
    };
    let whole: &RawValue = serde_json::from_str(text).map_err(malformed)?;
    if !whole.get().starts_with('{') {
        let message = format!("the body must be a JSON object with the list `{name}`");
        return Err(Refusal::new(Reason::WrongType, message));
    }
    let body: Body<'_> = serde_json::from_str(text).map_err(malformed)?;
    let list = match name {
        "elements" => body.elements,
        "merge_data" => body.merge_data,
        _ => body.batch,
    };
    let Some(list) = list.filter(|list| list.get().starts_with('[')) else {
        let message = format!("the body must have the list `{name}`, with one element per record");
        return Err(Refusal::field(Reason::MissingField, name, message));
    };
    let records = CappedList(limits.max_records)
        .deserialize(&mut serde_json::Deserializer::from_str(list.get()))
        .map_err(|_| too_many(limits))?;
    let sent_at = body.segment_sent_at.or(body.sent_at).and_then(scalar);
    let sent_ms = sent_at.and_then(|sent_at| times::instant(&sent_at));
    Ok(Batch { records, context: context(body.context, limits)?, sent_ms })
}

fn context(context: Option<&RawValue>, limits: &Limits) -> Result<Bytes, Refusal> {
    let Some(context) = context.map(RawValue::get).filter(|context| *context != "null") else {
        return Ok(Bytes::new());
    };
    if !context.starts_with('{') {
        return Err(Refusal::field(Reason::WrongType, "context", "`context` must be an object"));
    }
    if context.len() > limits.max_context_bytes {
        let message = format!(
            "`context` of the batch has {} bytes, at most {} are allowed; move what differs into the records",
            context.len(),
            limits.max_context_bytes
        );
        return Err(Refusal::field(Reason::TooLarge, "context", message));
    }
    Ok(Bytes::copy_from_slice(context.as_bytes()))
}

fn lines<'a>(text: &'a str, limits: &Limits) -> Result<Batch<'a>, Refusal> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let mut records = Vec::new();
    for (index, line) in lines {
        if records.len() == limits.max_records {
            return Err(too_many(limits));
        }
        let checked: Result<&RawValue, _> = serde_json::from_str(line);
        records.push(checked.map(RawValue::get).map_err(|error| {
            let error = error.to_string().replace(" at line 1 column", " at column");
            let message = format!("line {} is not valid JSON: {error}", index + 1);
            Refusal::new(Reason::MalformedJson, message)
        }));
    }
    if records.is_empty() {
        return Err(Refusal::new(Reason::MalformedJson, "the body has no record; send one JSON object per line"));
    }
    Ok(Batch { records, context: Bytes::new(), sent_ms: None })
}

fn too_many(limits: &Limits) -> Refusal {
    let message = format!("the request has more than {} records; split it", limits.max_records);
    Refusal::new(Reason::TooLarge, message)
}

/// A list whose length is bounded before it is collected. Its syntax has been checked, so the only error is too many items.
struct CappedList(usize);

impl<'de> DeserializeSeed<'de> for CappedList {
    type Value = Vec<Result<&'de str, Refusal>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for CappedList {
    type Value = Vec<Result<&'de str, Refusal>>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut records = Vec::new();
        while let Some(record) = seq.next_element::<&RawValue>()? {
            if records.len() == self.0 {
                return Err(serde::de::Error::custom("too many records"));
            }
            records.push(Ok(record.get()));
        }
        Ok(records)
    }
}
