//! What callers do to the admin API's listener, by raw bytes of HTTP/2 (RFC 9113).

use std::net::SocketAddr;

use serde_json::Value;
use tonic::Code;

use crate::{
    ground::Ground,
    support::{
        Raw,
        rpc::{notification, request},
    },
};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame.
fn frame(of: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[of, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a call, in HPACK (RFC 7541): the static table and plain literals.
fn call(path: &str) -> Vec<u8> {
    let literal = |index: &[u8], text: &str| [index, &[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [
        // :method POST, :scheme http
        vec![0x83, 0x86],
        literal(&[0x04], path),
        literal(&[0x01], "gateway"),
        // content-type
        literal(&[0x0F, 0x10], "application/grpc"),
    ]
    .concat()
}

/// A connection that has begun.
async fn begun(grpc: SocketAddr) -> Raw {
    let mut raw = Raw::connect(grpc).await;
    raw.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    raw.write(&frame(SETTINGS, 0, 0, b"")).await;
    raw.some_bytes().await;
    raw
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_begun_and_reset_over_and_over() {
    let mut ground = Ground::new().await;
    let grpc = ground.grpc;
    let calls: Vec<u8> = (0..20_000)
        .flat_map(|n| {
            let stream = 2 * n + 1;
            let begin = frame(HEADERS, END_HEADERS | END_STREAM, stream, &call("/pushgate.v1.Gateway/GetStatus"));
            [begin, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        })
        .collect();
    ground
        .survives("rapid reset", 0, async |_| {
            for _ in 0..10 {
                let mut raw = begun(grpc).await;
                raw.try_write(&calls).await;
                // Cut off: whoever goes on so is not waited for.
                raw.drained().await;
            }
        })
        .await;
    let hits = ground.rpc.status().await.limits.unwrap().hits["grpc.excess"];
    assert!(hits >= 20, "each was cut off: {hits}");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_end() {
    let mut ground = Ground::new().await;
    let grpc = ground.grpc;
    let begin = frame(HEADERS, 0, 1, &call("/pushgate.v1.Gateway/GetStatus"));
    // Nothing in them; small ones; large ones that say the same header over and over.
    let empty = frame(CONTINUATION, 0, 1, b"");
    let one = frame(CONTINUATION, 0, 1, b"\x00\x01x\x01y");
    let large = frame(CONTINUATION, 0, 1, &b"\x00\x01x\x01y".repeat(3000));
    ground
        .survives("CONTINUATION without end", 0, async |_| {
            for more in [&empty, &one, &large] {
                let flood = more.repeat((1 << 20) / more.len());
                for _ in 0..5 {
                    let mut raw = begun(grpc).await;
                    raw.write(&begin).await;
                    let mut megabytes = 0;
                    while raw.try_write(&flood).await {
                        megabytes += 1;
                        assert!(megabytes < 64, "it is heard out: {:?}", &more[..12]);
                    }
                    raw.drained().await;
                }
            }
        })
        .await;
    let hits = ground.rpc.status().await.limits.unwrap().hits["grpc.excess"];
    assert!(hits >= 10, "those that are nothing but frames: {hits}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_never_finished_and_frames_that_are_to_be_answered() {
    let mut ground = Ground::new().await;
    let grpc = ground.grpc;
    let calls: Vec<u8> = (0..1000)
        .flat_map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &call("/pushgate.v1.Gateway/SendBatch")))
        .collect();
    // As much as is taken without that the answers are read.
    let answered = [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, b"")].concat().repeat(1000);
    ground
        .survives("calls that hang", 0, async |_| {
            let mut open = Vec::new();
            for _ in 0..10 {
                let mut raw = begun(grpc).await;
                raw.try_write(&calls).await;
                raw.try_write(&answered).await;
                raw.some_bytes().await;
                open.push(raw);
            }
            for _ in 0..100 {
                open.push(Raw::connect(grpc).await);
            }
            open.into_iter().for_each(Raw::reset);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_over_their_size() {
    let mut ground = Ground::new().await;
    let large = Value::String("x".repeat(5 << 20));
    ground
        .survives("calls that are too large", 0, async |rpc| {
            for _ in 0..5 {
                let refused = rpc.try_send(request("good-1", notification(large.clone()))).await.unwrap_err();
                assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
            }
        })
        .await;
    assert_eq!(ground.rpc.status().await.limits.unwrap().hits["grpc.max_message_bytes"], 10);
}
