//! The API's messages as JSON and back: proto's own mapping (ProtoJSON, protobuf.dev/programming-guides/json), by their
//! descriptors, so that a new field or RPC needs no code here.
//!
//! Out: lowerCamelCase names in the order of the proto, 64-bit integers as strings, enum values by name, times and spans as
//! text, bytes as base64, maps sorted. Fields without presence are always there, also at their default, so that scripts need
//! not ask; unset messages, `optional` fields and members of a oneof are left out.
//!
//! In: both lowerCamelCase and the proto's own names, 64-bit integers as strings or numbers, enum values by name or number;
//! `null` is as good as not there. What is unknown or of another type is refused, and named; so is a field that stands twice,
//! by whichever of its names. What is read is surveyed before (`json/survey.rs`): a value of JSON becomes a thousand times the
//! bytes that it takes as text, so that there is a bound on how many there are.

mod survey;

use std::{collections::HashMap, sync::LazyLock};

use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, SerializeOptions,
};
use prost_types::FileDescriptorSet;
use serde::{Deserializer, Serialize, Serializer, ser::Error as _};
use serde_json::{Map, Value, map::Entry};
use tonic::Status;

use super::{
    error::{ApiError, Violation, embedded},
    proto::DESCRIPTORS,
};
use crate::limits;

/// What of a text that cannot be read is repeated in the refusal, in bytes.
const SHOWN_BYTES_MAX: usize = 256;

/// All types that an answer can hold: the gateway's own, and the details of errors. They are built with the program, and
/// tests read them.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::decode(DESCRIPTORS).unwrap_or_default();
    let details = FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET).unwrap_or_default();
    // That of `google.rpc.Status` goes by another name there.
    let new = details.file.into_iter().filter(|file| {
        let known = |name: &str| pool.get_message_by_name(&format!("{}.{name}", file.package())).is_some();
        !file.message_type.iter().any(|message| known(message.name()))
    });
    let new: Vec<_> = new.collect();
    // What cannot be added is missed where it is asked for, and said there.
    let _ = pool.add_file_descriptor_protos(new);
    pool
});

/// The names of the gateway's methods.
pub fn methods() -> Vec<String> {
    let service = POOL.get_service_by_name("pushgate.v1.Gateway");
    service.iter().flat_map(|service| service.methods()).map(|method| method.name().to_owned()).collect()
}

fn descriptor(full_name: &str) -> Result<MessageDescriptor, String> {
    POOL.get_message_by_name(full_name).ok_or_else(|| format!("{full_name} has no descriptor"))
}

/// A message that serialises as proto JSON.
#[derive(Clone, Debug)]
pub struct Document {
    message: Result<DynamicMessage, String>,
    defaults: bool,
}

/// `message`, which is the proto's `pushgate.v1.{name}`.
pub fn document(name: &str, message: &impl Message) -> Document {
    Document { message: dynamic(&format!("pushgate.v1.{name}"), message), defaults: true }
}

/// A status in the shape of `google.rpc.Status`, its details with it. What says nothing is left out of those.
pub fn status(status: &Status) -> Document {
    Document { message: dynamic("google.rpc.Status", &embedded(status)), defaults: false }
}

fn dynamic(full_name: &str, message: &impl Message) -> Result<DynamicMessage, String> {
    let mut dynamic = DynamicMessage::new(descriptor(full_name)?);
    dynamic.transcode_from(message).map_err(|error| error.to_string())?;
    Ok(dynamic)
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let message = self.message.as_ref().map_err(S::Error::custom)?;
        let options = SerializeOptions::new().skip_default_fields(!self.defaults);
        let value =
            message.serialize_with_options(serde_json::value::Serializer, &options).map_err(S::Error::custom)?;
        Ordered { descriptor: &message.descriptor(), value: &value }.serialize(serializer)
    }
}

/// A message's JSON, whose fields are in the order of the proto. (Maps are sorted: two answers can be compared.)
struct Ordered<'a> {
    descriptor: &'a MessageDescriptor,
    value: &'a Value,
}

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Well-known types have forms of their own.
        let Value::Object(fields) = self.value else { return Free(self.value).serialize(serializer) };
        if self.descriptor.package_name() == "google.protobuf" {
            return Free(self.value).serialize(serializer);
        }
        let present = self.descriptor.fields().filter_map(|field| {
            let value = fields.get(field.json_name())?;
            Some((field.json_name().to_owned(), OrderedField { field, value }))
        });
        serializer.collect_map(present)
    }
}

/// JSON that the proto carries as such: a whole number is written without a fraction, as far as doubles are exact.
struct Free<'a>(&'a Value);

/// Below it every whole double is exact.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

impl Serialize for Free<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Number(number) => match number.as_f64() {
                Some(number) if number.fract() == 0.0 && number.abs() < WHOLE_MAX => {
                    serializer.serialize_i64(number as i64)
                }
                _ => number.serialize(serializer),
            },
            Value::Array(many) => serializer.collect_seq(many.iter().map(Free)),
            Value::Object(fields) => serializer.collect_map(fields.iter().map(|(name, one)| (name, Free(one)))),
            other => other.serialize(serializer),
        }
    }
}

/// A field's JSON: a message, several of them, or anything else.
struct OrderedField<'a> {
    field: FieldDescriptor,
    value: &'a Value,
}

impl Serialize for OrderedField<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.field.kind(), self.value) {
            (Kind::Message(of), Value::Array(items)) if self.field.is_list() => {
                serializer.collect_seq(items.iter().map(|value| Ordered { descriptor: &of, value }))
            }
            (Kind::Message(of), value) if !self.field.is_map() => {
                Ordered { descriptor: &of, value }.serialize(serializer)
            }
            (_, value) => value.serialize(serializer),
        }
    }
}

/// JSON text of a message that was looked through, and may be read.
#[derive(Clone, Copy, Debug)]
pub struct Surveyed<'a> {
    name: &'a str,
    text: &'a [u8],
    values: usize,
}

/// Looks through the JSON text of a message, which is the proto's `pushgate.v1.{name}`; nothing is kept of it.
///
/// # Errors
/// INVALID_ARGUMENT that names the field: one that stands twice, or where the values are more than
/// [`limits::OPS_BODY_VALUES_MAX`]. What else is wrong, reading says.
pub fn survey<'a>(name: &'a str, text: &'a [u8]) -> Result<Surveyed<'a>, ApiError> {
    let descriptor = descriptor(&format!("pushgate.v1.{name}")).map_err(|error| wrong("", error))?;
    let values = survey::count(descriptor, text, limits::OPS_BODY_VALUES_MAX)
        .map_err(|fault| wrong(&fault.path, fault.to_string()))?;
    Ok(Surveyed { name, text, values })
}

impl Surveyed<'_> {
    /// The values in it, those within others and the names of fields among them.
    pub fn values(&self) -> usize {
        self.values
    }

    /// Reads the message. No text at all is the empty one.
    ///
    /// # Errors
    /// INVALID_ARGUMENT that names the field: what is no JSON, an unknown field, a value of another type, nesting deeper than
    /// a message can be (a `data` of about 33 objects or 50 lists).
    pub fn read<M: Message + Default>(&self) -> Result<M, ApiError> {
        if self.text.trim_ascii().is_empty() {
            return Ok(M::default());
        }
        let mut reader = serde_json::Deserializer::from_slice(self.text);
        let message = read(self.name, &mut reader)?;
        reader.end().map_err(|error| refused("", &error))?;
        Ok(message)
    }
}

/// The same from the pairs of a query. A field that is a list may stand several times.
pub fn parse_query<M: Message + Default>(name: &str, query: &str) -> Result<M, ApiError> {
    let descriptor = descriptor(&format!("pushgate.v1.{name}")).map_err(|error| wrong("", error))?;
    let (mut names, mut fields) = (HashMap::new(), Map::new());
    for (key, text) in form_urlencoded::parse(query.as_bytes()) {
        let field = descriptor.get_field_by_json_name(&key).or_else(|| descriptor.get_field_by_name(&key));
        let Some(field) = field else {
            let known: Vec<_> = descriptor.fields().map(|field| field.name().to_owned()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(wrong(&key, format!("is not a field of this call; there are: {known}")));
        };
        let value = match (field.kind(), &*text) {
            (Kind::Bool, "true" | "1") => Value::Bool(true),
            (Kind::Bool, "false" | "0") => Value::Bool(false),
            (_, text) => Value::String(text.to_owned()),
        };
        // By the name that the caller gave it, for errors.
        let name = names.entry(field.number()).or_insert_with(|| key.clone().into_owned());
        match fields.entry(name.clone()) {
            Entry::Vacant(new) => drop(new.insert(if field.is_list() { Value::Array(vec![value]) } else { value })),
            Entry::Occupied(mut there) => match there.get_mut() {
                Value::Array(list) => list.push(value),
                _ => return Err(wrong(&key, "stands twice".to_owned())),
            },
        }
    }
    read(name, Value::Object(fields))
}

/// Reads a message; what is wrong is said with its place.
fn read<'de, M, D>(name: &str, reader: D) -> Result<M, ApiError>
where
    M: Message + Default,
    D: Deserializer<'de, Error = serde_json::Error>,
{
    let descriptor = descriptor(&format!("pushgate.v1.{name}")).map_err(|error| wrong("", error))?;
    let mut track = serde_path_to_error::Track::new();
    let reader = serde_path_to_error::Deserializer::new(reader, &mut track);
    let read = DynamicMessage::deserialize(descriptor, reader);
    let message = read.map_err(|error| refused(&track.path().to_string(), &error))?;
    message.transcode_to().map_err(|error| wrong("", error.to_string()))
}

/// What the field of an unknown name is called in the library's error. A test holds it to that.
const UNKNOWN_FIELD: (&str, char) = ("unrecognized field name '", '\'');

fn refused(path: &str, error: &serde_json::Error) -> ApiError {
    let path = if path == "." { "" } else { path };
    let text = error.to_string();
    if !error.is_data() {
        return wrong("", format!("cannot be read as JSON: {text}"));
    }
    let unknown = text.strip_prefix(UNKNOWN_FIELD.0).and_then(|rest| rest.rsplit_once(UNKNOWN_FIELD.1));
    match unknown {
        Some((name, place)) if path.is_empty() => wrong(name, format!("is not a field of this call{place}")),
        Some((name, place)) => wrong(&format!("{path}.{name}"), format!("is not a field there{place}")),
        None => wrong(path, text),
    }
}

/// A refusal that names a field, or the body as a whole.
fn wrong(field: &str, description: String) -> ApiError {
    let field = if field.is_empty() { "body" } else { field };
    ApiError::Invalid(vec![Violation {
        field: shown(field).to_owned().into(),
        description: shown(&description).to_owned(),
    }])
}

/// As much of a text as is repeated.
fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::value::Kind as ValueKind;

    use super::*;
    use crate::{api::proto, metrics::Metrics};

    fn parse<M: Message + Default>(name: &str, text: &[u8]) -> Result<M, ApiError> {
        survey(name, text)?.read()
    }

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
            errors: [("b".to_owned(), 2), ("a".to_owned(), 0), ("c".to_owned(), 1)].into(),
            errors_per_second: 0.25,
            listeners: vec![proto::Listener {
                name: "http".to_owned(),
                address: "a:1".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let text = json("GetStatusResponse", &status);
        assert!(text.contains(r#""errors":{"a":"0","b":"2","c":"1"},"errorsPerSecond":0.25"#), "{text}");
        assert!(text.contains(r#""listeners":[{"name":"http","address":"a:1","tls":false}]"#), "{text}");
        assert!(!text.contains("uptime") && text.ends_with("\"draining\":false,\"alerts\":[]}"), "{text}");

        let lost = proto::event::Event::EventsLost(proto::EventsLost { count: 3, epoch_changed: false });
        let event = proto::Event { sequence: 1, epoch: "e".to_owned(), time: None, event: Some(lost) };
        assert_eq!(
            json("Event", &event),
            r#"{"sequence":"1","epoch":"e","eventsLost":{"count":"3","epochChanged":false}}"#
        );
        let unknown = proto::SendToUserResponse { outcome: 99, ..Default::default() };
        assert!(json("SendToUserResponse", &unknown).contains(r#""outcome":99"#));
        assert!(serde_json::to_string(&document("NoSuchMessage", &unknown)).is_err());
    }

    #[test]
    fn free_json_is_written_as_what_it_stands_for() {
        let value = |kind| prost_types::Value { kind: Some(kind) };
        let list = [
            ValueKind::NumberValue(1.0),
            ValueKind::NumberValue(-0.5),
            ValueKind::BoolValue(true),
            ValueKind::NullValue(0),
        ];
        let list = ValueKind::ListValue(prost_types::ListValue { values: list.map(value).into() });
        let object = |name: &str, kind| prost_types::Struct { fields: [(name.to_owned(), value(kind))].into() };
        let message = proto::MessageReceived {
            payload: Some(proto::message_received::Payload::Data(value(ValueKind::StructValue(object("a", list))))),
            claims: Some(object("role", ValueKind::StringValue("admin".to_owned()))),
            ..Default::default()
        };
        let text = json("MessageReceived", &message);
        assert!(text.contains(r#""data":{"a":[1,-0.5,true,null]},"claims":{"role":"admin"}"#), "{text}");
    }

    /// Every answer has its descriptor, and so has whatever it holds.
    #[test]
    fn every_answer_of_the_service_can_be_shown() {
        let service = POOL.get_service_by_name("pushgate.v1.Gateway").unwrap();
        let mut answers = 0;
        for method in service.methods() {
            let empty = DynamicMessage::new(method.output());
            let options = SerializeOptions::new().skip_default_fields(false);
            empty.serialize_with_options(serde_json::value::Serializer, &options).unwrap();
            assert!(method.input().full_name().starts_with("pushgate.v1."), "{}", method.full_name());
            answers += 1;
        }
        assert!(answers >= 12, "{answers}");
    }

    #[test]
    fn a_status_shows_its_details() {
        let refused = ApiError::invalid("user_id", "must not be empty").into_status(&Metrics::default());
        let shown: Value = serde_json::from_str(&serde_json::to_string(&status(&refused)).unwrap()).unwrap();
        let expected = serde_json::json!({
            "code": 3,
            "message": "user_id: must not be empty",
            "details": [
                { "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "INVALID_ARGUMENT", "domain": "pushgate" },
                {
                    "@type": "type.googleapis.com/google.rpc.BadRequest",
                    "fieldViolations": [{ "field": "user_id", "description": "must not be empty" }],
                },
            ],
        });
        let sorted = |mut value: Value| {
            value["details"].as_array_mut().unwrap().sort_by_key(|one| one["@type"].to_string());
            value
        };
        assert_eq!(sorted(shown), sorted(expected));
        let quota = ApiError::Quota { reason: "MAILBOX_FULL", message: "full".into() }.into_status(&Metrics::default());
        assert!(serde_json::to_string(&status(&quota)).unwrap().contains(r#""retryDelay":"5s""#));
    }

    fn send(text: &str) -> Result<proto::SendToUserRequest, ApiError> {
        parse("SendToUserRequest", text.as_bytes())
    }

    #[test]
    fn both_names_of_a_field_are_read_and_numbers_in_any_form() {
        let one = send(
            r#"{"user_id":"a","notification":{"collapse_key":"k","from_user_id":"b","ttl":"1.5s","data":{"n":[1,null]}},
                "wait":"WAIT_CONFIRMED","wait_timeout":"3s"}"#,
        );
        let other = send(
            r#"{"userId":"a","notification":{"collapseKey":"k","fromUserId":"b","ttl":"1.500s","data":{"n":[1,null]}},
                "wait":3,"waitTimeout":"3s"}"#,
        );
        let one = one.unwrap();
        assert_eq!(one, other.unwrap());
        assert_eq!((one.user_id.as_str(), one.wait()), ("a", proto::Wait::Confirmed));
        let notification = one.notification.unwrap();
        assert_eq!(notification.ttl, Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }));

        let null = send(r#"{"userId":"a","notification":{"data":null},"wait":null}"#).unwrap().notification.unwrap();
        let Some(proto::notification::Payload::Data(value)) = null.payload else { panic!("{null:?}") };
        assert!(matches!(value.kind, Some(ValueKind::NullValue(_))), "a value may be null");

        let binary = send(r#"{"userId":"a","notification":{"binary":"AJ__"}}"#).unwrap().notification.unwrap();
        assert_eq!(binary.payload, Some(proto::notification::Payload::Binary(vec![0, 159, 255].into())));

        for sequence in ["\"18446744073709551615\"", "18446744073709551615"] {
            let event: proto::Event = parse("Event", format!(r#"{{"sequence":{sequence}}}"#).as_bytes()).unwrap();
            assert_eq!(event.sequence, u64::MAX);
        }
        assert_eq!(send("").unwrap(), proto::SendToUserRequest::default());
        assert_eq!(send(" \r\n").unwrap(), send("{}").unwrap());
    }

    #[track_caller]
    fn says(result: Result<impl std::fmt::Debug, ApiError>, field: &str, text: &str) {
        let ApiError::Invalid(violations) = result.unwrap_err() else { panic!("not the field's fault") };
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].field, field, "{violations:?}");
        assert!(violations[0].description.contains(text), "{violations:?}");
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_place() {
        says(send(r#"{"user":"a"}"#), "user", "is not a field of this call at line 1 column 7");
        says(send(r#"{"notification":{"body":1}}"#), "notification.body", "is not a field there at line 1");
        says(send(r#"{"it's":1}"#), "it's", "is not a field");
        says(send(r#"{"user_id":5}"#), "user_id", "invalid type: integer `5`, expected a string");
        says(send(r#"{"notification":{"ttl":"soon"}}"#), "notification.ttl", "");
        says(send(r#"{"notification":{"ttl":60}}"#), "notification.ttl", "expected a duration string");
        says(send(r#"{"notification":{"binary":"%"}}"#), "notification.binary", "invalid base64");
        says(
            send(r#"{"notification":{"data":1,"json":"2"}}"#),
            "notification",
            "multiple fields provided for oneof 'payload'",
        );
        says(send(r#"{"wait":"WAIT_FOREVER"}"#), "wait", "unrecognized enum value 'WAIT_FOREVER'");
        says(send(r#"{"userId":"a","user_id":"b"}"#), "user_id", "stands twice at line 1 column 23");
        says(send(r#"{"userId":"a","userId":"a"}"#), "userId", "stands twice");
        says(send(r#"{"wait":null,"wait":1}"#), "wait", "stands twice");
        says(
            send(r#"{"notification":{"collapse_key":"a","data":{},"collapseKey":"b"}}"#),
            "notification.collapseKey",
            "stands twice",
        );
        says(send("[]"), "body", "expected a map");
        says(send("null"), "body", "");
        for bad in ["{", "{}x", "{'a':1}", "\u{feff}{}", "nothing"] {
            says(send(bad), "body", "cannot be read as JSON: ");
        }
        let long = format!(r#"{{"{}":1}}"#, "ä".repeat(1000));
        let ApiError::Invalid(violations) = send(&long).unwrap_err() else { panic!() };
        assert!(violations[0].field.len() <= SHOWN_BYTES_MAX);
    }

    #[test]
    fn more_values_than_can_be_kept_are_refused_before_they_are_read() {
        let most = limits::OPS_BODY_VALUES_MAX;
        // Those besides: the message and its one field, the notification and its one, and the list.
        let numbers = |many: usize| {
            let list = vec!["1"; many].join(",");
            send(&format!(r#"{{"notification":{{"data":[{list}]}}}}"#))
        };
        assert!(numbers(most - 5).is_ok());
        says(
            numbers(most - 4),
            "notification.data",
            "more than 32768 values and names; `json` takes any number of them",
        );
        // Whatever it is that is too many, and wherever.
        let half = most / 2;
        for many in [
            format!(r#"{{"notification":{{"data":[{}1]}}}}"#, "{},".repeat(most)),
            format!(r#"{{"notification":{{"data":{{{}"z":1}}}}}}"#, r#""":0,"#.repeat(half)),
            format!(r#"{{"notification":{{"data":[{}1]}}}}"#, r#"{"":[]},"#.repeat(most / 3)),
            format!("{{{}\"x\":0}}", r#""y":0,"#.repeat(half)),
            format!("[{}1]", "1,".repeat(most)),
        ] {
            let ApiError::Invalid(violations) = send(&many).unwrap_err() else { panic!("{many}") };
            assert!(violations[0].description.contains("more than 32768 values"), "{violations:?}");
        }
        let text = format!(r#"{{"notification":{{"json":"[{}1]"}}}}"#, "1,".repeat(most));
        assert!(send(&text).is_ok(), "text is one value");
    }

    #[test]
    fn names_that_stand_twice_in_what_the_proto_does_not_know_are_none_of_its_affair() {
        let twice = send(r#"{"notification":{"data":{"a":1,"a":2,"user_id":3,"userId":{"user_id":4}}}}"#);
        let Some(proto::notification::Payload::Data(value)) = twice.unwrap().notification.unwrap().payload else {
            panic!()
        };
        let Some(ValueKind::StructValue(object)) = value.kind else { panic!() };
        assert_eq!(object.fields["a"].kind, Some(ValueKind::NumberValue(2.0)), "the last one counts");
        assert_eq!(object.fields.len(), 3);
    }

    #[test]
    fn what_nests_too_deep_is_refused() {
        let nested = |depth: usize| {
            let (open, close) = ("[".repeat(depth), "]".repeat(depth));
            send(&format!(r#"{{"userId":"a","notification":{{"data":{open}{close}}}}}"#))
        };
        assert!(nested(40).is_ok());
        for depth in [60, 120, 200, 100_000] {
            assert!(matches!(nested(depth), Err(ApiError::Invalid(_))), "{depth}");
        }
    }

    #[test]
    fn a_query_is_read_by_the_same_names() {
        let query = |text: &str| parse_query::<proto::ListSessionsRequest>("ListSessionsRequest", text);
        let listed = query("user_id=a%20b&page_size=7&device=").unwrap();
        assert_eq!((listed.user_id.as_str(), listed.page_size, listed.device.as_deref()), ("a b", 7, Some("")));
        assert_eq!(query("userId=a%20b&pageSize=7&device=").unwrap(), listed);
        assert_eq!(query("").unwrap(), proto::ListSessionsRequest::default());
        says(query("user=a"), "user", "there are: user_id, session_id, device, ");
        says(query("page_size=many"), "page_size", "invalid digit");
        says(query("pageSize=-1"), "pageSize", "");
        says(query("user_id=a&userId=a"), "userId", "stands twice");
        says(parse_query::<proto::GetStatusRequest>("GetStatusRequest", "x=1"), "x", "there are: none");
        let list = parse_query::<proto::StreamEventsRequest>("StreamEventsRequest", "types=a&types=b").unwrap();
        assert_eq!(list.types, ["a", "b"]);
        assert!(!list.encode_to_vec().is_empty());
    }
}
