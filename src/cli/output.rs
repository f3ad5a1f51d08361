//! What a command prints: lines and JSON on standard output, notes on standard error, and how quantities read.
//!
//! Text that comes from clients and callers is shown without control characters, so that none of it can steer the
//! operator's terminal.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use serde::Serialize;

use super::failure::{EXIT_FAILURE, Failure, Outcome};

/// The width of lines where no terminal says otherwise.
const WIDTH_DEFAULT: usize = 100;
/// How often standard output is asked whether it is still read.
const CLOSED_INTERVAL: Duration = Duration::from_millis(250);

/// Prints a line.
///
/// # Errors
/// [`Failure::reader_gone`] where standard output is closed, a failure where it cannot be written.
pub fn line(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::reader_gone()),
        Err(error) => Err(Failure::new(EXIT_FAILURE, format!("cannot write to standard output: {error}"))),
    }
}

/// Prints one JSON document, indented.
pub fn document(value: &impl Serialize) -> Outcome {
    line(&serde_json::to_string_pretty(value).map_err(not_json)?)
}

/// Prints one line of JSON Lines.
pub fn json_line(value: &impl Serialize) -> Outcome {
    line(&serde_json::to_string(value).map_err(not_json)?)
}

fn not_json(error: serde_json::Error) -> Failure {
    Failure::new(EXIT_FAILURE, format!("the answer cannot be shown as JSON: {error}; is it from a newer gateway?"))
}

/// A note to the operator, beside what the command prints.
pub fn note(text: &str) {
    super::complain(text);
}

/// Resolves when nobody reads standard output any more; never for a file.
pub async fn closed() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut ticks = tokio::time::interval(CLOSED_INTERVAL);
    loop {
        ticks.tick().await;
        // Errors are told whatever is asked for (poll(2)): a pipe without a reader, a terminal that is gone.
        let stdout = io::stdout();
        let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
        let found = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        if found.is_ok_and(|n| n > 0) && polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return;
        }
    }
}

/// Whether standard output is a terminal.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// The width of a line.
pub fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns >= 20).unwrap_or(WIDTH_DEFAULT)
}

/// `text` with its control characters written out.
pub fn clean(text: &str) -> Cow<'_, str> {
    // Besides controls: those that reorder what a terminal shows (Unicode TR 36, section 2.5).
    let bad = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().fold(String::with_capacity(text.len() + 8), |mut out, c| {
        if bad(c) {
            out.extend(c.escape_unicode())
        } else {
            out.push(c)
        }
        out
    }))
}

/// A span in its two largest units: `3d4h`, `3m5s`, `1.2ms`.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let micros = span.as_micros();
    match (seconds, micros) {
        (86_400.., _) => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
        (3600.., _) => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        (60.., _) => format!("{}m{}s", seconds / 60, seconds % 60),
        (10.., _) => format!("{seconds}s"),
        (1.., _) => format!("{:.1}s", span.as_secs_f64()),
        (0, 10_000..) => format!("{}ms", micros / 1000),
        (0, 1000..) => format!("{:.1}ms", micros as f64 / 1000.0),
        (0, _) => format!("{micros}µs"),
    }
}

/// A number of bytes with three figures: `512B`, `1.2MiB`.
pub fn bytes(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1000.0 || unit == "TiB" {
            let precise = unit == "B" && value.fract() == 0.0 || value >= 100.0;
            return if precise { format!("{value:.0}{unit}") } else { format!("{value:.1}{unit}") };
        }
        value /= 1024.0;
    }
    unreachable!("the last unit takes every value")
}

/// `1 session`, `2 sessions`.
pub fn count(n: impl Into<u64>, what: &str) -> String {
    let n = n.into();
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// A duration as the proto has it.
pub fn duration(duration: Option<&prost_types::Duration>) -> Duration {
    duration.and_then(|duration| Duration::try_from(*duration).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_well() {
        let spans = [
            (0, "0µs"),
            (999, "999µs"),
            (1_200, "1.2ms"),
            (45_000, "45ms"),
            (5_100_000, "5.1s"),
            (185_000_000, "3m5s"),
            (11_520_000_000, "3h12m"),
            (273_600_000_000, "3d4h"),
        ];
        for (micros, text) in spans {
            assert_eq!(span(Duration::from_micros(micros)), text);
        }
        for (n, text) in [(0.0, "0B"), (512.0, "512B"), (0.5, "0.5B"), (1536.0, "1.5KiB"), (262_144.0, "256KiB")] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!((count(1u32, "session"), count(0u32, "session")), ("1 session".into(), "0 sessions".into()));
    }

    #[test]
    fn text_cannot_steer_the_terminal() {
        assert_eq!(clean("alice"), "alice");
        assert_eq!(clean("a\u{1b}[2Jb\u{9b}\n"), "a\\u{1b}[2Jb\\u{9b}\\u{a}");
    }
}
