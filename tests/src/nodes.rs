//! The pipeline `orders` by the nodes that its Pods are on: who is where, who owns what, and what must be so before a node may be taken away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use crate::pipeline::{program, until};
use crate::shop::{SYSTEM, Shop};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;

/// Done when a scenario ends, however it does: those that follow must find the cluster as it was.
pub struct Undo<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for Undo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The node of a Pod.
pub fn node_of(shop: &Shop, namespace: &str, pod: &str) -> usize {
    let node = shop.kubectl.run(&["get", "pod", pod, "-n", namespace, "-o", "jsonpath={.spec.nodeName}"], "").unwrap();
    node.trim_start_matches("node").parse().unwrap_or_else(|_| panic!("Pod {pod} is on no node: {node:?}"))
}

/// The pipeline's Pods on a node, with their uids.
pub fn pods_on(shop: &Shop, node: usize) -> BTreeMap<String, String> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.spec.nodeName}{\"\\n\"}{end}";
    let listed = shop.kubectl(&["get", "pods", "-o", path]);
    let of = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let (name, uid, on) = (words.next()?, words.next()?, words.next()?);
        (on == format!("node{node}")).then_some((name, uid))
    };
    listed.lines().filter_map(of).collect()
}

/// How often the worker of each Pod was started again.
pub fn restarts(shop: &Shop) -> BTreeMap<String, u64> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
    let listed = shop.kubectl(&["get", "pods", "-o", path]);
    listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, count)| (name.to_owned(), count.parse().unwrap_or(0)))
        .collect()
}

/// Waits until the worker of this Pod was started again since, once, and no other.
pub fn restarted_alone(shop: &Shop, before: &BTreeMap<String, u64>, pod: &str) {
    let mut expected = before.clone();
    *expected.get_mut(pod).unwrap() += 1;
    until("one worker that was started again", || {
        let now = restarts(shop);
        ensure!(now == expected, "{now:?} and not {expected:?}");
        Ok(Some(()))
    })
    .unwrap();
}

/// The Pod of the operator that leads.
pub fn leader(shop: &Shop) -> String {
    let lease = ["get", "lease", "millstream-operator", "-n", SYSTEM, "-o", "jsonpath={.spec.holderIdentity}"];
    let holder = shop.kubectl.run(&lease, "").unwrap();
    holder.rsplit_once('-').unwrap().0.to_owned()
}

/// Who owns each shard, as `kubectl millstream status` has it: `action/3` and a worker's name.
///
/// # Errors
/// When no operator leads, or a shard has no owner.
pub fn owners(shop: &Shop) -> Result<BTreeMap<String, String>> {
    let output = Command::new(program("millstream")?)
        .args(["kubectl", "status", "orders", "--json", "--namespace", "shop"])
        .env("KUBECONFIG", shop.kubectl.kubeconfig())
        .output()?;
    let known: Value =
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let rows = known[0]["shards"]["shards"].as_array().with_context(|| known[0]["unknown"].to_string())?;
    let owner = |row: &Value| {
        let shard = format!("{}/{}", row["stage"].as_str()?, row["shard"]);
        Some((shard, row["owner"].as_str()?.to_owned()))
    };
    rows.iter().map(|row| owner(row).with_context(|| format!("no owner: {row}"))).collect()
}

/// The owner of a shard.
pub fn owner(shop: &Shop, shard: &str) -> String {
    until("an owner", || Ok(owners(shop)?.remove(shard))).unwrap()
}

/// Waits until none of these Pods owns a shard, and every shard has an owner.
pub fn disowned(shop: &Shop, pods: &BTreeMap<String, String>) {
    until("other owners", || {
        let owners = owners(shop)?;
        let still: Vec<&String> = pods.keys().filter(|pod| owners.values().any(|owner| owner == *pod)).collect();
        ensure!(still.is_empty(), "shards are still those of {still:?}: {owners:?}");
        Ok(Some(()))
    })
    .unwrap();
}

/// Every shard has an owner, whoever waits for what.
pub fn all_owned(shop: &Shop) {
    until("an owner of every shard", || {
        let status = shop.get("mip", "orders")["status"].clone();
        let without = status["stages"].as_array().into_iter().flatten();
        let owned = without.into_iter().all(|stage| stage["shardsWithoutOwner"] == 0);
        ensure!(owned && status["shards"] == "12/12", "{status}");
        Ok(Some(()))
    })
    .unwrap();
}

/// Nothing is scheduled to these nodes until what comes back goes.
pub fn cordon(shop: &Shop, nodes: Vec<usize>) -> Undo<impl FnMut()> {
    let tell = move |verb: &str| {
        nodes.iter().try_for_each(|node| shop.kubectl.run(&[verb, &format!("node{node}")], "").map(drop))
    };
    tell("cordon").unwrap();
    Undo(move || drop(tell("uncordon")))
}

/// A stage both of whose Pods are on one node would not survive that node; what spreads them is a preference, which drains of nodes leave behind. A volume that is bound to the node is given up.
pub fn keep_apart(shop: &Shop) {
    for stage in ["gateway", "unify", "action", "reaction"] {
        let [first, second] = [0, 1].map(|ordinal| format!("orders-{stage}-{ordinal}"));
        let node = node_of(shop, "shop", &first);
        if node != node_of(shop, "shop", &second) {
            continue;
        }
        let _uncordon = cordon(shop, vec![node]);
        shop.kubectl(&["delete", "pvc", &format!("data-{second}"), "--ignore-not-found", "--wait=false"]);
        shop.kubectl(&["delete", "pod", &second]);
        shop.ready();
    }
}

/// The Pods on a node, at least one of which owns shards: when there is none, one is brought there.
pub fn with_owner_on(shop: &Shop, node: usize) -> BTreeMap<String, String> {
    let owns = |pods: &BTreeMap<String, String>| {
        let owners = owners(shop)?;
        Ok(owners.values().any(|owner| pods.contains_key(owner)))
    };
    if !until("owners", || owns(&pods_on(shop, node)).map(Some)).unwrap() {
        let _uncordon = cordon(shop, (1..=3).filter(|other| *other != node).collect());
        shop.kubectl(&["delete", "pod", "orders-reaction-1"]);
        shop.ready();
    }
    until("an owner on the node", || {
        let pods = pods_on(shop, node);
        Ok(owns(&pods)?.then_some(pods))
    })
    .unwrap()
}

/// Takes everything off a node. Workers whose volumes are bound to it wait until it may have Pods again; all others are ready before this returns.
pub fn drain(shop: &Shop, node: usize) -> Undo<impl FnMut()> {
    let all = shop.pods();
    let is_bound = |name: &String| name.starts_with("orders-unify-");
    let bound: Vec<String> = pods_on(shop, node).into_keys().filter(is_bound).collect();
    let name = format!("node{node}");
    let undo = Undo({
        let name = name.clone();
        move || drop(shop.kubectl.run(&["uncordon", &name], ""))
    });
    shop.kubectl.run(&["drain", &name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"], "").unwrap();
    until("all Pods that can be elsewhere", || {
        let unready = shop.unready(all.keys().filter(|name| !bound.contains(name)));
        ensure!(unready.is_empty(), "not {unready:?}");
        Ok(Some(()))
    })
    .unwrap();
    all_owned(shop);
    undo
}
