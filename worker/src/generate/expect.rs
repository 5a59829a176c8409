//! What must become of one record: its event, its time, and what it says of its device. Written from what the sources promise
//! (docs: reference, sources), not from the code of the stages.
//!
//! When a record happened is not always known beforehand: where its source says when it was sent, too, the time counts from when it is received.

use super::record::{Intent, Record};
use super::truth::{DeviceTruth, EventTruth, Seen, Span};
use millstream_model::proto::{Identifier, Source};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Segment's senders say when they send each request; until it is received, with all repetitions, it takes this long at most.
const SENDING_MS: i64 = 15 * 60_000;

/// When a record happened, as far as that can be known at `now_ms`, before which nothing is sent.
pub(super) fn time(record: &Record, now_ms: i64) -> Span {
    let of = |from_ms, to_ms| Span { from_ms, to_ms };
    if let Some(lag_ms) = lag_ms(record) {
        return of(now_ms - lag_ms, None);
    }
    match (record.source, &record.intent) {
        (Source::Segment, _) => of(record.time, Some(record.time + SENDING_MS)),
        // Its other records have no time of their own.
        (Source::DataApi, Intent::Event { .. }) => of(record.time, Some(record.time)),
        (Source::DataApi, _) => of(now_ms, None),
        (Source::Native | Source::Unspecified, _) => of(record.time, Some(record.time)),
    }
}

/// How long before it was received a record happened, when its sender's clock is wrong and says both.
fn lag_ms(record: &Record) -> Option<i64> {
    let says_both = match record.source {
        Source::Segment => true,
        Source::DataApi => matches!(record.intent, Intent::Event { .. }),
        Source::Native | Source::Unspecified => false,
    };
    record.skew.filter(|_| says_both).map(|_| record.order - record.time)
}

/// The enriched event of a record that is one.
pub(super) fn event(record: &Record, now_ms: i64) -> Option<EventTruth> {
    let Intent::Event { name, properties, view } = &record.intent else { return None };
    let mut properties = properties.clone();
    let name = match (record.source, view) {
        (Source::Segment, Some(view)) => {
            properties.insert("name".to_owned(), json!(name));
            if *view == "screen" { "Screen Viewed".to_owned() } else { "Page Viewed".to_owned() }
        }
        (Source::Native | Source::Unspecified, Some(view)) => format!("{view}_viewed"),
        (Source::DataApi, _) => {
            let platform = if record.device.is_some() { "ANDROID" } else { "web" };
            properties.insert("platform".to_owned(), json!(platform));
            name.clone()
        }
        _ => name.clone(),
    };
    Some(EventTruth {
        name,
        source: record.source.code().to_owned(),
        properties,
        device: record.device.clone(),
        time: time(record, now_ms),
        lag_ms: lag_ms(record),
    })
}

/// The device that a record names in its source's shape.
fn device(record: &Record) -> Option<&String> {
    let names_it = match (record.source, &record.intent) {
        (_, Intent::Merge { .. }) => false,
        (Source::DataApi, intent) => matches!(intent, Intent::Event { .. } | Intent::Device { .. }),
        _ => true,
    };
    record.device.as_ref().filter(|_| names_it)
}

/// What a record says of its device.
fn attributes(record: &Record) -> Map<String, Value> {
    match (record.source, &record.intent) {
        (Source::Segment, _) => [("platform".to_owned(), json!("ios"))].into_iter().collect(),
        (source, Intent::Device { set }) => {
            let lower = |name: &str, value: &Value| match value.as_str() {
                Some(text) if source == Source::DataApi && name == "platform" => json!(text.to_lowercase()),
                _ => value.clone(),
            };
            set.iter().map(|(name, value)| (name.clone(), lower(name, value))).collect()
        }
        _ => Map::new(),
    }
}

/// What one routing key says of a device: its records keep their order, those of others do not.
#[derive(Debug, Default)]
struct Said {
    attributes: BTreeMap<String, Value>,
    user: Option<Identifier>,
}

/// The devices of a tenant.
#[derive(Debug, Default)]
pub(super) struct Devices(BTreeMap<String, (BTreeMap<String, Said>, Option<Seen>)>);

impl Devices {
    /// Takes in an effective record of a routing key.
    pub(super) fn apply(&mut self, record: &Record, key: &str, now_ms: i64) {
        let Some(device) = device(record) else { return };
        let (said, seen) = self.0.entry(device.clone()).or_default();
        let said = said.entry(key.to_owned()).or_default();
        said.attributes.extend(attributes(record));
        said.user = record.user.first().cloned().or(said.user.take());
        *seen = Some(Seen::with(*seen, Seen::at(time(record, now_ms))));
    }

    /// What must be known of each. Where several routing keys spoke of one, whichever came last counts.
    pub(super) fn finish(self) -> BTreeMap<String, DeviceTruth> {
        let of = |(name, (said, seen)): (String, (BTreeMap<String, Said>, Option<Seen>))| {
            let mut truth = DeviceTruth { seen, ..DeviceTruth::default() };
            for Said { attributes, user } in said.into_values() {
                truth.users.extend(user.map(|user| user.to_string()));
                for (name, value) in attributes {
                    let values: &mut Vec<Value> = truth.attributes.entry(name).or_default();
                    if !values.contains(&value) {
                        values.push(value);
                    }
                }
            }
            (name, truth)
        };
        self.0.into_iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn record(source: Source, skew: Option<i64>, view: Option<&'static str>) -> Record {
        let intent = Intent::Event { name: "home".into(), properties: Map::new(), view };
        let (user, device) = (vec![Identifier::new("user_id", "1")], Some("d".to_owned()));
        Record { order: NOW - 500, time: NOW - 2_000, skew, source, message_id: "m".into(), user, device, intent }
    }

    #[test]
    fn a_time_is_as_exact_as_its_source_is() {
        let exact = Span { from_ms: NOW - 2_000, to_ms: Some(NOW - 2_000) };
        for (source, skew, expected) in [
            (Source::Native, Some(7), exact),
            (Source::DataApi, None, exact),
            (Source::DataApi, Some(7), Span { from_ms: NOW - 1_500, to_ms: None }),
            (Source::Segment, Some(7), Span { from_ms: NOW - 1_500, to_ms: None }),
            (Source::Segment, None, Span { to_ms: Some(NOW - 2_000 + SENDING_MS), ..exact }),
        ] {
            assert_eq!(time(&record(source, skew, None), NOW), expected, "{source:?} {skew:?}");
        }
    }

    #[test]
    fn sources_name_views_in_their_way() {
        let name = |source, view| event(&record(source, None, Some(view)), NOW).unwrap().name;
        assert_eq!(name(Source::Segment, "page"), "Page Viewed");
        assert_eq!(name(Source::Native, "screen"), "screen_viewed");
    }

    #[test]
    fn neighbours_with_one_device_may_each_have_been_the_last() {
        let mut devices = Devices::default();
        let mut other = record(Source::Native, None, None);
        other.user = vec![Identifier::new("user_id", "2")];
        other.intent = Intent::Device { set: [("platform".to_owned(), json!("ANDROID"))].into_iter().collect() };
        devices.apply(&record(Source::Segment, None, None), "a", NOW);
        devices.apply(&other, "b", NOW);
        let truth = devices.finish().remove("d").unwrap();
        assert_eq!(truth.attributes["platform"], [json!("ios"), json!("ANDROID")]);
        assert_eq!(truth.users.into_iter().collect::<Vec<_>>(), ["user_id=1", "user_id=2"]);
    }
}
