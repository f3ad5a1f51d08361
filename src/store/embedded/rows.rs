//! The small rows: counters, devices, ids, and the store's own. Each begins with its version; numbers are little-endian.
//!
//! - counters: `2 count(4) bytes(8) last(8) lost(8)`; version 1 ended before `lost`
//! - device: `1 created_at(8) last_seen(8)`, then `log(1) offset(8)` for each log it reads; log 0 is the user's own, 1 the
//!   broadcast log; 254 stands for where in its user's log it began, 255 for what it alone has lost; what this version
//!   does not know is passed over
//! - forgotten: `1 at(8)`
//! - member: `1 cursor(8) began(8) cause(1)`; 0 its client wanted it, 1 its token, 2 a service
//! - id: `1 offset(8) until(8) digest(16) sessions(4)`
//! - revocation: `1 issued_before(8) expires_at(8)`
//! - totals: `1 count(8) bytes(8)`; mark, commits: `1 number(8)`; epoch: `1 uuid(16)`
//! - format: a `u32` alone, since it is what every other version stands on
//! - expiry, id's end: nothing

use uuid::Uuid;

use super::record::{Input, Malformed};
use crate::{
    store::{Counters, DeviceRow, MemberRow, Remembered, Totals},
    types::{Offset, Revocation, SubscriptionCause, UnixMillis},
};

/// The version of the schema that this build reads and writes. An older one is brought up to it by [`super::migrate`].
pub const FORMAT: u32 = 3;

const VERSION: u8 = 1;
const COUNTERS_VERSION: u8 = 2;
const LOG_USER: u8 = 0;
const LOG_BROADCAST: u8 = 1;
/// In the place of a log: where in the user's log the device began.
const BEGAN: u8 = 254;
/// In the place of a log: up to where the device has lost something.
const LOST: u8 = 255;

fn opened<'a>(row: &'a [u8], what: &'static str) -> Result<Input<'a>, Malformed> {
    let mut input = Input(row);
    if input.byte()? == VERSION { Ok(input) } else { Err(Malformed(what)) }
}

fn closed<T>(input: &Input<'_>, value: T) -> Result<T, Malformed> {
    if input.0.is_empty() { Ok(value) } else { Err(Malformed("a row that goes on past its end")) }
}

fn u64_of(input: &mut Input<'_>) -> Result<u64, Malformed> {
    Ok(u64::from_le_bytes(input.array()?))
}

fn offset_of(input: &mut Input<'_>) -> Result<Offset, Malformed> {
    let number = u64_of(input)?;
    if number <= Offset::MAX.get() { Ok(Offset::new(number)) } else { Err(Malformed("an offset past the highest")) }
}

fn row(numbers: &[u64]) -> Vec<u8> {
    let mut row = Vec::with_capacity(1 + numbers.len() * 8);
    row.push(VERSION);
    for number in numbers {
        row.extend_from_slice(&number.to_le_bytes());
    }
    row
}

/// Writes a log's counters.
pub fn encode_counters(counters: &Counters) -> Vec<u8> {
    let mut row = Vec::with_capacity(29);
    row.push(COUNTERS_VERSION);
    row.extend_from_slice(&counters.count.to_le_bytes());
    row.extend_from_slice(&counters.bytes.to_le_bytes());
    row.extend_from_slice(&counters.last.get().to_le_bytes());
    row.extend_from_slice(&counters.lost.get().to_le_bytes());
    row
}

/// Reads a log's counters, those of version 1 too.
pub fn decode_counters(row: &[u8]) -> Result<Counters, Malformed> {
    let mut input = Input(row);
    let version = input.byte()?;
    if !(VERSION..=COUNTERS_VERSION).contains(&version) {
        return Err(Malformed("counters of an unknown version"));
    }
    let counters = Counters {
        count: u32::from_le_bytes(input.array()?),
        bytes: u64_of(&mut input)?,
        last: offset_of(&mut input)?,
        lost: if version == VERSION { Offset::ZERO } else { offset_of(&mut input)? },
    };
    closed(&input, counters)
}

/// Writes a device row.
pub fn encode_device(device: &DeviceRow) -> Vec<u8> {
    let mut row = row(&[device.created_at.0, device.last_seen.0]);
    row.push(LOG_USER);
    row.extend_from_slice(&device.cursor.get().to_le_bytes());
    for (log, offset) in [(LOG_BROADCAST, device.broadcast), (BEGAN, device.began), (LOST, device.lost)] {
        if offset > Offset::ZERO {
            row.push(log);
            row.extend_from_slice(&offset.get().to_le_bytes());
        }
    }
    row
}

/// Reads a device row.
pub fn decode_device(row: &[u8]) -> Result<DeviceRow, Malformed> {
    let mut input = opened(row, "a device of an unknown version")?;
    let created_at = UnixMillis(u64_of(&mut input)?);
    let last_seen = UnixMillis(u64_of(&mut input)?);
    let mut device = DeviceRow { created_at, last_seen, ..DeviceRow::default() };
    while !input.0.is_empty() {
        let log = input.byte()?;
        let offset = offset_of(&mut input)?;
        match log {
            LOG_USER => device.cursor = offset,
            LOG_BROADCAST => device.broadcast = offset,
            BEGAN => device.began = offset,
            LOST => device.lost = offset,
            _ => {}
        }
    }
    Ok(device)
}

/// Writes the row of a forgotten device.
pub fn encode_forgotten(at: UnixMillis) -> Vec<u8> {
    row(&[at.0])
}

/// Reads the row of a forgotten device.
pub fn decode_forgotten(row: &[u8]) -> Result<UnixMillis, Malformed> {
    let mut input = opened(row, "a forgotten device of an unknown version")?;
    let at = UnixMillis(u64_of(&mut input)?);
    closed(&input, at)
}

/// Writes the row of a device in a durable topic.
pub fn encode_member(member: &MemberRow) -> Vec<u8> {
    let mut row = row(&[member.cursor.get(), member.began.get()]);
    row.push(match member.cause {
        SubscriptionCause::Client => 0,
        SubscriptionCause::Token => 1,
        SubscriptionCause::Caller | SubscriptionCause::SessionEnded => 2,
    });
    row
}

/// Reads the row of a device in a durable topic.
pub fn decode_member(row: &[u8]) -> Result<MemberRow, Malformed> {
    let mut input = opened(row, "a member of an unknown version")?;
    let (cursor, began) = (offset_of(&mut input)?, offset_of(&mut input)?);
    let cause = match input.byte()? {
        0 => SubscriptionCause::Client,
        1 => SubscriptionCause::Token,
        2 => SubscriptionCause::Caller,
        _ => return Err(Malformed("a member of an unknown cause")),
    };
    closed(&input, MemberRow { cursor, began, cause })
}

/// Writes the row of a remembered id.
pub fn encode_remembered(remembered: &Remembered) -> Vec<u8> {
    let mut row = row(&[remembered.offset.get(), remembered.until.0]);
    row.extend_from_slice(&remembered.digest);
    row.extend_from_slice(&remembered.sessions.to_le_bytes());
    row
}

/// Reads the row of a remembered id.
pub fn decode_remembered(row: &[u8]) -> Result<Remembered, Malformed> {
    let mut input = opened(row, "a remembered id of an unknown version")?;
    let offset = offset_of(&mut input)?;
    let until = UnixMillis(u64_of(&mut input)?);
    let digest = input.array()?;
    let sessions = u32::from_le_bytes(input.array()?);
    closed(&input, Remembered { offset, digest, until, sessions })
}

/// Writes the row of tokens that are void.
pub fn encode_revocation(revocation: &Revocation) -> Vec<u8> {
    row(&[revocation.issued_before.0, revocation.expires_at.0])
}

/// Reads the row of tokens that are void.
pub fn decode_revocation(row: &[u8]) -> Result<Revocation, Malformed> {
    let mut input = opened(row, "a revocation of an unknown version")?;
    let issued_before = UnixMillis(u64_of(&mut input)?);
    let expires_at = UnixMillis(u64_of(&mut input)?);
    closed(&input, Revocation { issued_before, expires_at })
}

/// Writes the totals row.
pub fn encode_totals(totals: &Totals) -> Vec<u8> {
    row(&[totals.count, totals.bytes])
}

/// Reads the totals row.
pub fn decode_totals(row: &[u8]) -> Result<Totals, Malformed> {
    let mut input = opened(row, "totals of an unknown version")?;
    let totals = Totals { count: u64_of(&mut input)?, bytes: u64_of(&mut input)? };
    closed(&input, totals)
}

/// Writes the mark row.
pub fn encode_mark(mark: u64) -> Vec<u8> {
    row(&[mark])
}

/// Reads the mark row.
pub fn decode_mark(row: &[u8]) -> Result<u64, Malformed> {
    let mut input = opened(row, "a mark of an unknown version")?;
    let mark = u64_of(&mut input)?;
    closed(&input, mark)
}

/// Writes the epoch row.
pub fn encode_epoch(epoch: Uuid) -> Vec<u8> {
    let mut row = vec![VERSION];
    row.extend_from_slice(epoch.as_bytes());
    row
}

/// Reads the epoch row.
pub fn decode_epoch(row: &[u8]) -> Result<Uuid, Malformed> {
    let mut input = opened(row, "an epoch of an unknown version")?;
    let epoch = Uuid::from_bytes(input.array()?);
    closed(&input, epoch)
}

/// Writes the format row.
pub fn encode_format(version: u32) -> Vec<u8> {
    version.to_le_bytes().to_vec()
}

/// Reads the format row.
pub fn decode_format(row: &[u8]) -> Result<u32, Malformed> {
    let mut input = Input(row);
    let version = u32::from_le_bytes(input.array()?);
    closed(&input, version)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_device_row_keeps_room_for_the_cursors_of_further_logs() {
        let device = DeviceRow {
            cursor: Offset::new(7),
            created_at: UnixMillis(1),
            last_seen: UnixMillis(2),
            ..DeviceRow::default()
        };
        let mut row = encode_device(&device);
        assert_eq!(row, [1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        row.extend_from_slice(&[9, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode_device(&row), Ok(device));
    }

    proptest! {
        #[test]
        fn rows_are_read_back(count in any::<u32>(), bytes in any::<u64>(), last in 0..=Offset::MAX.get(), other in any::<u64>()) {
            let counters = Counters { count, bytes, last: Offset::new(last), lost: Offset::new(last / 3) };
            prop_assert_eq!(decode_counters(&encode_counters(&counters)), Ok(counters));
            let device = DeviceRow {
                cursor: Offset::new(last),
                broadcast: Offset::new(last / 5),
                began: Offset::new(last / 3),
                lost: Offset::new(last / 2),
                created_at: UnixMillis(bytes),
                last_seen: UnixMillis(other),
            };
            prop_assert_eq!(decode_device(&encode_device(&device)), Ok(device));
            for cause in [SubscriptionCause::Client, SubscriptionCause::Token, SubscriptionCause::Caller] {
                let member = MemberRow { cursor: Offset::new(last), began: Offset::new(last / 2), cause };
                prop_assert_eq!(decode_member(&encode_member(&member)), Ok(member));
            }
            let at = UnixMillis(other);
            prop_assert_eq!(decode_forgotten(&encode_forgotten(at)), Ok(at));
            let remembered = Remembered { offset: Offset::new(last), until: at, digest: [count as u8; 16], sessions: count };
            prop_assert_eq!(decode_remembered(&encode_remembered(&remembered)), Ok(remembered));
            let revocation = Revocation { issued_before: at, expires_at: UnixMillis(bytes) };
            prop_assert_eq!(decode_revocation(&encode_revocation(&revocation)), Ok(revocation));
            let totals = Totals { count: other, bytes };
            prop_assert_eq!(decode_totals(&encode_totals(&totals)), Ok(totals));
            prop_assert_eq!(decode_mark(&encode_mark(other)), Ok(other));
            let epoch = Uuid::from_u64_pair(bytes, other);
            prop_assert_eq!(decode_epoch(&encode_epoch(epoch)), Ok(epoch));
            prop_assert_eq!(decode_format(&encode_format(count)), Ok(count));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode_counters(&bytes);
            let _ = decode_device(&bytes);
            let _ = decode_forgotten(&bytes);
            let _ = decode_member(&bytes);
            let _ = decode_remembered(&bytes);
            let _ = decode_revocation(&bytes);
            let _ = decode_totals(&bytes);
            let _ = decode_mark(&bytes);
            let _ = decode_epoch(&bytes);
            let _ = decode_format(&bytes);
        }
    }
}
