//! The model: what was sent, what callers were told, what devices confirmed; and from that what a session must, may and
//! must not see. It knows nothing of the hub's state.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

/// What happened in a sequence.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub sent: usize,
    pub acknowledged: usize,
    pub repeated_calls: usize,
    pub broadcasts: usize,
    pub collapsed: usize,
    pub expired: usize,
    pub purged: usize,
    pub crashes: usize,
    pub restarts: usize,
    pub sessions: usize,
    pub deliveries: usize,
    /// Came again to a device that had confirmed it, after a crash.
    pub again: usize,
    pub answered_confirmed: usize,
    /// Taken back from the writer.
    pub recalled: usize,
    /// Published to durable topics.
    pub published: usize,
    /// Devices that came into a durable topic, and that left one.
    pub joined: usize,
    pub parted: usize,
    /// Made room in a durable topic.
    pub rolled: usize,
}

impl Counts {
    fn all(&self) -> [(&'static str, usize); 18] {
        [
            ("sent", self.sent),
            ("acknowledged", self.acknowledged),
            ("repeated calls", self.repeated_calls),
            ("broadcasts", self.broadcasts),
            ("collapsed", self.collapsed),
            ("expired", self.expired),
            ("purged", self.purged),
            ("crashes", self.crashes),
            ("restarts", self.restarts),
            ("sessions", self.sessions),
            ("deliveries", self.deliveries),
            ("confirmed and seen again after a crash", self.again),
            ("answered CONFIRMED", self.answered_confirmed),
            ("confirmed and never written", self.recalled),
            ("published to durable topics", self.published),
            ("devices that came into one", self.joined),
            ("devices that left one", self.parted),
            ("made room in one", self.rolled),
        ]
    }

    pub fn add(&mut self, more: &Counts) {
        let Counts {
            sent,
            acknowledged,
            repeated_calls,
            broadcasts,
            collapsed,
            expired,
            purged,
            crashes,
            restarts,
            sessions,
            deliveries,
            again,
            answered_confirmed,
            recalled,
            published,
            joined,
            parted,
            rolled,
        } = more;
        self.sent += sent;
        self.acknowledged += acknowledged;
        self.repeated_calls += repeated_calls;
        self.broadcasts += broadcasts;
        self.collapsed += collapsed;
        self.expired += expired;
        self.purged += purged;
        self.crashes += crashes;
        self.restarts += restarts;
        self.sessions += sessions;
        self.deliveries += deliveries;
        self.again += again;
        self.answered_confirmed += answered_confirmed;
        self.recalled += recalled;
        self.published += published;
        self.joined += joined;
        self.parted += parted;
        self.rolled += rolled;
    }

    /// A model that nothing happens in finds nothing.
    pub fn assert_all_happened(&self) {
        for (what, count) in self.all() {
            assert!(count > 0, "{what}: never");
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = self.all().into_iter().map(|(what, count)| format!("{count} {what}"));
        write!(f, "{}, 0 lost", all.by_ref().collect::<Vec<_>>().join(", "))
    }
}

/// Which log: a user's, by number, the broadcast log, or that of a durable topic, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum In {
    User(usize),
    Broadcast,
    Topic(usize),
}

/// A notification that was staged, as far as a caller can tell.
#[derive(Clone, Debug)]
pub struct Sent {
    pub log: In,
    pub id: String,
    pub expires_at: u64,
    /// The step in which it was sent.
    pub at: usize,
    /// Somebody was told that it is durable.
    pub acknowledged: bool,
    /// It was on its way at a crash, and nobody was told: it may be gone.
    pub may_be_gone: bool,
    /// The offset of what took its place.
    pub superseded_by: Option<u64>,
    /// It was purged, or may have been.
    pub purged: bool,
    /// The step in which some device first confirmed it.
    pub confirmed_at: Option<usize>,
}

/// What a device confirmed, and when.
#[derive(Clone, Copy, Debug)]
pub struct Confirmed {
    pub step: usize,
    pub crashes: usize,
}

/// A device that is, or may be, known.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Where in its user's log, and in the broadcast log, it began.
    pub start: u64,
    pub broadcast_start: u64,
    pub confirmed: HashMap<u64, Confirmed>,
    /// Durable topics that it is in, or may be, or was in.
    pub topics: HashMap<usize, InTopic>,
}

/// How a device stands to a durable topic.
#[derive(Clone, Copy, Debug)]
pub struct InTopic {
    /// Nothing up to here is for it.
    pub not_before: u64,
    /// Everything behind is, where it is certain that it is in the topic.
    pub from: Option<u64>,
    /// The step in which it was told that it is in it no more.
    pub left: Option<usize>,
}

/// What was said of a caller's own id.
#[derive(Clone, Debug)]
pub struct OwnId {
    pub content: usize,
    pub until: u64,
    pub offset: Option<u64>,
    /// A first call with it was told that it is durable.
    pub certain: bool,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Book {
    pub counts: Counts,
    pub step: usize,
    pub crashes: usize,
    pub now: u64,
    /// The highest that the clock has shown.
    pub latest: u64,
    /// By offset, over all logs and lives of the daemon.
    pub sent: BTreeMap<u64, Sent>,
    pub devices: HashMap<(usize, usize), Device>,
    /// Per log: what a caller's own id stands for.
    pub ids: HashMap<(In, String), OwnId>,
}

impl Book {
    /// A notification got an offset. Nothing ever had it before, unless it is said of the same notification.
    pub fn staged(&mut self, offset: u64, log: In, id: &str, expires_at: u64) -> &mut Sent {
        let step = self.step;
        let known = self.sent.entry(offset).or_insert_with(|| Sent {
            log,
            id: id.to_owned(),
            expires_at,
            at: step,
            acknowledged: false,
            may_be_gone: false,
            superseded_by: None,
            purged: false,
            confirmed_at: None,
        });
        assert_eq!((known.log, &*known.id), (log, id), "offset {offset} was given twice");
        known
    }

    /// Somebody was told that it is durable.
    pub fn acknowledged(&mut self, offset: u64) {
        let sent = self.sent.get_mut(&offset).expect("only what was staged is acknowledged");
        assert!(!sent.may_be_gone || sent.acknowledged, "{offset} is acknowledged after a crash that it was lost in");
        self.counts.acknowledged += usize::from(!sent.acknowledged);
        sent.acknowledged = true;
    }

    /// The daemon ended without a word.
    pub fn crashed(&mut self) {
        self.crashes += 1;
        self.counts.crashes += 1;
        for sent in self.sent.values_mut() {
            sent.may_be_gone |= !sent.acknowledged;
        }
        // Whether a call that nobody was answered is remembered depends on what was on disk.
        for id in self.ids.values_mut() {
            id.certain &= id.offset.is_some_and(|offset| self.sent[&offset].acknowledged);
        }
    }

    /// Whether the notification, or one that took its place, is what `holds` says.
    fn or_successor(&self, offset: u64, holds: impl Fn(u64) -> bool) -> bool {
        let mut at = Some(offset);
        while let Some(offset) = at {
            if holds(offset) {
                return true;
            }
            at = self.sent[&offset].superseded_by;
        }
        false
    }

    /// Whether it was ended, or may have been, otherwise than by a confirmation: or whether another was, that took its
    /// place or may have.
    fn has_ended(&self, offset: u64) -> bool {
        self.or_successor(offset, |offset| {
            let sent = &self.sent[&offset];
            sent.purged || sent.expires_at <= self.latest
        })
    }

    /// Whether one that is certainly there took its place.
    fn is_superseded(&self, offset: u64) -> bool {
        let by = self.sent[&offset].superseded_by;
        by.is_some_and(|by| {
            self.or_successor(by, |offset| {
                let sent = &self.sent[&offset];
                sent.acknowledged || !sent.may_be_gone
            })
        })
    }

    /// A session of a device got something. `since`: the step in which the session began.
    pub fn delivered(&mut self, owner: (usize, usize), since: usize, offset: u64, id: &str, in_time: bool) {
        let (user, device) = owner;
        let sent = self.sent.get(&offset).unwrap_or_else(|| panic!("{offset} was never sent"));
        assert_eq!(sent.id, id, "{offset} was given twice");
        let known = &self.devices[&owner];
        let start = match sent.log {
            In::User(of) => {
                assert_eq!(of, user, "{offset} came to the wrong user");
                known.start
            }
            In::Broadcast => known.broadcast_start,
            In::Topic(topic) => {
                let stands = known.topics.get(&topic);
                let stands =
                    stands.unwrap_or_else(|| panic!("{offset} came to {owner:?}, which never was in its topic"));
                assert!(stands.left.is_none_or(|left| sent.at <= left), "{offset} came to {owner:?}, which had left");
                stands.not_before
            }
        };
        assert!(!in_time || sent.expires_at > self.now, "{offset} came after its time");
        assert!(offset > start, "{offset} came to device {device}, which began at {start}");
        if let Some(confirmed) = known.confirmed.get(&offset)
            && confirmed.step < since
        {
            assert!(confirmed.crashes < self.crashes, "{offset} came again although it was confirmed");
            self.counts.again += 1;
        }
        // What was certainly replaced before the session began is not there to come.
        if let Some(by) = sent.superseded_by {
            let by = &self.sent[&by];
            let certainly = by.at < since && (by.acknowledged || !by.may_be_gone);
            assert!(!certainly, "{offset} came although another had taken its place");
        }
        self.counts.deliveries += 1;
    }

    /// A device confirmed what it saw.
    pub fn confirmed(&mut self, owner: (usize, usize), offset: u64) {
        let confirmed = Confirmed { step: self.step, crashes: self.crashes };
        if let Some(device) = self.devices.get_mut(&owner) {
            device.confirmed.entry(offset).or_insert(confirmed);
        }
        let step = self.step;
        if let Some(sent) = self.sent.get_mut(&offset) {
            sent.confirmed_at.get_or_insert(step);
        }
    }

    /// Everything was pulled, and the session is Live: it has seen all that it had to.
    pub fn must_have_seen(&self, owner: (usize, usize), since: usize, seen: &[u64]) {
        let device = &self.devices[&owner];
        for (offset, sent) in &self.sent {
            let start = match sent.log {
                In::Broadcast => device.broadcast_start,
                In::User(user) if user == owner.0 => device.start,
                In::User(_) => continue,
                In::Topic(topic) => match device.topics.get(&topic).and_then(|stands| stands.from) {
                    Some(from) => from,
                    None => continue,
                },
            };
            let had = |offset: &u64| device.confirmed.get(offset).is_some_and(|confirmed| confirmed.step <= since);
            let wanted = *offset > start
                && (sent.acknowledged || !sent.may_be_gone)
                && !had(offset)
                && !self.has_ended(*offset)
                && !self.is_superseded(*offset);
            // One that took its place, and may be gone, counts for it.
            let came = self.or_successor(*offset, |offset| seen.contains(&offset) || had(&offset));
            assert!(!wanted || came, "{offset} ({sent:?}) did not come to {owner:?}, which saw {seen:?}");
        }
    }
}
