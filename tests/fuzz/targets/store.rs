//! What the store reads from disk: keys, rows and records, as if a stranger had written them.

use pushgate::store::fuzzing;

use super::{kind, size};
use crate::memory;

pub const WORDS: &[&[u8]] = &[
    b"\x05alice",
    b"\x05phone",
    b"\0\0\0\0\0\0\0\x01",
    b"\x00\x1f\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\x80\x01",
    b"{\"n\":1}",
    b"\xE2\x98\x83",
    b"\x02\x00\x00\x00",
    b"\x02\x3f",
];

/// A key is read in one way and written in one way.
pub fn keys(input: &[u8]) -> u64 {
    let (again, peak) = memory::peak_of(|| fuzzing::key(input));
    assert!(peak <= 8 * input.len() + 1024, "held {peak} bytes for a key of {}", input.len());
    if let Some(again) = &again {
        assert_eq!(again, input, "written again it is another key");
    }
    kind((again.is_some(), input.first(), size(input.len())))
}

/// The first byte says which kind of row, the rest is its value. What is read and written again reads the same.
pub fn records(input: &[u8]) -> u64 {
    let Some((&which, row)) = input.split_first() else { return 0 };
    let (first, peak) = memory::peak_of(|| fuzzing::row(which, row));
    // A list of users takes more as such than as bytes.
    assert!(peak <= 64 * row.len() + 4096, "held {peak} bytes for a row of {}", row.len());
    if let Ok(read) = &first {
        let again = fuzzing::row(which, &read.written).expect("what was written can be read");
        assert_eq!(again.meaning, read.meaning);
        assert_eq!(again.written, read.written, "written twice, it is another row");
    }
    let kind_of = first.as_ref().map(|read| size(read.written.len())).map_err(|why| *why);
    kind((which % fuzzing::ROWS, kind_of, row.get(1), size(row.len())))
}
