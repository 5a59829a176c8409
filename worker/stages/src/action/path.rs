//! The path of what a device identifier routes: in which order a device's records reach their users (part of I3).
//!
//! A record is resolved by the identifier that names its user. Of records that a *device* identifier routes, one may name its user by this, the next by
//! that identifier, and a third nobody, so that it is about whom the device belonged to last; and the identifier itself may become a further one of another device, to
//! whose home everything goes from then on. Each of these is a way of its own (node, user, forwards; or a home before them), and two ways may end at one user: what goes by one overtakes what went by the other.
//!
//! So the home of each routing identifier sends everything **one way at a time**: the *path* has one *goal*, the identifier or the device by which its last record went.
//!
//! # Protocol
//! - A record with another goal waits, and so do all behind it. An *Ask* follows what was sent along the path, and is treated like a record wherever it comes: passed on by
//!   node, forwards and other devices' paths, sent back, held in a closing node. Where its way ends, it becomes an *Arrival* and goes back: everything that was sent before it is there.
//! - When the other goal is an identifier of the user at the end, too, and its own node leads there, records that it names take the path from then on. They say so (`instead`), and at the end are
//!   treated as if they had come by their own identifier. If that is no member there any longer, they go on by their own way: nobody gets a record that does not name them.
//! - Otherwise nothing is under way on the old path, and the path changes.
//! - When a deletion takes the goal, or a record is refused there, the device forgets it, and asks at once: what comes next must not overtake what finds nobody at the old one.
//!
//! What waits is bounded ([`MOST_WAITING`], [`WAITING_BYTES`]): beyond, the oldest goes at once, by its own way, and its order against what went by
//! other ways is given up. That takes hundreds of records of one device within one round trip, by ever different users: no device, but a
//! value that many share.

use super::state::{self, Value, device_key, identifier_hash, required};
use super::work::{Header, Work};
use crate::{State, StateError};
use millstream_model::id::DeviceId;
use millstream_model::proto::action::Way;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::goal::Whom;
use millstream_model::proto::{Action, Arrival, Ask, DeviceState, Goal, Identifier, Path, Same, Stamp, Waiting};
use prost::Message;

/// Records of one device that wait at the same time.
const MOST_WAITING: usize = 256;
/// Bytes of these; one record may wait whatever its size.
const WAITING_BYTES: usize = 1024 * 1024;
/// Further identifiers of the user at the end of the path that a device remembers: the last that it asked about.
pub(super) const MOST_SAME: usize = 16;

/// By which identifier a device's last user was named, and by the record of which stamp.
pub(super) type LastUser = (Identifier, Option<Stamp>);

impl Work<'_> {
    /// Sends a record that a device identifier routes to the user whom `named` names, behind all that went there before.
    pub(super) fn send_to_user(
        &mut self,
        header: &Header,
        device: &DeviceId,
        named: Identifier,
        action: Action,
    ) -> Result<(), StateError> {
        let waiting = Waiting { goal: Some(to(Whom::User(named))), action: Some(action), ..Waiting::default() };
        self.send_by_path(header, device, waiting)
    }

    /// Sends a record that a device identifier routes on to the device that this primary identifier names.
    pub(super) fn send_on(
        &mut self,
        header: &Header,
        device: &DeviceId,
        primary: Identifier,
        action: Action,
        last: Option<LastUser>,
    ) -> Result<(), StateError> {
        let (last_user, user_stamp) = last.map_or((None, None), |(user, stamp)| (Some(user), stamp));
        let goal = Some(to(Whom::Device(primary)));
        self.send_by_path(header, device, Waiting { goal, action: Some(action), last_user, user_stamp })
    }

    /// A question of another device, which sends what it routes on to this one.
    pub(super) fn follow_path(&mut self, header: &Header, device: &DeviceId, action: Action) -> Result<(), StateError> {
        let waiting = Waiting { action: Some(action), ..Waiting::default() };
        self.send_by_path(header, device, waiting)
    }

    fn send_by_path(&mut self, header: &Header, device: &DeviceId, waiting: Waiting) -> Result<(), StateError> {
        let path = path(self.state, &device_key(&header.tenant, device), device)?;
        let is_deletion = waiting.action.as_ref().is_some_and(|action| action.delete);
        if path.asked.is_none() && path.goal == waiting.goal && !is_deletion {
            return self.depart_along(header, None, waiting);
        }
        path.waiting.push(waiting);
        let departures = if path.asked.is_some() { overflow(path) } else { depart(path, device, false)? };
        self.send_departures(header, departures)
    }

    /// At the end of its way, a question goes back as an answer.
    pub(super) fn arrive(&mut self, tenant: &str, ask: Ask, same: bool) -> Result<(), StateError> {
        let home = state::device_id(&ask.device)?.home();
        self.send(tenant, 0, home, Body::Arrival(Arrival { device: ask.device, same, stamp: ask.stamp }));
        Ok(())
    }

    /// At the home that asked: nothing is under way on the path any more.
    pub(super) fn arrival(&mut self, header: &Header, message: &Arrival) -> Result<(), StateError> {
        let id = state::device_id(&message.device)?;
        let key = device_key(&header.tenant, &id);
        // Its tenant may have been erased since it asked.
        if state::device_mut(self.state, &key)?.is_none() {
            return Ok(());
        }
        let path = path(self.state, &key, &id)?;
        if let Some(Ask { identifier: Some(identifier), stamp, .. }) = path.asked.take()
            && message.same
            && path.goal.is_some()
        {
            let identifier = identifier_hash(&identifier);
            path.same.retain(|same| same.identifier != identifier);
            path.same.push(Same { identifier, stamp });
            let beyond = path.same.len().saturating_sub(MOST_SAME);
            path.same.drain(..beyond);
        }
        let departures = depart(path, &id, true)?;
        self.send_departures(header, departures)
    }

    /// At the home of a device: these identifiers are not to be named here any longer, since a deletion took them, or a record was refused for its user.
    pub(super) fn forget_path(
        &mut self,
        header: &Header,
        device: &DeviceId,
        identifiers: &[Identifier],
        stamp: Stamp,
    ) -> Result<(), StateError> {
        let state = state::device_mut(self.state, &device_key(&header.tenant, device))?;
        let Some(path) = state.and_then(|device| device.path.as_mut()) else { return Ok(()) };
        let Some(user) = path.goal.as_ref().and_then(user_of) else { return Ok(()) };
        if !identifiers.contains(user) {
            return Ok(());
        }
        let about = Action {
            tenant: header.tenant.clone(),
            group: header.group.into(),
            stamp: Some(stamp),
            ..Action::default()
        };
        let departure = leave_goal(path, device, &about);
        self.send_departures(header, departure.into_iter().collect())
    }

    fn send_departures(&mut self, header: &Header, departures: Vec<Departure>) -> Result<(), StateError> {
        for Departure { along, waiting } in departures {
            self.depart_along(header, along, waiting)?;
        }
        Ok(())
    }

    /// Sends something by a path, or by its own way.
    fn depart_along(&mut self, header: &Header, along: Option<Goal>, waiting: Waiting) -> Result<(), StateError> {
        let action = required(waiting.action, "action")?;
        match along.or(waiting.goal).and_then(|goal| goal.whom) {
            Some(Whom::User(via)) => self.resolve_by(header.hops + 1, via, action, false),
            Some(Whom::Device(primary)) => {
                let last = waiting.last_user.map(|user| (user, waiting.user_stamp));
                self.send_to_device(header.hops + 1, primary, action, true, last);
            }
            // The path leads no further.
            None => match action.way {
                Some(Way::Ask(ask)) => return self.arrive(&header.tenant, ask, false),
                _ => return Err(StateError::Invalid("a record waits at a device and says not for what".to_owned())),
            },
        }
        Ok(())
    }
}

/// What has its turn.
struct Departure {
    /// The path; absent: its own way.
    along: Option<Goal>,
    waiting: Waiting,
}

fn to(whom: Whom) -> Goal {
    Goal { whom: Some(whom) }
}

/// The path of a device, which may not be known by anything else: then only its primary identifier is, as a further one of another device.
fn path<'s>(
    state: &'s mut dyn State<Value>,
    key: &millstream_model::key::StateKey,
    id: &DeviceId,
) -> Result<&'s mut Path, StateError> {
    let device: &mut DeviceState = super::device::device_state(state, key, id.as_bytes().to_vec())?;
    if device.path.is_none() {
        // It grows by the path; the next record measures it.
        device.size_bound = 0;
    }
    Ok(device.path.get_or_insert_default())
}

/// Takes from what waits, in its order, all that can go; ends with a question when the next needs its answer. `is_free`: nothing is under way on the path.
fn depart(path: &mut Path, device: &DeviceId, is_free: bool) -> Result<Vec<Departure>, StateError> {
    let mut is_free = is_free || path.goal.is_none();
    let mut departures = Vec::new();
    let mut all = std::mem::take(&mut path.waiting).into_iter();
    while let Some(mut waiting) = all.next() {
        let along = match (&path.goal, &waiting.goal) {
            (goal, None) => goal.clone(),
            (Some(goal), Some(its)) if goal == its => None,
            (Some(goal), Some(Goal { whom: Some(Whom::User(named)) })) if is_same(path, named, &waiting) => {
                let way = Way::Instead(named.clone());
                if let Some(action) = &mut waiting.action {
                    action.way = Some(way);
                }
                Some(goal.clone())
            }
            (Some(goal), Some(its)) if !is_free => {
                // To another device's home everything goes as what it is, and never instead of something else.
                let identifier = user_of(goal).and(user_of(its)).cloned();
                let next = required(waiting.action.as_ref(), "action")?;
                departures.push(ask(path, goal.clone(), device, identifier, next));
                path.waiting = std::iter::once(waiting).chain(all).collect();
                break;
            }
            (_, its) => {
                path.goal.clone_from(its);
                path.same.clear();
                None
            }
        };
        is_free = false;
        let deletion = waiting.action.as_ref().filter(|action| action.delete).cloned();
        departures.push(Departure { along, waiting });
        // Whom it takes is not to be named here any longer.
        if let Some(question) = deletion.and_then(|deletion| leave_goal(path, device, &deletion)) {
            departures.push(question);
            path.waiting = all.collect();
            break;
        }
    }
    Ok(departures)
}

/// Is this identifier one of the user at the end of the path, and was it by the time of the record?
fn is_same(path: &Path, named: &Identifier, waiting: &Waiting) -> bool {
    if path.same.is_empty() {
        return false;
    }
    let (hash, stamp) = (identifier_hash(named), waiting.action.as_ref().and_then(|action| action.stamp));
    path.same.iter().any(|same| same.identifier == hash && same.stamp <= stamp)
}

fn user_of(goal: &Goal) -> Option<&Identifier> {
    match &goal.whom {
        Some(Whom::User(user)) => Some(user),
        _ => None,
    }
}

/// What goes without waiting any longer, because too much waits.
fn overflow(path: &mut Path) -> Vec<Departure> {
    let mut bytes: usize = path.waiting.iter().map(Message::encoded_len).sum();
    let mut departures = Vec::new();
    while path.waiting.len() > MOST_WAITING || (bytes > WAITING_BYTES && path.waiting.len() > 1) {
        let waiting = path.waiting.remove(0);
        bytes -= waiting.encoded_len();
        let along = path.goal.clone().filter(|_| waiting.goal.is_none());
        departures.push(Departure { along, waiting });
    }
    departures
}

/// Forgets the goal, if it is a user, and asks along the path, unless that was done: what comes next must not be anywhere before what is under way.
fn leave_goal(path: &mut Path, device: &DeviceId, about: &Action) -> Option<Departure> {
    let goal = path.goal.take_if(|goal| user_of(goal).is_some())?;
    path.same.clear();
    path.asked.is_none().then(|| ask(path, goal, device, None, about))
}

/// A question that follows the records of the path, asked because of `next`.
fn ask(path: &mut Path, along: Goal, device: &DeviceId, identifier: Option<Identifier>, next: &Action) -> Departure {
    let ask = Ask { device: device.as_bytes().to_vec(), identifier, stamp: next.stamp, ..Ask::default() };
    path.asked = Some(ask.clone());
    let action = Action {
        tenant: next.tenant.clone(),
        group: next.group,
        stamp: next.stamp,
        uncounted: true,
        introduction: true,
        way: Some(Way::Ask(ask)),
        ..Action::default()
    };
    Departure { along: Some(along), waiting: Waiting { action: Some(action), ..Waiting::default() } }
}
