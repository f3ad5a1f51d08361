//! What a request brings: JSON of a bounded size that comes in time.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Code;

use super::reply::Refusal;
use crate::{api::ApiError, limits};

/// Room for the bodies that are under way, in bytes.
#[derive(Debug)]
pub struct Room(Semaphore);

impl Room {
    /// All of it.
    pub fn new() -> Self {
        Self(Semaphore::new(limits::OPS_BODIES_BYTES_MAX))
    }

    /// Room for so many bytes more than there is room for in `held`. Nobody waits for it with a part in his hands, so that
    /// no two can wait for each other.
    fn take<'a>(&'a self, held: &mut Option<SemaphorePermit<'a>>, bytes: usize) -> Result<(), Refusal> {
        let there = held.as_ref().map_or(0, SemaphorePermit::num_permits);
        // What is larger than all room has all of it.
        let more = bytes.min(limits::OPS_BODIES_BYTES_MAX - there);
        let full = |_| {
            let message = format!("bodies of {} bytes are under way", limits::OPS_BODIES_BYTES_MAX);
            ApiError::Unavailable { reason: "TOO_MANY_BYTES", message }
        };
        let taken = self.0.try_acquire_many(u32::try_from(more).unwrap_or(u32::MAX)).map_err(full)?;
        match held {
            Some(held) => held.merge(taken),
            None => *held = Some(taken),
        }
        Ok(())
    }
}

/// A body that came, with its share of the room.
#[derive(Debug)]
pub struct Body<'a> {
    /// All of it.
    pub bytes: Bytes,
    _room: Option<SemaphorePermit<'a>>,
}

/// A request's body.
pub struct Upload {
    body: Incoming,
    /// More of it is on its way: its sender does not wait for leave (`Expect: 100-continue`), nor has it been waited for in
    /// vain.
    comes: bool,
}

impl Upload {
    /// The body of a request with these headers.
    pub fn new(body: Incoming, headers: &HeaderMap) -> Self {
        Self { body, comes: !headers.contains_key(header::EXPECT) }
    }

    /// Whether there is one.
    pub fn is_expected(&self) -> bool {
        !self.body.is_end_stream()
    }

    /// All of it, `limit` bytes at most.
    ///
    /// # Errors
    /// 413 for more, 408 where it does not come in time, 400 where it does not come to its end, 503 where there is no room.
    pub async fn read<'a>(&mut self, limit: usize, room: &'a Room) -> Result<Body<'a>, Refusal> {
        let too_large = || {
            let message = format!("the body has more than {limit} bytes");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Code::OutOfRange, "BODY_TOO_LARGE", message)
        };
        if self.body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        self.comes = true;
        let body = &mut self.body;
        let all = async {
            let (mut bytes, mut held) = (BytesMut::new(), None);
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| {
                    let message = format!("the body does not come to its end: {error}");
                    Refusal::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, "BODY_BROKEN", message)
                })?;
                // Trailers say nothing here.
                let Ok(data) = frame.into_data() else { continue };
                if bytes.len() + data.len() > limit {
                    return Err(too_large());
                }
                room.take(&mut held, data.len())?;
                bytes.extend_from_slice(&data);
            }
            Ok(Body { bytes: bytes.freeze(), _room: held })
        };
        let read = tokio::time::timeout(limits::OPS_BODY_TIMEOUT, all).await;
        self.comes = read.is_ok();
        read.unwrap_or_else(|_| {
            let message = format!("the body did not come within {} s", limits::OPS_BODY_TIMEOUT.as_secs());
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, Code::DeadlineExceeded, "BODY_TOO_SLOW", message))
        })
    }

    /// Reads on what nobody wants, as far as that is worth it: a connection that is closed with bytes unread is reset, and
    /// takes the answer with it.
    pub async fn discard(mut self) {
        if !self.comes {
            return;
        }
        let (most, within) = limits::OPS_DISCARD;
        let all = async {
            let mut read = 0;
            while let Some(Ok(frame)) = self.body.frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > most {
                    break;
                }
            }
        };
        // Who is slower than that does without the answer.
        let _ = tokio::time::timeout(within, all).await;
    }
}

/// Refuses what is not said to be JSON in UTF-8, uncompressed.
pub fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let unsupported = |message: &str| {
        Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, "CONTENT_TYPE", message)
            .with(header::ACCEPT, "application/json")
    };
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let is_json = types.next().and_then(|value| value.to_str().ok()).is_some_and(is_json);
    if !is_json || types.next().is_some() {
        return Err(unsupported("the body must be sent as Content-Type: application/json"));
    }
    let plain = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(header::CONTENT_ENCODING).iter().all(plain) {
        return Err(unsupported("the body must be sent as it is, without a Content-Encoding"));
    }
    Ok(())
}

fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    // JSON is UTF-8 (RFC 8259 section 8.1); other parameters mean nothing.
    let mut charsets =
        parts.filter_map(|part| part.split_once('=')).filter(|(name, _)| name.eq_ignore_ascii_case("charset"));
    essence.eq_ignore_ascii_case("application/json")
        && charsets.all(|(_, charset)| charset.trim_matches('"').eq_ignore_ascii_case("utf-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_a_room_and_one_of_any_size_finds_an_empty_one_large_enough() {
        let room = Room::new();
        let (mut huge, mut other) = (None, None);
        for _ in 0..3 {
            room.take(&mut huge, limits::OPS_BODIES_BYTES_MAX / 2 + 1).unwrap();
        }
        assert!(room.take(&mut other, 1).is_err());
        drop(huge);
        room.take(&mut other, 7).unwrap();
        assert!(room.take(&mut None, limits::OPS_BODIES_BYTES_MAX).is_err(), "it is not empty");
        room.take(&mut other, limits::OPS_BODIES_BYTES_MAX - 7).unwrap();
        drop(other);
        assert_eq!(room.0.available_permits(), limits::OPS_BODIES_BYTES_MAX);
    }

    #[test]
    fn only_json_is_json() {
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
        ] {
            assert!(is_json(good), "{good}");
        }
        for bad in [
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=application/json",
            "application/jsonp",
            "application/json; charset=utf-16",
            "text/json",
        ] {
            assert!(!is_json(bad), "{bad}");
        }
        let mut headers = HeaderMap::new();
        headers.append(header::CONTENT_TYPE, "application/json".parse().unwrap());
        assert!(check_type(&headers).is_ok());
        headers.append(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        assert!(check_type(&headers).is_err(), "one of them");
        headers.remove(header::CONTENT_TYPE);
        assert!(check_type(&headers).is_err(), "none");
    }
}
