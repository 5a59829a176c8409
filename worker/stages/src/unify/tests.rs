use super::*;
use crate::{MemoryState, PublicMessage};
use millstream_model::key::group_of_parts;
use millstream_model::proto::Stamp;

const NOW: u64 = 1_700_000_000_000;
const HOUR: u64 = 3_600_000;

type Memory = MemoryState<UnifyValue>;

struct Failing;

impl State<UnifyValue> for Failing {
    fn get(&mut self, _: &StateKey) -> Result<Option<&UnifyValue>, StateError> {
        Err(StateError::Io("disk".into()))
    }
    fn get_mut(&mut self, _: &StateKey) -> Result<Option<&mut UnifyValue>, StateError> {
        Err(StateError::Io("disk".into()))
    }
    fn put(&mut self, _: StateKey, _: UnifyValue) {}
    fn remove(&mut self, _: StateKey) {}
}

fn envelope(message_id: &str, body: &str) -> Envelope {
    Envelope {
        tenant: "acme".into(),
        source: Source::Segment.into(),
        kind: "track".into(),
        message_id: message_id.into(),
        group: group_of_parts("acme", "user_id", "u1").into(),
        body: body.to_owned().into(),
        ..Envelope::default()
    }
}

fn good(message_id: &str) -> Envelope {
    envelope(message_id, r#"{"userId":"u1","event":"e"}"#)
}

/// A place in the log; all batches run at one moment 90 days later, as after a long outage.
fn at(time_ms: u64) -> At {
    let stamp = Stamp { time_ms, offset: 7, index: 3 };
    At { input: Input::Ingress, partition: 0, stamp, batch_ms: NOW + 90 * 24 * HOUR, generation: 1, shards: 1 }
}

fn process(records: &[(Envelope, At)], state: &mut Memory) -> Outbox {
    let mut out = Outbox::default();
    for (record, at) in records {
        Unify::default().process(record.clone(), at, state, &mut out).unwrap();
    }
    out
}

fn sums(out: &Outbox, tenant: &str) -> [u64; 3] {
    let usage = out.usage.get(tenant).copied().unwrap_or_default();
    [usage.accepted, usage.duplicates, usage.rejects]
}

fn json(message: &PublicMessage) -> serde_json::Value {
    serde_json::from_slice(&message.payload).unwrap()
}

#[test]
fn a_message_id_is_a_duplicate_within_the_window_of_stamp_time() {
    let mut state = Memory::default();
    let window = 7 * 24 * HOUR;
    let times = [NOW, NOW + 1, NOW + window, NOW + window + 1, NOW + window + 2];
    let records: Vec<_> = times.iter().map(|time| (good("m"), at(*time))).collect();
    let out = process(&records, &mut state);
    assert_eq!(sums(&out, "acme"), [5, 3, 0]);
    let stamps: Vec<u64> = out.actions.iter().map(|action| action.stamp.unwrap().time_ms).collect();
    assert_eq!(stamps, [NOW, NOW + window + 1]);
    assert!(out.rejects.is_empty());
}

#[test]
fn other_tenants_and_other_ids_are_no_duplicates() {
    let other =
        Envelope { tenant: "globex".into(), group: group_of_parts("globex", "user_id", "u1").into(), ..good("m") };
    let out = process(&[(good("m"), at(NOW)), (good("n"), at(NOW)), (other, at(NOW))], &mut Memory::default());
    assert_eq!(out.actions.len(), 3);
}

#[test]
fn the_repetition_of_a_reject_is_a_duplicate() {
    let bad = envelope("m", r#"{"userId":"u1"}"#);
    let out = process(&[(bad.clone(), at(NOW)), (bad, at(NOW + 1))], &mut Memory::default());
    assert_eq!((sums(&out, "acme"), out.rejects.len()), ([2, 1, 1], 1));
    let rejected = &out.reasons[0];
    assert_eq!((rejected.tenant.as_str(), rejected.reason, out.reasons.len()), ("acme", Reason::MissingField, 1));
}

#[test]
fn what_is_in_the_wrong_place_is_rejected_and_leaves_no_state() {
    let mut state = Memory::default();
    let elsewhere = At { partition: 3, shards: 4, ..at(NOW) };
    let no_group = Envelope { group: 5000, ..good("m") };
    let no_tenant = Envelope { tenant: "a\0b".into(), ..good("m") };
    let no_id = good("");
    let out =
        process(&[(good("m"), elsewhere), (no_group, at(NOW)), (no_tenant, at(NOW)), (no_id, at(NOW))], &mut state);
    assert!(state.entries.is_empty() && out.actions.is_empty());
    assert_eq!((sums(&out, "acme"), sums(&out, INVALID_TENANT)), ([3, 0, 3], [1, 0, 1]));
    let fields: Vec<_> = out.rejects.iter().map(|reject| json(reject)["field"].as_str().unwrap().to_owned()).collect();
    assert_eq!(fields, ["group", "group", "tenant", "message_id"]);
    assert_eq!(json(&out.rejects[2])["tenant"], INVALID_TENANT);
}

#[test]
fn a_tenant_that_is_not_configured_is_misrouted_and_leaves_nothing() {
    let known =
        |names: &[&str]| Unify::default().for_tenants(Arc::new(names.iter().map(|&name| name.to_owned()).collect()));
    let (mut state, mut out) = (Memory::default(), Outbox::default());
    for _ in 0..2 {
        known(&["globex"]).process(good("m"), &at(NOW), &mut state, &mut out).unwrap();
    }
    assert!(state.entries.is_empty() && out.actions.is_empty() && !out.usage.contains_key("acme"));
    assert_eq!((sums(&out, INVALID_TENANT), out.reasons[0].reason), ([2, 0, 2], Reason::Misrouted));
    let reject = json(&out.rejects[0]);
    assert_eq!((&reject["field"], &reject["tenant"]), (&"tenant".into(), &INVALID_TENANT.into()));
    assert!(reject["message"].as_str().unwrap().starts_with("tenant `acme` is not configured"), "{reject}");
    let mut out = Outbox::default();
    known(&["acme", "globex"]).process(good("m"), &at(NOW), &mut state, &mut out).unwrap();
    assert_eq!(out.actions.len(), 1);
}

#[test]
fn a_customer_has_so_many_unset_rules_and_no_more() {
    let rules = |count: usize| vec![r#"{"attr":"t","type":"prefix","case_sensitive":false}"#; count].join(",");
    let customer = |message_id: &str, count| {
        let body = format!(r#"{{"customer_id":"u1","attributes":{{"a":1}},"unset_attributes":[{}]}}"#, rules(count));
        Envelope { source: Source::DataApi.into(), kind: "customer".into(), ..envelope(message_id, &body) }
    };
    let out = process(&[(customer("m1", 100), at(NOW)), (customer("m2", 101), at(NOW))], &mut Memory::default());
    assert_eq!((out.actions.len(), out.reasons[0].reason), (1, Reason::TooLarge));
    assert_eq!(json(&out.rejects[0])["field"], "unset_attributes");
}

#[test]
fn a_group_that_is_not_the_routing_identifiers_is_misrouted() {
    let wrong = Envelope { group: good("m").group ^ 1, ..good("m") };
    let out = process(&[(wrong, at(NOW))], &mut Memory::default());
    assert_eq!((sums(&out, "acme"), out.reasons[0].reason), ([1, 0, 1], Reason::Misrouted));
}

#[test]
fn bytes_that_are_no_envelope_are_rejected_with_the_bytes() {
    let unify = Unify::default();
    let bytes = b"\xff\xff";
    let error = unify.decode(Input::Ingress, bytes).unwrap_err();
    let mut out = Outbox::default();
    unify.unreadable(error, bytes, &at(NOW), &mut out).unwrap();
    assert_eq!(sums(&out, INVALID_TENANT), [1, 0, 1]);
    assert_eq!(json(&out.rejects[0])["original_hex"], "ffff");
    let internal = unify.decode(Input::Actions, bytes).unwrap_err();
    assert!(unify.unreadable(internal, bytes, &at(NOW), &mut out).is_err());
}

#[test]
fn age_is_judged_by_reception_and_never_by_processing() {
    let month_old = format!(r#"{{"userId":"u1","event":"e","timestamp":{}}}"#, NOW - 30 * 24 * HOUR);
    let older = format!(r#"{{"userId":"u1","event":"e","timestamp":{}}}"#, NOW - 31 * 24 * HOUR);
    let records = [(envelope("a", &month_old), at(NOW)), (envelope("b", &older), at(NOW))];
    let out = process(&records, &mut Memory::default());
    assert_eq!((out.actions.len(), out.reasons[0].reason), (1, Reason::TooOld));
}

#[test]
fn a_reject_is_a_cloud_event_of_its_trace() {
    let trace = millstream_model::trace::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let bad = Envelope { trace, ..envelope("m", "\u{7b}") };
    let out = process(&[(bad, at(NOW))], &mut Memory::default());
    let [reject] = &out.rejects[..] else { panic!("{:?}", out.rejects) };
    let header =
        |name| reject.headers.iter().find(|(found, _)| *found == name).map(|(_, value)| value.clone()).unwrap();
    assert_eq!(header("ce_type"), "dev.millstream.reject.v1");
    assert_eq!(header("ce_id"), json(reject)["id"]);
    let [span] = &out.spans[..] else { panic!("{:?}", out.spans) };
    assert_eq!(span.name, "unify segment track");
    let expected = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", millstream_model::id::hex(&span.span_id));
    assert_eq!(header("traceparent"), expected);
    assert_eq!((reject.key.as_slice(), u32::from(reject.group)), (&b"acme"[..], good("m").group));
    assert_eq!((&json(reject)["original"], &json(reject)["reason"]), (&"{".into(), &"malformed_json".into()));
}

#[test]
fn a_record_of_many_actions_counts_once() {
    let body = r#"{"customer_id":"u1","actions":[{"action":"a"},{"action":"b"},{"action":""}]}"#;
    let record = Envelope { source: Source::DataApi.into(), kind: "event".into(), ..envelope("m", body) };
    let out = process(&[(record, at(NOW))], &mut Memory::default());
    assert_eq!(out.actions.iter().map(|action| action.uncounted).collect::<Vec<_>>(), [true, false]);
    assert_ne!(out.actions[0].record_id, out.actions[1].record_id);
    assert_eq!(out.actions[0].stamp, out.actions[1].stamp);
    assert_eq!((sums(&out, "acme"), out.rejects.len()), ([1, 0, 0], 1));
    assert_eq!(json(&out.rejects[0])["partial"], true);
}

#[test]
fn a_tenants_own_forbidden_values() {
    let config: UnifyConfig =
        serde_json::from_str(r#"{"forbidden_values":["Nobody"],"tenants":{"acme":{"forbidden_values":["U1"]}}}"#)
            .unwrap();
    let rules = Rules::new(&config, &BTreeMap::new());
    assert!(rules.of("acme").is_forbidden("'u1'") && rules.of("globex").is_forbidden("NOBODY"));
    assert!(!rules.of("globex").is_forbidden("u1"));
    let mut out = Outbox::default();
    Unify::new(&config).process(good("m"), &at(NOW), &mut Memory::default(), &mut out).unwrap();
    assert_eq!(out.reasons[0].reason, Reason::ForbiddenIdentifier);
    assert!(serde_json::from_str::<UnifyConfig>(r#"{"limits":{"max_name":1}}"#).is_err());
}

#[test]
fn what_is_published_of_a_tenant_goes_before_what_is_configured_and_allows_no_more() {
    let config: UnifyConfig = serde_json::from_str(
        r#"{"forbidden_values":["Nobody"],"tenants":{"acme":{"forbidden_values":["U1"]},"globex":{"forbidden_values":["U2"]}}}"#,
    )
    .unwrap();
    let limits = TenantLimits { max_properties: Some(3), max_actions: Some(1_000_000), ..TenantLimits::default() };
    let of_acme = PublishedRules { limits, forbidden_values: [" 'U3' ".to_owned()].into() };
    let of_globex = PublishedRules { limits, ..PublishedRules::default() };
    let published = [("acme".to_owned(), of_acme), ("globex".to_owned(), of_globex)].into();
    let rules = Rules::new(&config, &published);
    let forbids = |tenant, values: [&str; 4]| values.map(|value| rules.of(tenant).is_forbidden(value));
    let values = ["nobody", "u1", "u2", "u3"];
    assert_eq!(
        forbids("acme", values),
        [true, false, false, true],
        "its list replaces the configured one, not everybody's"
    );
    assert_eq!(forbids("globex", values), [true, false, true, false], "without a list the configured one stays");
    assert_eq!(forbids("initech", values), [true, false, false, false]);
    let expected = RecordLimits { max_properties: 3, ..RecordLimits::default() };
    assert_eq!((&rules.of("acme").limits, &rules.of("globex").limits), (&expected, &expected));
    assert_eq!(rules.of("initech").limits, RecordLimits::default());
}

/// What becomes of records of acme and globex under what was published about acme: messages on, and reasons.
fn under(limits: TenantLimits, forbidden: &[&str], body: &str) -> (usize, Vec<Reason>) {
    let forbidden_values = forbidden.iter().map(|value| (*value).to_owned()).collect();
    let published = [("acme".to_owned(), PublishedRules { limits, forbidden_values })].into();
    let mut unify = Unify::default();
    unify.adopt(Arc::new(Rules::new(&UnifyConfig::default(), &published)));
    let mut out = Outbox::default();
    let source = if body.contains("customer_id") { Source::DataApi } else { Source::Segment };
    let kind = if source == Source::DataApi { "event" } else { "track" };
    for tenant in ["acme", "globex"] {
        let (kind_of_id, value) = if body.contains("anonymousId") { ("anonymous_id", "a1") } else { ("user_id", "u1") };
        let group = group_of_parts(tenant, kind_of_id, value).into();
        let record =
            Envelope { tenant: tenant.into(), source: source.into(), kind: kind.into(), group, ..envelope("m", body) };
        unify.process(record, &at(NOW), &mut Memory::default(), &mut out).unwrap();
    }
    assert!(out.reasons.iter().all(|rejected| rejected.tenant == "acme"), "{:?}", out.reasons);
    (out.actions.len(), out.reasons.iter().map(|rejected| rejected.reason).collect())
}

#[test]
fn each_limit_of_a_tenant_holds_for_it_and_for_nobody_else() {
    let none = TenantLimits::default();
    let track = r#"{"userId":"u1","anonymousId":"a1","event":"e","properties":{"p":"long","q":2}}"#;
    assert_eq!(under(none, &[], track), (2, vec![]));
    let bytes = TenantLimits { max_record_bytes: Some(20), ..none };
    assert_eq!(under(bytes, &[], track), (1, vec![Reason::TooLarge]));
    let identifiers = TenantLimits { max_identifiers: Some(1), ..none };
    assert_eq!(under(identifiers, &[], track), (1, vec![Reason::TooLarge]));
    assert_eq!(under(none, &["A1"], track), (1, vec![Reason::ForbiddenIdentifier]));
    let actions = TenantLimits { max_actions: Some(1), ..none };
    let two = r#"{"customer_id":"u1","actions":[{"action":"a"},{"action":"b"}]}"#;
    assert_eq!(under(actions, &[], two), (2, vec![Reason::TooLarge]), "two of globex");
}

#[test]
fn what_is_beyond_a_tenants_limit_of_a_property_is_dropped_or_cut() {
    let mut unify = Unify::default();
    let mut properties = |limits| {
        let published = [("acme".to_owned(), PublishedRules { limits, ..PublishedRules::default() })].into();
        unify.adopt(Arc::new(Rules::new(&UnifyConfig::default(), &published)));
        let mut out = Outbox::default();
        let record = envelope("m", r#"{"userId":"u1","event":"e","properties":{"p":"long","q":"s"}}"#);
        unify.process(record, &at(NOW), &mut Memory::default(), &mut out).unwrap();
        let event = out.actions[0].event.clone().unwrap();
        let text = |value: &Value| match &value.kind {
            Some(value::Kind::String(text)) => text.clone(),
            other => panic!("{other:?}"),
        };
        let properties =
            event.properties.iter().map(|member| (member.name.clone(), text(member.value.as_ref().unwrap())));
        (properties.collect::<Vec<_>>(), out.rejects.len())
    };
    let limits = TenantLimits { max_properties: Some(1), max_string_chars: Some(2), ..TenantLimits::default() };
    assert_eq!(properties(limits), (vec![("p".to_owned(), "lo".to_owned())], 1));
    let raised = TenantLimits { max_properties: Some(2), max_string_chars: Some(4), ..limits };
    assert_eq!(properties(raised), (vec![("p".to_owned(), "long".to_owned()), ("q".to_owned(), "s".to_owned())], 0));
}

#[test]
fn state_is_read_under_the_announced_keys_and_its_failure_ends_the_batch() {
    let mut keys = Vec::new();
    Unify::default().keys(&good("m"), &at(NOW), &[], &mut keys);
    let mut state = Memory::default();
    process(&[(good("m"), at(NOW))], &mut state);
    assert_eq!(state.entries.keys().cloned().collect::<Vec<_>>(), keys);
    let failed = Unify::default().process(good("m"), &at(NOW), &mut Failing, &mut Outbox::default());
    assert!(failed.is_err());
}

#[test]
fn stored_values_come_back() {
    let record = good("m");
    let key = SeenKey::of(&record).unwrap().in_period(7);
    let value = UnifyValue::Seen(Seen { time_ms: NOW });
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    assert_eq!(UnifyValue::decode(&key, &bytes).unwrap(), value);
    assert!(UnifyValue::decode(&StateKey::new(1, "acme", Kind::User, b""), &bytes).is_err());
    assert!(UnifyValue::decode(&key, b"\xff").is_err());
}
