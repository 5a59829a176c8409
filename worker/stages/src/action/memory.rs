//! What a value of the action stage takes in memory, for the bound of the cache.
//!
//! Decoded, a user is several times as large as stored: each list element has room for everything that it could hold, each text an allocation of its own. So
//! lists are counted as they lie in memory, and texts as stored, rounded up to what an allocator gives. `tests/tests/memory.rs` compares this with the
//! memory of a process.

use super::state::Value;
use millstream_model::proto::{
    Alias, Closing, DeviceState, DeviceUse, Element, Exchange, Forgotten, Membership, Merged, Path, Same, Waiting,
};
use millstream_model::proto::{Register, User};
use prost::Message;

/// Texts and ids are short, and allocations come in steps of 8 and 16 bytes.
const ROUNDING: usize = 2;
/// An exchange message or action in memory, against its stored form.
const MESSAGE: usize = 4;

/// Memory for a value, itself included, whose stored form has so many bytes.
pub(super) fn of(value: &Value, stored_bytes: usize) -> usize {
    let beyond = match value {
        Value::Node(node) => node.closing.as_ref().map_or(0, |closing| waiting(closing, stored_bytes)),
        Value::User(user) => size_of::<User>() + lists_of_user(user) + stored_bytes * ROUNDING,
        Value::Device(device) => {
            let path = device.path.as_ref().map_or(0, |path| path_of(path));
            size_of::<DeviceState>() + lists_of_device(device) + path + stored_bytes * ROUNDING
        }
        Value::Erased(_) => 0,
        Value::Alias(_) => size_of::<Alias>() + stored_bytes * ROUNDING,
    };
    size_of::<Value>() + beyond
}

fn waiting(closing: &Closing, stored_bytes: usize) -> usize {
    let messages = (closing.returned.capacity() + closing.waiting.capacity()) * size_of::<Exchange>();
    size_of::<Closing>() + messages + stored_bytes * MESSAGE
}

fn path_of(path: &Path) -> usize {
    let waiting: usize = path.waiting.iter().map(|waiting| waiting.encoded_len() * (MESSAGE - ROUNDING)).sum();
    let lists = path.same.capacity() * size_of::<Same>() + path.waiting.capacity() * size_of::<Waiting>();
    size_of::<Path>() + lists + waiting
}

fn lists_of_user(user: &User) -> usize {
    user.identifiers.capacity() * size_of::<Membership>()
        + registers(&user.attributes, user.attributes.capacity())
        + user.devices.capacity() * size_of::<DeviceUse>()
        + user.merged.capacity() * size_of::<Merged>()
        + user.expelled.capacity() * size_of::<Vec<u8>>()
        + user.taken.capacity() * size_of::<Forgotten>()
}

fn lists_of_device(device: &DeviceState) -> usize {
    device.identifiers.capacity() * size_of::<Membership>()
        + registers(&device.attributes, device.attributes.capacity())
        + device.forgotten.capacity() * size_of::<Forgotten>()
}

fn registers(attributes: &[Register], capacity: usize) -> usize {
    let elements = attributes.iter().map(|register| register.elements.capacity()).sum::<usize>();
    capacity * size_of::<Register>() + elements * size_of::<Element>()
}
