//! A log as the store has it, with the devices that read it.

use super::{Counters, DeviceRow, IndexEntry, MemberRow};
use crate::types::{Device, Offset, Topic, UnixMillis};

/// A user as the store has him; empty where it does not know him.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mailbox {
    /// What was found, where that differs from what was written down; `last` is above all that was found.
    pub counters: Counters,
    /// His devices, by name.
    pub devices: Vec<(Device, DeviceRow)>,
    /// Devices that he had, and when each was forgotten.
    pub forgotten: Vec<(Device, UnixMillis)>,
    /// The durable topics of his devices.
    pub members: Vec<(Device, Topic, MemberRow)>,
    /// What is pending, by offset, expired ones included.
    pub index: Vec<IndexEntry>,
    /// What is wrong with it, where something is: rows were lost or cannot be read.
    pub damaged: Option<String>,
}

impl Mailbox {
    /// A mailbox as it was found. What was found is what counts: counters that say otherwise are evidence of damage.
    pub(super) fn of(
        written: Option<Counters>,
        devices: Vec<(Device, DeviceRow)>,
        forgotten: Vec<(Device, UnixMillis)>,
        index: Vec<IndexEntry>,
        unreadable: usize,
    ) -> Self {
        let found = Counters {
            count: u32::try_from(index.len()).unwrap_or(u32::MAX),
            bytes: index.iter().map(|entry| u64::from(entry.bytes)).sum(),
            last: index.last().map(|entry| entry.offset).unwrap_or_default(),
            lost: Offset::ZERO,
        };
        // A cursor may be written before the record that it confirms: it raises `last` and is no evidence.
        let cursor = devices.iter().map(|(_, row)| row.cursor).max().unwrap_or_default();
        let written = written.unwrap_or_default();
        let damaged = if unreadable > 0 {
            Some(format!("{unreadable} rows cannot be read"))
        } else if (written.count, written.bytes) != (found.count, found.bytes) || written.last < found.last {
            Some(format!(
                "{} records of {} bytes up to {} were written, {} of {} bytes up to {} found",
                written.count, written.bytes, written.last, found.count, found.bytes, found.last
            ))
        } else {
            None
        };
        let last = found.last.max(written.last).max(cursor);
        let counters = Counters { last, lost: written.lost, ..found };
        Self { counters, devices, forgotten, members: Vec::new(), index, damaged }
    }
}
