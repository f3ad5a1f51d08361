//! A log in memory: what of it waits, what is on its way to disk, and who waits for word of it.
//!
//! It lives under its owner's lock (a user's state, or the broadcast log's), which is the log's lock.

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;

use crate::{
    limits,
    store::{Counters, Done, Hold, IndexEntry, Mailbox, Recallable, StoreError},
    types::{CollapseKey, Digest, NotificationId, Offset, UnixMillis},
};

/// How a stored notification ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Some device confirmed it.
    Confirmed,
    /// A newer one with its collapse key took its place.
    Superseded,
    /// Its TTL ran out.
    Expired,
    /// A caller cleared the mailbox.
    Purged,
    /// It made room in a full mailbox, its only devices were forgotten, or it was tried too often.
    Dropped,
}

/// A notification with a caller's own id that is not on disk yet.
#[derive(Debug)]
struct Staged {
    offset: Offset,
    digest: Digest,
    sessions: u32,
    /// Repeated calls, which share its fate.
    joined: Vec<Done>,
}

/// A minute in which something expires.
#[derive(Debug, Default)]
struct Minute {
    /// How many.
    count: u32,
    /// Whether the row of its bucket may be there for what has left: then it goes with the last that stands in it.
    has_row: bool,
}

/// What a caller's own id stands for.
#[derive(Debug)]
pub enum Known {
    /// Nothing yet.
    Free,
    /// For other content.
    Taken,
    /// For the same content.
    Same {
        /// Its offset.
        offset: Offset,
        /// Live sessions it was handed to.
        sessions: u32,
        /// Where it is not on disk yet: its fate.
        fate: Option<oneshot::Receiver<Result<(), StoreError>>>,
    },
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct LogState {
    /// The generation of the store that it was read in; 0: it was not read. Where it is not the store's, the log is
    /// stale.
    pub generation: u64,
    /// The last assigned offset.
    pub last: Offset,
    /// Everything up to here is on disk and readable.
    pub applied: Offset,
    /// The highest offset that was dropped before every device had it.
    pub lost: Offset,
    /// What waits, by offset: staged or stored, and not yet done with.
    pub index: VecDeque<IndexEntry>,
    /// The bytes of what waits.
    pub bytes: u64,
    /// Cloned into every write of the log that is under way.
    pub hold: Hold,
    /// How often callers' own ids left what is staged, for the disk or because that is not known: what was looked up on
    /// disk before such a moment says nothing of them.
    pub settled_ids: u64,
    /// What may still be taken back.
    pub recallable: Recallable,
    /// What is only there while something waits: most logs are empty most of the time.
    busy: Option<Box<Busy>>,
}

/// What belongs to what waits in a log, or is on its way.
#[derive(Debug, Default)]
struct Busy {
    /// What waits under a collapse key.
    collapse: HashMap<CollapseKey, Offset>,
    staged: HashMap<NotificationId, Staged>,
    /// What waits, by the minute in which it expires.
    minutes: HashMap<u64, Minute>,
    /// Minutes in which nothing waits any more, whose rows may be on disk; under the log's lock only.
    bare: Vec<u64>,
    /// Calls that wait for a notification's end.
    waiting: Vec<(Offset, oneshot::Sender<End>)>,
    /// The latest ends of notifications with remembered ids.
    ends: VecDeque<(Offset, End)>,
}

impl Busy {
    fn is_empty(&self) -> bool {
        let Busy { collapse, staged, minutes, bare, waiting, ends } = self;
        let tables = collapse.is_empty() && staged.is_empty() && minutes.is_empty();
        tables && bare.is_empty() && waiting.is_empty() && ends.is_empty()
    }
}

impl LogState {
    fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// Gives back what is not needed any more.
    fn rest(&mut self) {
        if self.busy.as_ref().is_some_and(|busy| busy.is_empty()) {
            self.busy = None;
        }
    }

    /// Takes over what the store has of the log. The last offset never goes down.
    pub fn load(&mut self, counters: Counters, index: Vec<IndexEntry>) {
        // What was staged before the engine was lost went with it, whoever has been told of that.
        self.settle(Offset::MAX, &Err(StoreError::Recovering("it was opened again meanwhile".into())));
        // Of what is on disk now nothing may have been there when it was looked up.
        self.settled_ids += 1;
        self.last = self.last.max(counters.last);
        // Nothing is under way.
        self.applied = self.last;
        self.lost = self.lost.max(counters.lost);
        self.bytes = index.iter().map(|entry| u64::from(entry.bytes)).sum();
        self.recallable.clear();
        let busy = self.busy.get_or_insert_default();
        let keys = index.iter().filter_map(|entry| Some((entry.collapse_key.clone()?, entry.offset)));
        busy.collapse = keys.collect();
        busy.bare.clear();
        busy.minutes.clear();
        for entry in &index {
            busy.minutes.entry(entry.expiry_minute()).or_default().count += 1;
        }
        // How it ended is not known where it is gone.
        busy.waiting.retain(|(offset, _)| index.binary_search_by_key(offset, |entry| entry.offset).is_ok());
        self.index = index.into();
        self.rest();
    }

    /// The same, of a mailbox.
    pub fn load_mailbox(&mut self, mailbox: &mut Mailbox) {
        self.load(mailbox.counters, std::mem::take(&mut mailbox.index));
    }

    /// The counters as they are now.
    pub fn counters(&self) -> Counters {
        let count = u32::try_from(self.index.len()).unwrap_or(u32::MAX);
        Counters { count, bytes: self.bytes, last: self.last, lost: self.lost }
    }

    /// Whether nothing of it is on its way and nobody waits for word of it.
    pub fn is_quiet(&self) -> bool {
        std::sync::Arc::strong_count(&self.hold) == 1
            && self
                .busy
                .as_ref()
                .is_none_or(|busy| busy.staged.is_empty() && busy.waiting.iter().all(|(_, waiter)| waiter.is_closed()))
    }

    /// How many wait above `position`.
    pub fn pending_above(&self, position: Offset) -> usize {
        self.index.len() - self.index.partition_point(|entry| entry.offset <= position)
    }

    /// How many wait above `position` whose time has not run out.
    pub fn alive_above(&self, position: Offset, now: UnixMillis) -> usize {
        let from = self.index.partition_point(|entry| entry.offset <= position);
        self.index.range(from..).filter(|entry| entry.expires_at > now).count()
    }

    /// The first that waits above `position`.
    pub fn first_above(&self, position: Offset) -> Option<&IndexEntry> {
        self.index.get(self.index.partition_point(|entry| entry.offset <= position))
    }

    /// What waits at `offset`.
    pub fn entry(&self, offset: Offset) -> Option<&IndexEntry> {
        self.index.binary_search_by_key(&offset, |entry| entry.offset).ok().and_then(|index| self.index.get(index))
    }

    /// Some device confirmed what waits at `offset`. Returns whether its id is remembered.
    pub fn confirm(&mut self, offset: Offset) -> bool {
        let found = self.index.binary_search_by_key(&offset, |entry| entry.offset).ok();
        let Some(entry) = found.and_then(|at| self.index.get_mut(at)) else { return false };
        entry.confirmed = true;
        entry.remembered
    }

    /// The expiry buckets of these, which were taken out and not taken back, that nothing else of the log is in; and others
    /// of which that is so since the last call. Their rows must go.
    pub fn emptied(&mut self, entries: &[IndexEntry]) -> Vec<u64> {
        let (mut minutes, known) = match self.busy.as_deref_mut() {
            Some(busy) => (std::mem::take(&mut busy.bare), Some(&mut busy.minutes)),
            None => (Vec::new(), None),
        };
        minutes.extend(entries.iter().map(IndexEntry::expiry_minute));
        minutes.sort_unstable();
        minutes.dedup();
        if let Some(known) = known {
            minutes.retain(|minute| match known.get_mut(minute) {
                Some(minute) => {
                    minute.has_row = true;
                    false
                }
                None => true,
            });
        }
        self.rest();
        minutes
    }

    /// The same, of the one whose place another takes, in the write of that one: with it one bucket may be empty, since what
    /// left the log before took its own along.
    pub fn emptied_by(&mut self, replaced: Option<&IndexEntry>) -> Option<u64> {
        let mut minutes = self.emptied(std::slice::from_ref(replaced?));
        debug_assert!(minutes.len() <= 1, "buckets that are empty were left behind: {minutes:?}");
        minutes.pop()
    }

    /// Whether a bucket is empty whose row may be on disk.
    pub fn has_bare_buckets(&self) -> bool {
        self.busy.as_ref().is_some_and(|busy| !busy.bare.is_empty())
    }

    /// Adds what was just given its offset: the last.
    pub fn push(&mut self, entry: IndexEntry) {
        self.last = self.last.max(entry.offset);
        self.bytes += u64::from(entry.bytes);
        let busy = self.busy();
        busy.minutes.entry(entry.expiry_minute()).or_default().count += 1;
        if let Some(key) = &entry.collapse_key {
            busy.collapse.insert(key.clone(), entry.offset);
        }
        let at = self.index.partition_point(|before| before.offset < entry.offset);
        self.index.insert(at, entry);
    }

    /// Takes out what a notification with `key` takes the place of.
    pub fn take_collapsed(&mut self, key: &CollapseKey) -> Option<IndexEntry> {
        let offset = self.busy.as_ref()?.collapse.get(key).copied()?;
        self.take_offsets(&[offset]).pop()
    }

    /// Takes out all up to and including `offset`.
    pub fn take_through(&mut self, offset: Offset) -> Vec<IndexEntry> {
        let count = self.index.partition_point(|entry| entry.offset <= offset);
        let taken = self.index.drain(..count).collect();
        self.taken(taken)
    }

    /// Takes out what is wanted, oldest first, at most `max`.
    pub fn take_first(&mut self, max: usize, wanted: impl Fn(&IndexEntry) -> bool) -> Vec<IndexEntry> {
        let (mut taken, mut at) = (Vec::new(), 0);
        while taken.len() < max && at < self.index.len() {
            if wanted(&self.index[at]) {
                taken.extend(self.index.remove(at));
            } else {
                at += 1;
            }
        }
        self.taken(taken)
    }

    /// Takes out what is wanted.
    pub fn take_if(&mut self, wanted: impl Fn(&IndexEntry) -> bool) -> Vec<IndexEntry> {
        if !self.index.iter().any(&wanted) {
            return Vec::new();
        }
        let mut taken = Vec::new();
        self.index.retain(|entry| {
            let take = wanted(entry);
            if take {
                taken.push(entry.clone());
            }
            !take
        });
        self.taken(taken)
    }

    /// Takes out what has expired.
    pub fn take_expired(&mut self, now: UnixMillis) -> Vec<IndexEntry> {
        self.take_if(|entry| entry.expires_at <= now)
    }

    /// Takes out these; `offsets` ascend.
    pub fn take_offsets(&mut self, offsets: &[Offset]) -> Vec<IndexEntry> {
        if let [offset] = offsets {
            let found = self.index.binary_search_by_key(offset, |entry| entry.offset);
            let taken = found.ok().and_then(|at| self.index.remove(at)).into_iter().collect();
            return self.taken(taken);
        }
        self.take_if(|entry| offsets.binary_search(&entry.offset).is_ok())
    }

    fn taken(&mut self, taken: Vec<IndexEntry>) -> Vec<IndexEntry> {
        for entry in &taken {
            self.bytes -= u64::from(entry.bytes);
            let Some(busy) = self.busy.as_deref_mut() else { continue };
            let minute = entry.expiry_minute();
            if let Some(known) = busy.minutes.get_mut(&minute) {
                known.count -= 1;
                if known.count == 0 {
                    if known.has_row {
                        busy.bare.push(minute);
                    }
                    busy.minutes.remove(&minute);
                }
            }
            if let Some(key) = &entry.collapse_key
                && busy.collapse.get(key) == Some(&entry.offset)
            {
                busy.collapse.remove(key);
            }
        }
        self.rest();
        if self.index.is_empty() {
            self.index = VecDeque::new();
        }
        taken
    }

    /// Everything up to `upto` is on disk.
    pub fn applied(&mut self, upto: Offset) {
        self.applied = self.applied.max(upto);
        self.recallable.applied(upto);
        self.settle(upto, &Ok(()));
        self.pass_recalled();
    }

    /// Moves the applied mark past what was taken back: to the end, where nothing waits behind it.
    pub fn pass_recalled(&mut self) {
        if self.index.back().is_none_or(|last| last.offset <= self.applied) {
            self.applied = self.last;
        }
    }

    /// What was staged is not known to be on disk, and is not counted on any more.
    pub fn failed(&mut self, error: &StoreError) {
        let applied = self.applied;
        self.settle(Offset::MAX, &Err(error.clone()));
        self.take_if(|entry| entry.offset > applied);
        self.recallable.clear();
        if let Some(busy) = self.busy.as_deref_mut() {
            busy.bare.clear();
        }
        self.rest();
        // Where the store is opened again, what is there is found when the log is read anew.
        if !matches!(error, StoreError::Recovering(_)) {
            self.last = applied;
        }
    }

    fn settle(&mut self, upto: Offset, fate: &Result<(), StoreError>) {
        let Some(busy) = self.busy.as_deref_mut().filter(|busy| !busy.staged.is_empty()) else { return };
        let before = busy.staged.len();
        busy.staged.retain(|_, staged| {
            let settled = staged.offset <= upto;
            if settled {
                for joined in staged.joined.drain(..) {
                    // Whoever asked may have gone.
                    let _ = joined.send(fate.clone());
                }
            }
            !settled
        });
        self.settled_ids += u64::from(busy.staged.len() < before);
        self.rest();
    }

    /// Remembers a caller's own id until its notification is on disk, where the store has it from then on.
    pub fn stage_id(&mut self, id: NotificationId, offset: Offset, digest: Digest, sessions: u32) {
        self.busy().staged.insert(id, Staged { offset, digest, sessions, joined: Vec::new() });
    }

    /// What a caller's own id stands for among what is staged; a repeated call joins the fate of the first.
    pub fn staged_id(&mut self, id: &NotificationId, digest: &Digest) -> Known {
        let staged = self.busy.as_deref_mut().and_then(|busy| busy.staged.get_mut(id));
        let Some(staged) = staged else { return Known::Free };
        if staged.digest != *digest {
            return Known::Taken;
        }
        let (offset, sessions) = (staged.offset, staged.sessions);
        #[cfg(test)]
        if crate::planted::is(crate::planted::Bug::DuplicateBeforeDurable) {
            return Known::Same { offset, sessions, fate: None };
        }
        let (joined, fate) = oneshot::channel();
        staged.joined.push(joined);
        Known::Same { offset, sessions, fate: Some(fate) }
    }

    /// Forgets what it remembers of callers' ids. Repeated calls that have joined the first keep its fate.
    pub fn forget_ids(&mut self) {
        if let Some(busy) = self.busy.as_deref_mut() {
            busy.ends.clear();
        }
        self.rest();
    }

    /// Has the caller told how the notification at `offset` ends.
    pub fn wait_for(&mut self, offset: Offset) -> oneshot::Receiver<End> {
        let (waiter, end) = oneshot::channel();
        let waiting = &mut self.busy().waiting;
        waiting.retain(|(_, waiter)| !waiter.is_closed());
        waiting.push((offset, waiter));
        end
    }

    /// Tells whoever waits for the notification at `offset` how it ended; the first end counts.
    pub fn ended(&mut self, offset: Offset, remembered: bool, end: End) {
        if let Some(busy) = self.busy.as_deref_mut() {
            for (_, waiter) in busy.waiting.extract_if(.., |(at, _)| *at == offset) {
                // Whoever waited may have gone.
                let _ = waiter.send(end);
            }
        }
        if remembered && self.end_of(offset).is_none() {
            let ends = &mut self.busy().ends;
            if ends.len() == limits::REMEMBERED_ENDS_MAX {
                ends.pop_front();
            }
            ends.push_back((offset, end));
        }
        self.rest();
    }

    /// How a notification with a remembered id ended, as far as that is known.
    pub fn end_of(&self, offset: Offset) -> Option<End> {
        self.busy.as_ref()?.ends.iter().rev().find(|(at, _)| *at == offset).map(|(_, end)| *end)
    }
}
