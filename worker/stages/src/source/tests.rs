use super::*;

const NOW: i64 = 1_700_000_000_000;

fn request(endpoint: Endpoint, body: &[u8]) -> Request<'_> {
    Request { tenant: "acme", endpoint, body, ndjson: false, idempotency_key: None, received_ms: NOW, trace: None }
}

fn run(request: &Request<'_>, limits: &Limits) -> Result<Vec<Accepted>, Refusal> {
    let mut made = 0;
    split(request, limits, &mut || {
        made += 1;
        format!("made-{made}")
    })
}

fn native(body: &str) -> Result<Vec<Accepted>, Refusal> {
    run(&request(Endpoint::NativeBatch, body.as_bytes()), &Limits::default())
}

/// Message ids and reason codes, in order.
fn short(accepted: &[Accepted]) -> Vec<String> {
    let one = |accepted: &Accepted| match accepted {
        Accepted::Envelope(envelope) => envelope.message_id.clone(),
        Accepted::Refused { refusal, .. } => refusal.reason.code().to_owned(),
    };
    accepted.iter().map(one).collect()
}

fn envelope(accepted: &Accepted) -> &Envelope {
    match accepted {
        Accepted::Envelope(envelope) => envelope,
        Accepted::Refused { refusal, .. } => panic!("{refusal}"),
    }
}

#[test]
fn bad_records_do_not_stop_good_ones() {
    let deep = format!("{}1{}", "[".repeat(10), "]".repeat(10));
    let body = format!(
        r#"{{"batch":[{{"type":"user","message_id":"a","identifiers":{{"user_id":"1x"}}}}, 5, {{"type":"user"}},
            {{"type":"user","identifiers":{{"user_id":"1x"}},"set":{deep}}},
            {{"type":"user","identifiers":{{"user_id":"\ud800"}}}},
            {{"message_id":"a","message_id":"b"}},
            {{"type":"user","message_id":7,"identifiers":{{"user_id":"1x"}}}}]}}"#
    );
    let expected = ["a", "wrong_type", "missing_identifier", "too_deep", "missing_identifier", "malformed_json", "7"];
    assert_eq!(short(&native(&body).unwrap()), expected);
}

#[test]
fn a_request_that_is_no_good_says_where() {
    let syntax = native("{\"batch\": [\n{\"type\" 1}]}").unwrap_err();
    assert_eq!(syntax.reason, Reason::MalformedJson);
    assert!(syntax.message.contains("line 2 column 9"), "{syntax}");
    assert!(
        syntax.message.ends_with("send NDJSON (application/x-ndjson, one record per line) to have good records taken")
    );
    for endpoint in [Endpoint::DataApi(DataApiKind::Transition), Endpoint::Segment(SegmentKind::Batch)] {
        let syntax = run(&request(endpoint, b"{\"batch\": [{\"a\": NaN}]}"), &Limits::default()).unwrap_err();
        assert!(syntax.message.ends_with("none of its records was taken"), "they know no NDJSON: {syntax}");
    }
    for body in ["", "[]", "5", "{}", r#"{"batch":5}"#, r#"{"batch":[],"batch":[]}"#, "{\"batch\":[]} x", "\u{feff}"] {
        assert!(native(body).is_err(), "{body}");
    }
    let not_utf8 = run(&request(Endpoint::NativeBatch, b"{\"batch\":[\"\xff\"]}"), &Limits::default()).unwrap_err();
    assert!(not_utf8.message.contains("byte 11"), "{not_utf8}");
}

#[test]
fn nothing_is_nested_too_deep_for_the_stack() {
    let body = format!(r#"{{"batch":[{}{}]}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_eq!(short(&native(&body).unwrap()), ["too_large"]);
}

#[test]
fn limits_name_themselves() {
    let limits = Limits { max_records: 2, max_record_bytes: 60, max_context_bytes: 10, ..Limits::default() };
    let record = r#"{"type":"track","event":"e","userId":"u1"}"#;
    let body = |records: usize| format!(r#"{{"batch":[{}]}}"#, vec![record; records].join(","));
    let segment = |body: &str| run(&request(Endpoint::Segment(SegmentKind::Batch), body.as_bytes()), &limits);
    assert_eq!(segment(&body(2)).unwrap().len(), 2);
    let many = segment(&body(3)).unwrap_err();
    assert_eq!((many.reason, many.message.contains("more than 2 records")), (Reason::TooLarge, true));
    let context = segment(r#"{"context":{"a":12345678},"batch":[]}"#).unwrap_err();
    assert_eq!((context.reason, context.field.as_deref()), (Reason::TooLarge, Some("context")));
    let large = format!(r#"{{"batch":[{record},{{"userId":"u1","x":"{}"}}]}}"#, "x".repeat(60));
    assert_eq!(short(&segment(&large).unwrap()), ["made-1", "too_large"]);
    let lines = format!("{record}\n{record}\n\n{record}");
    let request = Request { ndjson: true, ..request(Endpoint::NativeBatch, lines.as_bytes()) };
    assert_eq!(run(&request, &limits).unwrap_err().reason, Reason::TooLarge);
}

#[test]
fn a_repeated_request_has_the_same_message_ids() {
    let body = br#"{"batch":[{"type":"user","identifiers":{"user_id":"u1"}},{"type":"user","identifiers":{"user_id":"u1"},"message_id":" "}]}"#;
    let keyed = Request { idempotency_key: Some("k"), ..request(Endpoint::NativeBatch, body) };
    let first = run(&keyed, &Limits::default()).unwrap();
    assert_eq!(short(&first), ["k:native:batch:0", "k:native:batch:1"]);
    assert_eq!(first, run(&keyed, &Limits::default()).unwrap());
    let unkeyed = run(&request(Endpoint::NativeBatch, body), &Limits::default()).unwrap();
    assert_eq!(short(&unkeyed), ["made-1", "made-2"]);
    for key in ["", " ", &"k".repeat(201)] {
        let keyed = Request { idempotency_key: Some(key), ..request(Endpoint::NativeBatch, body) };
        assert_eq!(run(&keyed, &Limits::default()).unwrap_err().field.as_deref(), Some("Idempotency-Key"));
    }
}

#[test]
fn the_stickiest_identifier_routes() {
    let group = |kind, value| u32::from(millstream_model::key::group_of_parts("acme", kind, value));
    let of = |endpoint, body: &str| {
        let accepted = run(&request(endpoint, body.as_bytes()), &Limits::default()).unwrap();
        envelope(&accepted[0]).group
    };
    let native = |identifiers: &str| {
        let body = format!(r#"{{"batch":[{{"type":"user","identifiers":{identifiers}}}]}}"#);
        of(Endpoint::NativeBatch, &body)
    };
    assert_eq!(native(r#"{"user_id":"u","device_id":"d","anonymous_id":"a"}"#), group("anonymous_id", "a"));
    assert_eq!(native(r#"{"user_id":"u","push_id":"p","idfv":"i"}"#), group("idfv", "i"));
    assert_eq!(native(r#"{"email":"E@x.y","user_id":42}"#), group("user_id", "42"));
    assert_eq!(native(r#"{"phone":"+1","email":"E@x.y "}"#), group("email", "e@x.y"));
    assert_eq!(native(r#"{"zeta":"z","alpha":"a"}"#), group("alpha", "a"));
    assert_eq!(native(r#"{"anonymous_id":"null","user_id":"u"}"#), group("user_id", "u"));
    assert_eq!(native(r#"{"user_\u0069d":"u"}"#), group("user_id", "u"));
    let segment = |kind, body| of(Endpoint::Segment(kind), body);
    assert_eq!(segment(SegmentKind::Track, r#"{"userId":"u","anonymousId":"a"}"#), group("anonymous_id", "a"));
    assert_eq!(segment(SegmentKind::Alias, r#"{"userId":"u","previousId":"a"}"#), group("user_id", "u"));
    let delete = r#"{"identity_type":"email_id","identity_value":"E@x.y"}"#;
    assert_eq!(of(Endpoint::DataApi(DataApiKind::Delete), delete), group("email", "e@x.y"));
}

#[test]
fn an_envelope_carries_what_the_request_says_about_all() {
    let body =
        br#" {"sentAt":"2023-11-14T22:13:20Z","context":{"locale":"de"},"batch":[ {"type":"page","userId":"u"} ]} "#;
    let trace = millstream_model::trace::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let request = Request { trace: trace.clone(), ..request(Endpoint::Segment(SegmentKind::Batch), body) };
    let accepted = run(&request, &Limits::default()).unwrap();
    let envelope = envelope(&accepted[0]);
    assert_eq!(
        (envelope.tenant.as_str(), envelope.source(), envelope.kind.as_str()),
        ("acme", Source::Segment, "page")
    );
    assert_eq!((envelope.received_ms, envelope.sent_ms), (NOW, Some(NOW)));
    assert_eq!(&envelope.body[..], br#"{"type":"page","userId":"u"}"#);
    assert_eq!(&envelope.context[..], br#"{"locale":"de"}"#);
    assert_eq!(envelope.trace, trace);
}

#[test]
fn tenant_names() {
    for name in ["acme", "a", "shop-7.eu", &"x".repeat(63)] {
        assert!(is_tenant_name(name), "{name}");
    }
    for name in ["", "Acme", "-a", "a-", "_invalid", "a b", "a\0b", "ä", &"x".repeat(64)] {
        assert!(!is_tenant_name(name), "{name}");
    }
}

#[test]
fn unknown_limits_are_refused() {
    assert!(serde_json::from_str::<Limits>(r#"{"max_record":1}"#).is_err());
    assert_eq!(serde_json::from_str::<Limits>("{}").unwrap(), Limits::default());
}

#[test]
fn ids_made_of_any_key_are_short_enough_to_be_sent_back() {
    let user = |members: &str| format!(r#"{{"type":"user","identifiers":{{"user_id":"1x"}}{members}}}"#);
    let batch = |records: &[String]| format!(r#"{{"batch":[{}]}}"#, records.join(","));
    for length in [1, SHOWN_KEY_CHARS, SHOWN_KEY_CHARS + 1, 200] {
        let (key, other) = ("k".repeat(length), format!("{}x", "k".repeat(length - 1)));
        let ids = |key: &str, records: usize| {
            let body = batch(&vec![user(""); records]);
            let request = Request { idempotency_key: Some(key), ..request(Endpoint::NativeBatch, body.as_bytes()) };
            short(&run(&request, &Limits::default()).unwrap())
        };
        let made = ids(&key, 2500);
        assert_eq!(made, ids(&key, 2500));
        assert!(made.iter().all(|id| id.chars().count() <= LEAST_ID_CHARS && !ids(&other, 1).contains(id)), "{length}");
        let named = user(&format!(r#","message_id":"{}""#, made[2499]));
        let limits = Limits { max_id_chars: LEAST_ID_CHARS, ..Limits::default() };
        let body = batch(&[named]);
        assert_eq!(
            short(&run(&request(Endpoint::NativeBatch, body.as_bytes()), &limits).unwrap()),
            [made[2499].clone()]
        );
    }
    let body = r#"{"merge_data":[{"merged_user":"43x","retained_user":"42x"}]}"#;
    let key = "k".repeat(200);
    let merge =
        Request { idempotency_key: Some(&key), ..request(Endpoint::DataApi(DataApiKind::Merge), body.as_bytes()) };
    assert!(short(&run(&merge, &Limits::default()).unwrap())[0].len() <= LEAST_ID_CHARS);
}
