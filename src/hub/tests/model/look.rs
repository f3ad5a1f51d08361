//! What is looked at after each step: what got an offset, what came to whom, what calls were answered, who arrived.

use super::{
    super::{super::*, support::Client},
    book::{Book, Device as Known, In},
    play::{Attached, Attaching, Expected, Play},
};
use crate::types::{DropReason, EventBody, LogId};

impl Play {
    pub fn confirm_some(&mut self, n: usize) {
        let client = &mut self.sessions[n].client;
        if client.handle.core().session.ack_mode == crate::protocol::ack_mode::AckMode::Client {
            let seen = client.offsets().len();
            client.ack_first(self.dice.roll(seen + 1));
        }
    }

    pub fn slow(&mut self, n: usize, room: Option<usize>) {
        self.sessions[n].was_slow = true;
        self.sessions[n].client.takes(room);
    }

    pub fn leave(&mut self, n: usize) {
        let mut left = self.sessions.swap_remove(n);
        enter(&mut self.book, &mut left);
        left.client.detach();
    }

    /// Enters what has happened, and finds what must not have.
    pub async fn look(&mut self) {
        self.quiet().await;
        self.book.now = self.clock.unix_millis().0;
        self.book.latest = self.book.latest.max(self.book.now);
        self.enter_staged();
        let mut sessions = std::mem::take(&mut self.sessions);
        sessions.retain_mut(|attached| {
            enter(&mut self.book, attached);
            let closing = attached.client.handle.core().closing.is_some();
            if closing {
                attached.client.detach();
            }
            !closing
        });
        self.sessions = sessions;
        self.changes().await;
        self.answers().await;
        self.arrivals().await;
    }

    /// What has got an offset since the last look.
    fn enter_staged(&mut self) {
        let (mut found, mut rolled) = (Vec::new(), Vec::new());
        let mut note = |log: In, entry: &crate::store::IndexEntry| {
            let key = entry.collapse_key.as_ref().map(|key| key.as_str().to_owned());
            let (offset, id) = (entry.offset.get(), entry.id.as_str().to_owned());
            found.push((offset, log, id, key, entry.expires_at.0, entry.remembered));
        };
        for (n, id) in self.users.iter().enumerate() {
            if let Some(user) = self.hub().0.users.get(id) {
                user.state().log.index.iter().for_each(|entry| note(In::User(n), entry));
            }
        }
        self.hub().0.broadcasts.state().log.index.iter().for_each(|entry| note(In::Broadcast, entry));
        for log in self.hub().0.topic_logs.all() {
            let of = self.log_of(&log.id);
            log.state().log.index.iter().for_each(|entry| note(of, entry));
        }
        // What came and went between two looks.
        while let Some(read) = self.events.try_read() {
            let Read::Events(events) = read else { panic!("the ring is too short for a step") };
            for event in events {
                let (EventBody::NotificationDropped { log, id, offset, .. }
                | EventBody::NotificationExpired { log, id, offset }) = &event.body
                else {
                    continue;
                };
                let (log, id) = (self.log_of(log), id.as_str().to_owned());
                if let EventBody::NotificationDropped { reason: DropReason::TopicFull, .. } = &event.body {
                    rolled.push(offset.get());
                }
                let Some((expires_at, key)) = self.asked.get(&(log, id.clone())).cloned() else { continue };
                if !self.book.sent.contains_key(&offset.get()) {
                    found.push((offset.get(), log, id, key, expires_at, false));
                }
            }
        }
        found.sort_unstable();
        found.dedup_by_key(|(offset, ..)| *offset);
        for (offset, log, id, key, expires_at, remembered) in found {
            let is_new = !self.book.sent.contains_key(&offset);
            self.book.staged(offset, log, &id, expires_at);
            if !is_new {
                continue;
            }
            if remembered && let Some(known) = self.book.ids.get_mut(&(log, id)) {
                // Which of several calls it was is known where there was but one.
                known.offset = known.certain.then_some(offset);
            }
            if let Some(key) = key
                && let Some(before) = self.keys.insert((log, key), offset)
            {
                self.book.counts.collapsed += 1;
                let before = self.book.sent.get_mut(&before).unwrap();
                before.superseded_by = Some(offset);
            }
        }
        for offset in rolled {
            self.book.counts.rolled += 1;
            if let Some(sent) = self.book.sent.get_mut(&offset) {
                sent.purged = true;
            }
        }
    }

    fn log_of(&self, log: &LogId) -> In {
        match log {
            LogId::User(user) => In::User(self.users.iter().position(|known| known == user).unwrap()),
            LogId::Broadcast => In::Broadcast,
            LogId::Topic(topic) => In::Topic(self.topics.iter().position(|known| known == topic).unwrap()),
        }
    }

    /// Devices that are in a durable topic now, or are not any more.
    async fn changes(&mut self) {
        let mut waiting = Vec::new();
        for mut one in std::mem::take(&mut self.changing) {
            if !one.task.is_finished() {
                waiting.push(one);
                continue;
            }
            let done = (&mut one.task).await.unwrap();
            let (low, step) = (self.last_of(one.topic), self.book.step);
            let known = self.book.devices.get_mut(&one.owner);
            let Some(stands) = known.and_then(|known| known.topics.get_mut(&one.topic)) else { continue };
            if !done {
                continue;
            }
            if one.wanted {
                // Where it was in it before, what was for it is for it still.
                stands.from.get_or_insert(low);
                stands.left = None;
                self.book.counts.joined += 1;
            } else {
                (stands.from, stands.left) = (None, Some(step));
                self.book.counts.parted += 1;
            }
        }
        self.changing = waiting;
    }

    async fn answers(&mut self) {
        let mut waiting = Vec::new();
        for call in std::mem::take(&mut self.calls) {
            if call.task.is_finished() {
                let answer = call.task.await.unwrap();
                self.answer(call.log, call.wait, call.expected, answer);
            } else {
                waiting.push(call);
            }
        }
        self.calls = waiting;
    }

    fn answer(&mut self, log: In, wait: Option<Wait>, expected: Expected, answer: Result<Sent, SendError>) {
        let sent = match (answer, expected) {
            (Ok(sent), _) => sent,
            (Err(SendError::IdTaken), Expected::Taken | Expected::Either) => return,
            // Only a crash in the middle of a commit fails one.
            (Err(SendError::Unknown(_) | SendError::Store(_)), _) if self.hub().store().health().is_err() => return,
            (Err(error), _) => panic!("a call failed: {error}"),
        };
        let offset = sent.offset.expect("all of them are stored").get();
        match expected {
            Expected::New => assert!(!sent.duplicate, "{offset} is no duplicate"),
            Expected::Repeated(first) => {
                assert!(sent.duplicate, "a repeated call was not known as such");
                assert_eq!(offset, first, "a repeated call was answered with another offset");
            }
            Expected::Taken => panic!("an id was taken for other content"),
            Expected::Either => {}
        }
        self.book.counts.repeated_calls += usize::from(sent.duplicate);
        if !self.book.sent.contains_key(&offset) {
            // What had ended already when it was looked for, or what an earlier life was told of.
            assert!(matches!(expected, Expected::Either) || sent.outcome != Outcome::Stored, "{offset} is nowhere");
            return;
        }
        if sent.outcome != Outcome::Accepted {
            self.book.sent.get_mut(&offset).unwrap().may_be_gone &= !sent.duplicate;
            self.book.acknowledged(offset);
        }
        let known = &self.book.sent[&offset];
        assert_eq!(known.log, log);
        match sent.outcome {
            Outcome::Confirmed => {
                self.book.counts.answered_confirmed += 1;
                assert!(known.confirmed_at.is_some(), "{offset} was confirmed by nobody");
            }
            Outcome::Superseded => assert!(known.superseded_by.is_some(), "{offset} was superseded by nothing"),
            Outcome::Expired => {
                self.book.counts.expired += 1;
                assert!(known.expires_at <= self.book.latest, "{offset} has not expired");
            }
            Outcome::Purged | Outcome::Dropped => assert!(known.purged, "{offset} was not purged"),
            Outcome::Stored if matches!(wait, Some(Wait::Confirmed(_))) && !sent.duplicate => {
                assert!(known.confirmed_at.is_none_or(|at| at == self.book.step), "{offset} was confirmed before");
            }
            Outcome::Stored | Outcome::Accepted => {}
        }
    }

    /// Sessions whose device was written meanwhile.
    async fn arrivals(&mut self) {
        let mut waiting = Vec::new();
        for mut attaching in std::mem::take(&mut self.attaching) {
            if !attaching.task.is_finished() {
                waiting.push(attaching);
                continue;
            }
            let client = match (&mut attaching.task).await.unwrap() {
                Ok(client) => client,
                Err(error) => panic!("a session was refused: {error}"),
            };
            let owner = attaching.owner;
            self.book.counts.sessions += 1;
            if !self.book.devices.contains_key(&owner) {
                self.arrived_anew(&attaching, &client);
            }
            let since = self.book.step;
            self.sessions.push(Attached { owner, client, since, entered: 0, confirmed: 0, was_slow: false });
        }
        self.attaching = waiting;
    }

    /// The first device of a user takes all that waits, a further one begins at the present.
    fn arrived_anew(&mut self, attaching: &Attaching, client: &Client) {
        let Attaching { owner, lasts, others, .. } = *attaching;
        let row = {
            let mut state = client.handle.user.state();
            state.device(&self.devices[owner.1]).expect("a session's device is known").row
        };
        let uncertain = self.uncertain.remove(&owner);
        // One that outlived its end, or whose beginning nobody was told of, may have confirmed things before.
        let start = if uncertain { row.cursor.get() } else { row.began.get() };
        if !uncertain {
            match others {
                Some(true) => assert!(start >= lasts.0, "a further device begins at the present"),
                Some(false) => assert_eq!(start, 0, "the first device takes all that waits"),
                None => {}
            }
            assert!(row.broadcast.get() >= lasts.1, "a new device begins at the present of the broadcast log");
            if self.forgotten.remove(&owner) {
                assert!(client.gap, "a device that was forgotten is told that it lacks something");
            }
        }
        if !self.book.devices.keys().any(|other| other.0 == owner.0) {
            // Those for whom it waited were forgotten while this one came.
            let before = |offset: &u64, sent: &super::book::Sent| sent.log == In::User(owner.0) && *offset <= start;
            let gone = self.book.sent.iter_mut().filter(|(offset, sent)| before(offset, sent));
            gone.for_each(|(_, sent)| sent.purged = true);
        }
        let topics = self.maybe_in.remove(&owner).filter(|_| uncertain).unwrap_or_default();
        let known = Known { start, broadcast_start: row.broadcast.get(), topics, ..Known::default() };
        self.book.devices.insert(owner, known);
    }
}

/// Enters what a session saw and confirmed.
pub fn enter(book: &mut Book, attached: &mut Attached) {
    let seen = attached.client.offsets();
    let fresh = attached.entered.max(1);
    assert!(book.sent.is_empty() || seen.windows(2).skip(fresh - 1).all(|two| two[0] != two[1]), "the same came twice");
    for (place, offset) in seen.iter().enumerate().skip(attached.entered) {
        let id = &attached.client.ids[place];
        book.delivered(attached.owner, attached.since, *offset, id, !attached.was_slow);
        let log = book.sent[offset].log;
        let before = seen[..place].iter().rev().find(|before| book.sent[*before].log == log);
        assert!(before.is_none_or(|before| before < offset), "{offset} came out of order");
    }
    attached.entered = seen.len();
    for offset in &seen[attached.confirmed..attached.client.confirmed.max(attached.confirmed)] {
        book.confirmed(attached.owner, *offset);
    }
    attached.confirmed = attached.confirmed.max(attached.client.confirmed);
}
