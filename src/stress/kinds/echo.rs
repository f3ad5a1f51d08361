//! `storm`, `throughput` and `sustained`: sessions connect, and ask for echoes.

use std::{sync::atomic::Ordering, time::Duration};

use super::{Kind, Stage, usage};
use crate::stress::{
    Plan, RunError,
    fleet::{Doing, SlotReport},
    report::Report,
};

/// Echoes that a session may have unanswered in `throughput`.
const WINDOW: u64 = 16;

impl Stage<'_> {
    pub(super) async fn storm(&self) -> Result<Report, RunError> {
        self.leave().await;
        let before = usage(self.calls).await;
        let began = self.fleet.live().now_micros();
        let mut test = self.begin(Kind::Storm, 1).await?;
        let connected_in = (self.fleet.live().now_micros() - began) as f64 / 1e6;
        let connected = test.report.connections.connected;
        let after = usage(self.calls).await;
        test.report.per_second.connects = connected as f64 / connected_in.max(1e-6);
        let asked = self.fleet.live().now_micros();
        // Each is asked something, so that all are known to be there.
        self.fleet.order(Doing::Echoes { messages: 1, window: 1, payload: self.plan.payload });
        self.wait_for(Kind::Storm, connected, echoes_missing).await;
        self.end(&mut test, asked).await;
        test.report.echoed(&test.all.slots, None);
        test.report.seconds = connected_in;
        test.report.served(before, after, "connect", connected);
        if let (Some(server), true) = (&mut test.report.server, connected > 0) {
            let from = self.idle.map_or(server.rss_before_bytes, |idle| idle.rss_bytes);
            let grown = server.rss_bytes.saturating_sub(from);
            server.rss_bytes_per_session = Some(grown as f64 / connected as f64);
        }
        self.leave().await;
        Ok(test.report)
    }

    pub(super) async fn echoes(&self, kind: Kind) -> Result<Report, RunError> {
        let Plan { messages, duration, message_interval, payload, rate, .. } = *self.plan;
        let mut test = self.begin(kind, 1).await?;
        let connected = test.report.connections.connected;
        let before = usage(self.calls).await;
        let live = self.fleet.live();
        let began = live.now_micros();
        let mut schedule = None;
        if kind == Kind::Throughput {
            self.fleet.order(Doing::Echoes { messages, window: WINDOW, payload });
            self.wait_for(kind, connected.saturating_mul(messages), echoes_missing).await;
        } else {
            let interval = match rate {
                Some(rate) if rate > 0.0 => Duration::from_secs_f64(connected.max(1) as f64 / rate),
                _ => message_interval.max(Duration::from_millis(1)),
            };
            let until_micros = began + duration.as_micros() as u64;
            schedule = Some((until_micros, interval.as_micros() as u64));
            self.fleet.order(Doing::EchoEvery { interval, until_micros, payload });
            self.watch.begins(kind.as_str(), "echoes", duration.as_secs());
            while live.now_micros() < until_micros && connected > 0 {
                self.watch.at((live.now_micros() - began) / 1_000_000);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let all_back = |stage: &Self| {
                let live = stage.fleet.live();
                live.came.load(Ordering::Acquire) >= live.echoes.load(Ordering::Acquire)
            };
            self.wait(all_back, |_| duration.as_secs()).await;
            let echoes = live.echoes.load(Ordering::Acquire);
            self.wait_for(kind, echoes, echoes_missing).await;
        }
        let after = usage(self.calls).await;
        self.end(&mut test, began).await;
        test.report.echoed(&test.all.slots, schedule);
        if kind == Kind::Throughput {
            test.report.unsent = connected.saturating_mul(messages).saturating_sub(test.report.sent);
        }
        let sent = test.report.sent;
        test.report.served(before, after, "echo", sent);
        Ok(test.report)
    }
}

/// Echoes that have not come back.
fn echoes_missing(slots: &[SlotReport]) -> u64 {
    slots.iter().filter_map(|slot| Some(slot.tracks.first()?.lost(slot.echoes, None))).sum()
}
