//! JSON as `google.protobuf.Value` and `Struct` have it: numbers are doubles.

use std::collections::BTreeMap;

use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::Value as Json;

use crate::types::Claims;

/// JSON text as a value. `None`: it holds what a `Value` cannot, a number beyond all doubles or half a surrogate pair.
pub fn from_json(text: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Json>(text).ok().map(value)
}

/// A session's claims.
pub fn claims(claims: &Claims) -> Struct {
    Struct { fields: claims.iter().map(|(name, one)| (name.to_owned(), value(one.clone()))).collect() }
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
}
