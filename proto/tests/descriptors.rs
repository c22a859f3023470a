//! The wire between gateway and agents, and stored evidence, stay readable: `proto/descriptors.bin` holds the descriptor
//! set as it landed, and what the .proto files say now may only add to it.
//!
//! After adding messages or fields, take them into the snapshot (it refuses to while something incompatible is left):
//!
//! ```sh
//! HOOP_EXTEND_DESCRIPTORS=1 cargo test -p hoop-proto --test descriptors
//! ```
//!
//! A field is removed by reserving its number and its name; a landed field is never renumbered, retyped or renamed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)] // a test: to panic is to fail

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message as _;
use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet, ServiceDescriptorProto};

const FILES: [&str; 2] = ["hoop/v1/link.proto", "hoop/evidence/v1/evidence.proto"];
const SNAPSHOT: &str = "descriptors.bin";

/// All of a set that must stay, by full name.
#[derive(Default)]
struct Contract {
    messages: BTreeMap<String, DescriptorProto>,
    enums: BTreeMap<String, EnumDescriptorProto>,
    services: BTreeMap<String, ServiceDescriptorProto>,
}

impl Contract {
    fn of(set: &FileDescriptorSet) -> Self {
        let mut contract = Self::default();
        for file in &set.file {
            for message in &file.message_type {
                contract.message(file.package(), message);
            }
            for it in &file.enum_type {
                contract
                    .enums
                    .insert(format!("{}.{}", file.package(), it.name()), it.clone());
            }
            for it in &file.service {
                contract
                    .services
                    .insert(format!("{}.{}", file.package(), it.name()), it.clone());
            }
        }
        contract
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        for nested in &message.nested_type {
            self.message(&name, nested);
        }
        for it in &message.enum_type {
            self.enums.insert(format!("{name}.{}", it.name()), it.clone());
        }
        self.messages.insert(name, message.clone());
    }
}

/// What of `old` is not kept by `new`, one sentence each.
fn breaks(old: &FileDescriptorSet, new: &FileDescriptorSet) -> Vec<String> {
    let (old, new) = (Contract::of(old), Contract::of(new));
    let mut found = Vec::new();
    for (name, message) in &old.messages {
        match new.messages.get(name) {
            None => found.push(format!("message {name} is gone")),
            Some(now) => fields(name, message, now, &mut found),
        }
    }
    for (name, it) in &old.enums {
        let Some(now) = new.enums.get(name) else {
            found.push(format!("enum {name} is gone"));
            continue;
        };
        for value in &it.value {
            if !now
                .value
                .iter()
                .any(|now| now.number() == value.number() && now.name() == value.name())
            {
                found.push(format!(
                    "enum {name} has lost its value {} = {}",
                    value.name(),
                    value.number()
                ));
            }
        }
    }
    for (name, it) in &old.services {
        let Some(now) = new.services.get(name) else {
            found.push(format!("service {name} is gone"));
            continue;
        };
        for method in &it.method {
            if !now.method.contains(method) {
                found.push(format!("service {name}: rpc {} is gone or changed", method.name()));
            }
        }
    }
    found
}

fn fields(name: &str, message: &DescriptorProto, now: &DescriptorProto, found: &mut Vec<String>) {
    let oneof = |message: &DescriptorProto, index: Option<i32>| {
        index
            .and_then(|index| message.oneof_decl.get(index as usize))
            .map(|oneof| oneof.name().to_owned())
    };
    for field in &message.field {
        let what = format!("{name}.{} = {}", field.name(), field.number());
        let Some(same) = now.field.iter().find(|now| now.number() == field.number()) else {
            let number = now
                .reserved_range
                .iter()
                .any(|range| (range.start()..range.end()).contains(&field.number()));
            let reserved = number && now.reserved_name.iter().any(|reserved| reserved == field.name());
            if !reserved {
                found.push(format!("{what} is gone; reserve its number and its name"));
            }
            continue;
        };
        if same.name() != field.name() {
            found.push(format!(
                "{what} is now called {}: its number is used anew, or it was renamed",
                same.name()
            ));
        }
        if (same.r#type(), same.type_name()) != (field.r#type(), field.type_name()) {
            found.push(format!("{what} has another type"));
        }
        if (same.label() == Label::Repeated) != (field.label() == Label::Repeated) {
            found.push(format!("{what} is repeated in one version only"));
        }
        if oneof(message, field.oneof_index) != oneof(now, same.oneof_index) {
            found.push(format!("{what} has moved into or out of a oneof"));
        }
    }
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn current() -> FileDescriptorSet {
    let files = FILES.map(|file| folder().join(file));
    let mut set = protox::compile(files, [folder()]).unwrap();
    for file in &mut set.file {
        file.source_code_info = None;
    }
    set
}

#[test]
fn the_wire_only_grows() {
    let (path, current) = (folder().join(SNAPSHOT), current());
    let extend = std::env::var_os("HOOP_EXTEND_DESCRIPTORS").is_some();
    let landed = match std::fs::read(&path) {
        Ok(bytes) => FileDescriptorSet::decode(&bytes[..]).unwrap(),
        Err(_) if extend => FileDescriptorSet::default(),
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let breaks = breaks(&landed, &current);
    assert!(
        breaks.is_empty(),
        "incompatible with what has landed:\n{}",
        breaks.join("\n")
    );
    if extend {
        std::fs::write(&path, current.encode_to_vec()).unwrap();
    } else {
        assert!(
            landed == current,
            "the .proto files have grown; take that into the snapshot with\n\
             HOOP_EXTEND_DESCRIPTORS=1 cargo test -p hoop-proto --test descriptors"
        );
    }
}

#[test]
fn incompatible_changes_are_named() {
    let field = |change: fn(&mut prost_types::FieldDescriptorProto)| {
        let mut set = current();
        let hello = set.file[0]
            .message_type
            .iter_mut()
            .find(|it| it.name() == "Hello")
            .unwrap();
        change(&mut hello.field[0]);
        breaks(&current(), &set)
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(field(|_| ()), none);
    assert_eq!(
        field(|it| it.number = Some(99)),
        ["hoop.v1.Hello.version = 1 is gone; reserve its number and its name"]
    );
    assert_eq!(
        field(|it| it.r#type = Some(5)),
        ["hoop.v1.Hello.version = 1 has another type"]
    );
    assert_eq!(
        field(|it| it.label = Some(3)),
        ["hoop.v1.Hello.version = 1 is repeated in one version only"]
    );
    assert_eq!(
        field(|it| it.name = Some("other".into())),
        ["hoop.v1.Hello.version = 1 is now called other: its number is used anew, or it was renamed"]
    );

    let message = |change: fn(&mut DescriptorProto)| {
        let mut set = current();
        change(
            set.file[0]
                .message_type
                .iter_mut()
                .find(|it| it.name() == "Hello")
                .unwrap(),
        );
        breaks(&current(), &set)
    };
    assert_eq!(
        message(|it| it.name = Some("Hallo".into())),
        ["message hoop.v1.Hello is gone"]
    );
    let reserved = message(|it| {
        it.field.remove(0);
        it.reserved_name.push("version".into());
        let range = prost_types::descriptor_proto::ReservedRange {
            start: Some(1),
            end: Some(2),
        };
        it.reserved_range.push(range);
    });
    assert_eq!(reserved, none);

    let mut set = current();
    set.file[0].service[0].method.remove(0);
    assert_eq!(
        breaks(&current(), &set),
        ["service hoop.v1.Link: rpc Register is gone or changed"]
    );
}
