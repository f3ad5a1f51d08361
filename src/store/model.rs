//! What goes into the store and comes out of it.

use std::{fmt, sync::Arc};

use tokio::sync::oneshot;

use super::{
    StoreError,
    embedded::{Permit, keys::expiry_minute},
};
use crate::types::{
    CollapseKey, Device, Digest, LogId, Notification, NotificationId, Offset, Revocation, RevocationId,
    SubscriptionCause, Topic, UnixMillis, UserId,
};

/// Kept by an op until it is durable, or has failed: a clone from a user's state, so that its owner sees whether
/// something of that user is still on its way.
pub type Hold = Arc<()>;

/// Answered when the op is durable, or has failed.
pub type Done = oneshot::Sender<Result<(), StoreError>>;

/// What a log has pending: absolute values, as they are after an op.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pending notifications.
    pub count: u32,
    /// Their accounted bytes.
    pub bytes: u64,
    /// The last offset given in the log.
    pub last: Offset,
    /// The highest offset that was dropped before every device had it. A device whose cursor is below lacks something.
    pub lost: Offset,
}

/// What all logs have pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pending notifications.
    pub count: u64,
    /// Their accounted bytes.
    pub bytes: u64,
}

/// How full the store's disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// What counts against `store.max_disk`: the bytes of the files, less what of them is used again.
    pub used_bytes: u64,
    /// `store.max_disk`; 0: no bound.
    pub max_bytes: u64,
    /// What senders may still fill of the file system, room to delete what is stored kept back; `None`: not known.
    pub free_bytes: Option<u64>,
}

/// One pending notification of a log, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Its place in the log.
    pub offset: Offset,
    /// Its accounted bytes.
    pub bytes: u32,
    /// Its chunk rows; 0: it stands in its head row.
    pub chunks: u16,
    /// When it expires; the end of time where it does not.
    pub expires_at: UnixMillis,
    /// Its id.
    pub id: NotificationId,
    /// Whether that id is a caller's own, remembered for repeated calls.
    pub remembered: bool,
    /// What takes its place has the same key.
    pub collapse_key: Option<CollapseKey>,
    /// Whether some device is known to have confirmed it. Not on disk: false as it is read.
    pub confirmed: bool,
}

impl IndexEntry {
    /// The bucket in which it expires.
    pub fn expiry_minute(&self) -> u64 {
        expiry_minute(self.expires_at)
    }

    /// Where its rows are.
    pub fn place(&self) -> Place {
        Place { offset: self.offset, chunks: self.chunks }
    }
}

/// Where the rows of a pending notification are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its offset.
    pub offset: Offset,
    /// Its chunk rows; 0: it stands in its head row.
    pub chunks: u16,
}

/// What a caller's own id stood for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The notification's offset.
    pub offset: Offset,
    /// Its content.
    pub digest: Digest,
    /// Until when the id stands for it.
    pub until: UnixMillis,
    /// Live sessions it was handed to when it was sent.
    pub sessions: u32,
}

/// A device of a user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceRow {
    /// Up to where the device has confirmed the user's log.
    pub cursor: Offset,
    /// Up to where the device has confirmed the broadcast log.
    pub broadcast: Offset,
    /// Where in the user's log the device began: it never confirmed what is at or below.
    pub began: Offset,
    /// The highest offset that this device alone lost. At or above the cursor: it was not told yet.
    pub lost: Offset,
    /// When it first came.
    pub created_at: UnixMillis,
    /// When it was last connected.
    pub last_seen: UnixMillis,
}

/// A device in a durable topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// Up to where the device has confirmed the topic's log.
    pub cursor: Offset,
    /// Where in the topic's log it began: what is at or below is not for it.
    pub began: Offset,
    /// Who wanted it in the topic.
    pub cause: SubscriptionCause,
}

/// How much of a log one page takes. A page has at least one record where there is one, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimit {
    /// At most so many records.
    pub records: usize,
    /// At most so many bytes of records.
    pub bytes: usize,
}

/// A piece of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// By offset, expired ones included.
    pub records: Vec<(Offset, Notification)>,
    /// Records of this page that cannot be read and are left out; the caller may delete them.
    pub damaged: Vec<Offset>,
    /// Whether nothing more lies up to the end that was asked for.
    pub complete: bool,
}

/// A log of which something may have expired.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Due {
    /// The bucket, in minutes since the Unix epoch: all of it has expired at the start of that minute.
    pub minute: u64,
    /// Which.
    pub log: LogId,
}

impl Due {
    /// Whether all of it has expired at `now`.
    pub fn is_due(&self, now: UnixMillis) -> bool {
        self.minute.saturating_mul(60_000) <= now.0
    }
}

/// A caller's own id that may be forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DueId {
    /// The bucket, in minutes since the Unix epoch.
    pub minute: u64,
    /// In which log.
    pub log: LogId,
    /// Which.
    pub id: NotificationId,
}

/// A copy of the running store that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backup {
    /// The bytes that its files take.
    pub bytes: u64,
    /// The notifications that are pending in it.
    pub records: u64,
}

/// Hears what becomes of a log. Called from the writer's thread, which waits: it must be quick and must not wait for
/// the store.
pub trait LogObserver: Send + Sync {
    /// Everything of the log up to `upto` is durable and readable. Once per log and batch, before the batch's answers.
    fn applied(&self, upto: Offset);

    /// A batch with records of the log failed, and the store with it. Before the batch's answers.
    fn failed(&self, error: &StoreError);
}

/// A write. Those with a `done`, and removals, are committed at once, and so are appends with an id to be remembered;
/// other appends within [`crate::limits::STORE_PATIENCE`], and what is left within [`crate::limits::STORE_LAZY_DELAY`]. All
/// are applied in the order in which they were staged.
pub enum Op {
    /// A notification joins a log.
    Append {
        /// Which log.
        log: LogId,
        /// As [`super::Store::assign`] gave it for `permit`.
        offset: Offset,
        /// What joins.
        notification: Arc<Notification>,
        /// The one whose place it takes, which leaves in the same commit.
        replaces: Option<Place>,
        /// The expiry bucket that is empty without that one.
        emptied: Option<u64>,
        /// Where its id is a caller's own: until when it is remembered, the content it stands for, and the live sessions
        /// it was handed to.
        remember: Option<(UnixMillis, Digest, u32)>,
        /// The log's counters afterwards.
        counters: Counters,
        /// What it was admitted with.
        permit: Permit,
        /// Who hears about the log.
        observer: Arc<dyn LogObserver>,
        /// The answer.
        done: Option<Done>,
    },
    /// Records leave a log: confirmed by every device, or ended otherwise. Lazy, where nobody waits for it.
    Delete {
        /// Which log.
        log: LogId,
        /// Which records.
        places: Vec<Place>,
        /// Expiry buckets of the log in which nothing is left.
        emptied: Vec<u64>,
        /// The log's counters afterwards.
        counters: Counters,
        /// Kept until then.
        hold: Hold,
        /// The answer.
        done: Option<Done>,
    },
    /// A device's row changed. Lazy; the latest of several counts.
    Cursor {
        /// Whose device.
        user: UserId,
        /// Which.
        device: Device,
        /// Its row.
        row: DeviceRow,
        /// Kept until then.
        hold: Hold,
    },
    /// A device came; it is no longer one that was forgotten.
    PutDevice {
        /// Whose.
        user: UserId,
        /// Which.
        device: Device,
        /// Its row.
        row: DeviceRow,
        /// The user's counters afterwards.
        counters: Counters,
        /// Kept until then.
        hold: Hold,
        /// The answer.
        done: Done,
    },
    /// A device came into a durable topic, or confirmed more of its log. Lazy, where nobody waits for it; the latest of
    /// several counts.
    PutMember {
        /// Whose device.
        user: UserId,
        /// Which.
        device: Device,
        /// Which topic.
        topic: Topic,
        /// Its row.
        row: MemberRow,
        /// Kept until then.
        hold: Hold,
        /// The answer.
        done: Option<Done>,
    },
    /// A device left a durable topic. No lazy `PutMember` may follow.
    RemoveMember {
        /// Whose device.
        user: UserId,
        /// Which.
        device: Device,
        /// Which topic.
        topic: Topic,
        /// Kept until then.
        hold: Hold,
        /// The answer.
        done: Option<Done>,
    },
    /// A device went. No `Cursor` for it may follow, unless a `PutDevice` does before.
    RemoveDevice {
        /// Whose.
        user: UserId,
        /// Which.
        device: Device,
        /// When, for the day it returns.
        at: UnixMillis,
        /// Forgotten devices of which nothing is kept any more.
        unremembered: Vec<Device>,
        /// The durable topics that it was in.
        topics: Vec<Topic>,
        /// Kept until then.
        hold: Hold,
        /// The answer.
        done: Option<Done>,
    },
    /// Every row of a user goes, whatever it is about.
    ForgetUser {
        /// Who.
        user: UserId,
        /// Kept until then.
        hold: Hold,
        /// The answer.
        done: Done,
    },
    /// An expiry bucket was dealt with. Lazy, where nobody waits for it: [`super::Store::due`] may show it once more until
    /// then.
    ForgetDue {
        /// Which.
        due: Due,
        /// The answer.
        done: Option<Done>,
    },
    /// An id may be forgotten. Lazy, where nobody waits for it; nothing happens to one that was remembered anew meanwhile.
    ForgetId {
        /// Which.
        due: DueId,
        /// When.
        now: UnixMillis,
        /// The answer.
        done: Option<Done>,
    },
    /// Tokens are void. Follows from no log's state.
    Revoke {
        /// Which, and what of them.
        revoked: Vec<(RevocationId, Revocation)>,
        /// The answer.
        done: Done,
    },
    /// They have run out by themselves. Lazy.
    ForgetRevocations {
        /// Which.
        ids: Vec<RevocationId>,
    },
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Append { log, offset, .. } => write!(f, "Append({log:?}, {offset:?})"),
            Op::Delete { log, places, .. } => write!(f, "Delete({log:?}, {} places)", places.len()),
            Op::Cursor { user, device, .. } => write!(f, "Cursor({user:?}, {device:?})"),
            Op::PutDevice { user, device, .. } => write!(f, "PutDevice({user:?}, {device:?})"),
            Op::PutMember { user, device, topic, .. } => write!(f, "PutMember({user:?}, {device:?}, {topic:?})"),
            Op::RemoveMember { user, device, topic, .. } => write!(f, "RemoveMember({user:?}, {device:?}, {topic:?})"),
            Op::RemoveDevice { user, device, .. } => write!(f, "RemoveDevice({user:?}, {device:?})"),
            Op::ForgetUser { user, .. } => write!(f, "ForgetUser({user:?})"),
            Op::ForgetDue { due, .. } => write!(f, "ForgetDue({due:?})"),
            Op::ForgetId { due, .. } => write!(f, "ForgetId({due:?})"),
            Op::Revoke { revoked, .. } => write!(f, "Revoke({} rows)", revoked.len()),
            Op::ForgetRevocations { ids } => write!(f, "ForgetRevocations({} rows)", ids.len()),
        }
    }
}

impl Op {
    /// The counters that it carries.
    fn counters(&self) -> Option<&Counters> {
        match self {
            Op::Append { counters, .. } | Op::Delete { counters, .. } | Op::PutDevice { counters, .. } => {
                Some(counters)
            }
            _ => None,
        }
    }

    /// The last offset of its log, where it has counters; and whether it is an append that may be taken back: nobody waits
    /// for it, and nothing else follows from it.
    pub(crate) fn counted(&self) -> Option<(Offset, bool)> {
        let may_go = matches!(self, Op::Append { done: None, remember: None, replaces: None, emptied: None, .. });
        self.counters().map(|counters| (counters.last, may_go))
    }

    /// Whoever waits for it.
    pub fn into_done(self) -> Option<Done> {
        match self {
            Op::Append { done, .. }
            | Op::Delete { done, .. }
            | Op::PutMember { done, .. }
            | Op::RemoveMember { done, .. }
            | Op::RemoveDevice { done, .. }
            | Op::ForgetDue { done, .. }
            | Op::ForgetId { done, .. } => done,
            Op::PutDevice { done, .. } | Op::ForgetUser { done, .. } | Op::Revoke { done, .. } => Some(done),
            Op::Cursor { .. } | Op::ForgetRevocations { .. } => None,
        }
    }
}
