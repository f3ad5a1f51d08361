//! Who did what to whom: one line for each call that closes, revokes, clears or forgets something, whether it was done or
//! refused. Always the same fields: `action`, `caller`, `subject` and `result`, under the target `pushgate::audit`, so that a
//! log's filter can keep them apart. No token and no payload is in it, and nothing that could break the line.

use std::fmt;

use super::{ApiError, Caller};

/// How much of what a caller names is shown.
const NAME_CHARS_MAX: usize = 256;

/// Writes the line. `subject` is what the request names, checked or not.
pub(super) fn note<T>(
    action: &'static str,
    caller: &Caller,
    subject: &Subject<'_>,
    outcome: &Result<T, ApiError>,
    done: impl FnOnce(&T) -> String,
) {
    let result = match outcome {
        Ok(answer) => done(answer),
        Err(error) => format!("refused: {}", error.name()),
    };
    tracing::info!(target: "pushgate::audit", action, caller = %caller.name, %subject, %result, "audit");
}

/// What a call is about: names and their values; those without one are left out.
pub(super) struct Subject<'a>(pub(super) &'a [(&'static str, Option<&'a str>)]);

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there = self.0.iter().filter_map(|(name, value)| Some((name, (*value)?)));
        for (index, (name, value)) in there.enumerate() {
            let shown: String = value.chars().take(NAME_CHARS_MAX).collect();
            write!(f, "{}{name} {}", if index == 0 { "" } else { ", " }, shown.escape_debug())?;
        }
        Ok(())
    }
}

/// What was named, where it was.
pub(super) fn named(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_names_cannot_break_the_line() {
        let long = "x".repeat(1000);
        let subject = Subject(&[("user", Some("a\n\u{1b}[31m\"b")), ("device", None), ("session", Some(&long))]);
        let shown = subject.to_string();
        assert!(shown.starts_with("user a\\n\\u{1b}[31m\\\"b, session xxx"), "{shown}");
        assert!(shown.len() < 400 && !shown.contains('\n'));
    }
}
