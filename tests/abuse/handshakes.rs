//! What strangers do before anybody knows them.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::{
    ground::Ground,
    support::{Raw, raw::handshake, soon},
};

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_come_byte_by_byte() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    ground
        .survives("slowloris", 0, async |_| {
            let mut slow = JoinSet::new();
            for _ in 0..300 {
                slow.spawn(async move {
                    let mut raw = Raw::connect(http).await;
                    for byte in handshake("", "X-And-More: of it\r\n").bytes() {
                        // It ends in the middle: whoever does so has had his time.
                        if !raw.try_write(&[byte]).await {
                            return;
                        }
                        tokio::time::sleep(Duration::from_millis(30)).await;
                    }
                    panic!("it was heard out");
                });
            }
            while let Some(done) = soon("their ends", slow.join_next()).await {
                done.unwrap();
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_say_nothing() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    ground
        .survives("1,000 half-open sockets", 0, async |_| {
            let mut silent = Vec::new();
            for n in 0..1000 {
                let mut raw = Raw::connect(http).await;
                if n % 2 == 0 {
                    raw.write(b"GET /ws HTTP/1.1\r\n").await;
                }
                silent.push(raw);
            }
            for mut raw in silent {
                raw.drained().await;
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_finish_the_handshake_and_never_say_who_they_are() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    ground
        .survives("500 that never authenticate", 0, async |_| {
            let mut silent = Vec::new();
            for _ in 0..500 {
                silent.push(Raw::connect(http).await.upgraded("").await);
            }
            for mut raw in silent {
                assert_eq!(raw.close_frame().await.close_code(), Some(4401));
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_come_too_often_and_with_too_many() {
    let limits = "limits.connections_per_address = 60\nlimits.address_handshakes_per_second = 100";
    let mut ground = Ground::with(50, limits).await;
    let http = ground.http;
    ground
        .survives("200 addresses", 200 * 20, async |_| {
            // So many at a time that each round comes to the same.
            for round in 0..10 {
                let mut attackers = JoinSet::new();
                for n in 0..20 {
                    attackers.spawn(async move {
                        let source = std::net::IpAddr::from([127, 0, 1, 1 + 20 * round + n]);
                        let mut held = Vec::new();
                        for k in 0..20 {
                            let mut raw = Raw::connect_from(source, http).await;
                            // The half says nothing at all.
                            if k % 2 == 0 && raw.try_write(handshake("", "").as_bytes()).await {
                                raw.head().await;
                            }
                            held.push(raw);
                        }
                        held.into_iter().for_each(Raw::reset);
                    });
                }
                while let Some(done) = attackers.join_next().await {
                    done.unwrap();
                }
            }
            // One of them with more than it may have, and as often as it can.
            let source = std::net::IpAddr::from([127, 0, 2, 1]);
            let mut held = Vec::new();
            for _ in 0..200 {
                let mut raw = Raw::connect_from(source, http).await;
                if raw.try_write(handshake("", "").as_bytes()).await {
                    held.push(raw);
                }
            }
            held.into_iter().for_each(Raw::reset);
        })
        .await;
    let hits = ground.rpc.status().await.limits.unwrap().hits;
    assert!(hits["connections_per_address"] > 0 && hits["address_handshakes_per_second"] > 0, "{hits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_paths_that_are_junk() {
    let mut ground = Ground::new().await;
    let http = ground.http;
    let many = (0..200).map(|n| format!("X-{n}: {n}\r\n")).collect::<String>();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    let junk: Vec<Vec<u8>> = [
        b"\0\0\0\0\0\0\0\0\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20),
        b"GET".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        [b"GET /".as_slice(), &[b'a'; 20_000], b" HTTP/1.1\r\n\r\n"].concat(),
        format!("GET /ws HTTP/1.1\r\nHost: x\r\n{many}\r\n").into_bytes(),
        format!("GET /ws HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(20_000)).into_bytes(),
        b"GET /../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"GET /ws%00%ff?token=%zz&device=%00 HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"POST /ws HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /ws HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_vec(),
        b"GET /ws HTTP/1.1\r\nHost: x\r\nX:\xff\xfe\x01\r\n\r\n".to_vec(),
        b"GET /ws HTTP/1.1\nHost: x\n\n".to_vec(),
        format!("GET /ws HTTP/1.1\r\nHost: x\r\n{upgrade}Sec-WebSocket-Key: nonsense\r\n\r\n").into_bytes(),
        format!("GET /ws?binary=9 HTTP/1.1\r\nHost: x\r\n{upgrade}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
            .into_bytes(),
        format!("GET /ws?device={} HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n", "d".repeat(7000)).into_bytes(),
    ]
    .into();
    ground
        .survives("junk", 0, async |_| {
            let mut senders = JoinSet::new();
            for _ in 0..10 {
                let junk = junk.clone();
                senders.spawn(async move {
                    for bytes in junk.iter().cycle().take(20 * junk.len()) {
                        let mut raw = Raw::connect(http).await;
                        if raw.try_write(bytes).await {
                            raw.end_writing().await;
                            raw.drained().await;
                        }
                    }
                });
            }
            while let Some(done) = senders.join_next().await {
                done.unwrap();
            }
        })
        .await;
}
