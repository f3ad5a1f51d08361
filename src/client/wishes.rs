//! The topics and rooms that the application wants to be in. They are asked for on every session anew; one that is refused
//! is dropped.

use std::{collections::BTreeMap, fmt};

use serde_json::json;
use tokio::sync::oneshot;

use super::error::{RequestError, SendError};

/// Topics and rooms together.
pub const WISHES_MAX: usize = 1024;
/// Callers who wait for one of them.
const WAITERS_MAX: usize = 64;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    Topic(String),
    Room(String),
}

impl Wish {
    /// What asks for it, without an id.
    pub fn ask(&self) -> serde_json::Value {
        match self {
            Wish::Topic(topic) => json!({ "type": "subscribe", "topic": topic }),
            Wish::Room(room) => json!({ "type": "join_room", "roomId": room }),
        }
    }

    /// What gives it up.
    pub fn give_up(&self) -> serde_json::Value {
        match self {
            Wish::Topic(topic) => json!({ "type": "unsubscribe", "topic": topic }),
            Wish::Room(room) => json!({ "type": "leave_room", "roomId": room }),
        }
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wish::Topic(topic) => write!(f, "topic {topic}"),
            Wish::Room(room) => write!(f, "room {room}"),
        }
    }
}

type Told = Result<(), RequestError>;

#[derive(Debug, Default)]
struct Standing {
    /// The id of the message that asked for it on the present session.
    asked: Option<String>,
    confirmed: bool,
    waiting: Vec<oneshot::Sender<Told>>,
}

impl Standing {
    fn tell(&mut self, told: &Told) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(told.clone());
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Wishes(BTreeMap<Wish, Standing>);

impl Wishes {
    /// Adds one; what its fate comes by, or `None` where it is confirmed already.
    pub fn add(&mut self, wish: Wish) -> Result<Option<oneshot::Receiver<Told>>, RequestError> {
        if !self.0.contains_key(&wish) && self.0.len() >= WISHES_MAX {
            return Err(RequestError::TooMany(WISHES_MAX));
        }
        let standing = self.0.entry(wish).or_default();
        if standing.confirmed {
            return Ok(None);
        }
        standing.waiting.retain(|waiting| !waiting.is_closed());
        if standing.waiting.len() >= WAITERS_MAX {
            return Err(RequestError::TooMany(WAITERS_MAX));
        }
        let (tell, told) = oneshot::channel();
        standing.waiting.push(tell);
        Ok(Some(told))
    }

    /// Takes one out; whether the gateway was asked for it on the present session.
    pub fn remove(&mut self, wish: &Wish) -> bool {
        self.0.remove(wish).is_some_and(|mut standing| {
            standing.tell(&Err(RequestError::Withdrawn));
            standing.asked.is_some() || standing.confirmed
        })
    }

    /// One that the gateway has yet to be asked for, noted as asked for with that id.
    pub fn next(&mut self, id: &str) -> Option<Wish> {
        let (wish, standing) = self.0.iter_mut().find(|(_, one)| one.asked.is_none() && !one.confirmed)?;
        standing.asked = Some(id.to_owned());
        Some(wish.clone())
    }

    /// Whether there is one that the gateway has yet to be asked for.
    pub fn has_next(&self) -> bool {
        self.0.values().any(|one| one.asked.is_none() && !one.confirmed)
    }

    /// The gateway confirms the one that was asked for with that id.
    pub fn confirm(&mut self, id: &str) -> Option<Wish> {
        let (wish, standing) = self.0.iter_mut().find(|(_, one)| one.asked.as_deref() == Some(id))?;
        (standing.asked, standing.confirmed) = (None, true);
        standing.tell(&Ok(()));
        Some(wish.clone())
    }

    /// The gateway refuses the one that was asked for with that id: it is dropped.
    pub fn refuse(&mut self, id: &str, code: &str, message: &str) -> Option<Wish> {
        let wish = self.0.iter().find(|(_, one)| one.asked.as_deref() == Some(id))?.0.clone();
        let mut standing = self.0.remove(&wish)?;
        standing.tell(&Err(RequestError::Refused { code: code.to_owned(), message: message.to_owned() }));
        Some(wish)
    }

    /// A new session: all are to be asked for.
    pub fn start_over(&mut self) {
        for standing in self.0.values_mut() {
            (standing.asked, standing.confirmed) = (None, false);
        }
    }

    /// The client ended.
    pub fn end(&mut self) {
        for standing in self.0.values_mut() {
            standing.tell(&Err(RequestError::Ended));
        }
        self.0.clear();
    }
}

/// Checks a name before it is sent.
pub fn check(name: &str) -> Result<(), SendError> {
    const BYTES_MAX: usize = 255;
    if name.is_empty() || name.len() > BYTES_MAX {
        return Err(SendError::NotAMessage(format!("a topic or room has 1 to {BYTES_MAX} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wanted_is_asked_for_on_every_session_until_it_is_refused() {
        let mut wishes = Wishes::default();
        let topic = wishes.add(Wish::Topic("t".to_owned())).unwrap().unwrap();
        let room = wishes.add(Wish::Room("r".to_owned())).unwrap().unwrap();
        assert_eq!(wishes.next("1"), Some(Wish::Topic("t".to_owned())));
        assert_eq!(wishes.next("2"), Some(Wish::Room("r".to_owned())));
        assert!(wishes.next("3").is_none() && !wishes.has_next());
        assert_eq!(wishes.confirm("1"), Some(Wish::Topic("t".to_owned())));
        assert_eq!(wishes.refuse("2", "forbidden", "no"), Some(Wish::Room("r".to_owned())));
        assert!(wishes.confirm("2").is_none());
        assert_eq!(topic.await.unwrap(), Ok(()));
        assert!(matches!(room.await.unwrap(), Err(RequestError::Refused { code, .. }) if code == "forbidden"));
        assert!(wishes.add(Wish::Topic("t".to_owned())).unwrap().is_none(), "confirmed already");
        wishes.start_over();
        assert_eq!(wishes.next("4"), Some(Wish::Topic("t".to_owned())));
        assert!(!wishes.has_next(), "the room is not asked for again");
        assert!(wishes.remove(&Wish::Topic("t".to_owned())));
        assert!(!wishes.remove(&Wish::Topic("t".to_owned())));
    }

    #[test]
    fn there_may_be_so_many() {
        let mut wishes = Wishes::default();
        for n in 0..WISHES_MAX {
            wishes.add(Wish::Topic(n.to_string())).unwrap();
        }
        assert!(wishes.add(Wish::Room("more".to_owned())).is_err());
        assert!(wishes.add(Wish::Topic("7".to_owned())).is_ok());
        assert!(check("").is_err() && check(&"x".repeat(256)).is_err() && check("x").is_ok());
    }
}
