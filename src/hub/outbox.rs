//! What waits to be written to one session's socket, and the writing of it.
//!
//! Whoever pushes also writes: [`Outbox::begin`] hands the whole queue to one writer at a time, which writes it to the
//! socket without holding any lock, everything pending in one vectored write, and brings back what the kernel did not
//! take ([`Outbox::finish`]). While one writes, others only append; the writer looks again before it leaves. So a
//! write and the remainder it left belong to one owner, and no lock is held across a system call.
//!
//! A stored notification is never shed for room: it is not let in, and its session pulls it later. One whose TTL ran
//! out is left out when its turn comes. A frame that was started is always finished, unless the connection ends.
//!
//! Where permessage-deflate was negotiated, a message is compressed by its writer, under no lock, when its turn comes: once
//! for all who share it. Until then it counts with its plain length.

mod entry;

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
};

pub use entry::{Entry, Frame};

use crate::{clock::Instant, limits, metrics::PerClass, protocol::frame::Window, types::UnixMillis};

/// A socket as the outbox sees it. Writes never block.
pub trait Wire: Send + Sync {
    /// Writes what the kernel takes now; `WouldBlock` where it takes nothing.
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Writes on what it took and holds back, as TLS does with what it has encrypted; `WouldBlock` where the kernel does not
    /// take all of it.
    fn finish(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether the kernel has taken something of what was held back since this was asked last.
    fn has_moved(&self) -> bool {
        false
    }
}

/// Frames that one writer has taken out to write them.
#[derive(Debug)]
pub struct Batch {
    /// The only one, where it came when nothing else waited: then there are no others.
    one: Option<Entry>,
    entries: VecDeque<Entry>,
    /// Bytes of the first entry that were written before.
    head_written: usize,
    /// The window to compress with.
    window: Option<Window>,
    /// What came of it.
    outcome: Outcome,
}

/// What a writer brings back.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Messages that were written to their end.
    pub messages: u64,
    /// Bytes that were written.
    pub bytes: u64,
    /// The same by what they are, control frames counted as well.
    pub classes: PerClass,
    /// Sequences of those left out because their TTL ran out.
    pub expired: Vec<u64>,
    /// The sequence of the last one that was written to its end.
    pub written: Option<u64>,
    /// Bytes of those left out, and those saved by compression.
    left_out: usize,
    /// The kernel takes no more for now.
    pub blocked: bool,
    /// It took something all the same, of what the wire had held back.
    moved: bool,
    /// Bytes of whole unstored messages that were written, left out or saved.
    unstored: usize,
    /// The connection is broken.
    pub error: Option<io::ErrorKind>,
}

impl Batch {
    /// Writes until all is written, the kernel takes no more, or the connection turns out broken. Holds no lock.
    pub fn write(&mut self, wire: &dyn Wire, now: impl Fn() -> UnixMillis) {
        loop {
            self.leave_out_expired(&now);
            if let Some(window) = self.window {
                self.form(window);
            }
            let tried = match &self.one {
                Some(one) => wire.try_write(&[IoSlice::new(&one.frame.as_slice()[self.head_written..])]),
                None if self.entries.is_empty() => match wire.finish() {
                    Ok(()) => return,
                    Err(error) => Err(error),
                },
                None => {
                    let mut slices = [IoSlice::new(&[]); limits::WRITE_SLICES_MAX];
                    let mut count = 0;
                    for (slot, entry) in slices.iter_mut().zip(&self.entries) {
                        let skip = if count == 0 { self.head_written } else { 0 };
                        *slot = IoSlice::new(&entry.frame.as_slice()[skip..]);
                        count += 1;
                    }
                    wire.try_write(&slices[..count])
                }
            };
            match tried {
                Ok(0) => {
                    self.outcome.error = Some(io::ErrorKind::WriteZero);
                    return;
                }
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.outcome.blocked = true;
                    self.outcome.moved = wire.has_moved();
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.outcome.error = Some(error.kind());
                    return;
                }
            }
        }
    }

    /// Compresses what is written next.
    fn form(&mut self, window: Window) {
        let next = self.one.iter_mut().chain(self.entries.iter_mut().take(limits::WRITE_SLICES_MAX));
        for entry in next.filter(|entry| !entry.formed) {
            let saved = entry.form(window);
            self.outcome.left_out += saved;
            if entry.messages > 0 && entry.sequence.is_none() {
                self.outcome.unstored += saved;
            }
        }
    }

    fn leave_out_expired(&mut self, now: &impl Fn() -> UnixMillis) {
        if self.one.iter().chain(&self.entries).all(|entry| entry.expires_at.is_none()) {
            return;
        }
        let now = now();
        if self.one.iter().chain(&self.entries).all(|entry| entry.expires_at.is_none_or(|end| end > now)) {
            return;
        }
        self.entries.extend(self.one.take());
        let started = self.head_written > 0;
        let mut index = 0;
        let outcome = &mut self.outcome;
        self.entries.retain(|entry| {
            let keep = (index == 0 && started) || entry.expires_at.is_none_or(|end| end > now);
            index += 1;
            if !keep {
                outcome.expired.extend(entry.sequence);
                outcome.unstored += entry.unstored_bytes();
                outcome.left_out += entry.frame.len();
            }
            keep
        });
    }

    fn advance(&mut self, written: usize) {
        self.outcome.bytes += written as u64;
        let mut left = written;
        while let Some(head) = self.one.as_ref().or(self.entries.front()) {
            let rest = head.frame.len() - self.head_written;
            let took = left.min(rest);
            left -= took;
            let done = took == rest;
            let messages = if done { u32::from(head.messages.max(1)) } else { 0 };
            self.outcome.classes.add(head.class, messages, u32::try_from(took).unwrap_or(u32::MAX));
            if !done {
                self.head_written += took;
                break;
            }
            self.head_written = 0;
            self.outcome.messages += u64::from(head.messages);
            self.outcome.unstored += head.unstored_bytes();
            self.outcome.written = head.sequence.or(self.outcome.written);
            if self.one.take().is_none() {
                self.entries.pop_front();
            }
        }
    }
}

/// See the module's documentation. Lives under its session's lock.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Entry>,
    /// Bytes not yet written: those of the queue and those a writer has taken out.
    bytes: usize,
    /// The part of them that are messages which are not stored.
    unstored: usize,
    /// Bytes of the queue's first entry that were written.
    head_written: usize,
    /// Someone has taken a batch out.
    writing: bool,
    /// Since when the kernel has taken nothing. It may be what the wire holds back alone that it has to take.
    stalled_since: Option<Instant>,
    /// The answer to the latest ping (RFC 6455 section 5.5.3: older ones need none). Goes ahead of what waits.
    pong: Option<Box<Frame>>,
    /// The close frame is queued; nothing comes after it.
    closed: bool,
    /// How far back what is compressed may refer; `None`: nothing is.
    window: Option<Window>,
}

impl Outbox {
    /// An empty one of a session that takes compressed messages, or none.
    pub fn new(window: Option<Window>) -> Self {
        Self { window, ..Self::default() }
    }

    /// Whether `len` more bytes stay within `limit`. An empty outbox takes one frame of any size.
    pub fn has_room(&self, len: usize, limit: usize) -> bool {
        self.bytes == 0 || self.bytes.saturating_add(len) <= limit
    }

    /// Whether `len` more bytes that are not stored stay within `limit`, beside others such. What is stored does not
    /// count: it is bounded by the window, and a client that takes its time over it is not slow. Nor is one to whom
    /// somebody is writing just now, and as much again has room until it shows what he takes.
    pub fn has_room_unstored(&self, len: usize, limit: usize) -> bool {
        let limit = if self.is_being_written() { limit.saturating_mul(2) } else { limit };
        self.unstored == 0 || self.unstored.saturating_add(len) <= limit
    }

    fn is_being_written(&self) -> bool {
        self.writing && self.stalled_since.is_none()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames that wait, those not counted that a writer has taken out just now.
    pub fn frames(&self) -> usize {
        self.queue.iter().map(|entry| usize::from(entry.messages.max(1))).sum()
    }

    /// Pieces that wait.
    #[cfg(test)]
    pub fn pieces(&self) -> usize {
        self.queue.len()
    }

    /// Whether everything was written, and the wire holds nothing back.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0 && self.stalled_since.is_none()
    }

    /// Since when the kernel has taken nothing of what waits.
    pub fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }

    /// Appends a frame. After the close frame nothing is taken.
    pub fn push(&mut self, entry: Entry) {
        if !self.closed {
            self.bytes += entry.frame.len();
            self.unstored += entry.unstored_bytes();
            self.queue.push_back(entry);
        }
    }

    /// Sets the answer to the latest ping.
    pub fn set_pong(&mut self, bytes: &[u8]) {
        if !self.closed {
            let frame = Frame::control(bytes);
            self.bytes += frame.len();
            self.bytes -= self.pong.replace(Box::new(frame)).map_or(0, |old| old.len());
        }
    }

    /// Drops whole frames that were not started, then queues the close frame. Only the first close counts.
    pub fn close(&mut self, frame: &[u8]) {
        if self.closed {
            return;
        }
        let keep = usize::from(self.head_written > 0);
        if let Some(head) = self.queue.front_mut().filter(|_| keep > 0) {
            let before = (head.frame.len(), head.unstored_bytes());
            head.keep_started(self.head_written);
            self.bytes -= before.0 - head.frame.len();
            self.unstored -= before.1 - head.unstored_bytes();
        }
        for dropped in self.queue.drain(keep.min(self.queue.len())..) {
            self.bytes -= dropped.frame.len();
            self.unstored -= dropped.unstored_bytes();
        }
        self.bytes -= self.pong.take().map_or(0, |pong| pong.len());
        self.push(Entry::control(frame));
        self.closed = true;
    }

    /// Takes everything out to be written. `None`: there is nothing, someone else is at it and will see what was
    /// appended, or the kernel takes nothing (`resumed` says that it does again).
    pub fn begin(&mut self, resumed: bool) -> Option<Batch> {
        let stalled = self.stalled_since.is_some();
        if self.writing || (stalled && !resumed) || (self.bytes == 0 && !stalled) {
            return None;
        }
        let mut entries = std::mem::take(&mut self.queue);
        if let Some(frame) = self.pong.take() {
            let place = usize::from(self.head_written > 0);
            entries.insert(place, Entry::of_control(*frame));
        }
        self.writing = true;
        Some(Batch {
            one: None,
            entries,
            head_written: std::mem::take(&mut self.head_written),
            window: self.window,
            outcome: Outcome::default(),
        })
    }

    /// Appends a frame and takes out what there is to write, as [`Outbox::begin`] does: the frame alone, and without a
    /// detour through the queue, where nothing else waits.
    pub fn push_and_begin(&mut self, entry: Entry) -> Option<Batch> {
        if self.bytes > 0 || self.writing || self.closed || self.stalled_since.is_some() {
            self.push(entry);
            return self.begin(false);
        }
        self.bytes = entry.frame.len();
        self.unstored = entry.unstored_bytes();
        self.writing = true;
        Some(Batch {
            one: Some(entry),
            entries: VecDeque::new(),
            head_written: 0,
            window: self.window,
            outcome: Outcome::default(),
        })
    }

    /// Brings back what was not written. Returns what came of the rest.
    pub fn finish(&mut self, batch: Batch, now: impl Fn() -> Instant) -> Outcome {
        let Batch { one, mut entries, head_written, window: _, outcome } = batch;
        if let Some(one) = one {
            entries.push_front(one);
        }
        self.writing = false;
        self.bytes -= usize::try_from(outcome.bytes).unwrap_or(usize::MAX).min(self.bytes);
        self.bytes -= outcome.left_out.min(self.bytes);
        self.unstored -= outcome.unstored.min(self.unstored);
        if self.closed {
            // The close came while this was being written: what was not started is dropped now. The close frame is in
            // `entries` where it was taken out with the batch, else in the queue.
            let keep = usize::from(head_written > 0);
            if let Some(head) = entries.front_mut().filter(|_| keep > 0) {
                let before = (head.frame.len(), head.unstored_bytes());
                head.keep_started(head_written);
                self.bytes -= (before.0 - head.frame.len()).min(self.bytes);
                self.unstored -= (before.1 - head.unstored_bytes()).min(self.unstored);
            }
            let taken_close = self.queue.is_empty();
            let end = entries.len() - usize::from(taken_close && entries.len() > keep);
            for dropped in entries.drain(keep.min(end)..end) {
                self.bytes -= dropped.frame.len().min(self.bytes);
                self.unstored -= dropped.unstored_bytes().min(self.unstored);
            }
        }
        self.head_written = head_written;
        if !entries.is_empty() {
            entries.append(&mut self.queue);
            self.queue = entries;
        } else if self.queue.capacity() == 0 && entries.capacity() <= 16 && self.bytes > 0 {
            self.queue = entries;
        }
        self.stalled_since = match (outcome.blocked, self.stalled_since) {
            (false, _) => None,
            (true, Some(since)) if outcome.bytes == 0 && !outcome.moved => Some(since),
            (true, _) => Some(now()),
        };
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use bytes::Bytes;
    use parking_lot::Mutex;

    use super::*;
    use crate::metrics::Class;
    use crate::protocol::frame::{Deflated, binary_frame, deflate_frame};

    /// A socket that takes as many bytes as it is told, then blocks.
    struct Script {
        takes: Mutex<VecDeque<usize>>,
        written: Mutex<Vec<u8>>,
        writes: Mutex<usize>,
    }

    impl Script {
        fn new(takes: &[usize]) -> Self {
            Self {
                takes: Mutex::new(takes.iter().copied().collect()),
                written: Mutex::default(),
                writes: Mutex::default(),
            }
        }

        fn text(&self) -> String {
            String::from_utf8(self.written.lock().clone()).unwrap()
        }
    }

    impl Wire for Script {
        fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            *self.writes.lock() += 1;
            let Some(take) = self.takes.lock().pop_front() else { return Err(io::ErrorKind::WouldBlock.into()) };
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let take = take.min(all.len());
            self.written.lock().extend_from_slice(&all[..take]);
            Ok(take)
        }
    }

    fn message(text: &'static str) -> Entry {
        Entry::message(Bytes::from_static(text.as_bytes()))
    }

    fn write(outbox: &mut Outbox, wire: &Script, resumed: bool) -> Option<Outcome> {
        let mut batch = outbox.begin(resumed)?;
        batch.write(wire, || UnixMillis(0));
        Some(outbox.finish(batch, Instant::now))
    }

    #[test]
    fn everything_pending_leaves_in_one_write() {
        let wire = Script::new(&[1000]);
        let mut outbox = Outbox::default();
        for text in ["one ", "two ", "three"] {
            outbox.push(message(text));
        }
        let outcome = write(&mut outbox, &wire, false).unwrap();
        assert_eq!((wire.text().as_str(), *wire.writes.lock(), outcome.messages), ("one two three", 1, 3));
        assert!(outbox.is_empty() && outbox.queue.capacity() == 0);
    }

    #[test]
    fn what_the_kernel_did_not_take_follows_later_in_order() {
        let wire = Script::new(&[5]);
        let mut outbox = Outbox::default();
        outbox.push(message("one "));
        outbox.push(message("two "));
        assert!(write(&mut outbox, &wire, false).unwrap().blocked);
        outbox.push(message("three"));
        assert!(outbox.begin(false).is_none(), "nobody writes before the kernel takes again");
        assert!(outbox.stalled_since().is_some());
        wire.takes.lock().extend([2, 100]);
        write(&mut outbox, &wire, true).unwrap();
        assert_eq!(wire.text(), "one two three");
        assert!(outbox.is_empty() && outbox.stalled_since().is_none());
    }

    #[test]
    fn one_that_finds_nothing_waiting_is_written_past_the_queue_and_its_remainder_keeps_its_place() {
        let wire = Script::new(&[2]);
        let mut outbox = Outbox::default();
        let mut batch = outbox.push_and_begin(message("one ")).unwrap();
        assert!(outbox.push_and_begin(message("two ")).is_none(), "one writes at a time");
        batch.write(&wire, || UnixMillis(0));
        assert!(outbox.finish(batch, Instant::now).blocked);
        assert!(outbox.push_and_begin(message("three")).is_none(), "the kernel takes nothing");
        assert_eq!((outbox.bytes(), outbox.frames()), (11, 3));
        wire.takes.lock().extend([3, 100]);
        let outcome = write(&mut outbox, &wire, true).unwrap();
        assert_eq!((wire.text().as_str(), outcome.messages), ("one two three", 3));
        assert!(outbox.is_empty() && outbox.has_room_unstored(1, 0));
        outbox.close(b"CLOSE");
        assert!(outbox.push_and_begin(message("late")).is_some_and(|batch| batch.entries.len() == 1));
    }

    /// Three frames that were put together: `one `, `two ` and `three`.
    fn together() -> Entry {
        Entry::together(Bytes::from_static(b"one two three"), [4, 8, 13].into(), Class::Broadcast)
    }

    #[test]
    fn of_what_was_put_together_a_close_finishes_the_started_frame_only() {
        // Bytes that are written before the close, and what of the three frames is out in the end.
        for (written, kept) in [(0, ""), (1, "one "), (3, "one "), (4, "one two "), (9, "one two three")] {
            for during_write in [false, true] {
                for fast in [false, true] {
                    let wire = Script::new(&[written]);
                    if written == 0 {
                        wire.takes.lock().clear();
                    }
                    let mut outbox = Outbox::default();
                    let mut batch = if fast {
                        outbox.push_and_begin(together()).unwrap()
                    } else {
                        outbox.push(together());
                        outbox.begin(false).unwrap()
                    };
                    batch.write(&wire, || UnixMillis(0));
                    let mut messages = 0;
                    if during_write {
                        outbox.close(b"CLOSE");
                        messages += outbox.finish(batch, Instant::now).messages;
                    } else {
                        messages += outbox.finish(batch, Instant::now).messages;
                        outbox.close(b"CLOSE");
                    }
                    wire.takes.lock().push_back(100);
                    messages += write(&mut outbox, &wire, true).unwrap().messages;
                    let case = format!("{written} {during_write} {fast}");
                    // At a frame's very end the next is not started, but nobody can tell: it goes out with the entry.
                    assert_eq!(wire.text(), format!("{kept}CLOSE"), "{case}");
                    assert_eq!(messages, kept.split(' ').filter(|text| !text.is_empty()).count() as u64, "{case}");
                    assert!(outbox.is_empty() && outbox.has_room_unstored(1, 0), "{case}");
                }
            }
        }
    }

    #[test]
    fn what_was_put_together_counts_frame_by_frame() {
        let wire = Script::new(&[]);
        let mut outbox = Outbox::default();
        outbox.push(together());
        outbox.push(message("four"));
        assert_eq!((outbox.frames(), outbox.bytes()), (4, 17));
        assert!(write(&mut outbox, &wire, false).unwrap().blocked);
        assert_eq!(outbox.frames(), 4);
    }

    #[test]
    fn who_is_being_written_to_is_not_slow_yet() {
        let wire = Script::new(&[100]);
        let mut outbox = Outbox::default();
        outbox.push(message("0123456789"));
        let mut batch = outbox.begin(false).unwrap();
        assert!(outbox.has_room_unstored(10, 10), "it may be in the kernel already");
        outbox.push(message("0123456789"));
        assert!(!outbox.has_room_unstored(1, 10), "but no more than that");
        batch.write(&wire, || UnixMillis(0));
        outbox.finish(batch, Instant::now);
        assert!(!outbox.has_room_unstored(1, 10));
    }

    #[test]
    fn what_comes_while_one_writes_waits_for_him() {
        let wire = Script::new(&[100, 100]);
        let mut outbox = Outbox::default();
        outbox.push(message("one "));
        let mut batch = outbox.begin(false).unwrap();
        outbox.push(message("two"));
        assert!(outbox.begin(false).is_none());
        batch.write(&wire, || UnixMillis(0));
        outbox.finish(batch, Instant::now);
        assert!(!outbox.is_empty());
        write(&mut outbox, &wire, false).unwrap();
        assert_eq!(wire.text(), "one two");
    }

    #[test]
    fn a_close_finishes_the_started_frame_and_drops_the_others() {
        for during_write in [false, true] {
            let wire = Script::new(&[2]);
            let mut outbox = Outbox::default();
            outbox.push(message("one "));
            outbox.push(message("two "));
            let mut batch = outbox.begin(false).unwrap();
            batch.write(&wire, || UnixMillis(0));
            if during_write {
                outbox.close(b"CLOSE");
                outbox.finish(batch, Instant::now);
            } else {
                outbox.finish(batch, Instant::now);
                outbox.close(b"CLOSE");
            }
            outbox.push(message("late"));
            outbox.close(b"AGAIN");
            wire.takes.lock().extend([3, 100]);
            write(&mut outbox, &wire, true).unwrap();
            assert_eq!(wire.text(), "one CLOSE", "{during_write}");
            assert!(outbox.is_empty());
        }
    }

    #[test]
    fn a_close_frame_that_was_taken_out_to_be_written_is_kept() {
        let wire = Script::new(&[]);
        let mut outbox = Outbox::default();
        outbox.push(message("one "));
        outbox.close(b"CLOSE");
        write(&mut outbox, &wire, false).unwrap();
        wire.takes.lock().push_back(100);
        write(&mut outbox, &wire, true).unwrap();
        assert_eq!(wire.text(), "CLOSE");
    }

    #[test]
    fn the_expired_are_left_out_unless_they_were_started() {
        let entry = |text: &'static str, end, sequence| Entry {
            expires_at: Some(UnixMillis(end)),
            sequence: Some(sequence),
            ..message(text)
        };
        let wire = Script::new(&[2]);
        let mut outbox = Outbox::default();
        outbox.push(entry("one ", 10, 0));
        outbox.push(entry("two ", 10, 1));
        outbox.push(entry("three", 30, 2));
        write(&mut outbox, &wire, false);
        wire.takes.lock().extend([100]);
        let mut batch = outbox.begin(true).unwrap();
        batch.write(&wire, || UnixMillis(20));
        let outcome = outbox.finish(batch, Instant::now);
        assert_eq!((wire.text().as_str(), outcome.expired), ("one three", vec![1]));
        assert!(outbox.is_empty());
    }

    #[test]
    fn only_the_latest_ping_is_answered_and_ahead_of_what_waits() {
        let wire = Script::new(&[2]);
        let mut outbox = Outbox::default();
        outbox.push(message("one "));
        outbox.push(message("two"));
        write(&mut outbox, &wire, false);
        outbox.set_pong(b"old ");
        outbox.set_pong(b"pong ");
        wire.takes.lock().extend([100]);
        write(&mut outbox, &wire, true).unwrap();
        assert_eq!(wire.text(), "one pong two");
        assert!(outbox.is_empty());
    }

    #[test]
    fn only_what_is_not_stored_counts_against_its_bound() {
        let wire = Script::new(&[]);
        let mut outbox = Outbox::default();
        outbox.push(Entry { sequence: Some(0), ..message("a stored one, and a long one") });
        assert!(outbox.has_room_unstored(8, 10), "the stored one does not count");
        outbox.push(message("reply 1 "));
        assert!(!outbox.has_room_unstored(8, 10) && outbox.has_room_unstored(2, 10));
        write(&mut outbox, &wire, false);
        assert!(!outbox.has_room_unstored(8, 10));
        wire.takes.lock().push_back(100);
        write(&mut outbox, &wire, true);
        assert!(outbox.has_room_unstored(8, 10) && outbox.is_empty());
    }

    #[test]
    fn a_broken_connection_is_reported() {
        struct Broken;
        impl Wire for Broken {
            fn try_write(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let mut outbox = Outbox::default();
        outbox.push(message("one"));
        let mut batch = outbox.begin(false).unwrap();
        batch.write(&Broken, || UnixMillis(0));
        assert_eq!(outbox.finish(batch, Instant::now).error, Some(io::ErrorKind::ConnectionReset));
    }

    fn compressible(bytes: usize) -> Bytes {
        binary_frame(&b"again ".repeat(bytes.div_ceil(6))[..bytes])
    }

    #[test]
    fn what_is_compressed_leaves_nothing_behind_in_the_account() {
        let (long, short) = (compressible(3000), compressible(20));
        let deflated = deflate_frame(&long, Window::LARGEST).unwrap();
        assert_eq!(deflate_frame(&short, Window::LARGEST), None);
        let expected = [&deflated[..], &short, &deflated, b"PING", &deflated].concat();
        // Cut anywhere: what is started goes on in the form in which it was begun.
        for cut in 0..=expected.len() {
            let wire = Script::new(&[cut, 10_000]);
            let mut outbox = Outbox::new(Some(Window::LARGEST));
            outbox.push(Entry::message(long.clone()));
            outbox.push(Entry::message(short.clone()));
            outbox.push(Entry { sequence: Some(1), ..Entry::message(long.clone()) });
            outbox.push(Entry::control(b"PING"));
            assert_eq!(outbox.bytes(), 2 * long.len() + short.len() + 4, "plain until it is written");
            let (mut messages, mut bytes) = (0, 0);
            let mut account = |outcome: Outcome| {
                messages += outcome.messages;
                bytes += outcome.bytes;
            };
            if cut > 0 {
                wire.takes.lock().pop_back();
                account(write(&mut outbox, &wire, false).unwrap());
                wire.takes.lock().push_back(10_000);
            }
            outbox.push(Entry::message(long.clone()));
            while let Some(outcome) = write(&mut outbox, &wire, true) {
                account(outcome);
            }
            assert_eq!(*wire.written.lock(), expected, "{cut}");
            assert_eq!((messages, bytes), (4, expected.len() as u64));
            assert_eq!((outbox.bytes(), outbox.unstored, outbox.frames()), (0, 0, 0), "{cut}");
        }
    }

    #[test]
    fn what_is_shared_is_compressed_once_and_not_before_it_is_written() {
        let plain = compressible(1000);
        let forms = Arc::new(Deflated::default());
        let entry = || Entry { forms: Some(Arc::clone(&forms)), ..Entry::message(plain.clone()) };
        let mut outboxes = [Outbox::new(Some(Window::LARGEST)), Outbox::new(Some(Window::LARGEST))];
        for outbox in &mut outboxes {
            outbox.push(entry());
        }
        assert!(format!("{forms:?}").contains("largest: OnceLock(<uninit>)"), "{forms:?}");
        let places = outboxes.each_mut().map(|outbox| {
            let mut batch = outbox.begin(false).unwrap();
            batch.write(&Script::new(&[]), || UnixMillis(0));
            let place = batch.entries[0].frame.as_slice().as_ptr();
            outbox.finish(batch, Instant::now);
            place
        });
        assert_eq!(places[0], places[1]);
        // Closed before anything of it left: the account is even all the same.
        for outbox in &mut outboxes {
            outbox.close(b"CLOSE");
            assert_eq!((outbox.bytes(), outbox.unstored), (5, 0));
        }
    }

    #[test]
    fn what_expires_is_not_compressed_first() {
        let mut outbox = Outbox::new(Some(Window::LARGEST));
        let forms = Arc::new(Deflated::default());
        let expires_at = Some(UnixMillis(0));
        outbox.push(Entry { expires_at, forms: Some(Arc::clone(&forms)), ..Entry::message(compressible(1000)) });
        outbox.push(Entry::message(compressible(1000)));
        let wire = Script::new(&[10_000]);
        let outcome = write(&mut outbox, &wire, false).unwrap();
        assert_eq!(outcome.messages, 1);
        assert_eq!((outbox.bytes(), outbox.unstored), (0, 0));
        assert!(format!("{forms:?}").contains("largest: OnceLock(<uninit>)"), "{forms:?}");
    }

    /// Takes everything and holds it back, as TLS may.
    #[derive(Default)]
    struct HoldsBack {
        blocked: AtomicBool,
        moved: AtomicBool,
    }

    impl Wire for HoldsBack {
        fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            Ok(slices.iter().map(|slice| slice.len()).sum())
        }

        fn finish(&self) -> io::Result<()> {
            if self.blocked.load(Ordering::Relaxed) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        }

        fn has_moved(&self) -> bool {
            self.moved.swap(false, Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_wire_holds_back_is_a_stall_until_it_is_out() {
        let wire = HoldsBack::default();
        wire.blocked.store(true, Ordering::Relaxed);
        let mut outbox = Outbox::new(None);
        let turn = |outbox: &mut Outbox, batch: Option<Batch>| {
            let mut batch = batch.unwrap();
            batch.write(&wire, || UnixMillis(0));
            outbox.finish(batch, Instant::now)
        };
        let batch = outbox.push_and_begin(Entry::message(Bytes::from_static(b"abc")));
        let outcome = turn(&mut outbox, batch);
        assert_eq!((outcome.bytes, outcome.messages, outcome.blocked), (3, 1, true), "for the outbox it is written");
        let began = outbox.stalled_since().unwrap();
        assert!(outbox.bytes() == 0 && !outbox.is_empty(), "a close waits for it");
        assert!(outbox.begin(false).is_none(), "the socket takes nothing");
        // Nothing moved: the stall is as old as it was. Something did: it begins anew.
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        let batch = outbox.begin(true);
        turn(&mut outbox, batch);
        assert_eq!(outbox.stalled_since(), Some(began));
        wire.moved.store(true, Ordering::Relaxed);
        let batch = outbox.begin(true);
        turn(&mut outbox, batch);
        assert_eq!(outbox.stalled_since(), Some(Instant::now()));
        wire.blocked.store(false, Ordering::Relaxed);
        let batch = outbox.begin(true);
        turn(&mut outbox, batch);
        assert!(outbox.is_empty() && outbox.begin(true).is_none());
    }
}
