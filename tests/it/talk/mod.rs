//! Topics, rooms, presence, and what clients say to each other.

mod durable;
mod messages;
mod permissions;
mod presence;
mod services;
mod subscriptions;

use serde_json::{Value, json};

use crate::support::{Client, Gateway};

/// Everybody may do everything in `room.*`, and nothing elsewhere.
pub const ROOMS: (&str, &str) =
    ("topics", r#"[{ pattern = "room.*", subscribe = ["*"], publish = ["*"], presence = ["*"] }]"#);

/// A gateway with [`ROOMS`].
pub async fn rooms() -> Gateway {
    Gateway::with(&[ROOMS]).await
}

impl Client {
    /// Subscribes, which must be allowed.
    pub async fn subscribe(&mut self, topic: &str) {
        let answer = self.ask(&json!({ "type": "subscribe", "topic": topic })).await;
        assert_eq!((&answer["type"], &answer["topic"]), (&json!("subscribed"), &json!(topic)), "{answer}");
    }

    /// The next message, without what differs each time.
    pub async fn next_plain(&mut self) -> Value {
        let mut message = self.next().await;
        for (name, is) in [("timestamp", true), ("id", message["type"] != "pong")] {
            if is && message.get(name).is_some() {
                assert!(message[name].as_str().is_some_and(|text| text.len() > 20), "{message}");
                message.as_object_mut().unwrap().remove(name);
            }
        }
        message
    }

    /// Asks something that is refused: the code, and the message.
    pub async fn refused(&mut self, message: &Value) -> (String, String) {
        let mut message = message.clone();
        message["id"] = json!("refused");
        let answer = self.ask(&message).await;
        assert_eq!((&answer["type"], &answer["replyTo"]), (&json!("error"), &json!("refused")), "{answer}");
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        (text("code"), text("message"))
    }
}
