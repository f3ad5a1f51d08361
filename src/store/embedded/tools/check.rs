//! Whether a store is whole: reads every row, and compares what rows say of each other.
//!
//! What is normal and no damage: an expiry bucket or an id's end without what it was for, counters of a user who has
//! nothing pending, a cursor beyond what is there.

use super::{
    super::{
        engine::{Engine, EngineError},
        keys::{self, Key},
        queries, record, rows,
        witness::Seen,
    },
    OwnRows, Place, ToolError, walk,
};
use crate::{
    store::{Counters, Totals},
    types::{Device, LogId, Offset, Topic, UnixMillis, UserId},
};

/// Problems that are told one by one; of the others there is a number.
pub const PROBLEMS_TOLD_MAX: usize = 50;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In which log; `None`: it is about the store.
    pub log: Option<LogId>,
    /// At which offset, where it is about one notification.
    pub offset: Option<Offset>,
    /// What.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The engine.
    pub engine: &'static str,
    /// All rows.
    pub rows: u64,
    /// Users of whom something is known.
    pub users: u64,
    /// Their devices.
    pub devices: u64,
    /// Pending notifications of users and broadcasts, and their accounted bytes.
    pub pending: Totals,
    /// Those of them that are durable broadcasts.
    pub broadcasts: u64,
    /// Those of them that were published to durable topics.
    pub topics: u64,
    /// Devices in durable topics, each topic counted.
    pub members: u64,
    /// Pieces of large notifications.
    pub chunks: u64,
    /// Remembered ids of callers.
    pub ids: u64,
    /// Tokens that are known to be void, by `jti` or user.
    pub revocations: u64,
    /// All problems.
    pub damaged: u64,
    /// The first of them.
    pub problems: Vec<Problem>,
}

impl Report {
    /// The store has fewer commits than its witness saw.
    fn went_back(&mut self, commits: u64) {
        self.damaged += 1;
        let what = format!("it went back to an earlier state: its last {commits} commits or more are not there");
        self.problems.insert(0, Problem { log: None, offset: None, what });
    }
}

/// Reads everything and changes nothing.
pub fn check(place: &Place) -> Result<Report, ToolError> {
    place.with_engine(|engine| {
        let own = OwnRows::read(&**engine).map_err(|error| ToolError::engine(&place.path, error))?;
        if let Some(format) = own.format {
            place.check_format(format, false)?;
        }
        let failed = |error| ToolError::engine(&place.path, error);
        let mut report = check_rows(&**engine, &own).map_err(failed)?;
        if let Some(seen) = Seen::of(&place.path) {
            let commits = seen.lost_by(&**engine).map_err(failed)?;
            if commits > 0 {
                report.went_back(commits);
            }
        }
        Ok(report)
    })
}

/// Reads all rows of an engine whose own rows are `own`.
pub(super) fn check_rows(engine: &dyn Engine, own: &OwnRows) -> Result<Report, EngineError> {
    Checker::run(engine, own)
}

/// What is known of the log whose notifications are being read.
struct Open {
    log: LogId,
    found: Counters,
    unreadable: u32,
}

struct Checker<'a> {
    engine: &'a dyn Engine,
    report: Report,
    mark: u64,
    /// The sum of all counters.
    written: Totals,
    open: Option<Open>,
    /// The user of the device before.
    user: Option<UserId>,
    /// The notification whose chunks come: how many it has.
    chunked: Option<(LogId, Offset, u16)>,
}

impl<'a> Checker<'a> {
    fn run(engine: &'a dyn Engine, own: &OwnRows) -> Result<Report, EngineError> {
        let mut checker = Self {
            engine,
            report: Report { engine: engine.name(), ..Report::default() },
            mark: own.mark.unwrap_or(u64::MAX),
            written: Totals::default(),
            open: None,
            user: None,
            chunked: None,
        };
        let own_rows = [
            ("the format version", own.format.is_some()),
            ("the store epoch", own.epoch.is_some()),
            ("the offset reservation", own.mark.is_some()),
            ("the totals", own.totals.is_some()),
        ];
        for (what, there) in own_rows {
            if !there {
                checker.problem(None, None, format!("{what}: missing or cannot be read"));
            }
        }
        walk::each(engine, keys::all(), |(key, value)| checker.row(&key, value))?;
        checker.close_log()?;
        if let Some(totals) = own.totals.filter(|totals| *totals != checker.written) {
            let (count, bytes) = (checker.written.count, checker.written.bytes);
            checker.problem(
                None,
                None,
                format!(
                    "the totals are {} notifications of {} bytes, the counters of all logs together {count} of {bytes}",
                    totals.count, totals.bytes
                ),
            );
        }
        Ok(checker.report)
    }

    fn problem(&mut self, log: Option<&LogId>, offset: Option<Offset>, what: String) {
        self.report.damaged += 1;
        if self.report.problems.len() < PROBLEMS_TOLD_MAX {
            self.report.problems.push(Problem { log: log.cloned(), offset, what });
        }
    }

    /// No offset that stands anywhere may be one that could be given again.
    fn below_mark(&mut self, log: &LogId, offset: Offset, what: &str) {
        if offset.get() >= self.mark {
            self.problem(Some(log), Some(offset), format!("{what} is not below the offset reservation {}", self.mark));
        }
    }

    fn row(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), EngineError> {
        self.report.rows += 1;
        match Key::decode(key) {
            None => {
                let kind = key.first().copied().unwrap_or_default();
                let what = format!("a key of {} bytes and kind {kind:#04x} that is none of the store's", key.len());
                self.problem(None, None, what);
            }
            Some(Key::Format | Key::Epoch | Key::Mark | Key::Totals | Key::Commits) => {}
            Some(Key::Counters(log)) => self.counters(&log, &value)?,
            Some(Key::Device(user, device)) => {
                let log = LogId::User(user.clone());
                self.device_of(&user)?;
                match rows::decode_device(&value) {
                    Ok(row) => {
                        for (offset, what) in [
                            (row.cursor, "a cursor"),
                            (row.broadcast, "a cursor for broadcasts"),
                            (row.began, "the beginning of a device"),
                            (row.lost, "what a device lost"),
                        ] {
                            self.below_mark(&log, offset, what);
                        }
                    }
                    Err(why) => self.problem(Some(&log), None, format!("the device `{device}`: {why}")),
                }
            }
            Some(Key::Forgotten(user, device)) => {
                if let Err(why) = rows::decode_forgotten(&value) {
                    self.problem(Some(&LogId::User(user)), None, format!("the forgotten device `{device}`: {why}"));
                }
            }
            Some(Key::Member(user, device, topic)) => self.member(user, device, &topic, &value)?,
            Some(Key::Head(log, offset)) => self.head(log, offset, value)?,
            Some(Key::Chunk(log, offset, index)) => self.chunk(log, offset, index)?,
            Some(Key::Expiry(_, log)) => {
                if !value.is_empty() {
                    self.problem(Some(&log), None, "an expiry bucket that holds something".into());
                }
            }
            Some(Key::Id(log, id)) => {
                self.report.ids += 1;
                match rows::decode_remembered(&value) {
                    Ok(remembered) => {
                        self.below_mark(&log, remembered.offset, "what an id stands for");
                        let end = Key::IdEnd(keys::expiry_minute(remembered.until), log.clone(), id);
                        if self.engine.get(&end.encode())?.is_none() {
                            let what = "an id that is remembered for ever: the row of its end is missing";
                            self.problem(Some(&log), Some(remembered.offset), what.into());
                        }
                    }
                    Err(why) => self.problem(Some(&log), None, why.to_string()),
                }
            }
            Some(Key::Revocation(_)) => {
                self.report.revocations += 1;
                if let Err(why) = rows::decode_revocation(&value) {
                    self.problem(None, None, why.to_string());
                }
            }
            Some(Key::IdEnd(_, log, _)) => {
                if !value.is_empty() {
                    self.problem(Some(&log), None, "the end of an id that holds something".into());
                }
            }
        }
        Ok(())
    }

    fn member(&mut self, user: UserId, device: Device, topic: &Topic, value: &[u8]) -> Result<(), EngineError> {
        self.report.members += 1;
        let log = LogId::User(user.clone());
        match rows::decode_member(value) {
            Ok(row) => {
                self.below_mark(&log, row.cursor, "a cursor for a topic");
                self.below_mark(&log, row.began, "the beginning in a topic");
            }
            Err(why) => self.problem(Some(&log), None, format!("the device `{device}` in topic `{topic}`: {why}")),
        }
        if self.engine.get(&Key::Device(user, device.clone()).encode())?.is_none() {
            let what = format!("a device `{device}` that is not known is in topic `{topic}`");
            self.problem(Some(&log), None, what);
        }
        Ok(())
    }

    fn counters(&mut self, log: &LogId, value: &[u8]) -> Result<(), EngineError> {
        self.report.users += u64::from(log.user().is_some());
        let counters = match rows::decode_counters(value) {
            Ok(counters) => counters,
            Err(why) => {
                self.problem(Some(log), None, why.to_string());
                return Ok(());
            }
        };
        self.written.count += u64::from(counters.count);
        self.written.bytes = self.written.bytes.saturating_add(counters.bytes);
        self.below_mark(log, counters.last, "the last offset");
        self.below_mark(log, counters.lost, "the lost offset");
        let (from, to) = keys::heads(log, Offset::ZERO, Offset::MAX);
        // What is there is compared when it has been read.
        if (counters.count, counters.bytes) != (0, 0) && walk::page(self.engine, &(from, to))?.is_empty() {
            let what = format!("{} notifications of {} bytes are missing", counters.count, counters.bytes);
            self.problem(Some(log), None, what);
        }
        Ok(())
    }

    /// Counts a device, and its user where he has no counters and was not seen yet.
    fn device_of(&mut self, user: &UserId) -> Result<(), EngineError> {
        self.report.devices += 1;
        if self.user.as_ref() != Some(user) {
            let counters = Key::Counters(LogId::User(user.clone())).encode();
            self.report.users += u64::from(self.engine.get(&counters)?.is_none());
            self.user = Some(user.clone());
        }
        Ok(())
    }

    fn head(&mut self, log: LogId, offset: Offset, row: Vec<u8>) -> Result<(), EngineError> {
        if self.open.as_ref().is_none_or(|open| open.log != log) {
            self.close_log()?;
            self.open = Some(Open { log: log.clone(), found: Counters::default(), unreadable: 0 });
        }
        self.below_mark(&log, offset, "a notification");
        let head = match record::decode_head(&row) {
            Ok((head, _)) => head,
            Err(why) => {
                if let Some(open) = &mut self.open {
                    open.unreadable += 1;
                }
                self.problem(Some(&log), Some(offset), why.to_string());
                return Ok(());
            }
        };
        if let Some(Open { found, .. }) = &mut self.open {
            found.count = found.count.saturating_add(1);
            found.bytes += u64::from(head.bytes);
            found.last = offset;
        }
        self.report.pending.count += 1;
        self.report.pending.bytes += u64::from(head.bytes);
        self.report.broadcasts += u64::from(log == LogId::Broadcast);
        self.report.topics += u64::from(log.topic().is_some());
        if head.expires_at != UnixMillis(u64::MAX) {
            let bucket = Key::Expiry(keys::expiry_minute(head.expires_at), log.clone());
            if self.engine.get(&bucket.encode())?.is_none() {
                self.problem(Some(&log), Some(offset), "it never expires: its expiry bucket is missing".into());
            }
        }
        if let Err(why) = queries::record(self.engine, &log, offset, row)? {
            self.problem(Some(&log), Some(offset), why);
        }
        Ok(())
    }

    fn chunk(&mut self, log: LogId, offset: Offset, index: u16) -> Result<(), EngineError> {
        self.report.chunks += 1;
        let known = self.chunked.as_ref().is_some_and(|(of, at, _)| (of, *at) == (&log, offset));
        if !known {
            let head = self.engine.get(&Key::Head(log.clone(), offset).encode())?;
            // Of one that cannot be read nobody knows how many it has.
            let chunks = head.map_or(0, |row| record::decode_head(&row).map_or(u16::MAX, |(head, _)| head.chunks));
            self.chunked = Some((log.clone(), offset, chunks));
        }
        if self.chunked.as_ref().is_some_and(|(.., chunks)| index >= *chunks) {
            self.problem(Some(&log), Some(offset), format!("chunk {index} belongs to no notification"));
        }
        Ok(())
    }

    /// Compares what was found of a log with its counters.
    fn close_log(&mut self) -> Result<(), EngineError> {
        let Some(Open { log, found, unreadable }) = self.open.take() else { return Ok(()) };
        let row = self.engine.get(&Key::Counters(log.clone()).encode())?;
        let written = match row.as_deref().map(rows::decode_counters) {
            None => Counters::default(),
            Some(Ok(counters)) => counters,
            // Told already.
            Some(Err(_)) => return Ok(()),
        };
        if (written.count, written.bytes) != (found.count, found.bytes) {
            let note = if unreadable > 0 { format!(", and {unreadable} cannot be read") } else { String::new() };
            let what = format!(
                "its counters say {} notifications of {} bytes, there are {} of {}{note}",
                written.count, written.bytes, found.count, found.bytes
            );
            self.problem(Some(&log), None, what);
        }
        if written.last < found.last {
            let what = format!("its counters say that {} was the last offset, and this one is there", written.last);
            self.problem(Some(&log), Some(found.last), what);
        }
        Ok(())
    }
}
