//! What clients do who have a good token.

use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    ground::Ground,
    support::{
        Raw, Token,
        raw::{PING, PONG, TEXT, frame, handshake, header},
        soon, until,
    },
};

/// A session of somebody who means no good.
async fn bad(http: std::net::SocketAddr, who: &str, query: &str) -> Raw {
    Raw::connect(http).await.welcomed(who, query).await
}

/// What all of them do, at the same time.
async fn all<F: Future<Output = ()> + Send + 'static>(count: usize, each: impl Fn(usize) -> F) {
    let mut tasks: JoinSet<()> = (0..count).map(each).collect();
    while let Some(done) = soon("their ends", tasks.join_next()).await {
        done.unwrap();
    }
}

/// A message in frames of so many bytes each, of which none is the first of another.
fn fragments(message: &[u8], bytes: usize) -> Vec<u8> {
    let mut frames = Vec::new();
    let mut first = TEXT & 0x0F;
    for part in message.chunks(bytes) {
        frames.extend(frame(first, part));
        first = 0;
    }
    frames.extend(frame(0x80, b""));
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_one_byte() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    let message = json!({ "type": "echo", "data": "x".repeat(30_000) }).to_string();
    let frames = fragments(message.as_bytes(), 1);
    ground
        .survives("one-byte frames", 10, async |_| {
            all(10, |n| {
                let frames = frames.clone();
                async move {
                    let mut raw = bad(http, &format!("bad-{n}"), "").await;
                    // As they are; and each in a write of its own, which is as many reads.
                    raw.write(&frames).await;
                    for part in frames[..7 * 500].chunks(7) {
                        raw.write(part).await;
                    }
                    raw.write(&frames[7 * 500..]).await;
                    for _ in 0..2 {
                        assert_eq!(raw.text().await["data"].as_str().unwrap().len(), 30_000);
                    }
                    raw.reset();
                }
            })
            .await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_without_end() {
    let mut ground = Ground::with(50, "limits.bytes_per_second = \"256KiB\"").await;
    let http = ground.http;
    let empty = frame(0, b"").repeat(10_000);
    ground
        .survives("empty fragments", 10, async |_| {
            all(10, |n| {
                let empty = empty.clone();
                async move {
                    let mut raw = bad(http, &format!("bad-{n}"), "").await;
                    raw.write(&frame(1, b"")).await;
                    while raw.try_write(&empty).await {}
                    raw.drained().await;
                }
            })
            .await;
        })
        .await;
    assert!(ground.rpc.status().await.limits.unwrap().hits["bytes_per_second"] >= 40, "warned and closed, twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_compressed_messages() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    // 60,000 bytes that came in a hundred, five hundred of them in a read.
    let message = json!({ "type": "ack", "offset": 1, "of": "x".repeat(60_000) }).to_string();
    let mut stream = flate2::Compress::new(flate2::Compression::best(), false);
    let mut deflated = vec![0; 2000];
    stream.compress(message.as_bytes(), &mut deflated, flate2::FlushCompress::Sync).unwrap();
    deflated.truncate(stream.total_out() as usize - 4);
    let flood = frame(0xC1, &deflated).repeat(500);
    ground
        .survives("a flood of compressed messages", 10, async |_| {
            all(4, |n| {
                let flood = flood.clone();
                async move {
                    let query = format!("token={}", Token::of(&format!("bad-{n}")).sign());
                    let mut raw = Raw::connect(http).await;
                    let head =
                        raw.request(&handshake(&query, "Sec-WebSocket-Extensions: permessage-deflate\r\n")).await;
                    assert!(head.contains("permessage-deflate"), "{head}");
                    for _ in 0..30 {
                        if !raw.try_write(&flood).await {
                            break;
                        }
                    }
                    raw.drained().await;
                }
            })
            .await;
        })
        .await;
    let longest = *ground.latencies().last().unwrap();
    assert!(longest < Duration::from_secs(5), "somebody waited {longest:?}");
    let hits = ground.rpc.status().await.limits.unwrap().hits["bytes_per_second"];
    assert!(hits >= 16, "each warned and closed, twice: {hits}");
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_pings_and_pongs() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    for (case, first) in [("a flood of pings", PING), ("a flood of pongs", PONG)] {
        let flood = frame(first, b"0123456789abcdef").repeat(1000);
        ground
            .survives(case, 10, async |_| {
                all(10, |n| {
                    let flood = flood.clone();
                    async move {
                        let mut raw = bad(http, &format!("bad-{n}"), "").await;
                        for _ in 0..200 {
                            if !raw.try_write(&flood).await {
                                break;
                            }
                        }
                        raw.drained().await;
                    }
                })
                .await;
            })
            .await;
    }
    let hits = ground.rpc.status().await.limits.unwrap().hits["messages_per_second"];
    assert!(hits >= 80, "each warned and closed: {hits}");
}

#[tokio::test(flavor = "multi_thread")]
async fn confirmations_of_what_never_came() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    ground
        .survives("forged confirmations", 2 * 10, async |rpc| {
            for n in 0..10 {
                let who = format!("bad-{n}");
                let mut forger = bad(http, &who, if n % 2 == 0 { "ackMode=client" } else { "" }).await;
                let offset = rpc.send(&who, "mine").await.offset;
                // What it answers to is never what was asked.
                for forged in [0, 1, offset, offset + 1, u64::MAX] {
                    let mut payload = [0; 16];
                    payload[8..].copy_from_slice(&forged.to_be_bytes());
                    forger.send(PONG, &payload).await;
                    // In client mode it may ack what it has; it acks what is not there.
                    let acked = if forged == offset { offset - 1 } else { forged };
                    if acked < offset {
                        forger.say(&json!({ "type": "ack", "offset": acked })).await;
                    }
                }
                forger.reset();
            }
            for n in 0..10 {
                // It is there for who comes next, and confirms it.
                let who = format!("bad-{n}");
                let mut next =
                    crate::support::Client::connect(&format!("ws://{http}/ws?token={}", Token::of(&who).sign())).await;
                assert_eq!(next.data(1).await, ["mine"], "{who}");
                next.nothing_more().await;
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_read() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    let echo = frame(TEXT, json!({ "type": "echo", "data": "x".repeat(60_000) }).to_string().as_bytes());
    ground
        .survives("never reading", 10, async |_| {
            all(10, |n| {
                let echo = echo.clone();
                async move {
                    let mut raw = Raw::connect_narrow(http).await.welcomed(&format!("bad-{n}"), "").await;
                    while raw.try_write(&echo).await {}
                    raw.drained().await;
                }
            })
            .await;
        })
        .await;
    assert!(ground.rpc.errors("slow_consumer").await >= 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_pong() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    ground
        .survives("never ponging", 20, async |rpc| {
            let mut deaf = Vec::new();
            for n in 0..20 {
                let who = format!("bad-{n}");
                deaf.push(bad(http, &who, "").await);
                rpc.send(&who, "hear").await;
            }
            for mut raw in deaf {
                assert_eq!(raw.close_frame().await.close_code(), Some(4408));
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_too_large() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    ground
        .survives("oversized messages", 60, async |_| {
            all(60, |n| async move {
                let mut raw = bad(http, &format!("bad-{n}"), "").await;
                match n % 3 {
                    // Said to be so large.
                    0 => raw.write(&header(TEXT, 1 << 40, true)).await,
                    // In fragments that are each of them fine.
                    1 => {
                        let part = frame(0, &[b'x'; 16_384]);
                        raw.write(&frame(1, b"x")).await;
                        while raw.try_write(&part).await {}
                    }
                    _ => {
                        raw.try_write(&frame(TEXT, &vec![b'x'; 1 << 20])).await;
                    }
                }
                if n % 3 == 0 {
                    assert_eq!(raw.close_frame().await.close_code(), Some(1009));
                }
                raw.drained().await;
            })
            .await;
        })
        .await;
    assert!(ground.rpc.errors("message_too_big").await >= 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_users_as_a_lever() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    let asks = frame(TEXT, br#"{"type":"user_list","topic":"crowd"}"#).repeat(2000);
    ground
        .survives("user_list", 210, async |rpc| {
            let mut crowd = Vec::new();
            for n in 0..200 {
                let mut raw = bad(http, &format!("member-{n}"), "").await;
                raw.say(&json!({ "type": "subscribe", "topic": "crowd" })).await;
                crowd.push(raw);
            }
            until("all are in it", 200, async || {
                let topics = rpc.clone().topics(Default::default()).await.unwrap().topics;
                topics.iter().map(|topic| topic.sessions).sum::<u32>()
            })
            .await;
            all(10, |n| {
                let asks = asks.clone();
                async move {
                    let mut raw = bad(http, &format!("bad-{n}"), "").await;
                    raw.say(&json!({ "type": "subscribe", "topic": "crowd" })).await;
                    raw.write(&asks).await;
                    let (mut lists, mut refused) = (0, 0);
                    // Each is answered by the one or the other.
                    while lists + refused < 2000 {
                        let said = raw.text().await;
                        match said["type"].as_str().unwrap() {
                            "user_list" => lists += 1,
                            "error" => refused += u32::from(said["code"] == "rate_limited"),
                            _ => {}
                        }
                    }
                    // Twenty at once, before any of them is charged for how many users it told of.
                    assert!((20..=40).contains(&lists), "{lists} lists, {refused} refused");
                    raw.reset();
                }
            })
            .await;
            crowd.into_iter().for_each(Raw::reset);
            until("all have left it", 0, async || rpc.clone().topics(Default::default()).await.unwrap().topics.len())
                .await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_come_and_go() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    ground
        .survives("come and go", 600, async |_| {
            all(20, |n| async move {
                for _ in 0..30 {
                    bad(http, &format!("bad-{n}"), "").await.reset();
                }
            })
            .await;
        })
        .await;
}
