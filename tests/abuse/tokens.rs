//! Ten thousand wrong tokens beside a thousand good sessions.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    ground::{Ground, percentile},
    support::{Raw, Token, raw::handshake, soon},
};

const WRONG: usize = 10_000;
const AT_ONCE: usize = 32;
/// How much later good sessions may hear something beside the wrong tokens: times their p99 in peace, or so long in any case,
/// which a shared machine may take by itself.
const SLOWER_MAX: u32 = 2;
const FLOOR: Duration = Duration::from_millis(100);
/// What is above both in each of so many measurements is no accident.
const MEASUREMENTS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn wrong_tokens_without_end_while_a_thousand_are_served() {
    let mut ground = Ground::with(1000, "").await;
    let http = ground.http;
    // Half of them are none; the others were signed with another key.
    let forged = jsonwebtoken::EncodingKey::from_secret(b"another secret of thirty-two bytes, or more");
    let forged = Token::of("good-1").signed(jsonwebtoken::Algorithm::HS256, forged, None).sign();
    let (mut done, mut refused) = (0, 0);
    let mut measured = 0;
    loop {
        let quiet = ground.quiet(Duration::from_secs(2)).await;
        ground
            .survives("wrong tokens", 0, async |_| {
                // Warmed up by a tenth of them.
                let count = if std::mem::replace(&mut done, 1) == 0 { WRONG / 10 } else { WRONG };
                refused += count as u64;
                let (room, mut tasks) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
                for n in 0..count {
                    let turn = Arc::clone(&room).acquire_owned().await.unwrap();
                    let token = if n % 2 == 0 { "no.token.atall".to_owned() } else { forged.clone() };
                    tasks.spawn(async move {
                        let mut raw = Raw::connect(http).await;
                        let head = raw.request(&handshake(&format!("token={token}"), "")).await;
                        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
                        let said = raw.frame().await.json();
                        assert_eq!(
                            (said["type"].as_str(), said["code"].as_str()),
                            (Some("auth_failure"), Some("token_invalid"))
                        );
                        raw.reset();
                        drop(turn);
                    });
                }
                while let Some(done) = soon("their ends", tasks.join_next()).await {
                    done.unwrap();
                }
            })
            .await;
        let (quiet, loud) = (percentile(&quiet, 99), percentile(ground.latencies(), 99));
        // That none was closed, and all came, is in `survives`. How long they took depends on who else is on the machine, too, the
        // attacker among them.
        println!(
            "p99 {quiet:?} in peace, {loud:?} beside {WRONG} wrong tokens: {:.1} ×",
            loud.as_secs_f64() / quiet.as_secs_f64()
        );
        if loud <= FLOOR.max(quiet * SLOWER_MAX) {
            break;
        }
        measured += 1;
        assert!(
            measured < MEASUREMENTS,
            "good sessions wait for wrong tokens: {quiet:?} in peace, {loud:?} beside them"
        );
    }
    assert_eq!(ground.rpc.errors("auth_failed").await, refused);
    // None is missing in the log: those without a line of their own are told of as a number.
    let mut said = 0;
    ground
        .logged(|lines| {
            let single = lines.iter().filter(|line| line["message"] == "not let in").count();
            said = single as u64 + lines.iter().filter_map(|line| line["more"].as_u64()).sum::<u64>();
            said >= refused
        })
        .await;
    assert_eq!(said, refused);
}
