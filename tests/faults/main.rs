//! The daemon as a process on a disk that fails, hangs, is full or loses its power. Run by `tests/faults.sh` and
//! `tests/powercut.sh`, which bring what a disk needs to do so: `tests/support/faults.c`, built, and a small file system.
//!
//! What is checked is what callers were told: everything that was answered STORED arrives.

mod daemon;
mod full;
mod power;
mod sync;
