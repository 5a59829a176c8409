//! The Protobuf contract only grows: workers of two versions read each other's topics and state during an upgrade.
//!
//! `proto/fields.txt` lists every field that was ever released: message, number, name, type, label. A field that is renumbered, renamed, retyped
//! or gone is refused. New fields are added to the list with `UPDATE_GOLDEN=1`, which never takes a line away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use millstream_model::proto::DESCRIPTORS;
use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};
use std::collections::{BTreeMap, BTreeSet};

fn file() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/fields.txt")
}

/// `message number` → the rest of the line.
type Fields = BTreeMap<(String, i32), String>;

fn fields(descriptors: &[u8]) -> Fields {
    let mut fields = Fields::new();
    for file in FileDescriptorSet::decode(descriptors).unwrap().file {
        let package = file.package().to_owned();
        file.message_type.iter().for_each(|message| of_message(&package, message, &mut fields));
        file.enum_type.iter().for_each(|choices| of_enum(&package, choices, &mut fields));
    }
    fields
}

fn of_message(scope: &str, message: &DescriptorProto, fields: &mut Fields) {
    let name = format!("{scope}.{}", message.name());
    for field in &message.field {
        let group = field.oneof_index.filter(|_| !field.proto3_optional()).map(|index| index as usize);
        let group = group.map_or(String::new(), |index| format!(" in {}", message.oneof_decl[index].name()));
        let rest = format!("{} {:?} {} {:?}{group}", field.name(), field.r#type(), field.type_name(), field.label());
        assert!(fields.insert((name.clone(), field.number()), rest).is_none(), "{name} {} twice", field.number());
    }
    message.nested_type.iter().for_each(|nested| of_message(&name, nested, fields));
    message.enum_type.iter().for_each(|choices| of_enum(&name, choices, fields));
}

fn of_enum(scope: &str, choices: &EnumDescriptorProto, fields: &mut Fields) {
    let name = format!("{scope}.{}", choices.name());
    for choice in &choices.value {
        fields.insert((name.clone(), choice.number()), format!("{} value", choice.name()));
    }
}

fn render(fields: &Fields) -> BTreeSet<String> {
    fields.iter().map(|((message, number), rest)| format!("{message} {number} {rest}")).collect()
}

/// What of `released` is not in `current` any more.
fn broken(released: &BTreeSet<String>, current: &BTreeSet<String>) -> Vec<String> {
    released.difference(current).cloned().collect()
}

#[test]
fn nothing_that_was_released_changes() {
    let current = render(&fields(DESCRIPTORS));
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    let released: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    let broken = broken(&released, &current);
    assert!(broken.is_empty(), "incompatible change, older workers could not read newer ones:\n{}", broken.join("\n"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let lines: Vec<&str> = current.iter().map(String::as_str).collect();
        std::fs::write(file(), lines.join("\n") + "\n").unwrap();
    } else {
        let new: Vec<&String> = current.difference(&released).collect();
        assert!(new.is_empty(), "new fields; list them with UPDATE_GOLDEN=1: {new:?}");
    }
}

#[test]
fn each_kind_of_incompatible_change_is_seen() {
    let released = render(&fields(DESCRIPTORS));
    type Break = (&'static str, fn(&mut DescriptorProto));
    let changes: [Break; 4] = [
        ("removed", |message| drop(message.field.remove(0))),
        ("renumbered", |message| message.field[0].number = Some(999)),
        ("renamed", |message| message.field[0].name = Some("other".into())),
        ("retyped", |message| message.field[0].r#type = Some(prost_types::field_descriptor_proto::Type::Bool.into())),
    ];
    for (what, change) in changes {
        let mut descriptors = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let messages = descriptors.file.iter_mut().flat_map(|file| &mut file.message_type);
        change(messages.into_iter().find(|message| message.name() == "Envelope").unwrap());
        let current = render(&fields(&descriptors.encode_to_vec()));
        assert_eq!(broken(&released, &current).len(), 1, "{what}");
    }
}
