//! What sessions do on their own: echoes back to back, echoes at their time, coming and going, and coming back.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    Doing,
    shard::{Act, Shard},
};
use crate::stress::{
    mark::{self, Mark},
    wire,
};

/// Echoes that a session may have unanswered before those that are due wait. They keep the moment they were due.
const ECHOES_UNANSWERED_MAX: u64 = 64;
/// How long a session that left stays away at most, in µs.
const AWAY_MICROS_MAX: u64 = 1_000_000;
/// The bound of the first wait of one who was not asked when to come back, and the most that it doubles to, in µs.
const BACK_OFF_MICROS: (u64, u64) = (500_000, 30_000_000);

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1)
}

impl Shard {
    /// Has every session begin.
    pub(super) fn start(&mut self, doing: Doing) {
        self.doing = Some(doing);
        let now = self.live.now_micros();
        if matches!(doing, Doing::Return) {
            // Each comes when it is its time, however many others do.
            self.max_opening = usize::MAX;
            return;
        }
        for index in 0..self.slots.len() {
            if self.slots[index].is_open() {
                self.take_part(index, now);
            } else if matches!(doing, Doing::Churn { .. }) {
                self.came_off(index);
            }
        }
    }

    /// Has one session begin, now that it is open.
    pub(super) fn take_part(&mut self, index: usize, now: u64) {
        match self.doing {
            Some(Doing::Echoes { .. }) => {
                self.echo_more(index);
                self.flush(index);
            }
            Some(Doing::EchoEvery { interval, .. }) => {
                let turn = self.next_random() % micros(interval);
                self.at(now + turn, index, Act::Echo);
            }
            Some(Doing::Churn { lifetime, until_micros }) => {
                let stay = self.next_random() % (2 * micros(lifetime));
                if now + stay < until_micros {
                    self.at(now + stay, index, Act::Leave);
                }
            }
            Some(Doing::Return) => {
                self.slots[index].tries = 0;
                self.tally.returns.push(now);
                self.live.returns.fetch_add(1, Ordering::Release);
            }
            None => {}
        }
    }

    /// A connection is gone: where sessions come back, it does.
    pub(super) fn came_off(&mut self, index: usize) {
        let (now, random) = (self.live.now_micros(), self.next_random());
        match self.doing {
            Some(Doing::Churn { .. }) => self.at(now + random % AWAY_MICROS_MAX, index, Act::Return),
            Some(Doing::Return) => {
                let slot = &mut self.slots[index];
                let back = slot.asked_micros.take().unwrap_or_else(|| {
                    let bound = (BACK_OFF_MICROS.0 << slot.tries.min(16)).min(BACK_OFF_MICROS.1);
                    now + random % bound
                });
                slot.tries += 1;
                self.at(back, index, Act::Return);
            }
            _ => {}
        }
    }

    /// A session goes: every other time without a word.
    pub(super) fn leave(&mut self, index: usize) {
        if self.next_random() & 1 == 0 { self.close(index) } else { self.gone(index) }
    }

    /// Sends what the window allows, where echoes go back to back; or what was due and had to wait.
    pub(super) fn echo_more(&mut self, index: usize) {
        match self.doing {
            Some(Doing::Echoes { messages, window, payload }) => loop {
                let slot = &self.slots[index];
                if slot.echoes >= messages || slot.echoes - slot.echoes_back.min(slot.echoes) >= window {
                    return;
                }
                let now = self.live.now_micros();
                self.echo(index, now, payload);
            },
            Some(Doing::EchoEvery { payload, .. }) => {
                if let Some(due) = self.slots[index].overdue_micros.take() {
                    self.next_echo(index, due, payload);
                }
            }
            Some(Doing::Churn { .. } | Doing::Return) | None => {}
        }
    }

    /// It is time for an echo.
    pub(super) fn echo_is_due(&mut self, index: usize, due: u64) {
        let Some(Doing::EchoEvery { until_micros, payload, .. }) = self.doing else { return };
        if due >= until_micros || !self.slots[index].is_open() {
            return;
        }
        let slot = &self.slots[index];
        if slot.echoes - slot.echoes_back.min(slot.echoes) >= ECHOES_UNANSWERED_MAX {
            self.slots[index].overdue_micros = Some(due);
            return;
        }
        self.next_echo(index, due, payload);
    }

    /// Sends an echo that was due then, and sets the time of the next.
    fn next_echo(&mut self, index: usize, due: u64, payload: usize) {
        self.echo(index, due, payload);
        self.flush(index);
        if let Some(Doing::EchoEvery { interval, .. }) = self.doing {
            self.at(due + micros(interval), index, Act::Echo);
        }
    }

    fn echo(&mut self, index: usize, due_micros: u64, payload: usize) {
        let (mask, run) = (self.mask(), self.run_tag());
        let slot = &mut self.slots[index];
        let mark = Mark { run, lane: 0, whom: mark::session(slot.index), number: slot.echoes, due_micros };
        let Some(conn) = &mut slot.conn else { return };
        let text = format!("{{\"type\":\"echo\",\"data\":{}}}", mark.payload(payload));
        conn.say(wire::TEXT, mask, text.as_bytes());
        slot.echoes += 1;
        self.live.echoes.fetch_add(1, Ordering::Relaxed);
    }
}
