//! Patterns over a line of text, such as a user agent: `*` is any run of characters, also none, `?` any one, everything
//! else itself, whatever its case. A pattern is for the whole text.
//!
//! Matching runs the pattern's automaton with a bit a state and all states at once (Baeza-Yates and Gonnet, "A new
//! approach to text searching", Communications of the ACM 35(10), 1992): a byte of the text costs as much whatever came
//! before it and whatever the pattern is, so nobody can write one that takes long. Nothing is allocated.

use super::InvalidId;
use crate::limits;

/// The words that hold a bit for each state: before the first sign of a pattern, and behind each.
const WORDS_MAX: usize = limits::PATTERN_BYTES_MAX / u64::BITS as usize + 1;
/// What a byte can be.
const BYTES: usize = 256;

/// A pattern: 1 to 256 printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    /// How many words its states take.
    words: usize,
    /// For each byte, so many words: the states that it leads on from.
    steps: Box<[u64]>,
    /// The states that every byte leads back to: those before a `*`.
    stays: [u64; WORDS_MAX],
    /// The state in which the text has matched: behind all signs.
    end: usize,
}

impl Glob {
    /// Checks and takes a pattern.
    ///
    /// # Errors
    /// Too short or too long, or a character that no text that it is for can hold.
    pub fn parse(pattern: &str) -> Result<Self, InvalidId> {
        let (what, len) = ("a pattern", pattern.len());
        if !(1..=limits::PATTERN_BYTES_MAX).contains(&len) {
            return Err(InvalidId::Length { what, min: 1, max: limits::PATTERN_BYTES_MAX, len });
        }
        if !pattern.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return Err(InvalidId::Charset {
                what,
                allowed: "printable ASCII characters; `*` is any run, `?` any one",
            });
        }
        let end = pattern.bytes().filter(|byte| *byte != b'*').count();
        let words = end / u64::BITS as usize + 1;
        let mut glob = Self { words, steps: vec![0; BYTES * words].into(), stays: [0; WORDS_MAX], end };
        let mut state = 0;
        for sign in pattern.bytes() {
            let (word, bit) = place(state);
            let mut leads_on = |byte: usize| glob.steps[byte * words + word] |= bit;
            match sign {
                b'*' => {
                    glob.stays[word] |= bit;
                    continue;
                }
                b'?' => (0..BYTES).for_each(leads_on),
                sign => {
                    leads_on(sign.to_ascii_lowercase().into());
                    leads_on(sign.to_ascii_uppercase().into());
                }
            }
            state += 1;
        }
        Ok(glob)
    }

    /// Whether it is a pattern of the whole text.
    pub fn matches(&self, text: &str) -> bool {
        let mut states = [0_u64; WORDS_MAX];
        states[0] = 1;
        for byte in text.bytes() {
            let steps = &self.steps[usize::from(byte) * self.words..][..self.words];
            let (mut carried, mut alive) = (0, 0);
            for ((state, step), stay) in states.iter_mut().zip(steps).zip(&self.stays) {
                let on = *state & step;
                *state = on << 1 | carried | *state & stay;
                carried = on >> (u64::BITS - 1);
                alive |= *state;
            }
            if alive == 0 {
                return false;
            }
        }
        let (word, bit) = place(self.end);
        states[word] & bit != 0
    }
}

/// Where a state's bit is.
fn place(state: usize) -> (usize, u64) {
    (state / u64::BITS as usize, 1 << (state % u64::BITS as usize))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Glob::parse(pattern).unwrap().matches(text)
    }

    /// The same by its definition, by trying every end of every `*`.
    fn tried(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], rest) => rest.is_empty(),
            ([b'*', behind @ ..], rest) => (0..=rest.len()).any(|skip| tried(behind, &rest[skip..])),
            ([b'?', behind @ ..], [_, rest @ ..]) => tried(behind, rest),
            ([sign, behind @ ..], [byte, rest @ ..]) => sign.eq_ignore_ascii_case(byte) && tried(behind, rest),
            (_, []) => false,
        }
    }

    #[test]
    fn a_pattern_is_for_the_whole_text_whatever_its_case() {
        const CHROME: &str =
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36";
        for yes in ["*", "*chrome/1??.*", "Mozilla/5.0*LINUX*", CHROME, "**", "*36", "?ozilla*"] {
            assert!(matches(yes, CHROME), "{yes}");
        }
        for no in ["Chrome", "*Firefox*", "Mozilla", "*Chrome/??.*", "?", "*Safari", "Safari*"] {
            assert!(!matches(no, CHROME), "{no}");
        }
        assert!(matches("*", "") && !matches("?", "") && !matches("a", ""));
        assert!(matches("a", "A") && matches("A", "a") && matches("[x]", "[X]") && !matches("[x]", "x"));
    }

    #[test]
    fn a_pattern_has_1_to_256_printable_characters() {
        assert!(matches!(Glob::parse(""), Err(InvalidId::Length { len: 0, .. })));
        assert!(matches!(Glob::parse(&"*".repeat(257)), Err(InvalidId::Length { max: 256, len: 257, .. })));
        for bad in ["a\0", "\t", "ä", "a\u{7f}"] {
            assert!(matches!(Glob::parse(bad), Err(InvalidId::Charset { .. })), "{bad:?}");
        }
        for full in ["x".repeat(256), "?".repeat(256), format!("*{}", "x".repeat(255))] {
            assert!(matches(&full, &"X".repeat(256)), "{full}");
            assert!(!matches(&full, &"X".repeat(254)), "{full}");
        }
        assert!(matches(&"*".repeat(256), "anything"));
    }

    #[test]
    fn no_pattern_takes_long() {
        let text = "a".repeat(limits::USER_AGENT_BYTES_MAX);
        let hostile = ["*a".repeat(127) + "*b", "a*".repeat(127) + "b", "*?".repeat(127) + "b", "*aaaaaaab".repeat(28)];
        let begun = Instant::now();
        for pattern in hostile.map(|pattern| Glob::parse(&pattern).unwrap()) {
            for _ in 0..1000 {
                assert!(!std::hint::black_box(&pattern).matches(&text));
            }
        }
        // Tried end by end, one alone would outlast the machine; this is a thousandth of the time it has on a slow one.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    proptest! {
        #[test]
        fn it_finds_what_trying_every_end_finds(pattern in "[ab?*]{1,12}", text in "[abAB]{0,12}") {
            prop_assert_eq!(matches(&pattern, &text), tried(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn words_join_without_a_seam(before in "[ab]{0,80}", behind in "[ab]{0,80}", text in "[ab]{0,200}") {
            let pattern = format!("{before}*{behind}?");
            let expected = text.len() > before.len() + behind.len()
                && text.starts_with(&before)
                && text[..text.len() - 1].ends_with(&behind);
            prop_assert_eq!(matches(&pattern, &text), expected);
            let whole = format!("{before}{text}{behind}");
            let around = format!("{before}*{behind}");
            prop_assert!(matches(&around, &whole));
        }
    }
}
