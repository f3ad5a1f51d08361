//! The handshake: the offers of extensions against a reader that is written for clarity only, and whole requests through
//! the HTTP server and the checks that the gateway has, whole and cut.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use pushgate::{limits, protocol::frame::Extensions, ws::fuzzing};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{kind, size};

pub const WORDS: &[&[u8]] = &[
    b"permessage-deflate",
    b"; server_no_context_takeover",
    b"; client_no_context_takeover",
    b"; server_max_window_bits=10",
    b"; client_max_window_bits",
    b"; client_max_window_bits=\"9\"",
    b", ",
    b"=",
    b"\"",
    b"\\",
    b"\r\n",
    b"Sec-WebSocket-Extensions: ",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    b"Sec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Protocol: pushgate.v1.json, bearer.x\r\n",
    b"Authorization: Bearer x\r\n",
    b"Host: gateway\r\n",
    b"Connection: Upgrade\r\n",
    b"Upgrade: websocket\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"?token=x&device=y&ackMode=client&binary=1",
];

/// A line of offers, or several.
pub fn offers(input: &[u8]) -> u64 {
    let lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    let came = Extensions::negotiate(lines.iter().copied());
    let expected = plainly(&lines);
    assert_eq!(came.ok().map(|taken| taken.deflate.map(|window| window.bits())), expected);
    if let Ok(taken) = came {
        let answer = taken.answer();
        assert_eq!(answer.is_some(), taken.deflate.is_some());
        if let Some(answer) = &answer {
            assert!(answer.starts_with("permessage-deflate; server_no_context_takeover; client_no_context_takeover"));
            // An answer is an offer that would be taken as it is.
            let again = Extensions::negotiate([answer.as_bytes()]).unwrap();
            assert_eq!(again.answer().as_ref(), Some(answer));
        }
    }
    kind((expected, size(input.len()), lines.len().min(4)))
}

/// Elements, their parts, and what they hold: `None` where it is of no grammar, else the window that is agreed upon.
fn plainly(lines: &[&[u8]]) -> Option<Option<u8>> {
    let (mut taken, mut count) = (None, 0);
    for line in lines {
        for element in split(line, b',')? {
            let parts: Vec<&[u8]> = split(element, b';')?.into_iter().map(<[u8]>::trim_ascii).collect();
            if parts == [b""] {
                continue;
            }
            count += 1;
            let mut offer = Some(15);
            let mut names = Vec::new();
            for (place, part) in parts.iter().enumerate() {
                let mut sides = part.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
                let (name, value) = (sides.next()?, sides.next());
                let value = match value {
                    None => None,
                    Some(value) => Some(unquoted(value)?),
                };
                if !is_token(name) || (place == 0 && value.is_some()) {
                    return None;
                }
                let bits =
                    value.as_ref().and_then(|value| (8..=15_u8).find(|bits| bits.to_string().as_bytes() == value));
                let good = match (place, name) {
                    (0, b"permessage-deflate") => true,
                    (1.., b"server_no_context_takeover" | b"client_no_context_takeover") => value.is_none(),
                    (1.., b"client_max_window_bits") => value.is_none() || bits.is_some(),
                    (1.., b"server_max_window_bits") => {
                        offer = offer.and(bits);
                        bits.is_some()
                    }
                    _ => false,
                };
                if !good || names.contains(&name) {
                    offer = None;
                }
                names.push(name);
            }
            taken = taken.or(offer);
        }
    }
    (count <= limits::EXTENSION_OFFERS_MAX).then_some(taken)
}

/// Parts between signs that stand in no quotes. `None`: a quote is left open.
fn split(text: &[u8], sign: u8) -> Option<Vec<&[u8]>> {
    let (mut parts, mut from, mut quoted, mut at) = (Vec::new(), 0, false, 0);
    while at < text.len() {
        match text[at] {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            byte if byte == sign && !quoted => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    parts.push(&text[from..]);
    (!quoted).then_some(parts)
}

fn is_token(text: &[u8]) -> bool {
    let is = |byte: &u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(byte);
    !text.is_empty() && text.iter().all(is)
}

fn unquoted(value: &[u8]) -> Option<Vec<u8>> {
    let Some(inner) = value.strip_prefix(b"\"") else { return is_token(value).then(|| value.to_vec()) };
    let inner = inner.strip_suffix(b"\"")?;
    let (mut out, mut rest) = (Vec::new(), inner.iter());
    while let Some(byte) = rest.next() {
        match byte {
            b'\\' => out.push(*rest.next()?),
            b'"' => return None,
            _ => out.push(*byte),
        }
    }
    is_token(&out).then_some(out)
}

/// What the server answers to these pieces: all that it writes before it closes or waits.
fn answered(pieces: &[&[u8]]) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let service = service_fn(|request: Request<Incoming>| {
            let (parts, _) = request.into_parts();
            let mut reply = Response::new(Full::<bytes::Bytes>::default());
            *reply.status_mut() = fuzzing::handshake(&Request::from_parts(parts, ()));
            std::future::ready(Ok::<_, Infallible>(reply))
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
            .max_header_size(limits::HTTP_HEAD_BYTES_MAX)
            .auto_date_header(false)
            // All that is asked before the end is answered.
            .half_close(true)
            .serve_connection(TokioIo::new(server), service);
        let mut answer = Vec::new();
        let talk = async {
            for piece in pieces {
                // The server may have closed already.
                let _ = client.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            let _ = client.shutdown().await;
            let _ = client.read_to_end(&mut answer).await;
        };
        let _ = tokio::join!(connection, talk);
        answer
    })
}

/// A request, and maybe more behind it.
pub fn run(input: &[u8]) -> u64 {
    let whole = answered(&[input]);
    let at = input.len() / 2 + input.first().map_or(0, |byte| usize::from(*byte) % 16);
    let (head, tail) = input.split_at(at.min(input.len()));
    let cut = answered(&[head, tail]);
    let status = |answer: &[u8]| answer.get(..12).map(<[u8]>::to_vec);
    assert_eq!(status(&cut), status(&whole), "cut at {at}");
    let all: Vec<Vec<u8>> =
        whole.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"HTTP/1.")).map(<[u8]>::to_vec).collect();
    kind((all.iter().take(3).collect::<Vec<_>>(), size(input.len())))
}
