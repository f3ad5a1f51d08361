//! The gateway's messages as proto JSON, by their descriptors: a message is encoded and read again field by field, so
//! that a new field or RPC needs no code here.
//!
//! The format is ProtoJSON (protobuf.dev/programming-guides/json): lowerCamelCase names, 64-bit integers as strings,
//! enum values by name, Timestamp and Duration as text, bytes as base64. Fields without presence are always there, also
//! at their default, so that scripts need not ask; unset messages, `optional` fields and members of a oneof are left
//! out.

use std::{collections::HashMap, sync::OnceLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use serde::{
    Serialize, Serializer,
    ser::{Error as _, SerializeMap as _},
};

use crate::api::proto::DESCRIPTORS;

/// A message that serialises as proto JSON.
#[derive(Clone, Debug)]
pub struct Document {
    descriptor: Option<&'static DescriptorProto>,
    bytes: Vec<u8>,
}

/// `message`, which is the proto's `pushgate.v1.{name}`.
pub fn document(name: &str, message: &impl Message) -> Document {
    Document { descriptor: schema().messages.get(&format!(".pushgate.v1.{name}")), bytes: message.encode_to_vec() }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let descriptor = self.descriptor.ok_or_else(|| S::Error::custom("a message without descriptor"))?;
        View { descriptor, bytes: &self.bytes }.serialize(serializer)
    }
}

#[derive(Default)]
struct Schema {
    messages: HashMap<String, DescriptorProto>,
    enums: HashMap<String, EnumDescriptorProto>,
}

/// Every type of the descriptors, by its full name with a dot in front, as fields refer to it.
fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let mut schema = Schema::default();
        // They are built with the program; a test reads them.
        let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default();
        for file in files.file {
            let package = format!(".{}", file.package());
            file.enum_type.into_iter().for_each(|one| schema.add_enum(&package, one));
            file.message_type.into_iter().for_each(|one| schema.add_message(&package, one));
        }
        schema
    })
}

impl Schema {
    fn add_enum(&mut self, within: &str, one: EnumDescriptorProto) {
        self.enums.insert(format!("{within}.{}", one.name()), one);
    }

    fn add_message(&mut self, within: &str, one: DescriptorProto) {
        let name = format!("{within}.{}", one.name());
        one.enum_type.iter().for_each(|inner| self.add_enum(&name, inner.clone()));
        one.nested_type.iter().for_each(|inner| self.add_message(&name, inner.clone()));
        self.messages.insert(name, one);
    }
}

/// A value as the wire has it.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Wire<'_> {
    fn number(self) -> u64 {
        if let Wire::Number(number) = self { number } else { 0 }
    }

    fn bytes(&self) -> &[u8] {
        if let Wire::Bytes(bytes) = self { bytes } else { &[] }
    }
}

/// The next field of an encoded message. `None` at its end; what is encoded here always decodes.
fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(i32, Wire<'a>)> {
    let key = varint(bytes)?;
    let number = i32::try_from(key >> 3).ok()?;
    let wire = match key & 7 {
        0 => Wire::Number(varint(bytes)?),
        1 => Wire::Number(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?)),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => Wire::Number(u64::from(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?))),
        _ => return None,
    };
    Some((number, wire))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// One message.
struct View<'a> {
    descriptor: &'static DescriptorProto,
    bytes: &'a [u8],
}

impl Serialize for View<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut values: HashMap<i32, Vec<Wire<'_>>> = HashMap::new();
        let mut rest = self.bytes;
        while let Some((number, wire)) = next_field(&mut rest) {
            values.entry(number).or_default().push(wire);
        }
        let mut object = serializer.serialize_map(None)?;
        for field in &self.descriptor.field {
            let found = values.get(&field.number()).map_or(&[][..], Vec::as_slice);
            let name = field.json_name();
            if field.label() == Label::Repeated {
                match map_entry(field) {
                    Some(entry) => object.serialize_entry(name, &Entries { entry, found })?,
                    None => object.serialize_entry(name, &Items { field, found })?,
                }
            } else if let Some(wire) = found.last() {
                object.serialize_entry(name, &Item { field, wire: *wire })?;
            } else if field.oneof_index.is_none() && field.r#type() != Type::Message {
                object.serialize_entry(name, &Item { field, wire: Wire::Number(0) })?;
            }
        }
        object.end()
    }
}

/// The pairs' type, where `field` is a map.
fn map_entry(field: &FieldDescriptorProto) -> Option<&'static DescriptorProto> {
    let entry = schema().messages.get(field.type_name())?;
    entry.options.as_ref().is_some_and(|options| options.map_entry()).then_some(entry)
}

/// A repeated field. The proto has none of numbers, so that nothing is packed.
struct Items<'a> {
    field: &'static FieldDescriptorProto,
    found: &'a [Wire<'a>],
}

impl Serialize for Items<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.found.iter().map(|wire| Item { field: self.field, wire: *wire }))
    }
}

/// A map: its keys are strings, field 1 of a pair, and field 2 its value.
struct Entries<'a> {
    entry: &'static DescriptorProto,
    found: &'a [Wire<'a>],
}

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = self.entry.field.get(1).ok_or_else(|| S::Error::custom("a map without values"))?;
        let mut pairs: Vec<(String, Wire<'_>)> = Vec::new();
        for wire in self.found {
            let (mut key, mut of_key, mut rest) = (String::new(), Wire::Number(0), wire.bytes());
            while let Some((number, wire)) = next_field(&mut rest) {
                match number {
                    1 => key = String::from_utf8_lossy(wire.bytes()).into_owned(),
                    _ => of_key = wire,
                }
            }
            pairs.push((key, of_key));
        }
        // Maps have no order of their own; sorted, two answers can be compared.
        pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
        serializer.collect_map(pairs.into_iter().map(|(key, wire)| (key, Item { field: value, wire })))
    }
}

/// One value.
struct Item<'a> {
    field: &'static FieldDescriptorProto,
    wire: Wire<'a>,
}

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { field, wire } = self;
        match field.r#type() {
            Type::String => serializer.serialize_str(&String::from_utf8_lossy(wire.bytes())),
            Type::Bytes => serializer.serialize_str(&STANDARD.encode(wire.bytes())),
            Type::Bool => serializer.serialize_bool(wire.number() != 0),
            Type::Int32 => serializer.serialize_i32(wire.number() as i32),
            Type::Uint32 => serializer.serialize_u32(wire.number() as u32),
            Type::Uint64 => serializer.collect_str(&wire.number()),
            Type::Double => serializer.serialize_f64(f64::from_bits(wire.number())),
            Type::Enum => self.serialize_enum(serializer),
            Type::Message => match field.type_name() {
                ".google.protobuf.Timestamp" => text::<prost_types::Timestamp, S>(wire.bytes(), serializer),
                ".google.protobuf.Duration" => text::<prost_types::Duration, S>(wire.bytes(), serializer),
                name => {
                    let unknown = || S::Error::custom(format!("{name} has no descriptor"));
                    let descriptor = schema().messages.get(name).ok_or_else(unknown)?;
                    View { descriptor, bytes: wire.bytes() }.serialize(serializer)
                }
            },
            other => Err(S::Error::custom(format!("{other:?} is not a type of the gateway's answers"))),
        }
    }
}

impl Item<'_> {
    fn serialize_enum<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number = self.wire.number() as i32;
        let values = schema().enums.get(self.field.type_name()).map_or(&[][..], |one| &one.value);
        match values.iter().find(|value| value.number() == number) {
            Some(value) => serializer.serialize_str(value.name()),
            None => serializer.serialize_i32(number),
        }
    }
}

/// Times and spans: their `Display` is what proto JSON writes.
fn text<M: Message + Default + std::fmt::Display, S: Serializer>(
    bytes: &[u8],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&M::decode(bytes).map_err(S::Error::custom)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto;

    fn json(name: &str, message: &impl Message) -> String {
        serde_json::to_string(&document(name, message)).unwrap()
    }

    #[test]
    fn a_message_is_what_proto_json_says() {
        let session = proto::Session {
            session_id: "s".to_owned(),
            connected_at: Some(prost_types::Timestamp { seconds: 1_769_852_100, nanos: 123_000_000 }),
            state: proto::SessionState::Live.into(),
            outbox_messages: 7,
            rtt: Some(prost_types::Duration { seconds: 0, nanos: 1_500_000 }),
            bytes_sent: u64::MAX,
            ..Default::default()
        };
        assert_eq!(
            json("Session", &session),
            "{\"sessionId\":\"s\",\"userId\":\"\",\"device\":\"\",\"connectedAt\":\"2026-01-31T09:35:00.123Z\",\
             \"remoteAddress\":\"\",\"userAgent\":\"\",\"topics\":[],\"state\":\"SESSION_STATE_LIVE\",\
             \"ackMode\":\"ACK_MODE_UNSPECIFIED\",\"outboxMessages\":7,\"outboxBytes\":\"0\",\"unconfirmed\":0,\
             \"rtt\":\"0.001500s\",\"messagesReceived\":\"0\",\"bytesReceived\":\"0\",\"messagesSent\":\"0\",\
             \"bytesSent\":\"18446744073709551615\"}"
        );
        let listed = proto::ListSessionsResponse { sessions: vec![], next_page_token: "x".to_owned() };
        assert_eq!(json("ListSessionsResponse", &listed), r#"{"sessions":[],"nextPageToken":"x"}"#);
    }

    #[test]
    fn maps_numbers_and_oneofs_too() {
        let status = proto::GetStatusResponse {
            errors: [("b".to_owned(), 2), ("a".to_owned(), 0)].into(),
            errors_per_second: 0.25,
            listeners: vec![proto::Listener { name: "http".to_owned(), address: "a:1".to_owned() }],
            ..Default::default()
        };
        let text = json("GetStatusResponse", &status);
        assert!(text.contains(r#""errors":{"a":"0","b":"2"},"errorsPerSecond":0.25"#), "{text}");
        assert!(text.contains(r#""listeners":[{"name":"http","address":"a:1"}]"#), "{text}");
        assert!(!text.contains("uptime") && text.ends_with("\"draining\":false,\"alerts\":[]}"), "{text}");

        let lost = proto::event::Event::EventsLost(proto::EventsLost { count: 3 });
        let event = proto::Event { sequence: 1, epoch: "e".to_owned(), time: None, event: Some(lost) };
        assert_eq!(json("Event", &event), r#"{"sequence":"1","epoch":"e","eventsLost":{"count":"3"}}"#);
        let unknown = proto::SendToUserResponse { outcome: 99, ..Default::default() };
        assert!(json("SendToUserResponse", &unknown).contains(r#""outcome":99"#));
    }

    /// Everything that an answer can hold is of a type that is written here.
    #[test]
    fn every_answer_of_the_service_can_be_shown() {
        fn walk(name: &str, seen: &mut Vec<String>) {
            if seen.iter().any(|one| one == name) || name.starts_with(".google.protobuf.") {
                return;
            }
            seen.push(name.to_owned());
            for field in &schema().messages[name].field {
                let numbers = [Type::Int32, Type::Uint32, Type::Uint64, Type::Double];
                let place = format!("{name}.{}", field.name());
                match field.r#type() {
                    Type::Message => walk(field.type_name(), seen),
                    Type::Enum => assert!(schema().enums.contains_key(field.type_name()), "{place}"),
                    Type::String | Type::Bytes | Type::Bool => {}
                    other => assert!(numbers.contains(&other), "{place}"),
                }
                let packed =
                    field.label() == Label::Repeated && !matches!(field.r#type(), Type::Message | Type::String);
                assert!(!packed && !field.json_name().is_empty(), "{place}");
            }
        }
        let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let methods = files.file.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
        let mut seen = Vec::new();
        methods.for_each(|method| walk(method.output_type(), &mut seen));
        assert!(seen.len() > 15, "{seen:?}");
    }
}
