//! The path of what a device identifier routes: in which order a device's records reach their users (part of I3).
//!
//! A record is resolved by the identifier that names its user. Of records that a *device* identifier routes, one may name its user by this, the next by
//! that identifier, and a third nobody, so that it is about whom the device belonged to last. Each identifier has a way of its own (node, user, forwards),
//! and two ways may end at one user: what goes by one overtakes what went by the other.
//!
//! So the home of a device sends everything by **one way at a time**, the *path*: the identifier by which it resolved its last record.
//!
//! # Protocol
//! - A record that another identifier is to resolve waits, and so do all behind it. An *Ask* follows what was sent along the path, and is treated like a record wherever it comes: passed on by
//!   node and forwards, sent back, held in a closing node. Where its way ends, it becomes an *Arrival* and goes back to the device: everything that was sent before it is there.
//! - When the other identifier is one of the user at the end, too, records that it names take the path from then on. They say so (`instead`), and at the end are
//!   treated as if they had come by their own identifier. If that is no member there any longer, they go on by their own way: nobody gets a record that does not name them.
//! - Otherwise nothing is under way on the old path, and the path changes.
//!
//! When a deletion takes the path's identifier, the device forgets the path; what comes next begins a new one.
//!
//! What waits is bounded ([`MOST_WAITING`], [`WAITING_BYTES`]): beyond, the oldest goes at once, by its own way, and its order against what went by
//! other identifiers is given up. That takes hundreds of records of one device within one round trip, by ever different users: no device, but a
//! value that many share.

use super::state::{self, device_key, identifier_hash, required};
use super::work::{Header, Work};
use crate::StateError;
use millstream_model::id::DeviceId;
use millstream_model::proto::action::Way;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::{Action, Arrival, Ask, Identifier, Path, Waiting};
use prost::Message;

/// Records of one device that wait at the same time.
const MOST_WAITING: usize = 256;
/// Bytes of these; one record may wait whatever its size.
const WAITING_BYTES: usize = 256 * 1024;
/// Further identifiers of the user at the end of the path that a device remembers: the last that it asked about.
pub(super) const MOST_SAME: usize = 16;

/// What a path has for its device to send.
struct Departure {
    via: Identifier,
    action: Action,
}

impl Work<'_> {
    /// Sends a record that a device identifier routes to the user whom `named` names, behind all that this device sent to them before.
    pub(super) fn send_by_path(
        &mut self,
        header: &Header,
        device: &DeviceId,
        named: Identifier,
        action: Action,
    ) -> Result<(), StateError> {
        let Some(state) = state::device_mut(self.state, &device_key(&header.tenant, device))? else {
            self.resolve_by(header.hops + 1, named, action, false);
            return Ok(());
        };
        if state.path.is_none() {
            // It grows by the path; the next record measures it.
            state.size_bound = 0;
        }
        let path = state.path.get_or_insert_default();
        if path.asked.is_none() && path.via.as_ref() == Some(&named) {
            self.resolve_by(header.hops + 1, named, action, false);
            return Ok(());
        }
        path.waiting.push(Waiting { named: Some(named), action: Some(action) });
        let departures = if path.asked.is_some() { overflow(path)? } else { depart(path, device, false)? };
        self.send_departures(header, departures);
        Ok(())
    }

    /// At the end of its way, a question goes back as an answer.
    pub(super) fn arrive(&mut self, tenant: &str, ask: Ask, same: bool) -> Result<(), StateError> {
        let home = state::device_id(&ask.device)?.home();
        self.send(tenant, 0, home, Body::Arrival(Arrival { device: ask.device, same }));
        Ok(())
    }

    /// At the home of a device: nothing is under way on its path any more.
    pub(super) fn arrival(&mut self, header: &Header, message: &Arrival) -> Result<(), StateError> {
        let id = state::device_id(&message.device)?;
        let device = required(state::device_mut(self.state, &device_key(&header.tenant, &id))?, "device")?;
        let path = required(device.path.as_mut(), "path")?;
        if let Some(asked) = path.asked.take()
            && message.same
            && path.via.is_some()
        {
            path.same.push(identifier_hash(&asked));
            let beyond = path.same.len().saturating_sub(MOST_SAME);
            path.same.drain(..beyond);
        }
        let departures = depart(path, &id, true)?;
        self.send_departures(header, departures);
        Ok(())
    }

    fn send_departures(&mut self, header: &Header, departures: Vec<Departure>) {
        for Departure { via, action } in departures {
            self.resolve_by(header.hops + 1, via, action, false);
        }
    }
}

/// Takes from what waits, in its order, all that can go; ends with a question when the next needs its answer. `is_free`: nothing is under way on the path.
fn depart(path: &mut Path, device: &DeviceId, is_free: bool) -> Result<Vec<Departure>, StateError> {
    let mut is_free = is_free || path.via.is_none();
    let mut departures = Vec::new();
    let mut waiting = std::mem::take(&mut path.waiting).into_iter();
    while let Some(Waiting { named, action }) = waiting.next() {
        let named = required(named, "named")?;
        let mut action = required(action, "action")?;
        let via = match &path.via {
            Some(via) if *via == named => named,
            Some(via) if path.same.contains(&identifier_hash(&named)) => {
                action.way = Some(Way::Instead(named));
                via.clone()
            }
            Some(via) if !is_free => {
                departures.push(Departure { via: via.clone(), action: question(&action, device, named.clone()) });
                path.asked = Some(named.clone());
                path.waiting =
                    std::iter::once(Waiting { named: Some(named), action: Some(action) }).chain(waiting).collect();
                break;
            }
            _ => {
                path.via = Some(named.clone());
                path.same.clear();
                named
            }
        };
        is_free = false;
        departures.push(Departure { via, action });
    }
    Ok(departures)
}

/// What goes without waiting any longer, because too much waits.
fn overflow(path: &mut Path) -> Result<Vec<Departure>, StateError> {
    let mut bytes: usize = path.waiting.iter().map(Message::encoded_len).sum();
    let mut departures = Vec::new();
    while path.waiting.len() > MOST_WAITING || (bytes > WAITING_BYTES && path.waiting.len() > 1) {
        let first = path.waiting.remove(0);
        bytes -= first.encoded_len();
        departures.push(Departure { via: required(first.named, "named")?, action: required(first.action, "action")? });
    }
    Ok(departures)
}

/// Follows the records of the path, at the stamp of the one that waits for the answer.
fn question(action: &Action, device: &DeviceId, identifier: Identifier) -> Action {
    Action {
        tenant: action.tenant.clone(),
        group: action.group,
        stamp: action.stamp,
        source: action.source,
        uncounted: true,
        introduction: true,
        way: Some(Way::Ask(Ask { device: device.as_bytes().to_vec(), identifier: Some(identifier) })),
        ..Action::default()
    }
}
