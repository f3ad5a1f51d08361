//! The decoder of clients' messages, against what a plain JSON parser finds in them.

use pushgate::{
    limits,
    protocol::client::{self, BadMessage, ClientMessage, Data, Request},
    types::Offset,
};
use serde_json::{Value, value::RawValue};

use super::{kind, size};

pub const WORDS: &[&[u8]] = &[
    b"{\"type\":\"ping\"}",
    b"\"type\":\"echo\",",
    b"\"data\":",
    b"\"id\":\"1\",",
    b"\"type\":\"auth\",\"token\":\"t\"",
    b"\"ackMode\":\"client\"",
    b"\"type\":\"ack\",\"offset\":",
    b"9007199254740991",
    b"\"topic\":\"a.b\"",
    b"\"roomId\":\"r\"",
    b"\"to\":\"bob\"",
    b"\"kind\":\"k\"",
    b"\"binary\":1",
    b"[[[[[[[[",
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"1e999",
];

fn shape(decoded: &Result<ClientMessage<'_>, BadMessage<'_>>) -> (u8, bool, usize) {
    match decoded {
        Ok(message) => {
            let of = match &message.request {
                Request::Ping => 1,
                Request::Echo(_) => 2,
                Request::Auth(_) => 3,
                Request::Ack(_) => 4,
                Request::Subscribe(_) => 5,
                Request::Unsubscribe(_) => 6,
                Request::UserList(_) => 7,
                Request::Say(_) => 8,
                Request::Other { .. } => 9,
            };
            (of, message.id.is_some(), 0)
        }
        Err(bad) => (0, bad.id.is_some(), bad.message.len()),
    }
}

/// Text is a text message; what begins with a zero byte is a binary one.
pub fn run(input: &[u8]) -> u64 {
    if input.first() == Some(&0) {
        return binary(input);
    }
    let Ok(text) = std::str::from_utf8(input) else { return 0 };
    let decoded = client::decode(text);
    let value: Option<Value> = serde_json::from_str(text).ok();
    let seen = value.as_ref().and_then(Value::as_object);
    // Half of a surrogate pair and numbers beyond all bounds are JSON, which is passed on as it came, but no values.
    let raw = serde_json::from_str::<&RawValue>(text);
    match &decoded {
        Ok(_) if value.is_none() => assert!(raw.is_ok_and(|raw| raw.get().starts_with('{')), "not JSON"),
        Ok(message) => {
            let seen = seen.expect("what is decoded is a JSON object");
            // Of a name that is there twice a parser of values keeps the last; such a message is none.
            assert_eq!(message.id.as_deref(), seen.get("id").and_then(Value::as_str));
            let type_name = seen["type"].as_str().unwrap();
            let data = match &message.request {
                Request::Echo(data) | Request::Other { data, .. } => Some(data),
                Request::Say(said) => Some(&said.data),
                _ => None,
            };
            if let Some(Data::Json(json)) = data {
                assert!(text.contains(json) || *json == "null");
                let expected = seen.get("data").cloned().unwrap_or(Value::Null);
                assert_eq!(serde_json::from_str::<Value>(json).unwrap(), expected);
            }
            match &message.request {
                Request::Other { type_name: of, .. } => {
                    assert!(*of == type_name && !client::is_answered(type_name));
                }
                Request::Ack(offset) => {
                    // Beyond the last there is none, and nothing to ack.
                    assert_eq!(Some(offset.get()), seen["offset"].as_u64().map(|offset| offset.min(Offset::MAX.get())));
                }
                Request::Auth(auth) => assert_eq!(Some(auth.token.expose()), seen["token"].as_str()),
                _ => assert!(client::is_answered(type_name)),
            }
        }
        Err(bad) => {
            assert!(bad.message.len() < 300, "{}", bad.message);
            let plain = seen.is_some_and(|seen| {
                seen.len() == 1 && seen.get("type").and_then(Value::as_str).is_some_and(|name| name == "ping")
            });
            // Only one that has a name twice, and nesting, which it then has in the value that is not kept.
            assert!(!plain || text.matches("type").count() + text.matches('\\').count() > 1, "a ping is refused");
        }
    }
    let deep = client::depth_exceeds(input, limits::CLIENT_JSON_DEPTH_MAX);
    assert!(!deep || decoded.is_err(), "too deep");
    kind((shape(&decoded), value.is_some(), deep, size(input.len())))
}

/// A binary message: read again from its parts, it is the same.
fn binary(bytes: &[u8]) -> u64 {
    let Some(decoded) = client::decode_binary(bytes) else { return kind("none") };
    let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
    // One that is no text is a bad message.
    let Ok(envelope) = std::str::from_utf8(&bytes[4..4 + length]) else {
        assert!(decoded.is_err());
        return kind(shape(&decoded));
    };
    if let Ok(message) = &decoded {
        let alone = client::decode(envelope).expect("an envelope is a message but for its data");
        assert_eq!(message.id, alone.id);
        if let Request::Echo(data) | Request::Other { data, .. } = &message.request {
            assert_eq!(*data, Data::Bytes(&bytes[4 + length..]));
        }
    }
    kind((shape(&decoded), "binary", size(bytes.len() - length)))
}
