//! The ring: the last so many events, by their sequence. Of clients' messages, which are of any size, it keeps so many
//! bytes at most: where that is exceeded the oldest leave their places empty, and all other events stay.

use std::{collections::VecDeque, sync::Arc};

use super::{
    Read,
    audience::{Audience, Interest, Open, Queued, Seat, message_of},
};
use crate::{
    limits,
    types::{Event, EventBody, Forwarded},
};

/// The most events a consumer looks at in one go.
pub const READ_MAX: usize = 256;

/// See the file's documentation. The first event of an epoch has sequence 1.
#[derive(Debug)]
pub struct Ring {
    /// The sequence of the next event.
    next: u64,
    capacity: usize,
    /// The last events; a message that had to make room is gone.
    slots: VecDeque<Option<Arc<Event>>>,
    /// The sequences of the messages that are still there.
    messages: VecDeque<u64>,
    message_bytes: usize,
    audience: Audience,
}

/// What is no longer kept. To be dropped behind the ring's lock.
#[derive(Debug, Default)]
pub struct FellOut {
    oldest: Option<Arc<Event>>,
    messages: Vec<Arc<Event>>,
}

impl Ring {
    /// An empty one.
    pub fn new(capacity: usize) -> Self {
        Self {
            next: 1,
            capacity,
            slots: VecDeque::new(),
            messages: VecDeque::new(),
            message_bytes: 0,
            audience: Audience::default(),
        }
    }

    /// The sequence of the next event.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The sequence of the oldest event that is kept; that of the next, where none is.
    pub fn oldest(&self) -> u64 {
        self.next - self.slots.len() as u64
    }

    fn place(&self, sequence: u64) -> usize {
        usize::try_from(sequence - self.oldest()).unwrap_or(usize::MAX)
    }

    /// Numbers an event, which nobody else has yet, and appends it.
    pub fn push(&mut self, mut event: Arc<Event>) -> (Arc<Event>, FellOut) {
        if let Some(event) = Arc::get_mut(&mut event) {
            event.sequence = self.next;
        }
        let mut fell_out = FellOut::default();
        if self.slots.len() == self.capacity {
            if self.messages.front() == Some(&self.oldest()) {
                self.messages.pop_front();
            }
            fell_out.oldest = self.slots.pop_front().flatten();
            self.message_bytes -= fell_out.oldest.as_deref().map_or(0, message_bytes);
        }
        self.slots.push_back(Some(Arc::clone(&event)));
        self.next += 1;
        let bytes = message_bytes(&event);
        if bytes > 0 {
            self.messages.push_back(event.sequence);
            self.message_bytes += bytes;
            // The newest stays, whatever its size.
            while self.message_bytes > limits::EVENT_MESSAGE_BYTES_MAX && self.messages.len() > 1 {
                fell_out.messages.extend(self.drop_message());
            }
        }
        (event, fell_out)
    }

    fn drop_message(&mut self) -> Option<Arc<Event>> {
        let sequence = self.messages.pop_front()?;
        let place = self.place(sequence);
        let event = self.slots.get_mut(place)?.take()?;
        self.message_bytes -= message_bytes(&event);
        Some(event)
    }

    /// Appends a message for those who want it; the last says whether one of them serves. `None`: nobody takes it, and it is
    /// no event.
    pub fn offer(&mut self, event: Arc<Event>) -> Option<(Vec<Arc<Seat>>, Open, FellOut, bool)> {
        let chosen = self.audience.choose(&event)?;
        let served = chosen.served;
        let (event, fell_out) = self.push(event);
        let (takers, open) = self.audience.give(&event, chosen);
        Some((takers, open, fell_out, served))
    }

    /// A new consumer, and the sequence of the next event.
    pub fn join(&mut self, interest: Interest) -> (Arc<Seat>, u64) {
        (self.audience.join(interest, self.next), self.next)
    }

    /// A consumer has gone. Who has to be woken.
    pub fn leave(&mut self, seat: &Seat) -> Vec<Arc<Seat>> {
        self.audience.leave(seat)
    }

    /// What is there for a consumer at `next`, which moves on. A message of its group it takes alone, so that what it
    /// was not given yet can be handed on.
    pub fn read(&mut self, seat: &Seat, next: &mut u64) -> Option<Read> {
        let shares = seat.interest.group.is_some();
        let first = if shares { self.audience.first(seat) } else { None };
        if let Some(sequence) = first.filter(|sequence| sequence <= next) {
            *next += u64::from(sequence == *next);
            return self.audience.take(seat).map(|queued| match queued {
                Queued::Message(event) => Read::Events(vec![event]),
                Queued::Lost { count, last } => Read::Lost { count, last },
            });
        }
        let end = first.unwrap_or(self.next);
        if *next >= end {
            return None;
        }
        let oldest = self.oldest();
        if *next < oldest {
            let (from, last) = (*next, end.min(oldest) - 1);
            *next = last + 1;
            return Some(Read::Lost { count: *next - from, last });
        }
        // Those of a group get no messages here, and whoever wants none lacks none.
        let reads_messages = !shares && seat.interest.wants_messages();
        let places = self.place(*next)..self.place(end).min(self.place(*next) + READ_MAX);
        let mut events = Vec::new();
        let mut gone = 0;
        for slot in self.slots.range(places) {
            match slot {
                None if reads_messages && !events.is_empty() => break,
                None => gone += u64::from(reads_messages),
                Some(_) if gone > 0 => break,
                Some(event) => {
                    let shared = shares && message_of(event).is_some();
                    if !shared && seat.interest.wants(&event.body) {
                        events.push(Arc::clone(event));
                    }
                }
            }
            *next += 1;
        }
        Some(if gone > 0 { Read::Lost { count: gone, last: *next - 1 } } else { Read::Events(events) })
    }
}

fn message_bytes(event: &Event) -> usize {
    match &event.body {
        EventBody::MessageReceived(_) => message_of(event).map_or(0, Forwarded::bytes),
        _ => 0,
    }
}
