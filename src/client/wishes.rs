//! The topics and rooms that the application wants to be in, and those that it does not want any more. They are asked for on
//! every session anew; one that is refused for good is dropped.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use serde_json::json;
use tokio::{sync::oneshot, time::Instant};

use super::{
    error::{RequestError, SendError},
    retry::{Backoff, random},
};
use crate::{protocol::error_code::ErrorCode, types::Topic};

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

/// The waits before one that was put off is asked for again.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

#[derive(Debug)]
struct Standing {
    /// The id of the message that asked for it on the present session.
    asked: Option<String>,
    confirmed: bool,
    /// Put off by the gateway until then.
    not_before: Option<Instant>,
    backoff: Backoff,
    waiting: Vec<oneshot::Sender<Told>>,
}

impl Default for Standing {
    fn default() -> Self {
        let backoff = Backoff::new(AGAIN.0, AGAIN.1);
        Self { asked: None, confirmed: false, not_before: None, backoff, waiting: Vec::new() }
    }
}

impl Standing {
    fn tell(&mut self, told: &Told) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(told.clone());
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.asked.is_none() && !self.confirmed && self.not_before.is_none_or(|at| at <= now)
    }
}

/// What became of one that the gateway refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub wish: Wish,
    /// After what it is asked for again; `None`: never.
    pub again: Option<Duration>,
}

/// Withdrawals go before what is asked for: what was withdrawn and is wanted again is asked for behind its withdrawal, and
/// what is withdrawn had been asked for before. There are never more than once were known, so [`WISHES_MAX`] bounds them.
#[derive(Debug, Default)]
pub struct Wishes {
    wanted: BTreeMap<Wish, Standing>,
    /// To be given up on the present session, and who waits for the answer.
    leaving: VecDeque<(Wish, Option<oneshot::Sender<Told>>)>,
    /// Who waits for the answer to which message.
    left: Vec<(String, oneshot::Sender<Told>)>,
}

impl Wishes {
    /// Adds one; what its fate comes by, or `None` where it is confirmed already.
    pub fn add(&mut self, wish: Wish) -> Result<Option<oneshot::Receiver<Told>>, RequestError> {
        if !self.wanted.contains_key(&wish) && self.wanted.len() >= WISHES_MAX {
            return Err(RequestError::TooMany(WISHES_MAX));
        }
        let standing = self.wanted.entry(wish).or_default();
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

    /// Takes one out. Where the gateway was asked for it on the present session it is to be given up: what the answer comes
    /// by; `None` where there is nothing to give up.
    pub fn remove(&mut self, wish: &Wish) -> Result<Option<oneshot::Receiver<Told>>, RequestError> {
        let Some(mut standing) = self.wanted.remove(wish) else { return Ok(None) };
        standing.tell(&Err(RequestError::Withdrawn));
        if standing.asked.is_none() && !standing.confirmed {
            return Ok(None);
        }
        self.left.retain(|(_, tell)| !tell.is_closed());
        if self.left.len() + self.leaving.len() >= WISHES_MAX {
            // It is given up all the same.
            self.leaving.push_back((wish.clone(), None));
            return Err(RequestError::TooMany(WISHES_MAX));
        }
        let (tell, told) = oneshot::channel();
        self.leaving.push_back((wish.clone(), Some(tell)));
        Ok(Some(told))
    }

    /// What is to be sent next, without its id, and noted as sent with that id.
    pub fn next(&mut self, id: &str, now: Instant) -> Option<serde_json::Value> {
        if let Some((wish, tell)) = self.leaving.pop_front() {
            self.left.extend(tell.map(|tell| (id.to_owned(), tell)));
            return Some(wish.give_up());
        }
        let (wish, standing) = self.wanted.iter_mut().find(|(_, one)| one.is_due(now))?;
        standing.asked = Some(id.to_owned());
        Some(wish.ask())
    }

    /// Whether there is something to be sent.
    pub fn has_next(&self, now: Instant) -> bool {
        !self.leaving.is_empty() || self.wanted.values().any(|one| one.is_due(now))
    }

    /// When one that was put off is to be asked for again, if that is later than now.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let open = self.wanted.values().filter(|one| one.asked.is_none() && !one.confirmed);
        open.filter_map(|one| one.not_before).filter(|at| *at > now).min()
    }

    /// The gateway confirms the one that was asked for with that id.
    pub fn confirm(&mut self, id: &str) -> Option<Wish> {
        let (wish, standing) = self.wanted.iter_mut().find(|(_, one)| one.asked.as_deref() == Some(id))?;
        (standing.asked, standing.confirmed, standing.not_before) = (None, true, None);
        standing.backoff.reset();
        standing.tell(&Ok(()));
        Some(wish.clone())
    }

    /// The gateway refuses the one that was asked for with that id. What it would only say again drops it; anything else,
    /// such as a rate, puts it off.
    pub fn refuse(&mut self, id: &str, code: &str, message: &str, now: Instant) -> Option<Refused> {
        let (wish, standing) = self.wanted.iter_mut().find(|(_, one)| one.asked.as_deref() == Some(id))?;
        let wish = wish.clone();
        let final_codes = [ErrorCode::Forbidden, ErrorCode::BadMessage, ErrorCode::UnknownType];
        if !final_codes.iter().any(|known| known.as_str() == code) {
            standing.asked = None;
            // Many that were put off together do not come back together.
            let again = standing.backoff.ceiling() / 2 + standing.backoff.next(random()) / 2;
            standing.not_before = Some(now + again);
            return Some(Refused { wish, again: Some(again) });
        }
        standing.tell(&Err(RequestError::Refused { code: code.to_owned(), message: message.to_owned() }));
        self.wanted.remove(&wish);
        Some(Refused { wish, again: None })
    }

    /// The answer to a withdrawal. Whether it was one.
    pub fn answer(&mut self, id: &str, told: Told) -> bool {
        let Some(at) = self.left.iter().position(|(left, _)| left == id) else { return false };
        let _ = self.left.swap_remove(at).1.send(told);
        true
    }

    /// A session began or ended: all are to be asked for, and what was to be given up went with the session.
    pub fn start_over(&mut self) {
        for standing in self.wanted.values_mut() {
            (standing.asked, standing.confirmed, standing.not_before) = (None, false, None);
        }
        self.end_withdrawals(&Ok(()));
    }

    /// The client ended.
    pub fn end(&mut self) {
        for standing in self.wanted.values_mut() {
            standing.tell(&Err(RequestError::Ended));
        }
        self.wanted.clear();
        self.end_withdrawals(&Err(RequestError::Ended));
    }

    fn end_withdrawals(&mut self, told: &Told) {
        let unsent = self.leaving.drain(..).filter_map(|(_, tell)| tell);
        for tell in unsent.chain(self.left.drain(..).map(|(_, tell)| tell)) {
            let _ = tell.send(told.clone());
        }
    }
}

/// Checks a name before it is sent.
pub fn check(name: &str) -> Result<(), SendError> {
    Topic::parse(name).map(drop).map_err(|error| SendError::NotAMessage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Wish {
        Wish::Topic(name.to_owned())
    }

    #[tokio::test]
    async fn what_is_wanted_is_asked_for_on_every_session_until_it_is_refused() {
        let (mut wishes, now) = (Wishes::default(), Instant::now());
        let told = wishes.add(topic("t")).unwrap().unwrap();
        let room = wishes.add(Wish::Room("r".to_owned())).unwrap().unwrap();
        assert_eq!(wishes.next("1", now), Some(topic("t").ask()));
        assert_eq!(wishes.next("2", now), Some(Wish::Room("r".to_owned()).ask()));
        assert!(wishes.next("3", now).is_none() && !wishes.has_next(now));
        assert_eq!(wishes.confirm("1"), Some(topic("t")));
        let refused = Refused { wish: Wish::Room("r".to_owned()), again: None };
        assert_eq!(wishes.refuse("2", "forbidden", "no", now), Some(refused));
        assert!(wishes.confirm("2").is_none());
        assert_eq!(told.await.unwrap(), Ok(()));
        assert!(matches!(room.await.unwrap(), Err(RequestError::Refused { code, .. }) if code == "forbidden"));
        assert!(wishes.add(topic("t")).unwrap().is_none(), "confirmed already");
        wishes.start_over();
        assert_eq!(wishes.next("4", now), Some(topic("t").ask()));
        assert!(!wishes.has_next(now), "the room is not asked for again");
        assert!(wishes.remove(&topic("t")).unwrap().is_some());
        assert!(wishes.remove(&topic("t")).unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_withdrawn_and_wanted_again_is_asked_for_behind_the_withdrawal() {
        let (mut wishes, now) = (Wishes::default(), Instant::now());
        let first = wishes.add(topic("t")).unwrap().unwrap();
        wishes.next("1", now).unwrap();
        let left = wishes.remove(&topic("t")).unwrap().unwrap();
        assert_eq!(first.await.unwrap(), Err(RequestError::Withdrawn));
        let mut again = wishes.add(topic("t")).unwrap().unwrap();
        assert_eq!(wishes.next("2", now), Some(topic("t").give_up()));
        assert_eq!(wishes.next("3", now), Some(topic("t").ask()));
        assert!(wishes.confirm("1").is_none() && again.try_recv().is_err(), "the answer to the first is late");
        assert!(wishes.answer("2", Ok(())) && !wishes.answer("2", Ok(())));
        assert_eq!(left.await.unwrap(), Ok(()));
        assert_eq!(wishes.confirm("3"), Some(topic("t")));
        // With the session goes what was to be given up on it.
        let left = wishes.remove(&topic("t")).unwrap().unwrap();
        wishes.start_over();
        assert_eq!(left.await.unwrap(), Ok(()));
        assert!(wishes.next("4", now).is_none());
    }

    #[test]
    fn what_is_put_off_is_asked_for_again_with_patience_and_at_once_on_another_session() {
        let (mut wishes, mut now) = (Wishes::default(), Instant::now());
        let _told = wishes.add(topic("t")).unwrap();
        for most in [1, 2, 4, 8, 16, 30, 30] {
            wishes.next("1", now).unwrap();
            let again = wishes.refuse("1", "rate_limited", "later", now).unwrap().again.unwrap();
            assert!(again * 2 >= Duration::from_secs(most) && again <= Duration::from_secs(most), "{again:?}");
            assert_eq!((wishes.has_next(now), wishes.due(now)), (false, Some(now + again)));
            now += again;
            assert_eq!((wishes.has_next(now), wishes.due(now)), (true, None));
        }
        wishes.next("1", now).unwrap();
        wishes.refuse("1", "whatever is new", "", now).unwrap();
        wishes.start_over();
        assert!(wishes.has_next(now));
    }

    #[test]
    fn there_may_be_so_many() {
        let mut wishes = Wishes::default();
        for n in 0..WISHES_MAX {
            wishes.add(Wish::Topic(n.to_string())).unwrap();
        }
        assert!(wishes.add(Wish::Room("more".to_owned())).is_err());
        assert!(wishes.add(Wish::Topic("7".to_owned())).is_ok());
        assert!(check("").is_err() && check(&"x".repeat(201)).is_err() && check("x").is_ok());
    }
}
