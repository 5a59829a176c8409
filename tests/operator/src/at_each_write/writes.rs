//! One operator after the other, each of which dies at a write to the API server.

use millstream_tests::api_proxy::{ApiProxy, Fate};
use millstream_tests::scene::{Scene, start_from};
use serde_json::json;
use std::collections::BTreeSet;

/// A namespace with a proxy, through which one operator after the other works.
pub(super) struct Writes {
    pub(super) scene: Scene,
    pub(super) proxy: ApiProxy,
    /// The operator is told that it runs in this Pod.
    pub(super) pod: Option<&'static str>,
    /// The next operator takes the Lease as the one before has left it.
    pub(super) keeps_lease: bool,
}

impl Writes {
    pub(super) fn new(namespace: &str) -> Writes {
        Writes::of(Scene::with_secret(namespace))
    }

    pub(super) fn of(mut scene: Scene) -> Writes {
        // It is there for its namespace only.
        scene.operator.kill().unwrap();
        let proxy = ApiProxy::start(scene.server.kubeconfig()).unwrap();
        let writes = Writes { scene, proxy, pod: None, keeps_lease: false };
        writes.forget_lease();
        writes
    }

    /// The next operator, which need not wait until a dead one's lease is over.
    pub(super) fn start(&mut self) {
        if !self.keeps_lease {
            self.forget_lease();
        }
        let (home, mut more) = (&self.scene.namespace, vec!["--api-timeout-seconds", "10"]);
        more.extend(self.pod.iter().flat_map(|pod| ["--name", pod]));
        (self.scene.operator, self.scene.admin) = start_from(self.proxy.kubeconfig(), home, home, &more);
    }

    fn forget_lease(&self) {
        let lease = format!("lease/millstream-operator-{}", self.scene.namespace);
        self.scene.kubectl(&["delete", &lease, "--ignore-not-found"], "");
    }

    pub(super) fn pipeline(&self) {
        self.scene.pipeline(&json!({"shards": 2, "topicDeletionPolicy": "Delete"}));
    }

    /// Until something is so, each operator dies at the first write at which none has died yet: before it is done, the next one after. The names of these writes.
    pub(super) fn die_at_each_until(&mut self, what: &str, is_so: impl Fn(&Scene) -> bool) -> BTreeSet<String> {
        self.die_at_each_of("", what, is_so)
    }

    /// The same, of the writes whose names contain this.
    pub(super) fn die_at_each_of(
        &mut self,
        about: &'static str,
        what: &str,
        is_so: impl Fn(&Scene) -> bool,
    ) -> BTreeSet<String> {
        let named = move |name: &str, body: &str| {
            // The status that says which topics are made is another one than those before.
            let is_of_topics = body.contains("createdTopicsIn");
            let name = if is_of_topics { format!("{name} (topics)") } else { name.to_owned() };
            name.contains(about).then_some(name)
        };
        self.die_at_each_named(named, what, is_so)
    }

    /// The same, of the writes that get a name, by which they are told apart.
    pub(super) fn die_at_each_named(
        &mut self,
        named: impl Fn(&str, &str) -> Option<String> + Copy + Send + 'static,
        what: &str,
        is_so: impl Fn(&Scene) -> bool,
    ) -> BTreeSet<String> {
        let mut died: BTreeSet<(String, bool)> = BTreeSet::new();
        loop {
            let known = died.clone();
            let (say, at) = std::sync::mpsc::channel();
            self.proxy.go_on(move |name, body| {
                let Some(name) = named(name, body) else { return Fate::Done };
                for (is_done, fate) in [(false, Fate::StruckBefore), (true, Fate::StruckAfter)] {
                    if !known.contains(&(name.clone(), is_done)) {
                        let _ = say.send((name, is_done));
                        return fate;
                    }
                }
                Fate::Done
            });
            self.start();
            self.scene.until(what, || {
                let seen = format!("{} writes so far", died.len());
                ((self.proxy.has_struck() || is_so(&self.scene)).then_some(()), seen)
            });
            let has_struck = self.proxy.has_struck();
            self.scene.operator.kill().unwrap();
            match at.try_recv() {
                Ok(write) if has_struck => assert!(died.insert(write)),
                _ => break,
            }
        }
        died.into_iter().map(|(name, _)| name).collect()
    }
}
