//! For tests: a guest agent that does what it is told, or does not; and a source that fails where it is told to. Only
//! with the feature `testing`.

mod agent;
mod source;

pub use agent::{FakeAgent, Reaction};
pub use source::{Failure, FakeSource, Step};
