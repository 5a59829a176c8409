//! The benchmark's stage: per record one JSON parse, one state read and write of 300 bytes, one enriched output of about 700 bytes as a message of
//! its own, one mutation of about 200 bytes in frames. The same work as the spike and its peers (Kafka Streams, Flink).

use millstream_model::key::{Kind, StateKey};
use millstream_model::proto::{Envelope, Mutation, Operation, Value, operation::Op};
use millstream_stages::{At, DecodeError, Input, Outbox, PublicMessage, Stage, State, StateError, StateValue};
use prost::Message as _;
use std::io::Write as _;

/// 300 bytes: a counter, a sum, and filler that changes.
#[derive(Clone)]
pub(crate) struct Profile([u8; SIZE]);

const SIZE: usize = 300;

impl StateValue for Profile {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.0);
    }

    fn decode(_: &StateKey, bytes: &[u8]) -> Result<Profile, StateError> {
        let profile =
            bytes.try_into().map_err(|_| StateError::Invalid(format!("a profile of {} bytes", bytes.len())))?;
        Ok(Profile(profile))
    }

    fn memory(&self, _: usize) -> usize {
        SIZE
    }
}

#[derive(serde::Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    event_id: &'a str,
    #[serde(borrow, rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    user_id: &'a str,
    ts: u64,
    amount: i64,
}

/// See the module.
pub(crate) struct Synthetic;

impl Stage for Synthetic {
    type Value = Profile;
    type Record = Envelope;

    fn name(&self) -> &'static str {
        "unify"
    }

    fn decode(&self, input: Input, bytes: &[u8]) -> Result<Envelope, DecodeError> {
        Envelope::decode(bytes).map_err(|error| DecodeError { input, message: error.to_string() })
    }

    fn keys(&self, record: &Envelope, _: &At, _: &[u32], keys: &mut Vec<StateKey>) {
        keys.push(key(record));
    }

    fn process(
        &self,
        envelope: Envelope,
        at: &At,
        state: &mut dyn State<Profile>,
        out: &mut Outbox,
    ) -> Result<(), StateError> {
        let record: Record<'_> =
            serde_json::from_slice(&envelope.body).map_err(|error| StateError::Invalid(error.to_string()))?;
        let key = key(&envelope);
        let count = match state.get_mut(&key)? {
            Some(profile) => change(&mut profile.0, record.amount),
            None => {
                let mut profile = [7; SIZE];
                let count = change(&mut profile, record.amount);
                state.put(key, Profile(profile));
                count
            }
        };
        let user = record.user_id;
        let mut payload = Vec::with_capacity(760);
        payload.extend_from_slice(envelope.body.get(..envelope.body.len().saturating_sub(1)).unwrap_or_default());
        let enriched = write!(
            payload,
            ",\"enriched\":{{\"count\":{count},\"sum\":{},\"profile\":{{\"segment\":\"seg-{}\",\"first_seen\":{},\"tier\":\"gold\",\"country\":\"GB\",\"score\":17}},\"pipeline\":\"p1\",\"v\":{}}}}}",
            record.amount,
            count % 9,
            record.ts,
            at.stamp.offset
        );
        enriched.map_err(|error| StateError::Invalid(error.to_string()))?;
        out.events.push(PublicMessage {
            key: user.as_bytes().to_vec(),
            headers: Vec::new(),
            payload,
            group: envelope.group as u16,
        });
        let set = |path: &str, value| Operation { path: path.into(), op: Some(Op::Set(value)) };
        out.mutations.push(Mutation {
            tenant: envelope.tenant,
            collection: "users".into(),
            id: user.into(),
            generation: 1,
            revision: count,
            base: count - 1,
            operations: vec![
                set("attributes.last", Value::string(record.event_id)),
                set("attributes.type", Value::string(record.kind)),
                set("attributes.count", Value::integer(count as i64)),
                set("last_seen", Value::timestamp(record.ts as i64)),
            ],
            accepted_ms: at.stamp.time_ms,
            group: envelope.group,
            ..Mutation::default()
        });
        Ok(())
    }
}

fn key(envelope: &Envelope) -> StateKey {
    StateKey::new(envelope.group as u16, &envelope.tenant, Kind::User, envelope.message_id.as_bytes())
}

/// Counts and touches eight bytes somewhere; gives the count.
fn change(state: &mut [u8], amount: i64) -> u64 {
    let Some((head, tail)) = state.split_first_chunk_mut::<8>() else { return 1 };
    let count = u64::from_le_bytes(*head) % 1_000_000 + 1;
    *head = count.to_le_bytes();
    if let Some(slot) = tail.get_mut((count as usize % 35) * 8..).and_then(|rest| rest.first_chunk_mut::<8>()) {
        *slot = amount.to_le_bytes();
    }
    count
}

/// The benchmark's input record, about 500 bytes of JSON, made at `time_ms`.
pub(crate) fn example(number: u64, user: u64, time_ms: u64) -> Vec<u8> {
    let types = ["page_view", "add_to_cart", "purchase", "search", "login"];
    let kind = types.get(number as usize % types.len()).copied().unwrap_or("login");
    format!(
        r#"{{"event_id":"e-{number:012}","type":"{kind}","user_id":"user-{user:08}","ts":{time_ms},"amount":{},"properties":{{"page":"/products/{}","referrer":"https://example.com/campaign/{}","session":"s-{:016x}","device":{{"os":"android","os_version":"14","model":"Pixel 8","app_version":"5.12.{}"}},"locale":"en-GB","currency":"GBP","items":[{{"sku":"SKU-{:06}","qty":{},"price":{}}},{{"sku":"SKU-{:06}","qty":1,"price":1999}}],"note":"a note that makes the record as long as real ones are"}}}}"#,
        number % 9999,
        number % 977,
        number % 31,
        number.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        number % 40,
        number % 100_000,
        number % 5 + 1,
        number % 20_000,
        number % 77_777,
    )
    .into_bytes()
}
