//! Log lines that anybody can cause as often as he likes: beyond so many, one line says how many more there were.

use std::sync::Arc;

use crate::{
    clock::Instant,
    lifecycle::Lifecycle,
    metrics::{Line, Repeats},
};

/// The lines of one kind.
pub struct Quiet {
    what: &'static str,
    life: Lifecycle,
    lines: Arc<Repeats>,
}

impl Quiet {
    /// Lines that say this.
    pub fn new(what: &'static str, life: &Lifecycle) -> Self {
        Self { what, life: life.clone(), lines: Arc::default() }
    }

    /// Whether one more is written.
    pub fn admits(&self) -> bool {
        let span = match self.lines.line(Instant::now()) {
            Line::Write => return true,
            Line::LeaveOut(None) => return false,
            Line::LeaveOut(Some(span)) => span,
        };
        let (what, lines, stopping) = (self.what, Arc::clone(&self.lines), self.life.stopping().clone());
        self.life.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(span) => {}
            }
            let more = lines.left_out();
            tracing::info!(more, "{more} more like this: {what}");
        });
        false
    }
}
