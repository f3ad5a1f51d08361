//! `ListUsers`: who is online, and what others may know of him.

use prost::Message as _;
use prost_types::{ListValue, Struct, value::Kind};
use serde_json::Value;

use super::{
    Api, Caller,
    convert::{Checks, timestamp},
    error::ApiError,
    pages::{self, Filter},
    proto,
    scope::Scope,
};
use crate::{
    hub::{Handle, Hub},
    limits,
    types::{Claims, UserId},
};

/// How deep a claim may nest to be shown: a message takes no more than 100 levels, three of which are one of JSON's.
const CLAIM_DEPTH_MAX: usize = 16;

impl Api {
    /// `ListUsers`.
    pub async fn list_users(
        &self,
        caller: &Caller,
        request: &proto::ListUsersRequest,
    ) -> Result<proto::ListUsersResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Read)?;
        let mut checks = Checks::default();
        let filter = Filter::new("users", &[]);
        let after = checks.page_token(&request.page_token, filter, |after| UserId::parse(after).ok());
        let (after,) = checks.finish((after,))?;
        let rows = pages::rows(request.page_size);
        // One more than asked for tells whether there is a next page.
        let found = hub.online_page(after.as_ref(), rows + 1).await;
        let mut more = found.len() > rows;
        let (mut users, mut bytes, mut last) = (Vec::new(), 0, None);
        for (id, sessions) in found.into_iter().take(rows) {
            if bytes > limits::USERS_PAGE_BYTES_MAX {
                more = true;
                break;
            }
            if let Some(user) = user_row(hub, &id, &sessions) {
                bytes += user.encoded_len();
                users.push(user);
            }
            last = Some(id);
        }
        let next_page_token = last.filter(|_| more).map(|last| filter.token(last.as_str())).unwrap_or_default();
        Ok(proto::ListUsersResponse { users, next_page_token })
    }
}

/// A user with his sessions in the order in which they began; none is no user who is online.
fn user_row(hub: &Hub, id: &UserId, sessions: &[std::sync::Arc<Handle>]) -> Option<proto::User> {
    let (first, latest) = (sessions.first()?, sessions.last()?);
    let claims = latest.core().claims().only(hub.authenticator().public_claims());
    Some(proto::User {
        user_id: id.as_str().to_owned(),
        sessions: u32::try_from(sessions.len()).unwrap_or(u32::MAX),
        since: Some(timestamp(first.connected_at)),
        claims: Some(structure(&claims)).filter(|claims| !claims.fields.is_empty()),
    })
}

/// Claims as the proto has them. Numbers are doubles; what nests deeper than a message can is `null`.
pub fn structure(claims: &Claims) -> Struct {
    Struct {
        fields: claims.iter().map(|(name, value)| (name.to_owned(), self::value(value, CLAIM_DEPTH_MAX))).collect(),
    }
}

fn value(json: &Value, depth: usize) -> prost_types::Value {
    let kind = match json {
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Number(number) => number.as_f64().map_or(Kind::NullValue(0), Kind::NumberValue),
        Value::Array(items) if depth > 0 => {
            Kind::ListValue(ListValue { values: items.iter().map(|item| value(item, depth - 1)).collect() })
        }
        Value::Object(fields) if depth > 0 => {
            let fields = fields.iter().map(|(name, field)| (name.clone(), value(field, depth - 1))).collect();
            Kind::StructValue(Struct { fields })
        }
        Value::Null | Value::Array(_) | Value::Object(_) => Kind::NullValue(0),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_shown_as_they_are_and_no_deeper_than_a_message_can_be() {
        let mut deep = json!(1);
        for _ in 0..100 {
            deep = json!([deep]);
        }
        let Value::Object(all) =
            json!({ "name": "Alice", "roles": ["a", true, null, 7], "team": { "id": 1.5 }, "deep": deep })
        else {
            panic!()
        };
        let names: Vec<_> = all.keys().cloned().collect();
        let shown = structure(&Claims::of(&all, &names));
        let user = proto::User { claims: Some(shown), ..Default::default() };
        let again = proto::User::decode(user.encode_to_vec().as_slice()).unwrap();
        assert_eq!(again, user);
        let fields = user.claims.unwrap().fields;
        assert_eq!(fields["name"].kind, Some(Kind::StringValue("Alice".to_owned())));
        let Some(Kind::ListValue(roles)) = &fields["roles"].kind else { panic!("{fields:?}") };
        assert_eq!(roles.values[3].kind, Some(Kind::NumberValue(7.0)));
        assert!(matches!(&fields["team"].kind, Some(Kind::StructValue(team)) if team.fields.contains_key("id")));
        assert!(structure(&Claims::default()).fields.is_empty());
    }
}
