//! Who did what to whom: one line for each call that closes, revokes, clears or forgets something, whether it was done,
//! refused, or given up by its caller while it was under way. Always the same fields: `action`, `caller`, `subject` and
//! `result`, under the target `pushgate::audit`, so that a log's filter can keep them apart. No token and no payload is in it,
//! and nothing that could break the line.
//!
//! The rule: [`begin`] comes before the work. A call whose deadline ends, or that is reset, is dropped in the middle of its
//! work, which may be done all the same; whoever comes to note the outcome after it would say nothing of such a call.

use std::fmt;

use super::{ApiError, Caller};

/// How much of what a caller names is shown.
const NAME_CHARS_MAX: usize = 256;

/// What stands in a line whose call came to no outcome.
const GIVEN_UP: &str = "given up by its caller; may have been done";

/// A line that is yet to be written: with the outcome, or, where it is dropped without one, with the word that there is none.
pub(super) struct Line<'a> {
    action: &'static str,
    caller: &'a Caller,
    subject: String,
    noted: bool,
}

/// Begins the line of a call that may change something from here on. `subject` is what the request names, checked or not.
pub(super) fn begin<'a>(action: &'static str, caller: &'a Caller, subject: &Subject<'_>) -> Line<'a> {
    Line { action, caller, subject: subject.to_string(), noted: false }
}

impl Line<'_> {
    /// Writes it.
    pub(super) fn note<T>(mut self, outcome: &Result<T, ApiError>, done: impl FnOnce(&T) -> String) {
        self.noted = true;
        write(self.action, self.caller, &self.subject, &result(outcome, done));
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.noted {
            write(self.action, self.caller, &self.subject, GIVEN_UP);
        }
    }
}

/// Writes the line of a call that cannot be given up on its way, or has changed nothing.
pub(super) fn note<T>(
    action: &'static str,
    caller: &Caller,
    subject: &Subject<'_>,
    outcome: &Result<T, ApiError>,
    done: impl FnOnce(&T) -> String,
) {
    write(action, caller, &subject.to_string(), &result(outcome, done));
}

fn result<T>(outcome: &Result<T, ApiError>, done: impl FnOnce(&T) -> String) -> String {
    match outcome {
        Ok(answer) => done(answer),
        Err(error) => format!("refused: {}", error.name()),
    }
}

fn write(action: &'static str, caller: &Caller, subject: &str, result: &str) {
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
    use std::{io, sync::Arc};

    use parking_lot::Mutex;

    use super::*;
    use crate::api::scope::ScopeSet;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whatever_becomes_of_a_call_it_is_one_line() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let caller = Caller::new("ops", ScopeSet::ALL);
        let line = |jti: &str| begin("revoke", &caller, &Subject(&[("jti", Some(jti))]));
        tracing::subscriber::with_default(subscriber, || {
            line("done").note(&Ok(3), |closed| format!("{closed} closed"));
            line("refused").note(&Err::<u32, _>(ApiError::DeadlineExceeded), |_| unreachable!());
            drop(line("dropped"));
            // As a call is dropped whose deadline ends: at an await of its work.
            let work = async {
                let line = line("given up");
                std::future::pending::<()>().await;
                line.note(&Ok(()), |()| unreachable!());
            };
            let mut work = Box::pin(work);
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(work.as_mut().poll(&mut context).is_pending());
        });
        let log = String::from_utf8(log.0.lock().clone()).unwrap();
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines.len(), 4, "{log}");
        let given_up = "given up by its caller; may have been done";
        for (line, (jti, result)) in lines.iter().zip([
            ("done", "3 closed"),
            ("refused", "refused: DEADLINE_EXCEEDED"),
            ("dropped", given_up),
            ("given up", given_up),
        ]) {
            assert!(
                line.contains(&format!("subject=jti {jti} ")) && line.contains(&format!("result={result}")),
                "{line}"
            );
            assert!(line.contains("action=\"revoke\"") && line.contains("caller=ops"), "{line}");
        }
    }

    #[test]
    fn what_a_caller_names_cannot_break_the_line() {
        let long = "x".repeat(1000);
        let subject = Subject(&[("user", Some("a\n\u{1b}[31m\"b")), ("device", None), ("session", Some(&long))]);
        let shown = subject.to_string();
        assert!(shown.starts_with("user a\\n\\u{1b}[31m\\\"b, session xxx"), "{shown}");
        assert!(shown.len() < 400 && !shown.contains('\n'));
    }
}
