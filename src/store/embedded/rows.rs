//! The small rows: counters, devices, and the store's own. Each begins with its version; numbers are little-endian.
//!
//! - mailbox: `1 count(4) bytes(8) last(8)`
//! - device: `1 created_at(8) last_seen(8)`, then `log(1) cursor(8)` for each log it reads; log 0 is the user's own,
//!   255 stands for what the device has lost, and a log that this version does not know is passed over
//! - totals: `1 count(8) bytes(8)`; mark: `1 mark(8)`; epoch: `1 uuid(16)`
//! - format: a `u32` alone, since it is what every other version stands on
//! - expiry: nothing

use uuid::Uuid;

use super::record::{Input, Malformed};
use crate::{
    store::{Counters, DeviceRow, Totals},
    types::{Offset, UnixMillis},
};

/// The version of the schema that this build reads and writes.
pub const FORMAT: u32 = 1;

const VERSION: u8 = 1;
const LOG_USER: u8 = 0;
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

/// Writes a mailbox row.
pub fn encode_counters(counters: &Counters) -> Vec<u8> {
    let mut row = Vec::with_capacity(21);
    row.push(VERSION);
    row.extend_from_slice(&counters.count.to_le_bytes());
    row.extend_from_slice(&counters.bytes.to_le_bytes());
    row.extend_from_slice(&counters.last.get().to_le_bytes());
    row
}

/// Reads a mailbox row.
pub fn decode_counters(row: &[u8]) -> Result<Counters, Malformed> {
    let mut input = opened(row, "counters of an unknown version")?;
    let counters = Counters {
        count: u32::from_le_bytes(input.array()?),
        bytes: u64_of(&mut input)?,
        last: offset_of(&mut input)?,
    };
    closed(&input, counters)
}

/// Writes a device row.
pub fn encode_device(device: &DeviceRow) -> Vec<u8> {
    let mut row = row(&[device.created_at.0, device.last_seen.0]);
    row.push(LOG_USER);
    row.extend_from_slice(&device.cursor.get().to_le_bytes());
    if device.lost > Offset::ZERO {
        row.push(LOST);
        row.extend_from_slice(&device.lost.get().to_le_bytes());
    }
    row
}

/// Reads a device row.
pub fn decode_device(row: &[u8]) -> Result<DeviceRow, Malformed> {
    let mut input = opened(row, "a device of an unknown version")?;
    let created_at = UnixMillis(u64_of(&mut input)?);
    let last_seen = UnixMillis(u64_of(&mut input)?);
    let mut device = DeviceRow { cursor: Offset::ZERO, lost: Offset::ZERO, created_at, last_seen };
    while !input.0.is_empty() {
        let log = input.byte()?;
        let cursor = offset_of(&mut input)?;
        match log {
            LOG_USER => device.cursor = cursor,
            LOST => device.lost = cursor,
            _ => {}
        }
    }
    Ok(device)
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
            lost: Offset::ZERO,
            created_at: UnixMillis(1),
            last_seen: UnixMillis(2),
        };
        let mut row = encode_device(&device);
        assert_eq!(row, [1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        row.extend_from_slice(&[9, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode_device(&row), Ok(device));
    }

    proptest! {
        #[test]
        fn rows_are_read_back(count in any::<u32>(), bytes in any::<u64>(), last in 0..=Offset::MAX.get(), other in any::<u64>()) {
            let counters = Counters { count, bytes, last: Offset::new(last) };
            prop_assert_eq!(decode_counters(&encode_counters(&counters)), Ok(counters));
            let device = DeviceRow {
                cursor: Offset::new(last),
                lost: Offset::new(last / 2),
                created_at: UnixMillis(bytes),
                last_seen: UnixMillis(other),
            };
            prop_assert_eq!(decode_device(&encode_device(&device)), Ok(device));
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
            let _ = decode_totals(&bytes);
            let _ = decode_mark(&bytes);
            let _ = decode_epoch(&bytes);
            let _ = decode_format(&bytes);
        }
    }
}
