//! How a node goes out of service, as callers and consumers of the event stream see it.

use super::UnixMillis;

/// How far a node is out of service; in the order of the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainState {
    /// It is in service.
    #[default]
    Serving,
    /// It says that it is not ready, and serves on, so that load balancers notice.
    NotReady,
    /// Nobody is let in any more; sessions are told to come back, and closed.
    Closing,
    /// There is no session left.
    Drained,
}

impl DrainState {
    /// Its name in log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            DrainState::Serving => "serving",
            DrainState::NotReady => "not ready",
            DrainState::Closing => "closing",
            DrainState::Drained => "drained",
        }
    }
}

/// A drain as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainProgress {
    /// How far it is.
    pub state: DrainState,
    /// Whether the process ends behind it.
    pub stopping: bool,
    /// The sessions that there were when the closing began; before that, those there are.
    pub sessions: u32,
    /// Those that are left.
    pub left: u32,
    /// When it will be over at the latest, where somebody said so.
    pub deadline: Option<UnixMillis>,
}

impl DrainProgress {
    /// This step, and before it those of the way from `before` that a reader did not see because he came too late for them.
    pub fn since(self, before: DrainState) -> impl Iterator<Item = DrainProgress> {
        let way = [DrainState::NotReady, DrainState::Closing, DrainState::Drained];
        let missed = way.into_iter().filter(move |&state| before < state && state < self.state);
        missed.map(move |state| DrainProgress { state, ..self }).chain([self])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_were_missed_come_first_and_in_order() {
        use DrainState::{Closing, Drained, NotReady, Serving};
        let way = |before, state| {
            let steps = DrainProgress { state, left: 3, ..DrainProgress::default() }.since(before);
            steps.inspect(|step| assert_eq!(step.left, 3)).map(|step| step.state).collect::<Vec<_>>()
        };
        assert_eq!(way(Serving, Drained), [NotReady, Closing, Drained]);
        assert_eq!(way(NotReady, Drained), [Closing, Drained]);
        assert_eq!(way(Serving, NotReady), [NotReady]);
        assert_eq!(way(Closing, Closing), [Closing]);
        // Back, and out again from the start.
        assert_eq!(way(Drained, Serving), [Serving]);
        assert_eq!(way(Drained, NotReady), [NotReady]);
    }
}
