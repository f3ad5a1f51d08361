//! The store in one process, over an embedded engine: a sequencer gives offsets, one writer thread commits, a few
//! reader threads read pages. [`engine`] is all that an engine must do, [`kind`] what is to be known of one before it is
//! opened.

mod aside;
pub mod backup;
mod batch;
mod changes;
#[cfg(test)]
mod conformance;
pub mod engine;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod haste;
pub mod keys;
pub mod kind;
mod migrate;
pub mod open;
mod progress;
pub mod queries;
mod queue;
pub mod reader;
pub mod record;
pub mod recovery;
mod redb;
mod room;
mod rows;
pub mod sequencer;
pub mod shared;
mod sled;
mod suspect;
pub mod tools;
pub mod watchdog;
pub mod witness;
pub mod writer;

pub use shared::Permit;

/// What a panic said.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
