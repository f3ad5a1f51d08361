//! W3C Trace Context (w3.org/TR/trace-context, level 1, sections 3.2 and 3.3): the headers `traceparent` and `tracestate`
//! that a caller brings, with which a call takes its place in a trace.
//!
//! The rule: what breaks the grammar is as good as not there. Nobody is refused for it.

use std::fmt;

use http::HeaderMap;

/// The header that names the trace.
pub const TRACEPARENT: &str = "traceparent";
/// The header in which vendors keep what is theirs.
pub const TRACESTATE: &str = "tracestate";

/// The bytes of a `tracestate` that are passed on; a longer one is left out whole (3.3.1.5: at least 512).
const STATE_BYTES_MAX: usize = 512;
/// The bytes of a `traceparent` of version 00.
const PARENT_BYTES: usize = 55;

/// A trace, by its id. Not all of it is zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

/// A span within a trace. Not all of it is zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The place in a trace that a caller gives a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    /// The caller's own span.
    pub span: SpanId,
    /// Whether the caller records the trace.
    pub sampled: bool,
    /// `tracestate`, passed on as it is; empty where there is none.
    pub state: String,
}

impl TraceParent {
    /// What a call's headers say. `None`: nothing, or what is malformed, or two things (3.2).
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut said = headers.get_all(TRACEPARENT).iter();
        let parent = said.next()?;
        if said.next().is_some() {
            return None;
        }
        let (trace, span, sampled) = parse(parent.as_bytes())?;
        Some(Self { trace, span, sampled, state: state(headers) })
    }
}

/// Reads `version-traceid-parentid-flags`. What follows these in a later version is left aside (3.2.4 and 4.3).
fn parse(text: &[u8]) -> Option<(TraceId, SpanId, bool)> {
    let version: [u8; 1] = hex(text.get(..2)?)?;
    let more = text.get(PARENT_BYTES);
    match version[0] {
        0xff => return None,
        0 if more.is_some() => return None,
        _ if more.is_some_and(|next| *next != b'-') => return None,
        _ => {}
    }
    if [2, 35, 52].into_iter().any(|at| text.get(at) != Some(&b'-')) {
        return None;
    }
    let trace: [u8; 16] = hex(text.get(3..35)?)?;
    let span: [u8; 8] = hex(text.get(36..52)?)?;
    let flags: [u8; 1] = hex(text.get(53..PARENT_BYTES)?)?;
    if trace == [0; 16] || span == [0; 8] {
        return None;
    }
    Some((TraceId(trace), SpanId(span), flags[0] & 1 == 1))
}

/// Lower-case hexadecimal digits; upper-case ones are malformed here.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// All lines of `tracestate`, as one list; none of it where one is no visible ASCII or all are too long.
fn state(headers: &HeaderMap) -> String {
    let mut state = String::new();
    for line in headers.get_all(TRACESTATE) {
        let Some(line) = line.to_str().ok().map(str::trim) else { return String::new() };
        if line.is_empty() {
            continue;
        }
        if !state.is_empty() {
            state.push(',');
        }
        state.push_str(line);
        if state.len() > STATE_BYTES_MAX {
            return String::new();
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_parent_is_read() {
        let (trace, span, sampled) = parse(GOOD.as_bytes()).unwrap();
        assert_eq!(trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((span.to_string().as_str(), sampled), ("00f067aa0ba902b7", true));
        let flags = |flags: &str| parse(format!("{}{flags}", &GOOD[..53]).as_bytes()).map(|(_, _, sampled)| sampled);
        assert_eq!(
            [flags("00"), flags("02"), flags("03"), flags("ff")],
            [Some(false), Some(false), Some(true), Some(true)]
        );
        let later = format!("cc{}", &GOOD[2..]);
        assert!(parse(later.as_bytes()).is_some() && parse(format!("{later}-what-comes").as_bytes()).is_some());
    }

    #[test]
    fn what_is_malformed_is_no_parent() {
        for bad in [
            String::new(),
            "00".to_owned(),
            GOOD[..54].to_owned(),
            format!("{GOOD}0"),
            format!("{GOOD}-00"),
            format!("ff{}", &GOOD[2..]),
            format!("cc{}.x", &GOOD[2..]),
            GOOD.to_uppercase(),
            GOOD.replace("4bf9", "4BF9"),
            GOOD.replace("4bf9", "4bfg"),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace('-', "_"),
            format!(" {GOOD}"),
            "é".repeat(28),
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn two_parents_are_none_and_a_state_goes_with_one_only() {
        let mut headers = HeaderMap::new();
        headers.append(TRACESTATE, "a=1".parse().unwrap());
        assert_eq!(TraceParent::of(&headers), None);
        headers.append(TRACEPARENT, GOOD.parse().unwrap());
        headers.append(TRACESTATE, " b=2,c=3 ".parse().unwrap());
        assert_eq!(TraceParent::of(&headers).unwrap().state, "a=1,b=2,c=3");
        headers.append(TRACESTATE, "x".repeat(STATE_BYTES_MAX).parse().unwrap());
        assert_eq!(TraceParent::of(&headers).unwrap().state, "");
        headers.append(TRACEPARENT, GOOD.parse().unwrap());
        assert_eq!(TraceParent::of(&headers), None);
    }
}
