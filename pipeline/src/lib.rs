//! The decisions of a pipeline: its definition, its checks, its runs, its journal.
//!
//! ```text
//!  YAML, JSON ─ definition ─▶ Definition ─┐
//!  FileDescriptorSets ─ catalog ─▶ Catalog ┴─ plan ─▶ Plan ─▶ run ⇄ records ⇄ store
//!                                                             │
//!                                                             └─▶ calls on the mesh
//! ```
//!
//! Pure: no sockets, clock, threads, files, no asynchronous runtime; `clippy.toml`
//! bans them. The scheduler drives a [`run::Run`]: it hands in what happened and
//! does what comes out. So a run can be tried out, crashed and recovered millions of
//! times in a test, from one seed.
//!
//! | module | for |
//! | --- | --- |
//! | [`document`] | text → a tree that remembers its lines |
//! | [`definition`] | the tree → parameters and steps, every field checked |
//! | [`failure`] | what it says of failure: retries, rescue, compensation |
//! | [`parameters`] | what a pipeline is started with |
//! | [`expression`] | what stands between `{{` and `}}` |
//! | [`catalog`] | the services that are known, by their descriptors |
//! | [`message`] | protobuf messages ⇄ the values of expressions |
//! | [`input`] | what a step sends, bound to its method's message |
//! | [`plan`] | a definition checked against the catalog |
//! | [`run`] | the state machine |
//! | [`record`] | the journal's records |
//! | [`state`] | the states of runs and steps |
//! | [`key`] | keys of calls, fingerprints of streams |
//! | [`problem`] | what is wrong, and where |

pub mod catalog;
pub mod definition;
pub mod document;
pub mod expression;
pub mod failure;
mod fields;
pub mod input;
pub mod key;
pub mod message;
mod names;
mod nesting;
pub mod parameters;
pub mod plan;
pub mod problem;
pub mod record;
pub mod run;
pub mod state;
#[cfg(test)]
mod testing;
