//! `fanout`, `unicast`, `replay` and `churn`: notifications are sent, and each session's account is held against what
//! was accepted.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Kind, LOOK, Stage, Test, usage};
use crate::{
    api::proto::Wait,
    stress::{
        Plan, RunError, Users,
        fleet::{Doing, SlotReport, Tally},
        report::Report,
        sender::{self, Pace, Sent, Via, Work},
        track::Track,
    },
};

/// Notifications a second where nothing is said.
pub(super) const RATE: f64 = 2000.0;
/// Callers where nothing is said: of unary calls, of streams that store, of broadcasts back to back.
const CALLERS_UNARY: usize = 64;
const CALLERS_REPLAY: usize = 4;
const CALLERS_BACK_TO_BACK: usize = 32;
/// How long sessions that come and go may take to be back when it is over.
const BACK_MAX: Duration = Duration::from_secs(30);

impl Stage<'_> {
    pub(super) async fn fanout(&self) -> Result<Report, RunError> {
        let Plan { messages, message_interval, .. } = *self.plan;
        let back_to_back = message_interval.is_zero();
        let callers = self.plan.callers.unwrap_or(if back_to_back { CALLERS_BACK_TO_BACK } else { 1 });
        // A caller without a message would be a lane that every session keeps for nothing.
        let callers = callers.min(usize::try_from(messages).unwrap_or(callers)).max(1);
        let pace = match back_to_back {
            true => Pace::Count(messages),
            false => Pace::Every { interval: message_interval, count: messages },
        };
        let mut test = self.begin(Kind::Fanout, callers).await?;
        let lanes: Vec<Arc<str>> = (0..callers).map(|lane| lane.to_string().into()).collect();
        let work = Work {
            via: Via::Broadcast,
            wait: Wait::Accepted,
            volatile: false,
            ..self.work(&test, lanes, callers, pace)
        };
        let before = usage(self.calls).await;
        let began = self.fleet.live().now_micros();
        let sent = self.send(Kind::Fanout, &work, messages).await;
        let due: u64 = (0..callers).map(|lane| sent.due(lane)).sum();
        let lanes = |slot: &SlotReport, of: &dyn Fn(&Track, usize) -> u64| -> u64 {
            slot.tracks.iter().enumerate().map(|(lane, track)| of(track, lane)).sum()
        };
        let lost = |slot: &SlotReport| lanes(slot, &|track, lane| track.lost(sent.of(lane), sent.excused.get(&lane)));
        let missing = |slots: &[SlotReport]| test.present(slots).map(lost).sum();
        self.wait_for(Kind::Fanout, due.saturating_mul(test.report.connections.connected), missing).await;
        let after = usage(self.calls).await;
        self.end(&mut test, began).await;
        test.report.sent(&sent, Some(messages), began);
        test.report.lost = test.present(&test.all.slots).map(lost).sum();
        let unexpected = |slot: &SlotReport| lanes(slot, &|track, lane| barred(track, sent.barred.get(&lane)));
        test.report.unexpected = test.present(&test.all.slots).map(unexpected).sum();
        let received = test.report.received;
        test.report.served(before, after, "delivery", received);
        Ok(test.report)
    }

    pub(super) async fn unicast(&mut self) -> Result<Report, RunError> {
        let Plan { duration, rate, via, wait, volatile, .. } = *self.plan;
        let mut test = self.begin(Kind::Unicast, 1).await?;
        let default = if via == Via::Unary { CALLERS_UNARY } else { 1 };
        let callers = self.plan.callers.unwrap_or(default);
        let pace = pace(rate, duration);
        let users = self.present_users(&test);
        let work = Work { via, wait, volatile, ..self.work(&test, users, callers, pace) };
        let before = usage(self.calls).await;
        let began = self.fleet.live().now_micros();
        let sent = self.send(Kind::Unicast, &work, expected(pace).unwrap_or_default()).await;
        self.wait_for(Kind::Unicast, self.due(&test, &sent), |slots| self.lost(&test, slots, &sent)).await;
        let after = usage(self.calls).await;
        self.end(&mut test, began).await;
        test.report.sent(&sent, expected(pace), began);
        self.account(&mut test, &sent);
        test.report.served(before, after, "send", sent.accepted());
        Ok(test.report)
    }

    pub(super) async fn replay(&mut self) -> Result<Report, RunError> {
        let messages = self.plan.messages;
        let mut test = self.begin(Kind::Replay, 1).await?;
        let users = self.present_users(&test);
        let connected = test.report.connections.connected;
        self.leave().await;
        let total = messages.saturating_mul(users.len() as u64);
        let callers = self.plan.callers.unwrap_or(CALLERS_REPLAY);
        let work = Work { via: Via::Batch, wait: Wait::Stored, ..self.work(&test, users, callers, Pace::Count(total)) };
        let stored_from = self.fleet.live().now_micros();
        let sent = self.send(Kind::Replay, &work, total).await;
        // Of the first connection only what went wrong says something of the return.
        let first = self.fleet.collect().await.tally;
        let earlier = std::mem::take(&mut test.all.tally);
        for of in [earlier, first] {
            test.all.tally.add(Tally { failures: of.failures, closes: of.closes, ..Tally::default() });
        }
        let keys = test.all.slots.iter().map(|slot| self.key(slot).map_or(0, |key| sent.due(key)));
        self.fleet.expect(&keys.collect());
        let before = usage(self.calls).await;
        let began = self.fleet.live().now_micros();
        self.connect(Kind::Replay).await;
        self.wait_for(Kind::Replay, self.due(&test, &sent), |slots| self.lost(&test, slots, &sent)).await;
        let after = usage(self.calls).await;
        self.end(&mut test, began).await;
        test.report.sent(&sent, Some(total), stored_from);
        test.report.per_second.connects = test.report.a_second(connected);
        self.account(&mut test, &sent);
        // They waited; how long is not the gateway's doing.
        test.report.latency = None;
        let received = test.report.received;
        test.report.served(before, after, "delivery", received);
        Ok(test.report)
    }

    pub(super) async fn churn(&mut self) -> Result<Report, RunError> {
        let Plan { duration, rate, lifetime, .. } = *self.plan;
        let mut test = self.begin(Kind::Churn, 1).await?;
        let users = self.present_users(&test);
        let pace = pace(rate, duration);
        let callers = self.plan.callers.unwrap_or(1);
        let work = Work { via: Via::Batch, wait: Wait::Stored, ..self.work(&test, users, callers, pace) };
        let before = usage(self.calls).await;
        let began = self.fleet.live().now_micros();
        let until_micros = began + duration.as_micros() as u64;
        self.fleet.order(Doing::Churn { lifetime, until_micros });
        let sent = self.send(Kind::Churn, &work, expected(pace).unwrap_or_default()).await;
        // Nothing is missing before all are back to get it.
        let back_by = self.fleet.live().now_micros() + BACK_MAX.as_micros() as u64;
        while self.open() < test.report.connections.connected && self.fleet.live().now_micros() < back_by {
            tokio::time::sleep(LOOK).await;
        }
        self.wait_for(Kind::Churn, self.due(&test, &sent), |slots| self.lost(&test, slots, &sent)).await;
        let after = usage(self.calls).await;
        self.end(&mut test, began).await;
        test.report.sent(&sent, expected(pace), began);
        let again = test.all.tally.connected - test.connected;
        test.report.per_second.connects = test.report.a_second(again);
        self.account(&mut test, &sent);
        let received = test.report.received;
        test.report.served(before, after, "delivery", received);
        Ok(test.report)
    }

    pub(super) fn work(&self, test: &Test, keys: Vec<Arc<str>>, callers: usize, pace: Pace) -> Work {
        let (run, Plan { payload, patience, .. }) = (test.run, self.plan.clone());
        let keys = keys.into();
        let (via, wait) = (Via::Batch, Wait::Stored);
        Work { via, wait, volatile: false, payload, run, keys, callers, pace, patience, again: false, over: None }
    }

    pub(super) async fn send(&self, kind: Kind, work: &Work, steps: u64) -> Sent {
        self.watch.begins(kind.as_str(), "sending", steps);
        let answered = AtomicU64::new(0);
        let count = |more| self.watch.at(answered.fetch_add(more, Ordering::Relaxed) + more);
        match self.calls.filter(|_| !work.keys.is_empty()) {
            Some(calls) => sender::send(calls, work, self.fleet.live(), &count).await,
            None => Sent::default(),
        }
    }

    /// The users who have a session, each once; a user's place is his key.
    pub(super) fn present_users(&mut self, test: &Test) -> Vec<Arc<str>> {
        self.users = Users::default();
        for user in test.present(&test.all.slots).filter_map(|slot| slot.user.as_ref()) {
            self.users.key(user);
        }
        self.users.names.clone()
    }

    fn key(&self, slot: &SlotReport) -> Option<usize> {
        slot.user.as_ref().and_then(|user| self.users.keys.get(user).copied())
    }

    /// How many messages must come, over all sessions.
    pub(super) fn due(&self, test: &Test, sent: &Sent) -> u64 {
        test.present(&test.all.slots).filter_map(|slot| self.key(slot)).map(|key| sent.due(key)).sum()
    }

    /// How many of them have not.
    pub(super) fn lost(&self, test: &Test, slots: &[SlotReport], sent: &Sent) -> u64 {
        let lost = |slot: &SlotReport| {
            let key = self.key(slot)?;
            Some(slot.tracks.first()?.lost(sent.of(key), sent.excused.get(&key)))
        };
        test.present(slots).filter_map(lost).sum()
    }

    /// What did not come, and what should not have.
    pub(super) fn account(&self, test: &mut Test, sent: &Sent) {
        test.report.lost = self.lost(test, &test.all.slots, sent);
        let unexpected = |slot: &SlotReport| Some(barred(slot.tracks.first()?, sent.barred.get(&self.key(slot)?)));
        test.report.unexpected = test.present(&test.all.slots).filter_map(unexpected).sum();
    }
}

/// How many came of those that nobody was to get.
fn barred(track: &Track, numbers: Option<&BTreeSet<u64>>) -> u64 {
    numbers.map_or(0, |numbers| numbers.iter().filter(|number| track.has(**number)).count() as u64)
}

fn pace(rate: Option<f64>, duration: Duration) -> Pace {
    let rate = rate.unwrap_or(RATE);
    if rate <= 0.0 {
        return Pace::For(duration);
    }
    let count = (duration.as_secs_f64() * rate).ceil().max(1.0) as u64;
    Pace::Every { interval: Duration::from_secs_f64(1.0 / rate), count }
}

/// How many that is, where it is laid down.
fn expected(pace: Pace) -> Option<u64> {
    match pace {
        Pace::Every { count, .. } | Pace::Count(count) => Some(count),
        Pace::For(_) => None,
    }
}
