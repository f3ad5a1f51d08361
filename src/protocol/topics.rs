//! What the gateway says about topics: the answers to `subscribe` and `user_list`, and who came and went.

use bytes::Bytes;
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{client::Membership, server::message};
use crate::types::{Claims, Topic, UnixMillis, UserId};

/// Claims as a JSON object.
struct Shown<'a>(&'a Claims);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(None)?;
        for (name, value) in self.0.iter() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// `subscribed`, or `unsubscribed`.
pub fn membership(joined: bool, of: &Membership, reply_to: Option<&str>, now: UnixMillis) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        topic: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        room_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reply_to: Option<&'a str>,
        timestamp: String,
    }
    let topic = of.topic.as_str();
    let body = Body { topic, room_id: of.room.then_some(topic), reply_to, timestamp: now.rfc3339().to_string() };
    message(if joined { "subscribed" } else { "unsubscribed" }, &body)
}

/// What a user takes in a `user_list` at least.
pub const PRESENT_BYTES_MIN: usize = 64;

/// A user in a topic.
#[derive(Clone, Debug)]
pub struct Present {
    /// Who.
    pub user: UserId,
    /// How many of his sessions are in it; none while he may come back.
    pub sessions: u32,
    /// Since when he is.
    pub since: UnixMillis,
    /// What others may know of him.
    pub claims: Claims,
}

/// `user_list`. `users`: where there are not too many of them.
pub fn user_list(
    topic: &Topic,
    count: usize,
    users: Option<&[Present]>,
    reply_to: Option<&str>,
    now: UnixMillis,
) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Row<'a> {
        user_id: &'a str,
        sessions: u32,
        since: String,
        claims: Shown<'a>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        topic: &'a str,
        count: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        users: Option<Vec<Row<'a>>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reply_to: Option<&'a str>,
        timestamp: String,
    }
    fn row(Present { user, sessions, since, claims }: &Present) -> Row<'_> {
        let since = since.rfc3339().to_string();
        Row { user_id: user.as_str(), sessions: *sessions, since, claims: Shown(claims) }
    }
    let users = users.map(|users| users.iter().map(row).collect());
    let body = Body { topic: topic.as_str(), count, users, reply_to, timestamp: now.rfc3339().to_string() };
    message("user_list", &body)
}

/// `user_joined`, or `user_left`.
pub fn came_or_went(came: bool, topic: &Topic, user: &UserId, claims: &Claims, now: UnixMillis) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        topic: &'a str,
        user_id: &'a str,
        claims: Shown<'a>,
        timestamp: String,
    }
    let (topic, user_id, timestamp) = (topic.as_str(), user.as_str(), now.rfc3339().to_string());
    message(if came { "user_joined" } else { "user_left" }, &Body { topic, user_id, claims: Shown(claims), timestamp })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn value(frame: &Bytes) -> Value {
        let header = if frame[1] == 126 { 4 } else { 2 };
        serde_json::from_slice(&frame[header..]).unwrap()
    }

    #[test]
    fn answers_name_the_topic_and_the_room_where_it_was_one() {
        let topic = Topic::parse("a \"b\"").unwrap();
        let plain = membership(true, &Membership { topic: topic.clone(), room: false }, Some("7"), UnixMillis(0));
        let now = "1970-01-01T00:00:00.000Z";
        let expected = json!({ "type": "subscribed", "topic": "a \"b\"", "replyTo": "7", "timestamp": now });
        assert_eq!(value(&plain), expected);
        let room = membership(false, &Membership { topic, room: true }, None, UnixMillis(0));
        let expected = json!({ "type": "unsubscribed", "topic": "a \"b\"", "roomId": "a \"b\"", "timestamp": now });
        assert_eq!(value(&room), expected);
    }

    #[test]
    fn users_are_shown_with_what_others_may_know_of_them() {
        let topic = Topic::parse("t").unwrap();
        let user = UserId::parse("ann").unwrap();
        let Value::Object(all) = json!({ "name": "Ann", "secret": 1 }) else { panic!() };
        let claims = Claims::of(&all, &["name".to_owned()]);
        let now = "1970-01-01T00:00:00.000Z";
        let came = came_or_went(true, &topic, &user, &claims, UnixMillis(0));
        let expected = json!({
            "type": "user_joined", "topic": "t", "userId": "ann", "claims": { "name": "Ann" }, "timestamp": now,
        });
        assert_eq!(value(&came), expected);
        let went = came_or_went(false, &topic, &user, &Claims::default(), UnixMillis(0));
        assert_eq!((value(&went)["type"].as_str(), &value(&went)["claims"]), (Some("user_left"), &json!({})));
        let present = Present { user, sessions: 2, since: UnixMillis(0), claims };
        let list = user_list(&topic, 1, Some(&[present]), Some("1"), UnixMillis(0));
        let row = json!({ "userId": "ann", "sessions": 2, "since": now, "claims": { "name": "Ann" } });
        let expected = json!({
            "type": "user_list", "topic": "t", "count": 1, "users": [row], "replyTo": "1", "timestamp": now,
        });
        assert_eq!(value(&list), expected);
        assert_eq!(value(&user_list(&topic, 5000, None, None, UnixMillis(0))).get("users"), None);
    }
}
