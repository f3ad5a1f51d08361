//! What a client may say: one JSON object a text message, decoded strictly in the fields that matter to its type and
//! leniently in all others.

use std::borrow::Cow;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::ack_mode::AckMode;
use crate::{limits, types::Offset};

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
    /// `echo`: its `data` as it came, `null` where there is none.
    Echo(&'a str),
    /// `auth`.
    Auth(AuthRequest),
    /// `ack`.
    Ack(Offset),
    /// A message that needs a permission which clients do not have.
    Forbidden,
    /// Any other type.
    Other {
        /// Which.
        type_name: Cow<'a, str>,
        /// Its `data` as it came, `null` where there is none.
        data: &'a str,
    },
}

/// The fields of `auth`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthRequest {
    /// The JWT.
    pub token: String,
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
    let request = match &*type_name {
        "ping" => Request::Ping,
        "echo" => Request::Echo(envelope.data.map_or("null", RawValue::get)),
        "auth" => match fields::<AuthRequest>(text) {
            Ok(auth) => Request::Auth(auth),
            Err(()) => {
                return bad(
                    id,
                    "`auth` needs `token`, a string; `device` is a string, `ackMode` is \"transport\" or \"client\", \
                     `binary` is true or false",
                );
            }
        },
        "ack" => match fields::<AckFields>(text) {
            Ok(AckFields { offset }) => Request::Ack(Offset::new(offset)),
            Err(()) => return bad(id, "`ack` needs `offset`, a whole number from 0 to 2^53 - 1"),
        },
        "subscribe" | "unsubscribe" | "join_room" | "leave_room" | "user_list" | "message" | "publish" | "typing" => {
            Request::Forbidden
        }
        _ => Request::Other { type_name, data: envelope.data.map_or("null", RawValue::get) },
    };
    Ok(ClientMessage { id, request })
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
        assert!(matches!(decode(r#"{"type":"echo","data":[1, 2]}"#).unwrap().request, Request::Echo("[1, 2]")));
        assert!(matches!(decode(r#"{"type":"echo"}"#).unwrap().request, Request::Echo("null")));
        assert!(matches!(decode(r#"{"type":"ack","offset":7}"#).unwrap().request, Request::Ack(o) if o.get() == 7));
        assert!(matches!(decode(r#"{"type":"subscribe"}"#).unwrap().request, Request::Forbidden));
        assert!(matches!(decode(r#" {"type":"chat.say","data":{ }}"#).unwrap().request,
                Request::Other { type_name, data: "{ }" } if type_name == "chat.say"));
        let auth = decode(r#"{"type":"auth","token":"t","device":"d","ackMode":"client","binary":1,"new":0}"#).unwrap();
        let Request::Auth(auth) = auth.request else { panic!("not auth") };
        assert_eq!((auth.device.as_deref(), auth.ack_mode, auth.binary), (Some("d"), Some(AckMode::Client), true));
    }

    #[test]
    fn what_the_gateway_answers_is_for_no_service() {
        for name in ANSWERED {
            let text = format!(r#"{{"type":"{name}"}}"#);
            let left = decode(&text).map(|message| message.request);
            assert!(!matches!(left, Ok(Request::Other { .. })), "{name}");
            assert!(is_answered(name) && !is_answered("order"));
        }
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
    fn depth_is_bounded_at_32_and_brackets_in_strings_do_not_count() {
        let nested = |n: usize| format!(r#"{{"type":"echo","data":{}{}}}"#, "[".repeat(n), "]".repeat(n));
        assert!(decode(&nested(31)).is_ok());
        assert!(refused(&nested(32)).contains("deeper"));
        assert!(refused(&nested(20_000)).contains("deeper"));
        let text = format!(r#"{{"type":"echo","data":"{}\"{}"}}"#, "[".repeat(40), "{".repeat(40));
        assert!(decode(&text).is_ok());
    }
}
