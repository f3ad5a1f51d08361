//! JSON as `google.protobuf.Value` and `Struct` have it: numbers are doubles.

use std::collections::BTreeMap;

use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::Value as Json;

use crate::types::Claims;

/// JSON text as a value. `None`: it holds what a `Value` cannot, a number beyond all doubles or half a surrogate pair.
pub fn from_json(text: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Json>(text).ok().map(value)
}

/// How deep a claim may nest to be shown: a message takes 100 levels, three of which are one of JSON's.
const CLAIM_DEPTH_MAX: usize = 16;

/// A session's claims. What nests deeper than a message can is `null`.
pub fn claims(claims: &Claims) -> Struct {
    let shown = |one: &Json| value(as_deep_as(one, CLAIM_DEPTH_MAX));
    Struct { fields: claims.iter().map(|(name, one)| (name.to_owned(), shown(one))).collect() }
}

fn as_deep_as(json: &Json, depth: usize) -> Json {
    match json {
        Json::Array(_) | Json::Object(_) if depth == 0 => Json::Null,
        Json::Array(many) => many.iter().map(|one| as_deep_as(one, depth - 1)).collect(),
        Json::Object(fields) => fields.iter().map(|(name, one)| (name.clone(), as_deep_as(one, depth - 1))).collect(),
        plain => plain.clone(),
    }
}

/// One JSON value.
pub fn value(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(flag) => Kind::BoolValue(flag),
        // Integers beyond 2^53 are rounded, as every reader of proto JSON does.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(many) => Kind::ListValue(ListValue { values: many.into_iter().map(value).collect() }),
        Json::Object(fields) => {
            let fields: BTreeMap<_, _> = fields.into_iter().map(|(name, one)| (name, value(one))).collect();
            Kind::StructValue(Struct { fields })
        }
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn json_becomes_a_value_and_what_a_value_cannot_hold_does_not() {
        let Some(Kind::StructValue(object)) = from_json(br#"{"a":[1,-2.5,true,null],"b":{"c":"d"}}"#).unwrap().kind
        else {
            panic!("not an object")
        };
        let Some(Kind::ListValue(list)) = &object.fields["a"].kind else { panic!("not a list") };
        let kinds: Vec<_> = list.values.iter().map(|value| value.kind.clone().unwrap()).collect();
        let expected = [Kind::NumberValue(1.0), Kind::NumberValue(-2.5), Kind::BoolValue(true), Kind::NullValue(0)];
        assert_eq!(kinds, expected);
        let Some(Kind::StructValue(inner)) = &object.fields["b"].kind else { panic!("not an object") };
        assert_eq!(inner.fields["c"].kind, Some(Kind::StringValue("d".to_owned())));
        assert_eq!(from_json(b"9007199254740993").unwrap().kind, Some(Kind::NumberValue(9_007_199_254_740_992.0)));
        for text in ["1e999", r#""\ud800""#, "{", ""] {
            assert_eq!(from_json(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn claims_are_shown_no_deeper_than_a_message_can_be() {
        let mut deep = serde_json::json!(1);
        for _ in 0..100 {
            deep = serde_json::json!([{ "in": deep }]);
        }
        let Json::Object(all) = serde_json::json!({ "name": "Alice", "roles": ["a", 7], "deep": deep }) else {
            panic!()
        };
        let names: Vec<_> = all.keys().cloned().collect();
        let shown = claims(&Claims::of(&all, &names));
        assert_eq!(Struct::decode(shown.encode_to_vec().as_slice()).unwrap(), shown, "it can be read");
        assert_eq!(shown.fields["name"].kind, Some(Kind::StringValue("Alice".to_owned())));
        assert!(matches!(&shown.fields["roles"].kind, Some(Kind::ListValue(roles)) if roles.values.len() == 2));
        assert!(claims(&Claims::default()).fields.is_empty());
    }
}
