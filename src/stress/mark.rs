//! The mark that every message of a run carries, so that whoever receives it knows which one it is and how long it
//! took.
//!
//! It is the message's JSON payload: `{"pgs":"0123abcd","l":0,"w":5,"n":17,"t":123456,"p":"xxx…"}`: the run, the lane (a
//! sequence of its own), whom it is for, the number in its sequence, from 0, the moment it was due, in µs on the sender's
//! clock, and padding.

use memchr::memmem;
use serde::Deserialize;

/// One message of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The run. What carries another one is left over from an earlier run.
    pub run: u32,
    /// The sequence. Order holds within one, not between two.
    pub lane: u32,
    /// Whom it is for: [`EVERYBODY`], a user ([`user`]) or a session ([`session`]).
    pub whom: u64,
    /// The place in the sequence, from 0.
    pub number: u64,
    /// When it was due, in µs on the sender's clock.
    pub due_micros: u64,
}

/// For whoever gets it.
pub const EVERYBODY: u64 = 0;
/// Set in what stands for a user.
const USER: u64 = 1 << 63;

/// What stands for a user: a hash of his id (FNV-1a), so that a message that went to somebody else is noticed.
pub fn user(id: &str) -> u64 {
    let hash = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    hash | USER
}

/// What stands for a session, by its place in the fleet.
pub fn session(index: usize) -> u64 {
    index as u64 + 1
}

/// What a mark begins with.
const START: &[u8] = b"{\"pgs\":\"";

impl Mark {
    /// The payload: of `bytes` bytes, or as many as the mark needs where that is more.
    pub fn payload(&self, bytes: usize) -> String {
        let Self { run, lane, whom, number, due_micros } = self;
        let mut text = String::with_capacity(bytes.max(128));
        use std::fmt::Write as _;
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{{\"pgs\":\"{run:08x}\",\"l\":{lane},\"w\":{whom},\"n\":{number},\"t\":{due_micros},\"p\":\""
        );
        text.extend(std::iter::repeat_n('x', bytes.saturating_sub(text.len() + 2)));
        text.push_str("\"}");
        text
    }

    /// The mark in a message, whatever is around it. `None`: it has none.
    pub fn find(message: &[u8]) -> Option<Self> {
        match memmem::find(message, START) {
            Some(at) => Self::read(&message[at + START.len()..]).or_else(|| Self::read_json(message)),
            // Somebody on the way may have written the JSON anew, with spaces.
            None => memmem::find(message, b"\"pgs\"").and_then(|_| Self::read_json(message)),
        }
    }

    /// Reads what stands behind [`START`], as [`Mark::payload`] writes it.
    fn read(rest: &[u8]) -> Option<Self> {
        let (run, rest) = (std::str::from_utf8(rest.get(..8)?).ok()?, rest.get(8..)?);
        let run = u32::from_str_radix(run, 16).ok()?;
        let (lane, rest) = number(rest.strip_prefix(b"\",\"l\":")?)?;
        let (whom, rest) = number(rest.strip_prefix(b",\"w\":")?)?;
        let (place, rest) = number(rest.strip_prefix(b",\"n\":")?)?;
        let (due_micros, rest) = number(rest.strip_prefix(b",\"t\":")?)?;
        rest.starts_with(b",").then_some(())?;
        Some(Self { run, lane: u32::try_from(lane).ok()?, whom, number: place, due_micros })
    }

    fn read_json(message: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow)]
            data: Data<'a>,
        }
        #[derive(Deserialize)]
        struct Data<'a> {
            pgs: &'a str,
            l: u32,
            w: u64,
            n: u64,
            t: u64,
        }
        let Envelope { data } = serde_json::from_slice(message).ok()?;
        let run = u32::from_str_radix(data.pgs, 16).ok()?;
        Some(Self { run, lane: data.l, whom: data.w, number: data.n, due_micros: data.t })
    }
}

/// The decimal number at the start, and what is behind it.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return None;
    }
    let value = bytes[..digits]
        .iter()
        .try_fold(0u64, |all, digit| all.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?;
    Some((value, &bytes[digits..]))
}

/// The `offset` of a stored message's envelope, which stands before its data.
pub fn offset(message: &[u8]) -> Option<u64> {
    let head = &message[..memmem::find(message, b"\"data\"").unwrap_or(message.len())];
    let at = memmem::find(head, b"\"offset\":")? + b"\"offset\":".len();
    number(head[at..].trim_ascii_start()).map(|(offset, _)| offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark { run: 0xab, lane: 3, whom: u64::MAX, number: 17, due_micros: 1_234_567 };

    #[test]
    fn a_mark_is_found_in_what_the_gateway_makes_of_it() {
        for bytes in [0, 10, 120, 256, 4096] {
            let payload = MARK.payload(bytes);
            assert!(bytes < 120 || payload.len() == bytes, "{}", payload.len());
            let text = format!(r#"{{"type":"notification","id":"a","offset":              17,"data":{payload}}}"#);
            assert_eq!(Mark::find(text.as_bytes()), Some(MARK));
            assert_eq!(offset(text.as_bytes()), Some(17));
        }
    }

    #[test]
    fn a_mark_survives_being_written_anew() {
        let value: serde_json::Value = serde_json::from_str(&format!(r#"{{"data":{}}}"#, MARK.payload(99))).unwrap();
        assert_eq!(Mark::find(value.to_string().as_bytes()), Some(MARK), "sorted names");
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        assert_eq!(Mark::find(pretty.as_bytes()), Some(MARK));
    }

    #[test]
    fn what_is_no_mark_is_none() {
        for text in
            ["", "{}", r#"{"data":{"pgs":"zz"}}"#, r#"{"pgs":"000000ab","l":99999999999,"n":1,"t":1,"#, "\"pgs\""]
        {
            assert_eq!(Mark::find(text.as_bytes()), None, "{text}");
        }
        assert_eq!(offset(br#"{"type":"a","data":{"offset":5}}"#), None);
    }
}
