//! On an API server that answers as a test says.

use super::*;
use kube::client::Body;
use serde_json::{Value, json};
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Whoever waits for longer waits in vain.
const DEADLINE: Duration = Duration::from_secs(20);

type Answer = (u16, Value);

/// It answers what it is asked (`GET tenants`, `PATCH namespaces/home/tenants/acme`), or never; what it was asked, in turn.
fn server(answer: impl Fn(&str) -> Option<Answer> + Send + 'static) -> (Client, UnboundedReceiver<String>) {
    let (asks, asked) = unbounded_channel();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let path = request.uri().path();
        let path = path.trim_start_matches("/apis/ingestion.millstream.dev/v1alpha1/").trim_start_matches("/api/v1/");
        let name = format!("{} {path}", request.method());
        let answer = answer(&name);
        drop(asks.send(name));
        async move {
            let Some((status, body)) = answer else { return pending().await };
            http::Response::builder().status(status).body(Body::from(body.to_string().into_bytes()))
        }
    });
    (Client::new(service, "default"), asked)
}

/// An operator in the namespace `home` that may write everywhere.
fn operator(client: Client) -> Terminating {
    let settings = Settings { watched: None, namespace: "home".to_owned(), name: "operator-0".to_owned() };
    Terminating::new(client, &settings, Arc::default())
}

fn namespace(is_terminating: bool) -> Answer {
    let time = is_terminating.then_some("2026-01-01T00:00:00Z");
    (200, json!({"metadata": {"name": "it", "deletionTimestamp": time}}))
}

fn refusal(code: u16) -> Answer {
    let reason = if code == 404 { "NotFound" } else { "" };
    (code, json!({"kind": "Status", "status": "Failure", "message": "said", "reason": reason, "code": code}))
}

/// Objects that have our finalizers, by namespace and name.
fn list(finalizer: &str, names: &[(&str, &str)]) -> Answer {
    let object = |(namespace, name): &(&str, &str)| json!({"metadata": {"namespace": namespace, "name": name, "resourceVersion": "1", "finalizers": [finalizer]}});
    (200, json!({"metadata": {}, "items": names.iter().map(object).collect::<Vec<_>>()}))
}

/// A pipeline and a tenant in the namespace `home`, which is being deleted.
fn usual(name: &str) -> Answer {
    match name {
        "GET namespaces/home" => namespace(true),
        "GET ingestionpipelines" => list(deletion::FINALIZER, &[("home", "orders")]),
        "GET tenants" => list(erasure::FINALIZER, &[("home", "acme")]),
        name if name.starts_with("PATCH") => (200, json!({"metadata": {}})),
        _ => refusal(404),
    }
}

/// All that it was asked until now.
fn all(asked: &mut UnboundedReceiver<String>) -> Vec<String> {
    std::iter::from_fn(|| asked.try_recv().ok()).collect()
}

/// What was patched until now, in turn (`home/tenants/acme`).
fn patched(asked: &mut UnboundedReceiver<String>) -> Vec<String> {
    all(asked).iter().filter_map(|name| name.strip_prefix("PATCH namespaces/")).map(str::to_owned).collect()
}

/// The tenants of a hundred, in the order in which one look lets go of them.
async fn order_of_a_look() -> Vec<String> {
    let (client, mut asked) = server(|name| {
        let names: Vec<String> = (0..100).map(|number| format!("t{number:02}")).collect();
        let tenants: Vec<(&str, &str)> = names.iter().map(|name| ("home", name.as_str())).collect();
        Some(match name {
            "GET tenants" => list(erasure::FINALIZER, &tenants),
            "GET ingestionpipelines" => list(deletion::FINALIZER, &[]),
            name => usual(name),
        })
    });
    operator(client).look().await.unwrap();
    patched(&mut asked)
}

#[tokio::test]
async fn each_takes_them_in_an_order_of_its_own() {
    let (mut one, mut other) = (order_of_a_look().await, order_of_a_look().await);
    assert_ne!(one, other);
    one.sort();
    other.sort();
    assert_eq!((one.len(), &one), (100, &other));
}

#[tokio::test]
async fn a_list_that_fails_or_is_not_answered_keeps_nothing_that_the_other_gave() {
    let both = [
        ("GET ingestionpipelines", "PATCH namespaces/home/tenants/acme"),
        ("GET tenants", "PATCH namespaces/home/ingestionpipelines/orders"),
    ];
    for (list, expected) in both {
        for answer in [Some(refusal(500)), None] {
            let (client, mut asked) = server(move |name| if name == list { answer.clone() } else { Some(usual(name)) });
            let looking = tokio::spawn(operator(client).run(pending()));
            let is_let_go = async { while asked.recv().await.is_some_and(|name| name != expected) {} };
            timeout(DEADLINE, is_let_go).await.unwrap_or_else(|_| panic!("{expected} waits for {list}"));
            looking.abort();
        }
    }
}

#[tokio::test]
async fn home_comes_first_and_what_fails_elsewhere_keeps_nothing_else() {
    let there = ["broken", "gone", "goes", "home", "stays"].map(|namespace| (namespace, "acme"));
    let (client, mut asked) = server(move |name| {
        Some(match name {
            "GET tenants" => list(erasure::FINALIZER, &there),
            "GET ingestionpipelines" => list(deletion::FINALIZER, &[]),
            "GET namespaces/broken" => refusal(500),
            "GET namespaces/goes" => namespace(true),
            "GET namespaces/stays" => namespace(false),
            name => usual(name),
        })
    });
    assert!(matches!(operator(client).look().await, Err(Trouble::Unavailable { .. })));
    let asked = all(&mut asked);
    let at = |name: &str| asked.iter().position(|it| it == name);
    let home = at("PATCH namespaces/home/tenants/acme");
    for other in ["broken", "gone", "goes", "stays"].map(|namespace| at(&format!("GET namespaces/{namespace}"))) {
        assert!(home.is_some() && home < other, "{asked:?}");
    }
    let mut patched: Vec<&String> = asked.iter().filter(|name| name.starts_with("PATCH")).collect();
    patched.sort();
    assert_eq!(patched, ["PATCH namespaces/goes/tenants/acme", "PATCH namespaces/home/tenants/acme"]);
}

#[tokio::test]
async fn one_who_is_told_to_end_tries_again_when_it_is_not_answered() {
    let asked_before = AtomicUsize::new(0);
    let (client, mut asked) = server(move |name| {
        let is_first = asked_before.fetch_add(1, Ordering::Relaxed) == 0;
        (!is_first).then(|| usual(name))
    });
    timeout(LAST, operator(client).last()).await.expect("the first try takes all the time");
    assert_eq!(patched(&mut asked).len(), 2);
}

#[tokio::test]
async fn one_who_is_told_to_end_tries_again_when_that_may_help_whatever_else_is_refused() {
    for list in ["GET ingestionpipelines", "GET tenants"] {
        let tried = AtomicUsize::new(0);
        let (client, mut asked) = server(move |name| {
            Some(match name {
                name if name == list => refusal(403),
                name if name.starts_with("PATCH") && tried.fetch_add(1, Ordering::Relaxed) == 0 => refusal(409),
                name => usual(name),
            })
        });
        timeout(DEADLINE, operator(client).last()).await.expect("what is refused is tried for ever");
        assert_eq!(patched(&mut asked).len(), 2, "{list}");
    }
}

#[tokio::test]
async fn nothing_is_looked_for_while_the_namespace_stays_or_when_it_is_not_there() {
    for home in [namespace(false), refusal(404)] {
        let (client, mut asked) =
            server(move |name| Some(if name == "GET namespaces/home" { home.clone() } else { usual(name) }));
        operator(client).look().await.unwrap();
        assert_eq!(all(&mut asked), ["GET namespaces/home"]);
    }
}

#[tokio::test]
async fn a_finalizer_is_added_only_where_there_is_a_namespace_that_stays() {
    for (home, is_added) in [(namespace(false), true), (namespace(true), false), (refusal(404), false)] {
        let metadata =
            json!({"namespace": "home", "name": "acme", "uid": "1", "generation": 1, "resourceVersion": "1"});
        let found = (200, json!({ "metadata": metadata }));
        let (client, mut asked) = server(move |name| {
            Some(match name {
                "GET namespaces/home" => home.clone(),
                "GET namespaces/home/tenants/acme" => found.clone(),
                name => usual(name),
            })
        });
        let metadata: ObjectMeta = serde_json::from_value(metadata).unwrap();
        let added = finalizer::hold::<Tenant>(&client, &metadata, erasure::FINALIZER, true).await.unwrap();
        assert_eq!((added, patched(&mut asked).len()), (is_added, usize::from(is_added)));
    }
}
