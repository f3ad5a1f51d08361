//! The claims of a token that its session keeps: those that the configuration names, as the token has them.

use std::{borrow::Cow, fmt::Write as _, sync::Arc};

use serde_json::{Map, Value};

/// Claims, by name. Nothing is held where there are none; cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(Option<Arc<Map<String, Value>>>);

impl Claims {
    /// Of these claims those whose names are wanted.
    pub fn of(all: &Map<String, Value>, wanted: &[String]) -> Self {
        let kept = wanted.iter().filter_map(|name| all.get_key_value(name));
        let kept: Map<_, _> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        Self((!kept.is_empty()).then(|| Arc::new(kept)))
    }

    /// One claim.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.as_ref()?.get(name)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether a claim is that text, that number or boolean as text, or a list that holds it.
    pub fn has(&self, name: &str, text: &str) -> bool {
        self.get(name).is_some_and(|value| match value {
            Value::Array(many) => many.iter().any(|one| is_text(one, text)),
            one => is_text(one, text),
        })
    }

    /// A claim as text: the text, number or boolean that it is, or each of a list of them.
    pub fn texts(&self, name: &str) -> Vec<Cow<'_, str>> {
        match self.get(name) {
            Some(Value::Array(many)) => many.iter().filter_map(text_of).collect(),
            one => one.and_then(text_of).into_iter().collect(),
        }
    }

    /// Those of these names, for others to see.
    pub fn only(&self, names: &[String]) -> Claims {
        self.0.as_ref().map_or_else(Claims::default, |all| Claims::of(all, names))
    }

    /// How much they are as JSON, about.
    pub fn bytes(&self) -> usize {
        self.iter().map(|(name, value)| name.len() + value.to_string().len()).sum()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().flat_map(|all| all.iter().map(|(name, value)| (name.as_str(), value)))
    }
}

fn is_text(value: &Value, text: &str) -> bool {
    match value {
        Value::String(string) => string == text,
        Value::Number(number) => {
            let mut rest = Rest(text);
            write!(rest, "{number}").is_ok() && rest.0.is_empty()
        }
        Value::Bool(flag) => text == if *flag { "true" } else { "false" },
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

fn text_of(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(string) => Some(string.into()),
        Value::Number(number) => Some(number.to_string().into()),
        Value::Bool(flag) => Some(if *flag { "true" } else { "false" }.into()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// What is left of a text that is compared with what is written, without a copy of either.
struct Rest<'a>(&'a str);

impl std::fmt::Write for Rest<'_> {
    fn write_str(&mut self, written: &str) -> std::fmt::Result {
        self.0 = self.0.strip_prefix(written).ok_or(std::fmt::Error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_wanted_is_kept() {
        let Value::Object(all) = json!({"role": ["admin", "dev"], "team": 7, "vip": true, "secret": "s"}) else {
            panic!()
        };
        let claims = Claims::of(&all, &["role".to_owned(), "team".to_owned(), "vip".to_owned(), "none".to_owned()]);
        assert!(claims.has("role", "dev") && claims.has("team", "7") && claims.has("vip", "true"));
        assert!(
            !claims.has("role", "de")
                && !claims.has("vip", "1")
                && !claims.has("none", "")
                && !claims.has("secret", "s")
        );
        assert!(!claims.has("team", "70") && !claims.has("team", "") && !claims.has("team", "7.0"));
        assert_eq!(claims.get("secret"), None);
        assert_eq!(
            (claims.texts("role"), claims.texts("team")),
            (vec!["admin".into(), "dev".into()], vec!["7".into()])
        );
        assert!(claims.texts("none").is_empty());
        assert_eq!(claims.only(&["team".to_owned()]).iter().collect::<Vec<_>>(), [("team", &json!(7))]);
        assert!(Claims::of(&all, &[]).is_empty() && claims.only(&[]).is_empty());
    }
}
