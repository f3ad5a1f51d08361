//! What a client may say: one JSON object a message, decoded strictly in the fields that matter to its type and
//! leniently in all others. In a text message it stands alone; in a binary one a 4-byte big-endian length goes before it,
//! and what would be its `data` follows as it is.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::ack_mode::AckMode;
use crate::{
    limits,
    types::{Offset, Payload, Secret, Topic, TypeName, UserId},
};

/// A decoded message.
#[derive(Debug)]
pub struct ClientMessage<'a> {
    /// The client's own id, which comes back as `replyTo`.
    pub id: Option<Cow<'a, str>>,
    /// What it wants.
    pub request: Request<'a>,
}

/// What a client wants.
#[derive(Debug)]
pub enum Request<'a> {
    /// `ping`.
    Ping,
    /// `echo`: its `data` as it came.
    Echo(Data<'a>),
    /// `auth`.
    Auth(AuthRequest),
    /// `ack`.
    Ack(Offset),
    /// `subscribe`, `join_room`.
    Subscribe(Membership),
    /// `unsubscribe`, `leave_room`.
    Unsubscribe(Membership),
    /// `user_list`.
    UserList(Topic),
    /// `message`, `publish`, `typing`.
    Say(Said<'a>),
    /// Any other type.
    Other {
        /// Which.
        type_name: Cow<'a, str>,
        /// What it carries.
        data: Data<'a>,
    },
}

/// What a message carries: JSON text as it came, `null` where there is none, or what stood behind a binary message's
/// envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// In a text message.
    Json(&'a str),
    /// In a binary one.
    Bytes(&'a [u8]),
}

impl Data<'_> {
    /// A copy of it.
    pub fn to_payload(self) -> Payload {
        match self {
            Data::Json(text) => Payload::Json(Bytes::copy_from_slice(text.as_bytes())),
            Data::Bytes(bytes) => Payload::Binary(Bytes::copy_from_slice(bytes)),
        }
    }
}

/// What is to be joined or left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The topic.
    pub topic: Topic,
    /// It was called a room, and is in the answer.
    pub room: bool,
}

/// The types of what a client says to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// To a user.
    Message,
    /// To a topic.
    Publish,
    /// To either, never stored.
    Typing,
}

impl Verb {
    /// The `type` of it, which is what others see as well.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Message => "message",
            Verb::Publish => "publish",
            Verb::Typing => "typing",
        }
    }
}

/// To whom a client says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// To the sessions of a user.
    User(UserId),
    /// To the members of a topic.
    Topic(Topic),
}

/// What a client says to others.
#[derive(Debug)]
pub struct Said<'a> {
    /// How.
    pub verb: Verb,
    /// To whom.
    pub to: Recipient,
    /// What the client calls it.
    pub kind: Option<TypeName>,
    /// What it is.
    pub data: Data<'a>,
}

/// The fields of `auth`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthRequest {
    /// The JWT; empty where there is none.
    pub token: Secret,
    /// The installation.
    #[serde(default)]
    pub device: Option<String>,
    /// How to confirm.
    #[serde(default)]
    pub ack_mode: Option<AckMode>,
    /// Whether payload bytes are wanted as such.
    #[serde(default, deserialize_with = "flag")]
    pub binary: bool,
}

/// The fields of an `auth` that has no `token`, and its `id`: what somebody says who wants to be a guest. `None`: it is no
/// such message.
pub fn auth_without_token(text: &str) -> Option<(Option<String>, AuthRequest)> {
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    if fields.get("type")?.as_str()? != "auth" || fields.insert("token".to_owned(), "".into()).is_some() {
        return None;
    }
    let id = fields.get("id").and_then(|id| id.as_str()).filter(|id| id.len() <= limits::CLIENT_ID_BYTES_MAX);
    let id = id.map(str::to_owned);
    Some((id, serde_json::from_value(fields.into()).ok()?))
}

/// `true`, `1` and `"1"` switch on.
fn flag<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Bool(bool),
        Number(u8),
        Text(String),
    }
    match Flag::deserialize(deserializer)? {
        Flag::Bool(on) => Ok(on),
        Flag::Number(n) if n <= 1 => Ok(n == 1),
        Flag::Text(text) if text == "1" || text == "true" => Ok(true),
        Flag::Text(text) if text == "0" || text == "false" => Ok(false),
        _ => Err(serde::de::Error::custom("`binary` must be true, false, 0 or 1")),
    }
}

/// Why a message is not one. The text tells the client what to do and never repeats what it sent.
#[derive(Debug)]
pub struct BadMessage<'a> {
    /// The client's own id, where it could be read.
    pub id: Option<Cow<'a, str>>,
    /// What is wrong.
    pub message: String,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, rename = "type")]
    type_name: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    topic: Option<&'a RawValue>,
    #[serde(borrow, rename = "roomId")]
    room_id: Option<&'a RawValue>,
    #[serde(borrow)]
    to: Option<&'a RawValue>,
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
}

/// An envelope whose type and id are good.
struct Opened<'a> {
    text: &'a str,
    envelope: Envelope<'a>,
    type_name: Cow<'a, str>,
    id: Option<Cow<'a, str>>,
}

/// The types that the gateway itself answers, whatever `clients.forward` says.
const ANSWERED: [&str; 12] = [
    "ping",
    "echo",
    "auth",
    "ack",
    "subscribe",
    "unsubscribe",
    "join_room",
    "leave_room",
    "user_list",
    "message",
    "publish",
    "typing",
];

/// Whether a client's message of this type is answered by the gateway itself, and never by a service.
pub fn is_answered(type_name: &str) -> bool {
    ANSWERED.contains(&type_name)
}

/// Decodes one text message.
pub fn decode(text: &str) -> Result<ClientMessage<'_>, BadMessage<'_>> {
    let opened = open(text)?;
    let data = Data::Json(opened.envelope.data.map_or("null", RawValue::get));
    opened.decode(data)
}

/// Decodes one binary message. `None`: it is none of the protocol's, its envelope not whole. What is wrong within one that is
/// whole is what is wrong with a text message.
pub fn decode_binary(bytes: &[u8]) -> Option<Result<ClientMessage<'_>, BadMessage<'_>>> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (envelope, payload) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let opened = match std::str::from_utf8(envelope) {
        Ok(text) => open(text),
        Err(_) => Err(BadMessage { id: None, message: "the envelope is not UTF-8".to_owned() }),
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(bad) => return Some(Err(bad)),
    };
    if opened.envelope.data.is_some() {
        let message = "`data` of a binary message stands behind its envelope".to_owned();
        return Some(Err(BadMessage { id: opened.id, message }));
    }
    Some(opened.decode(Data::Bytes(payload)))
}

/// Opens an envelope.
fn open(text: &str) -> Result<Opened<'_>, BadMessage<'_>> {
    let bad = |id, message: &str| Err(BadMessage { id, message: message.to_owned() });
    if depth_exceeds(text.as_bytes(), limits::CLIENT_JSON_DEPTH_MAX) {
        return bad(None, "the message nests deeper than 32 levels");
    }
    if !text.trim_ascii_start().starts_with('{') {
        return bad(None, "a message must be one JSON object");
    }
    let envelope: Envelope<'_> = match serde_json::from_str(text) {
        Ok(envelope) => envelope,
        // The text of serde_json's errors may quote what was sent (unknown variants, for one): the place is enough.
        Err(error) if error.is_data() => return bad(None, "a field is there twice"),
        Err(error) => return bad(None, &format!("not JSON at line {} column {}", error.line(), error.column())),
    };
    let id = match envelope.id.filter(|raw| raw.get() != "null") {
        None => None,
        Some(raw) => match serde_json::from_str::<CowStr<'_>>(raw.get()) {
            Ok(CowStr(id)) if id.len() <= limits::CLIENT_ID_BYTES_MAX => Some(id),
            Ok(_) => return bad(None, "`id` must have at most 128 bytes"),
            Err(_) => return bad(None, "`id` must be a string"),
        },
    };
    let Some(type_name) = envelope.type_name else { return bad(id, "`type` is missing") };
    let Ok(CowStr(type_name)) = serde_json::from_str::<CowStr<'_>>(type_name.get()) else {
        return bad(id, "`type` must be a string");
    };
    if type_name.is_empty() || type_name.len() > limits::TYPE_BYTES_MAX {
        return bad(id, "`type` must have 1 to 128 bytes");
    }
    Ok(Opened { text, envelope, type_name, id })
}

impl<'a> Opened<'a> {
    fn decode(self, data: Data<'a>) -> Result<ClientMessage<'a>, BadMessage<'a>> {
        let request = match self.request(data) {
            Ok(request) => request,
            Err(message) => return Err(BadMessage { id: self.id, message }),
        };
        let request = request.unwrap_or(Request::Other { type_name: self.type_name, data });
        Ok(ClientMessage { id: self.id, request })
    }

    /// `None`: the type is none of the gateway's.
    fn request(&self, data: Data<'a>) -> Result<Option<Request<'a>>, String> {
        let bare = matches!(
            &*self.type_name,
            "ping" | "auth" | "ack" | "subscribe" | "unsubscribe" | "join_room" | "leave_room" | "user_list"
        );
        if bare && matches!(data, Data::Bytes(bytes) if !bytes.is_empty()) {
            return Err(format!("`{}` takes no payload", self.type_name));
        }
        Ok(Some(match &*self.type_name {
            "ping" => Request::Ping,
            "echo" => Request::Echo(data),
            "auth" => Request::Auth(fields::<AuthRequest>(self.text).map_err(|()| {
                "`auth` needs `token`, a string; `device` is a string, `ackMode` is \"transport\" or \"client\", \
                 `binary` is true or false"
            })?),
            "ack" => {
                let fields = fields::<AckFields>(self.text);
                let offset = fields.map_err(|()| "`ack` needs `offset`, a whole number from 0 to 2^53 - 1")?.offset;
                Request::Ack(Offset::new(offset))
            }
            "subscribe" => Request::Subscribe(self.membership(false)?),
            "unsubscribe" => Request::Unsubscribe(self.membership(false)?),
            "join_room" => Request::Subscribe(self.membership(true)?),
            "leave_room" => Request::Unsubscribe(self.membership(true)?),
            "user_list" => Request::UserList(self.membership(false)?.topic),
            "message" => Request::Say(self.said(Verb::Message, Recipient::User(self.to()?), data)?),
            "publish" => Request::Say(self.said(Verb::Publish, Recipient::Topic(self.topic()?), data)?),
            "typing" => {
                let to = match (self.envelope.topic, self.envelope.to) {
                    (None, Some(_)) => Recipient::User(self.to()?),
                    (None, None) => return Err("`typing` needs `to` or `topic`, a string".to_owned()),
                    (Some(_), _) => Recipient::Topic(self.topic()?),
                };
                Request::Say(self.said(Verb::Typing, to, data)?)
            }
            _ => return Ok(None),
        }))
    }

    /// A topic by either of its names; a room's own goes first where a room is meant.
    fn membership(&self, room: bool) -> Result<Membership, String> {
        let (topic, room_id) = (("topic", self.envelope.topic), ("roomId", self.envelope.room_id));
        let both = if room { [room_id, topic] } else { [topic, room_id] };
        let (name, raw) = both.into_iter().find(|(_, raw)| raw.is_some()).unwrap_or(both[0]);
        let topic = Topic::parse(&self.text(name, raw)?).map_err(|error| format!("`{name}`: {error}"))?;
        Ok(Membership { topic, room })
    }

    fn topic(&self) -> Result<Topic, String> {
        let text = self.text("topic", self.envelope.topic)?;
        Topic::parse(&text).map_err(|error| format!("`topic`: {error}"))
    }

    fn to(&self) -> Result<UserId, String> {
        UserId::parse(&self.text("to", self.envelope.to)?).map_err(|error| format!("`to`: {error}"))
    }

    fn said(&self, verb: Verb, to: Recipient, data: Data<'a>) -> Result<Said<'a>, String> {
        let kind = match self.envelope.kind {
            None => None,
            raw => Some(TypeName::parse(&self.text("kind", raw)?).map_err(|error| format!("`kind`: {error}"))?),
        };
        Ok(Said { verb, to, kind, data })
    }

    /// A field that must be there, and text.
    fn text(&self, name: &str, raw: Option<&'a RawValue>) -> Result<Cow<'a, str>, String> {
        let text = raw.and_then(|raw| serde_json::from_str(raw.get()).ok());
        text.map(|CowStr(text)| text).ok_or_else(|| format!("`{}` needs `{name}`, a string", self.type_name))
    }
}

#[derive(Deserialize)]
struct AckFields {
    offset: u64,
}

/// A string that is borrowed where it has no escapes.
#[derive(Deserialize)]
struct CowStr<'a>(#[serde(borrow)] Cow<'a, str>);

fn fields<T: DeserializeOwned>(text: &str) -> Result<T, ()> {
    serde_json::from_str(text).map_err(|_| ())
}

/// Whether JSON text nests deeper than `max`. Brackets inside strings do not count.
pub fn depth_exceeds(text: &[u8], max: usize) -> bool {
    // Few texts have so many brackets at all, and these are counted many at a time: so few that a byte holds their number.
    let is_opening = |byte: &u8| u8::from(matches!(byte, b'{' | b'['));
    let opening = text.chunks(usize::from(u8::MAX)).map(|some| usize::from(some.iter().map(is_opening).sum::<u8>()));
    if opening.sum::<usize>() <= max {
        return false;
    }
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => at = behind_string(text, at),
            b'{' | b'[' => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Where the string ends that is open at `at`; behind the end of the text where nothing ends it.
fn behind_string(text: &[u8], mut at: usize) -> usize {
    while let Some(found) = text.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if text[at] == b'"' {
            return at + 1;
        }
        // What follows is escaped, whatever it is.
        at += 2;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        decode(text).expect_err(text).message
    }

    #[test]
    fn the_types_of_the_protocol_are_told_apart() {
        assert!(matches!(decode(r#"{"type":"ping"}"#).unwrap().request, Request::Ping));
        assert!(matches!(
            decode(r#"{"type":"echo","data":[1, 2]}"#).unwrap().request,
            Request::Echo(Data::Json("[1, 2]"))
        ));
        assert!(matches!(decode(r#"{"type":"echo"}"#).unwrap().request, Request::Echo(Data::Json("null"))));
        assert!(matches!(decode(r#"{"type":"ack","offset":7}"#).unwrap().request, Request::Ack(o) if o.get() == 7));
        assert!(matches!(decode(r#" {"type":"chat.say","data":{ }}"#).unwrap().request,
                Request::Other { type_name, data: Data::Json("{ }") } if type_name == "chat.say"));
        let auth = decode(r#"{"type":"auth","token":"t","device":"d","ackMode":"client","binary":1,"new":0}"#).unwrap();
        let Request::Auth(auth) = auth.request else { panic!("not auth") };
        assert_eq!((auth.device.as_deref(), auth.ack_mode, auth.binary), (Some("d"), Some(AckMode::Client), true));
    }

    #[test]
    fn an_id_comes_back_even_where_the_rest_is_wrong() {
        assert_eq!(decode(r#"{"id":"a\u0041","type":"ping"}"#).unwrap().id.as_deref(), Some("aA"));
        assert_eq!(decode(r#"{"id":"x"}"#).unwrap_err().id.as_deref(), Some("x"));
        assert_eq!(decode(r#"{"id":"x","type":5}"#).unwrap_err().id.as_deref(), Some("x"));
        assert_eq!(decode(r#"{"id":"x","type":"ack","offset":-1}"#).unwrap_err().id.as_deref(), Some("x"));
    }

    #[test]
    fn what_is_not_a_message_is_refused_with_a_reason() {
        for text in ["", "x", "[]", "\"a\"", "1", "null", "{", "{\"type\":\"ping\"", "{\"type\":\"ping\"} x"] {
            refused(text);
        }
        assert_eq!(refused("{}"), "`type` is missing");
        assert_eq!(refused(r#"{"type":""}"#), "`type` must have 1 to 128 bytes");
        assert_eq!(refused(r#"{"type":"ping","id":5}"#), "`id` must be a string");
        assert_eq!(
            refused(&format!(r#"{{"type":"ping","id":"{}"}}"#, "i".repeat(129))),
            "`id` must have at most 128 bytes"
        );
        assert_eq!(refused(r#"{"type":"ping","type":"ping"}"#), "a field is there twice");
        assert!(refused(r#"{"type":"auth"}"#).starts_with("`auth` needs `token`"));
        assert!(refused(r#"{"type":"ack","offset":"7"}"#).starts_with("`ack` needs `offset`"));
    }

    #[test]
    fn what_concerns_topics_and_others_is_read_with_its_names() {
        let request = |text: &str| decode(text).unwrap().request.debug();
        let member = |verb: &str, topic: &str, room| format!("{verb}(Membership {{ topic: {topic:?}, room: {room} }})");
        assert_eq!(request(r#"{"type":"subscribe","topic":"a"}"#), member("Subscribe", "a", false));
        assert_eq!(request(r#"{"type":"join_room","roomId":"a","topic":"b"}"#), member("Subscribe", "a", true));
        assert_eq!(request(r#"{"type":"leave_room","topic":"b"}"#), member("Unsubscribe", "b", true));
        assert_eq!(request(r#"{"type":"unsubscribe","topic":"b\u0041"}"#), member("Unsubscribe", "bA", false));
        assert_eq!(request(r#"{"type":"user_list","topic":"a"}"#), r#"UserList("a")"#);
        fn said(text: &str) -> (Verb, String, Option<String>, Data<'_>) {
            match decode(text).unwrap().request {
                Request::Say(Said { verb, to, kind, data }) => {
                    (verb, format!("{to:?}"), kind.map(|kind| kind.as_str().to_owned()), data)
                }
                other => panic!("{other:?}"),
            }
        }
        let user = r#"User("bob")"#.to_owned();
        let topic = r#"Topic("t")"#.to_owned();
        assert_eq!(
            said(r#"{"type":"message","to":"bob","kind":"chat","data":{ "a":1}}"#),
            (Verb::Message, user.clone(), Some("chat".into()), Data::Json(r#"{ "a":1}"#))
        );
        assert_eq!(said(r#"{"type":"publish","topic":"t"}"#), (Verb::Publish, topic.clone(), None, Data::Json("null")));
        assert_eq!(said(r#"{"type":"typing","to":"bob"}"#), (Verb::Typing, user, None, Data::Json("null")));
        assert_eq!(said(r#"{"type":"typing","topic":"t","to":"bob"}"#).1, topic, "a topic goes first");
        for (bad, text) in [
            (r#"{"type":"subscribe"}"#, "`subscribe` needs `topic`, a string"),
            (r#"{"type":"join_room"}"#, "`join_room` needs `roomId`, a string"),
            (r#"{"type":"leave_room","roomId":7}"#, "`leave_room` needs `roomId`, a string"),
            (r#"{"type":"user_list","topic":null}"#, "`user_list` needs `topic`, a string"),
            (r#"{"type":"subscribe","topic":""}"#, "`topic`: a topic must have 1 to 200 bytes, this one has 0"),
            (r#"{"type":"publish","topic":"a\n"}"#, "`topic`: a topic must not hold control characters"),
            (r#"{"type":"message","topic":"t"}"#, "`message` needs `to`, a string"),
            (r#"{"type":"message","to":""}"#, "`to`: a user id must have 1 to 255 bytes, this one has 0"),
            (r#"{"type":"typing"}"#, "`typing` needs `to` or `topic`, a string"),
            (r#"{"type":"publish","topic":"t","kind":1}"#, "`publish` needs `kind`, a string"),
            (
                r#"{"type":"publish","topic":"t","kind":"auth_success"}"#,
                "`kind`: type `auth_success` is reserved for the gateway; choose another name",
            ),
        ] {
            assert_eq!(refused(bad), text);
        }
    }

    impl Request<'_> {
        fn debug(&self) -> String {
            format!("{self:?}")
        }
    }

    fn binary(envelope: &str, payload: &[u8]) -> Vec<u8> {
        [&u32::try_from(envelope.len()).unwrap().to_be_bytes(), envelope.as_bytes(), payload].concat()
    }

    #[test]
    fn a_binary_message_is_a_length_an_envelope_and_a_payload() {
        let read = |bytes: &[u8]| match decode_binary(bytes).unwrap() {
            Ok(ClientMessage { id, request: Request::Say(said) }) => {
                let Data::Bytes(payload) = said.data else { panic!("not bytes") };
                (id.map(Cow::into_owned), payload.to_vec())
            }
            other => panic!("{other:?}"),
        };
        let publish = r#"{"type":"publish","id":"1","topic":"t"}"#;
        assert_eq!(read(&binary(publish, &[0, 255])), (Some("1".into()), vec![0, 255]));
        assert_eq!(read(&binary(publish, &[])).1, [0; 0]);
        assert!(matches!(decode_binary(&binary(r#"{"type":"ping"}"#, b"")), Some(Ok(_))));
        for (envelope, text) in [
            (r#"{"type":"publish","topic":"t","data":1}"#, "`data` of a binary message stands behind its envelope"),
            (r#"{"type":"publish"}"#, "`publish` needs `topic`, a string"),
            (r#"{"type":"ping"}"#, "`ping` takes no payload"),
        ] {
            assert_eq!(decode_binary(&binary(envelope, b"x")).unwrap().unwrap_err().message, text);
        }
        for (envelope, text) in [
            ("", "a message must be one JSON object"),
            ("[]", "a message must be one JSON object"),
            ("{", "not JSON at line 1 column 1"),
            ("{}", "`type` is missing"),
            (r#"{"type":1}"#, "`type` must be a string"),
        ] {
            assert_eq!(decode_binary(&binary(envelope, b"x")).unwrap().unwrap_err().message, text);
        }
        let not_utf8 = [&[0, 0, 0, 1][..], &[0xff]].concat();
        assert_eq!(decode_binary(&not_utf8).unwrap().unwrap_err().message, "the envelope is not UTF-8");
        let whole = binary(publish, b"");
        let short = &whole[..whole.len() - 1];
        for none in [b"", &[0, 0, 0][..], &[0, 0, 0, 1], &[255; 4], short] {
            assert!(decode_binary(none).is_none(), "{none:?}");
        }
    }

    #[test]
    fn depth_is_bounded_at_32_and_brackets_in_strings_do_not_count() {
        let nested = |n: usize| format!(r#"{{"type":"echo","data":{}{}}}"#, "[".repeat(n), "]".repeat(n));
        assert!(decode(&nested(31)).is_ok());
        assert!(refused(&nested(32)).contains("deeper"));
        assert!(refused(&nested(20_000)).contains("deeper"));
        let text = format!(r#"{{"type":"echo","data":"{}\"{}"}}"#, "[".repeat(40), "{".repeat(40));
        assert!(decode(&text).is_ok());
    }
}
