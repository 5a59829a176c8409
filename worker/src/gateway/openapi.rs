//! The OpenAPI document, made from the table of routes and the types of the answers.

use super::answer::{Answer, ErrorAnswer, ErrorBody, RecordAnswer, RecordError};
use super::routes::{ROUTES, Route, Target};
use super::schemas;
use millstream_stages::source::{DataApiKind as D, Endpoint, SegmentKind as S};
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};

use utoipa::openapi::{ContentBuilder, OneOfBuilder, Ref, RefOr, Required, ResponseBuilder};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Millstream gateway",
        description = "Records in, one answer per record.\n\n\
            **Acknowledgement.** A record answered `accepted` is in the log and will not be lost. 200: at least one record was accepted (or there was none); look at \
            `records` for the others. 400: none was. 503 with status `unknown`: the log did not answer in time; repeat the records in `retry` with the same ids.\n\n\
            **Message ids.** A repeated record is recognised by its message id. A record without one gets an id derived from the header `Idempotency-Key` and its position, or, \
            without that header, a random one: then a repeated request doubles it.\n\n\
            **/v1/batch** is claimed by two APIs. With `Authorization: Basic` (the key as user name, as Segment's SDKs send it) it is Segment's; with `Authorization: Bearer` or \
            `X-API-Key` it is the native one. `/segment/v1/batch` and `/native/v1/batch` mean what they say, however the key is sent.\n\n\
            **Bodies** may be compressed: `Content-Encoding` gzip, zstd or br."
    ),
    components(schemas(Answer, RecordAnswer, RecordError, ErrorAnswer, ErrorBody))
)]
struct Document;

/// The document, as it is served at `/openapi.json` and checked in as `worker/openapi.json`.
pub fn openapi_json() -> String {
    let mut document = Document::openapi();
    let components = document.components.get_or_insert_default();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The API key")).build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let header = ApiKeyValue::with_description("X-API-Key", "The API key");
    components.add_security_scheme("header", SecurityScheme::ApiKey(ApiKey::Header(header)));
    let basic = HttpBuilder::new().scheme(HttpAuthScheme::Basic).description(Some("The API key as user name")).build();
    components.add_security_scheme("basic", SecurityScheme::Http(basic));
    for (name, schema) in schemas::all() {
        // What is not a schema would be missing here, and a test asks for each.
        components.schemas.extend(serde_json::from_value(schema).ok().map(|schema| (name.to_owned(), schema)));
    }
    for route in &ROUTES {
        document.paths.add_path_operation(route.path, vec![HttpMethod::Post], operation(route));
    }
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

fn operation(route: &Route) -> Operation {
    let id = route.path.trim_start_matches('/').replace(['/', '-'], "_");
    let mut operation = OperationBuilder::new()
        .operation_id(Some(id))
        .summary(Some(route.summary))
        .tag(tag(route.target))
        .parameter(header(
            "Idempotency-Key",
            "Makes message ids for records that have none, so that a repeated request doubles nothing",
        ))
        .parameter(header("X-Request-Id", "Taken over into the answer and the logs; up to 64 visible ASCII characters"))
        .parameter(header("traceparent", "W3C trace context; the trace goes on through all stages"))
        .parameter(header("tracestate", "W3C trace context; passed on with the trace, up to 512 characters"))
        .request_body(Some(request_body(route.target)));
    for scheme in ["bearer", "header", "basic"] {
        operation = operation.security(SecurityRequirement::new::<_, [&str; 0], &str>(scheme, []));
    }
    for (code, description, answers) in RESPONSES {
        let content = ContentBuilder::new().schema(Some(one_of(answers))).build();
        let response = ResponseBuilder::new().description(description).content("application/json", content).build();
        operation = operation.response(code, response);
    }
    operation.build()
}

/// A schema, or one of several.
fn one_of(names: &[&str]) -> RefOr<Schema> {
    match names {
        [name] => Ref::from_schema_name(*name).into(),
        names => {
            let all = names.iter().map(|name| Ref::from_schema_name(*name));
            Schema::OneOf(all.fold(OneOfBuilder::new(), OneOfBuilder::item).build()).into()
        }
    }
}

const EITHER: &[&str] = &["Answer", "ErrorAnswer"];
const ERROR: &[&str] = &["ErrorAnswer"];

const RESPONSES: [(&str, &str, &[&str]); 11] = [
    ("200", "At least one record was accepted, or there was none", &["Answer"]),
    (
        "400",
        "No record was accepted: an Answer says why per record, or an ErrorAnswer for the request as a whole",
        EITHER,
    ),
    ("401", "No API key, or an unknown one", ERROR),
    ("404", "There is nothing at this path", ERROR),
    ("405", "The path takes another method", ERROR),
    ("408", "The body did not arrive in time", ERROR),
    (
        "413",
        "The request (an ErrorAnswer), or the only record of an endpoint that takes one (an Answer), exceeds its limit, which is named",
        EITHER,
    ),
    ("415", "Content-Type or Content-Encoding is not taken", ERROR),
    (
        "429",
        "The tenant sends more than its rate: nothing was taken; repeat after Retry-After, with the same ids",
        ERROR,
    ),
    ("500", "The gateway failed; repeat with the same ids", ERROR),
    (
        "503",
        "The outcome is unknown (an Answer with `retry`), or the gateway is overloaded (an ErrorAnswer); repeat after Retry-After",
        EITHER,
    ),
];

fn tag(target: Target) -> &'static str {
    match target {
        Target::BatchByScheme => "Batch",
        Target::Only(Endpoint::NativeBatch) => "Native",
        Target::Only(Endpoint::DataApi(_)) => "Data API",
        Target::Only(Endpoint::Segment(_)) => "Segment",
    }
}

fn header(name: &str, description: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(Schema::Object(ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).build())))
        .build()
}

fn request_body(target: Target) -> RequestBody {
    let schema = match target {
        Target::Only(endpoint) => one_of(&[schemas::body(endpoint)]),
        Target::BatchByScheme => {
            let either = ["NativeBatch", "SegmentBatch"].map(Ref::from_schema_name);
            Schema::AnyOf(either.into_iter().fold(AnyOfBuilder::new(), AnyOfBuilder::item).build()).into()
        }
    };
    let content = ContentBuilder::new().schema(Some(schema)).example(Some(example(target))).build();
    let mut body = RequestBodyBuilder::new().required(Some(Required::True)).content("application/json", content);
    if matches!(target, Target::BatchByScheme | Target::Only(Endpoint::NativeBatch)) {
        let line = "{\"type\": \"user\", \"identifiers\": {\"user_id\": \"42\"}, \"set\": {\"plan\": \"pro\"}}\n";
        let text = Schema::Object(ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).build());
        let content = ContentBuilder::new().schema(Some(text)).example(Some(Value::from(line))).build();
        body = body.content("application/x-ndjson", content);
    }
    body.build()
}

/// A request as documentation shows it; a test sends each to the gateway.
fn example(target: Target) -> Value {
    match target {
        Target::BatchByScheme | Target::Only(Endpoint::NativeBatch) => json!({"batch": [
            {"type": "event", "event": "signup", "message_id": "m-1", "identifiers": {"anonymous_id": "7f1c", "user_id": "42"}, "time": "2026-01-31T12:00:00Z", "properties": {"plan": "pro"}},
            {"type": "user", "message_id": "m-2", "identifiers": {"user_id": "42"}, "set": {"name": "Zoë"}, "add": {"tags": ["vip"]}},
            {"type": "merge", "message_id": "m-3", "retained": {"type": "user_id", "value": "42"}, "merged": {"type": "email", "value": "zoe@example.com"}}
        ]}),
        Target::Only(Endpoint::DataApi(kind)) => data_api_example(kind),
        Target::Only(Endpoint::Segment(kind)) => segment_example(kind),
    }
}

fn data_api_example(kind: D) -> Value {
    let customer = json!({"type": "customer", "customer_id": "42", "attributes": {"name": "Zoë", "plan": "pro"}});
    let event = json!({"type": "event", "customer_id": "42", "actions": [{"action": "signup", "attributes": {"plan": "pro"}, "platform": "web"}]});
    let device = json!({"type": "device", "customer_id": "42", "device_id": "d-1", "attributes": {"platform": "iOS", "push_id": "p-1", "model": "iPhone16,1"}});
    match kind {
        D::Customer => customer,
        D::Event => event,
        D::Device => device,
        D::Transition => json!({"type": "transition", "elements": [customer, event, device]}),
        D::Merge => json!({"merge_data": [{"merged_user": "43", "retained_user": "42"}]}),
        D::Delete => json!({"identity_type": "customer_id", "identity_value": "42"}),
    }
}

fn segment_example(kind: S) -> Value {
    let track = json!({"type": "track", "messageId": "m-1", "anonymousId": "7f1c", "event": "signup", "properties": {"plan": "pro"}});
    match kind {
        S::Identify => json!({"messageId": "m-2", "userId": "42", "anonymousId": "7f1c", "traits": {"plan": "pro"}}),
        S::Track => track,
        S::Page => json!({"messageId": "m-3", "anonymousId": "7f1c", "name": "Home", "properties": {"path": "/"}}),
        S::Screen => json!({"messageId": "m-4", "anonymousId": "7f1c", "name": "Home"}),
        S::Group => json!({"messageId": "m-5", "userId": "42", "groupId": "acme", "traits": {"seats": 12}}),
        S::Alias => json!({"messageId": "m-6", "userId": "42", "previousId": "7f1c"}),
        S::Batch => json!({"batch": [track], "sentAt": "2026-01-31T12:00:00Z"}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_stages::source::{Accepted, Limits, Request, split};

    #[test]
    fn the_checked_in_document_is_what_the_code_serves() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, openapi_json()).unwrap();
        }
        let checked_in = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            checked_in == openapi_json(),
            "worker/openapi.json is out of date: run the tests with UPDATE_GOLDEN=1 and look at the difference"
        );
    }

    #[test]
    fn every_example_is_accepted() {
        for route in &ROUTES {
            let endpoints = match route.target {
                Target::Only(endpoint) => vec![endpoint],
                Target::BatchByScheme => vec![Endpoint::NativeBatch],
            };
            let body = example(route.target).to_string();
            for endpoint in endpoints {
                let request = Request {
                    tenant: "acme",
                    endpoint,
                    body: body.as_bytes(),
                    ndjson: false,
                    idempotency_key: None,
                    received_ms: 0,
                    trace: None,
                };
                let accepted = split(&request, &Limits::default(), &mut || "made".to_owned()).unwrap();
                assert!(!accepted.is_empty());
                assert!(
                    accepted.iter().all(|one| matches!(one, Accepted::Envelope(_))),
                    "{}: {accepted:?}",
                    route.path
                );
            }
        }
    }

    /// What is wrong with a value by a schema; knows the words that the schemas use.
    fn check(value: &Value, schema: &Value, all: &Value) -> Result<(), String> {
        if let Some(name) = schema["$ref"].as_str() {
            let schema = &all[name.rsplit('/').next().unwrap()];
            assert!(schema.is_object(), "{name} is not there");
            return check(value, schema, all);
        }
        if let Some(options) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
            let outcomes: Vec<_> = options.iter().map(|option| check(value, option, all)).collect();
            let fits = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            let right = if schema["anyOf"].is_array() { fits >= 1 } else { fits == 1 };
            return if right { Ok(()) } else { Err(format!("{fits} of {value}: {outcomes:?}")) };
        }
        let fits = match schema["type"].as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("integer") => value.is_i64(),
            Some("number") => value.is_number(),
            Some("boolean") => value.is_boolean(),
            other => other.is_none(),
        };
        let chosen = schema["enum"].as_array().is_none_or(|choices| choices.contains(value));
        if !fits || !chosen {
            return Err(format!("{value} is not {schema}"));
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            value.get(name.as_str().unwrap()).ok_or(format!("{value} lacks {name}"))?;
        }
        value.as_array().into_iter().flatten().try_for_each(|item| check(item, &schema["items"], all))?;
        for (name, member) in value.as_object().into_iter().flatten() {
            match (&schema["properties"][name], &schema["additionalProperties"]) {
                (Value::Null, more) if more.is_object() => check(member, more, all)?,
                (Value::Null, more) if more != true => return Err(format!("{name} of {value} is not described")),
                (Value::Null, _) => {}
                (of_member, _) => check(member, of_member, all)?,
            }
        }
        Ok(())
    }

    #[test]
    fn every_example_is_what_its_schema_says() {
        let document: Value = serde_json::from_str(&openapi_json()).unwrap();
        let all = &document["components"]["schemas"];
        for (name, _) in schemas::all() {
            assert!(all[name].is_object(), "{name}");
        }
        for route in &ROUTES {
            let content = &document["paths"][route.path]["post"]["requestBody"]["content"]["application/json"];
            check(&content["example"], &content["schema"], all).unwrap_or_else(|why| panic!("{}: {why}", route.path));
        }
        let wrong = json!({"batch": [{"type": "users", "identifiers": {}}]});
        assert!(check(&wrong, &json!({"$ref": "#/components/schemas/NativeBatch"}), all).is_err());
    }

    #[test]
    fn every_route_is_described() {
        let document: Value = serde_json::from_str(&openapi_json()).unwrap();
        for route in &ROUTES {
            let operation = &document["paths"][route.path]["post"];
            assert_eq!(operation["summary"], route.summary, "{}", route.path);
            let codes: Vec<_> = operation["responses"].as_object().unwrap().keys().collect();
            assert_eq!(
                codes,
                ["200", "400", "401", "404", "405", "408", "413", "415", "429", "500", "503"],
                "{}",
                route.path
            );
            let answers = &operation["responses"]["400"]["content"]["application/json"]["schema"]["oneOf"];
            assert_eq!(answers.as_array().map(Vec::len), Some(2), "{}", route.path);
            assert!(operation["requestBody"]["content"]["application/json"]["example"].is_object(), "{}", route.path);
        }
        assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    }
}
