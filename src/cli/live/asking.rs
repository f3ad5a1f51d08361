//! Asks the gateway again and again, and connects again where it was gone. What can't get better by asking again ends it.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    super::{
        connect::{Gateway, Target},
        failure::{Failure, Outcome},
        sessions::{self, Filter},
        status,
    },
    rank::{Best, Ranking},
};
use crate::api::proto;

/// The part of the time that listing all sessions may take: one in so many.
const LISTING_SHARE: u32 = 10;

/// What the gateway said.
pub enum News {
    /// How it does.
    Page(Box<proto::GetStatusResponse>),
    /// Its sessions.
    Sessions(Best),
    /// It said nothing: why. It is asked again.
    Nothing(String),
}

/// A connection that is made anew after a failure.
struct Link {
    target: Target,
    gateway: Option<Gateway>,
}

impl Link {
    async fn ask<T>(&mut self, question: impl AsyncFnOnce(&Gateway) -> Outcome<T>) -> Outcome<T> {
        let gateway = match self.gateway.take() {
            Some(gateway) => gateway,
            None => self.target.connect().await?,
        };
        let answer = question(&gateway).await?;
        self.gateway = Some(gateway);
        Ok(answer)
    }
}

/// Asks for the page every `period`, from now on by `gateway`. Ends with what no further question can mend.
pub async fn pages(target: Target, gateway: Gateway, period: Duration, news: mpsc::Sender<News>) -> Failure {
    let mut link = Link { target, gateway: Some(gateway) };
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let said = match link.ask(async |gateway| status::fetch(gateway).await).await {
            Ok(page) => News::Page(Box::new(page)),
            Err(failure) if failure.may_pass() => News::Nothing(failure.message().to_owned()),
            Err(failure) => return failure,
        };
        if news.send(said).await.is_err() {
            return Failure::reader_gone();
        }
    }
}

/// Lists the sessions every `period`, and less often where that takes long: it shall not be what the gateway does all day.
pub async fn listings(
    target: Target,
    filter: Filter,
    period: Duration,
    rows: usize,
    news: mpsc::Sender<News>,
) -> Failure {
    let mut link = Link { target, gateway: None };
    let mut ranking = Ranking::new(rows);
    loop {
        let began = Instant::now();
        let said = match link.ask(async |gateway| ranking.listed(gateway, &filter).await).await {
            Ok(best) => News::Sessions(best),
            Err(failure) if failure.may_pass() => News::Nothing(failure.message().to_owned()),
            Err(failure) => return failure,
        };
        if news.send(said).await.is_err() {
            return Failure::reader_gone();
        }
        sleep_until(began + period.max(began.elapsed() * LISTING_SHARE)).await;
    }
}

impl Ranking {
    /// Lists all that the filter lets through, page after page.
    pub async fn listed(&mut self, gateway: &Gateway, filter: &Filter) -> Outcome<Best> {
        let mut listing = self.begin(Instant::now());
        let listed = sessions::pages(gateway, filter, |sessions| {
            sessions.into_iter().for_each(|session| listing.add(session));
            listing.trim();
        });
        listed.await?;
        Ok(listing.end())
    }
}
