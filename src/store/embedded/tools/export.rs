//! Writes a store out as text: see [`super::line`] for its form. Rows come in the order of their keys, so that the same
//! store gives the same lines.

use std::io::{self, Write};

use serde::Serialize as _;

use super::{
    super::{
        engine::{Engine, EngineError},
        keys::{self, Key},
        queries, record, rows,
    },
    Own, Place, ToolError,
    line::{
        CountersLine, DeviceLine, End, ForgottenLine, Header, IdLine, Line, MemberLine, Moment, NotificationLine,
        RevocationLine, VERSION,
    },
    walk,
};
use crate::types::{UnixMillis, UserId};

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Rows, each a line; without the first and the last line.
    pub rows: u64,
    /// Rows that could not be read and are left out.
    pub unreadable: u64,
}

/// Writes down the whole store, or what it has of one user. Brings an older format up to the present one first.
pub fn export(
    place: &Place,
    user: Option<&UserId>,
    now: UnixMillis,
    out: &mut dyn Write,
) -> Result<Exported, ToolError> {
    place.with_store(true, |engine, own| {
        let failed = |stopped| match stopped {
            Stopped::Engine(error) => ToolError::engine(&place.path, error),
            Stopped::Out(source) => ToolError::Stream { what: "cannot write the export", source },
        };
        export_rows(engine, own, user, now, out).map_err(failed)
    })
}

/// Writes down the rows of an engine.
pub(super) fn export_rows(
    engine: &dyn Engine,
    own: &Own,
    user: Option<&UserId>,
    now: UnixMillis,
    out: &mut dyn Write,
) -> Result<Exported, Stopped> {
    Exporter { engine, out, end: End::default() }.run(own, user, now)
}

/// Why it did not come to its end.
#[derive(Debug)]
pub(super) enum Stopped {
    Engine(EngineError),
    Out(io::Error),
}

impl From<EngineError> for Stopped {
    fn from(error: EngineError) -> Self {
        Stopped::Engine(error)
    }
}

struct Exporter<'a> {
    engine: &'a dyn Engine,
    out: &'a mut dyn Write,
    end: End,
}

impl Exporter<'_> {
    fn run(mut self, own: &Own, user: Option<&UserId>, now: UnixMillis) -> Result<Exported, Stopped> {
        let header = Header {
            version: VERSION,
            store_format: own.format,
            engine: self.engine.name().to_owned(),
            epoch: own.epoch,
            mark: own.mark,
            exported_at: Moment(now),
            user: user.map(|user| user.as_str().to_owned()),
        };
        self.line(&Line::Export(header))?;
        let ranges = user.map_or_else(keys::exported, keys::exported_of);
        for range in ranges {
            walk::each(self.engine, range, |(key, value)| self.row(&key, value))?;
        }
        let end = self.end;
        self.line(&Line::End(end))?;
        self.out.flush().map_err(Stopped::Out)?;
        let rows =
            end.counters + end.devices + end.forgotten + end.members + end.notifications + end.ids + end.revocations;
        Ok(Exported { rows, unreadable: end.unreadable })
    }

    fn line(&mut self, line: &Line) -> Result<(), Stopped> {
        let mut json = serde_json::Serializer::new(&mut *self.out);
        line.serialize(&mut json).map_err(|error| Stopped::Out(error.into()))?;
        self.out.write_all(b"\n").map_err(Stopped::Out)
    }

    fn row(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), Stopped> {
        let (line, counted): (Option<Line>, fn(&mut End) -> &mut u64) = match Key::decode(key) {
            Some(Key::Counters(log)) => {
                let line = rows::decode_counters(&value).ok().map(|row| Line::Counters(CountersLine::of(&log, &row)));
                (line, |end| &mut end.counters)
            }
            Some(Key::Device(user, device)) => {
                let row = rows::decode_device(&value).ok();
                (row.map(|row| Line::Device(DeviceLine::of(&user, &device, &row))), |end| &mut end.devices)
            }
            Some(Key::Forgotten(user, device)) => {
                let row = rows::decode_forgotten(&value).ok();
                (row.map(|at| Line::Forgotten(ForgottenLine::of(&user, &device, at))), |end| &mut end.forgotten)
            }
            Some(Key::Member(user, device, topic)) => {
                let row = rows::decode_member(&value).ok();
                (row.map(|row| Line::Member(MemberLine::of(&user, &device, &topic, &row))), |end| &mut end.members)
            }
            Some(Key::Head(log, offset)) => {
                let remembered = record::decode_head(&value).is_ok_and(|(head, _)| head.remembered);
                let read = queries::record(self.engine, &log, offset, value)?.ok();
                let line = read.map(|read| NotificationLine::of(&log, offset, &read, remembered));
                (line.map(|line| Line::Notification(Box::new(line))), |end| &mut end.notifications)
            }
            Some(Key::Id(log, id)) => {
                let row = rows::decode_remembered(&value).ok();
                (row.map(|row| Line::Id(IdLine::of(&log, &id, &row))), |end| &mut end.ids)
            }
            Some(Key::Revocation(id)) => {
                let row = rows::decode_revocation(&value).ok();
                (row.map(|row| Line::Revocation(RevocationLine::of(id, &row))), |end| &mut end.revocations)
            }
            _ => (None, |end| &mut end.unreadable),
        };
        match line {
            Some(line) => {
                self.line(&line)?;
                *counted(&mut self.end) += 1;
            }
            None => self.end.unreadable += 1,
        }
        Ok(())
    }
}
