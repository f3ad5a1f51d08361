//! Durable topics: what is published to them, and devices that come and go.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::{
    book::{In, InTopic},
    play::{Expected, Play},
};
use crate::{
    hub::outbox::Entry,
    types::{CollapseKey, SubscriptionCause},
};

/// A device that is coming into a durable topic, or leaving one.
pub struct Changing {
    pub owner: (usize, usize),
    pub topic: usize,
    pub wanted: bool,
    /// Whether it was done.
    pub task: JoinHandle<bool>,
}

impl Play {
    pub fn publish(&mut self) {
        for _ in 0..=self.dice.roll(3) {
            let bytes = self.dice.roll(300);
            let mut notification = self.notification(None, 0, bytes);
            if self.dice.roll(4) == 0 {
                notification.collapse_key = Some(CollapseKey::parse("k").unwrap());
            }
            self.book.counts.published += 1;
            let topic = self.dice.roll(2);
            self.call(In::Topic(topic), notification, None, Expected::New);
        }
    }

    /// The log of a durable topic, where it is in memory: the last offset that was given there.
    pub fn last_of(&self, topic: usize) -> u64 {
        let logs = self.hub().0.topic_logs.all();
        let log = logs.iter().find(|log| log.id.topic() == Some(&self.topics[topic]));
        let known = log.map_or(0, |log| log.state().log.last.get());
        // Of one that is not, what was seen in it.
        let seen = self.book.sent.iter().filter(|(_, sent)| sent.log == In::Topic(topic) && sent.acknowledged);
        known.max(seen.map(|(offset, _)| *offset).max().unwrap_or(0))
    }

    /// A client wants its device in a durable topic, or out of it.
    pub fn change(&mut self, n: usize, wanted: bool) {
        let (owner, topic) = (self.sessions[n].owner, self.dice.roll(2));
        if self.changing.iter().any(|one| (one.owner, one.topic) == (owner, topic)) {
            return;
        }
        let low = self.last_of(topic);
        let known = self.book.devices.get_mut(&owner).unwrap();
        let fresh = InTopic { not_before: low, from: None, left: None };
        let stands = known.topics.entry(topic).or_insert(fresh);
        match (wanted, stands.left) {
            // It begins at the present.
            (true, Some(_)) => *stands = InTopic { not_before: stands.not_before, ..fresh },
            (true, None) => {}
            (false, _) => stands.from = None,
        }
        let (hub, handle, name) =
            (self.hub().clone(), Arc::clone(&self.sessions[n].client.handle), self.topics[topic].clone());
        let task = tokio::spawn(async move {
            if wanted {
                let answer = Entry::message(Bytes::from_static(b"\x81\x15{\"type\":\"subscribed\"}"));
                matches!(hub.join_for(&handle, &name, answer).await, Ok(Some(_)))
            } else {
                let cause = SubscriptionCause::Client;
                hub.part_from(&handle.user, &handle.device, &name, cause).await.is_ok()
            }
        });
        self.changing.push(Changing { owner, topic, wanted, task });
    }
}
