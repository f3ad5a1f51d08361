//! `restart`: what a restart of the gateway does to those who are connected, and to what is sent to them meanwhile.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{Kind, LOOK, Stage, push::RATE};
use crate::stress::{
    Plan, RunError,
    fleet::{Doing, Tally},
    report::{Report, Restart},
    sender::{Pace, Work},
};

/// How long all may take to be back: the longest that clients are asked to stay away, and a minute.
const BACK_MAX: Duration = Duration::from_secs(660);

/// What was counted up to the restart, from there until all were back, and when it began.
struct Parts {
    before: Tally,
    around: Tally,
    asked_micros: u64,
}

impl Stage<'_> {
    pub(super) async fn restart(&mut self) -> Result<Report, RunError> {
        let mut test = self.begin(Kind::Restart, 1).await?;
        let users = self.present_users(&test);
        let connected = test.report.connections.connected;
        let rate = self.plan.rate.filter(|rate| *rate > 0.0).unwrap_or(RATE);
        let pace = Pace::Every { interval: Duration::from_secs_f64(1.0 / rate), count: u64::MAX };
        let over = Arc::new(AtomicBool::new(false));
        let callers = self.plan.callers.unwrap_or(1);
        let work = self.work(&test, users, callers, pace);
        // A gateway that stops takes nothing until it is there again, which is what this is about.
        let patience = work.patience.max(BACK_MAX);
        let work = Work { again: true, over: Some(Arc::clone(&over)), patience, ..work };
        self.fleet.order(Doing::Return);
        let began = self.fleet.live().now_micros();
        let parts = async {
            let parts = self.parts(connected).await;
            over.store(true, Ordering::Relaxed);
            parts
        };
        let (sent, parts) = tokio::join!(self.send(Kind::Restart, &work, 0), parts);
        let Parts { before, around, asked_micros } = parts?;
        self.wait_for(Kind::Restart, self.due(&test, &sent), |slots| self.lost(&test, slots, &sent)).await;
        let after = self.fleet.collect().await.tally;
        let mut restart = Restart::of(asked_micros, &before, &around, &after);
        restart.sent_again = sent.again;
        for part in [before, around, after] {
            test.all.tally.add(part);
        }
        self.end(&mut test, began).await;
        restart.back = test.present(&test.all.slots).filter(|slot| slot.open).count() as u64;
        test.report.sent(&sent, None, began);
        test.report.planned = true;
        test.report.latency = crate::stress::report::Latency::of(&test.all.tally.present);
        test.report.restart = Some(restart);
        self.account(&mut test, &sent);
        Ok(test.report)
    }

    /// Sends for a while, has the gateway restarted, waits until all are back, and sends for another while.
    async fn parts(&self, connected: u64) -> Result<Parts, RunError> {
        let (live, part) = (self.fleet.live(), self.plan.duration / 2);
        tokio::time::sleep(part).await;
        let before = self.fleet.collect().await.tally;
        let asked_micros = live.now_micros();
        self.have_it_restarted().await?;
        let back =
            || live.returns.load(Ordering::Acquire) >= connected && live.open.load(Ordering::Acquire) >= connected;
        while !back() && live.now_micros() - asked_micros < BACK_MAX.as_micros() as u64 {
            tokio::time::sleep(LOOK).await;
        }
        let around = self.fleet.collect().await.tally;
        tokio::time::sleep(part).await;
        Ok(Parts { before, around, asked_micros })
    }

    async fn have_it_restarted(&self) -> Result<(), RunError> {
        let Plan { restart: Some(command), .. } = self.plan else {
            self.watch.says("restart the gateway now");
            return Ok(());
        };
        self.watch.says(&format!("restarting the gateway: {command}"));
        let mut shell = Command::new("/bin/sh");
        // Its standard output is not the report's.
        shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null());
        let ended = tokio::task::spawn_blocking(move || shell.status()).await;
        match ended.map_err(std::io::Error::other).flatten() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(RunError::Restart(status.to_string())),
            Err(error) => Err(RunError::Restart(error.to_string())),
        }
    }
}
