//! I9: who is whom, from the state that the changelogs fold to; and each document is the fold of its mutations.
//!
//! Without deletions, which identifiers form one user is computed again, by union-find over the links of all actions. With deletions, what nodes, users and devices say
//! of each other must agree, as in the identity tests of `worker/stages`.

use super::Findings;
use super::changelog::Story;
use super::records::Flow;
use crate::counts::Protocol;
use crate::sim::Sim;
use millstream_model::document::Document;
use millstream_model::id::{DeviceId, UserId};
use millstream_model::key::{Kind, StateKey, shard_of};
use millstream_model::proto::user::Fate;
use millstream_model::proto::{Action, Identifier, Object, User, Value as Attribute};
use millstream_stages::StateValue;
use millstream_stages::action::{Node, Value, render_device, render_user};
use std::collections::{BTreeMap, BTreeSet};

type State = BTreeMap<StateKey, Value>;
type Checked = Result<(), String>;

/// Checks it.
pub fn check(sim: &Sim, told: &BTreeMap<(&'static str, u32), Story>, findings: &mut Findings) {
    let mut all = State::new();
    for ((stage, shard), story) in told {
        if *stage != "action" {
            continue;
        }
        for (key, bytes) in &story.state {
            let placed = key.group().is_some_and(|group| shard_of(group, sim.settings.shards) == *shard);
            findings.check(placed, || format!("I9: {key:?} is in shard {shard}"));
            findings.check(!matches!(key.parts(), Some((_, Kind::Waiting, _))), || {
                format!("progress: {key:?} still waits")
            });
            if matches!(key.parts(), Some((_, Kind::Usage | Kind::Waiting, _)) | None) {
                continue;
            }
            match Value::decode(key, bytes) {
                Ok(value) => drop(all.insert(key.clone(), value)),
                Err(error) => findings.check(false, || format!("I9: {error}")),
            }
        }
    }
    let flow = Flow::read(sim, findings);
    count(sim, &all);
    let results = [
        ("I9", consistent(&all)),
        ("I9", if sim.settings.deletes { Ok(()) } else { people(&all, &flow) }),
        ("I1", documents(&all, &flow)),
    ];
    for (invariant, result) in results {
        if let Err(what) = result {
            findings.check(false, || format!("{invariant}: {what}"));
        }
    }
}

fn count(sim: &Sim, all: &State) {
    for value in all.values() {
        match value {
            Value::User(user) => match &user.fate {
                Some(Fate::Forward(_)) => sim.world.count(Protocol::Merged),
                Some(Fate::Deleted(_)) => sim.world.count(Protocol::Deleted),
                None => {}
            },
            Value::Erased(_) => sim.world.count(Protocol::Deleted),
            _ => {}
        }
    }
}

fn tenant_of(key: &StateKey) -> &str {
    key.parts().map_or("", |(tenant, _, _)| tenant)
}

fn user<'a>(all: &'a State, tenant: &str, id: &UserId) -> Option<&'a User> {
    match all.get(&StateKey::new(id.home(), tenant, Kind::User, id.as_bytes())) {
        Some(Value::User(user)) => Some(user),
        _ => None,
    }
}

fn node<'a>(all: &'a State, tenant: &str, identifier: &Identifier) -> Option<&'a Node> {
    match all.get(&StateKey::of_identifier(tenant, Kind::Node, identifier)) {
        Some(Value::Node(node)) => Some(node),
        _ => None,
    }
}

/// The end of a chain of forwards.
fn last<'a>(all: &'a State, tenant: &str, mut id: UserId) -> Result<(UserId, &'a User), String> {
    for _ in 0..1_000 {
        let found = user(all, tenant, &id).ok_or_else(|| format!("{id} is named and not there"))?;
        match &found.fate {
            Some(Fate::Forward(to)) => id = UserId::from_bytes(to).ok_or("a forward to no id")?,
            _ => return Ok((id, found)),
        }
    }
    Err(format!("{id} is forwarded in a circle"))
}

/// Nodes, users and devices agree.
fn consistent(all: &State) -> Checked {
    for (key, value) in all {
        let tenant = tenant_of(key);
        match value {
            Value::Node(node) => leads_to_its_user(all, key, node)?,
            Value::User(user) if !user.expelled.is_empty() => return Err(format!("{key:?} waits for a drain")),
            Value::User(user) if user.fate.is_none() => has_its_nodes(all, tenant, user)?,
            Value::Device(device) => {
                let Some(named) = &device.user else { continue };
                let found = node(all, tenant, named).ok_or_else(|| format!("{key:?} names {named}, without node"))?;
                let (id, state) = last(all, tenant, found.user)?;
                if !state.devices.iter().any(|it| it.device == device.id) {
                    return Err(format!("{key:?} names {named}, but {id} has no such device"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn leads_to_its_user(all: &State, key: &StateKey, node: &Node) -> Checked {
    if node.closing.is_some() {
        return Err(format!("{key:?} is still closing"));
    }
    let (tenant, _, rest) = key.parts().ok_or("a key of no parts")?;
    let text = std::str::from_utf8(rest).map_err(|error| error.to_string())?;
    let (kind, value) = text.split_once('\0').ok_or("a node of no identifier")?;
    let named = Identifier::new(kind, value);
    let (id, user) = last(all, tenant, node.user)?;
    if user.fate.is_some() {
        return Err(format!("{named} leads to {id}, which is deleted"));
    }
    if !user.identifiers.iter().any(|member| member.identifier.as_ref() == Some(&named)) {
        return Err(format!("{named} leads to {id}, of which it is no member"));
    }
    Ok(())
}

fn has_its_nodes(all: &State, tenant: &str, user: &User) -> Checked {
    let id = UserId::from_bytes(&user.id).ok_or("a user of no id")?;
    if user.identifiers.is_empty() {
        return Err(format!("{id} is live and nothing names it"));
    }
    for identifier in user.identifiers.iter().filter_map(|member| member.identifier.as_ref()) {
        let found = node(all, tenant, identifier).ok_or_else(|| format!("{identifier} of {id} has no node"))?;
        let (last, _) = last(all, tenant, found.user)?;
        if last != id {
            return Err(format!("{identifier} of {id} leads to {last}"));
        }
    }
    Ok(())
}

/// Sets of identifiers, with how many events they had, by tenant.
type People = BTreeSet<(String, BTreeSet<Identifier>, u64)>;

/// Users are what the links say.
fn people(all: &State, flow: &Flow) -> Checked {
    let mut found = People::new();
    for (key, value) in all {
        if let Value::User(user) = value
            && user.fate.is_none()
        {
            let identifiers: BTreeSet<Identifier> =
                user.identifiers.iter().filter_map(|member| member.identifier.clone()).collect();
            // Who is known by a device alone is there or not by whether the record came before the device's first user.
            if identifiers.iter().all(Identifier::names_device) {
                continue;
            }
            found.insert((tenant_of(key).to_owned(), identifiers, user.events));
        }
    }
    let expected = expected(flow);
    if found == expected {
        return Ok(());
    }
    let (more, less): (Vec<_>, Vec<_>) = (found.difference(&expected).collect(), expected.difference(&found).collect());
    Err(format!("users are not what the links say: too many {more:?}, missing {less:?}"))
}

fn expected(flow: &Flow) -> People {
    type Named = (String, Identifier);
    fn root(parents: &BTreeMap<Named, Named>, of: &Named) -> Named {
        match parents.get(of) {
            Some(above) if above != of => root(parents, above),
            _ => of.clone(),
        }
    }
    let refused: BTreeSet<(&str, &str)> = flow
        .rejects
        .iter()
        .filter(|reject| reject.stage == "action")
        .map(|reject| (reject.tenant.as_str(), reject.message_id.as_str()))
        .collect();
    let taken = |action: &&Action| !refused.contains(&(action.tenant.as_str(), action.message_id.as_str()));
    let actions: Vec<_> = flow.actions.iter().map(|(_, action)| action).filter(taken).collect();
    let mut parents = BTreeMap::new();
    for action in &actions {
        let named: Vec<Named> = action.user_identifiers.iter().map(|it| (action.tenant.clone(), it.clone())).collect();
        for other in &named {
            parents.entry(other.clone()).or_insert_with(|| other.clone());
            if let Some(first) = named.first() {
                let (one, two) = (root(&parents, first), root(&parents, other));
                parents.insert(one, two);
            }
        }
    }
    let mut sets: BTreeMap<Named, (BTreeSet<Identifier>, u64)> = BTreeMap::new();
    for named in parents.keys() {
        sets.entry(root(&parents, named)).or_default().0.insert(named.1.clone());
    }
    for action in actions.iter().filter(|action| action.event.is_some()) {
        if let Some(first) = action.user_identifiers.first() {
            sets.entry(root(&parents, &(action.tenant.clone(), first.clone()))).or_default().1 += 1;
        }
    }
    sets.into_iter().map(|((tenant, _), (identifiers, events))| (tenant, identifiers, events)).collect()
}

/// The fold of each entity's mutations is the document of its state, and each mutation builds on the one before.
fn documents(all: &State, flow: &Flow) -> Checked {
    let mut folds: BTreeMap<(&str, &str), Document> = BTreeMap::new();
    for mutation in &flow.mutations {
        let document = folds.entry((&mutation.tenant, &mutation.id)).or_insert_with(Document::empty);
        let (id, base, revision) = (&mutation.id, mutation.base, mutation.revision);
        if base != document.revision || revision != base + 1 {
            return Err(format!("{id}: {revision} builds on {base}, at revision {}", document.revision));
        }
        document.apply(mutation);
    }
    for (key, value) in all {
        let tenant = tenant_of(key);
        let (id, fields, revision) = match value {
            Value::User(user) => {
                let id = UserId::from_bytes(&user.id).ok_or("a user of no id")?;
                (id.to_string(), render_user(tenant, user), user.revision)
            }
            // What a deletion told a device before there was any record of it.
            Value::Device(device) if device.revision == 0 => continue,
            Value::Device(device) => {
                let id = DeviceId::from_bytes(&device.id).ok_or("a device of no id")?;
                (id.to_string(), render_device(tenant, device), device.revision)
            }
            _ => continue,
        };
        let document = folds.get(&(tenant, id.as_str())).ok_or_else(|| format!("{id} has no document"))?;
        let same = document.revision == revision && document.deleted == fields.is_none();
        if !same || as_sets(&document.fields) != fields.as_ref().map(as_sets).unwrap_or_default() {
            return Err(format!("the document of {id} is not its state, at revision {revision}"));
        }
    }
    Ok(())
}

/// The document with the lists of attributes in one order: elements of a set have none.
fn as_sets(fields: &Object) -> Object {
    let mut fields = fields.clone();
    for member in fields.members.iter_mut().filter(|member| member.name == "attributes") {
        let attributes = member.value.as_ref().and_then(Attribute::as_object).cloned().unwrap_or_default();
        let sorted = attributes.into_pairs().map(|(name, value)| (name, sorted(value)));
        member.value = Some(Attribute::object(sorted));
    }
    fields
}

fn sorted(value: Attribute) -> Attribute {
    let Some(items) = value.as_list() else { return value };
    let mut items = items.to_vec();
    items.sort_by_key(|item| item.as_str().map(str::to_owned));
    Attribute::list(items)
}
