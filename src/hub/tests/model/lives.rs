//! How a life of the daemon ends in a sequence, and how the sequence does.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::task::JoinHandle;

use super::{
    super::support::World,
    book::Counts,
    look::enter,
    play::{BOUNDS, Play},
};
use crate::{
    hub::{Interest, Start},
    protocol::ack_mode::AckMode,
};

impl Play {
    /// The daemon ends without a word, in the middle of a commit or between two.
    pub async fn crash(&mut self) {
        // Whatever a session was sent up to now it was sent.
        self.look().await;
        if self.dice.roll(2) == 0 {
            self.double.cut_off.store(true, Ordering::SeqCst);
            let lazy = self.dice.roll(2) == 0;
            self.hub().store().turn(lazy);
            self.double.cut_off.store(false, Ordering::SeqCst);
        }
        self.book.crashed();
        self.end_of_life().await;
        // Word of their end may or may not have come to disk.
        self.uncertain.extend(self.forgotten.drain());
    }

    /// The daemon is stopped in order, and started again.
    pub async fn restart(&mut self) {
        while self.hub().store().turn(true) {}
        self.look().await;
        for session in std::mem::take(&mut self.sessions) {
            session.client.detach();
        }
        while self.hub().store().turn(true) {}
        self.look().await;
        self.book.counts.restarts += 1;
        self.end_of_life().await;
    }

    async fn end_of_life(&mut self) {
        self.lives += 1;
        for call in self.calls.drain(..) {
            call.task.abort();
        }
        for attaching in self.attaching.drain(..) {
            attaching.task.abort();
            if !self.book.devices.contains_key(&attaching.owner) {
                self.uncertain.insert(attaching.owner);
            }
        }
        for chore in self.chores.drain(..) {
            chore.abort();
        }
        for one in self.changing.drain(..) {
            one.task.abort();
        }
        self.sessions.clear();
        self.look_at_the_store();
        self.hub().0.life.stop(Duration::ZERO).await;
        self.quiet().await;
        self.world = World::by_hand(Arc::clone(&self.double), self.clock.clone(), BOUNDS);
        self.world.hub.start();
        self.events = self.hub().events().consume(Interest::default(), Start::Now);
    }

    /// Everything is let go, every device comes once more: nobody lacks anything.
    pub async fn end(mut self) -> Counts {
        self.book.step += 1;
        while self.hub().store().turn(true) {}
        self.look().await;
        for n in (0..self.sessions.len()).rev() {
            self.sessions[n].client.takes(None);
            self.leave(n);
        }
        self.book.step += 1;
        for owner in self.book.devices.keys().copied().collect::<Vec<_>>() {
            self.attach_to(owner, AckMode::Transport);
            self.look().await;
            while self.hub().store().turn(true) {}
        }
        self.look().await;
        assert!(self.attaching.is_empty(), "a device is stuck");
        // All that is waited for has come by now, or its time is over.
        tokio::time::advance(Duration::from_secs(6)).await;
        self.quiet().await;
        while self.hub().store().turn(true) {}
        self.look().await;
        assert!(self.calls.is_empty(), "{} calls are never answered", self.calls.len());
        assert!(self.chores.iter().all(JoinHandle::is_finished), "a purge or a forgetting is never answered");
        self.book.step += 1;
        for n in 0..self.sessions.len() {
            let attached = &mut self.sessions[n];
            attached.client.settle().await;
            enter(&mut self.book, attached);
            let core = attached.client.handle.core();
            assert!(core.closing.is_none() && core.session.delivery.is_live(), "{:?} is stuck", attached.owner);
        }
        self.quiet().await;
        for attached in &mut self.sessions {
            let seen = attached.client.offsets();
            self.book.must_have_seen(attached.owner, attached.since, &seen);
        }
        for (n, id) in self.users.iter().enumerate() {
            if self.book.devices.keys().any(|owner| owner.0 == n) {
                let user = self.world.user(id);
                let state = user.state();
                let left: Vec<_> = state.log.index.iter().map(|entry| entry.offset.get()).collect();
                let uncertain = state.devices.iter().any(|known| {
                    !self
                        .devices
                        .iter()
                        .enumerate()
                        .any(|(d, name)| *name == known.name && self.book.devices.contains_key(&(n, d)))
                });
                assert!(uncertain || (left.is_empty() && state.log.bytes == 0), "{left:?} is left of {id}");
            }
        }
        self.look_at_the_store();
        self.book.counts
    }

    /// Nothing that was read in this life was damaged.
    fn look_at_the_store(&mut self) {
        self.book.counts.recalled += usize::try_from(self.hub().store().recalled()).unwrap();
        let damage = self.hub().metrics().failures(crate::metrics::Failure::StoreDamage);
        assert_eq!(damage, 0, "what is on disk does not fit together");
    }
}
