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
//! | [`begin`] | when a run begins, and its key |
//! | [`wait`], [`own`] | steps that wait, ask again, or run a pipeline |
//! | [`feed`] | steps that take streams of messages, and send into them |
//! | [`hook`], [`artifact`] | whom a run tells, what it keeps for others |
//! | [`change`] | what becomes of a step whose method has changed |
//! | [`schedule`], [`moment`] | runs by the calendar, points in time |
//! | [`json`] | values of the pipeline itself |
//! | [`failure`] | what it says of failure: retries, rescue, compensation |
//! | [`label`] | on which workers a step runs |
//! | [`extend`] | steps that a pipeline adds to another |
//! | [`limits`] | and what of the scheduler a run may take |
//! | [`parameters`] | what a pipeline is started with |
//! | [`expression`] | what stands between `{{` and `}}` |
//! | [`catalog`] | the services that are known, by their descriptors |
//! | [`message`] | protobuf messages ⇄ the values of expressions |
//! | [`input`] | what a step sends, bound to its method's message |
//! | [`plan`] | a definition checked against the catalog |
//! | [`run`] | the state machine |
//! | [`share`] | places, shared fairly between runs |
//! | [`record`] | the journal's records |
//! | [`recording`] | calls written down as a definition |
//! | [`state`] | the states of runs and steps |
//! | [`key`] | keys of calls, fingerprints of streams |
//! | [`problem`] | what is wrong, and where |

pub mod artifact;
pub mod begin;
pub mod catalog;
pub mod change;
pub mod definition;
pub mod document;
pub mod expression;
pub mod extend;
pub mod failure;
pub mod feed;
mod fields;
pub mod hook;
pub mod input;
pub mod json;
pub mod key;
pub mod label;
pub mod limits;
pub mod message;
pub mod moment;
mod names;
mod nesting;
pub mod own;
pub mod parameters;
pub mod plan;
pub mod problem;
pub mod record;
pub mod recording;
#[cfg(test)]
mod refusals;
pub mod run;
pub mod schedule;
mod shape;
pub mod share;
pub mod state;
#[cfg(test)]
mod testing;
pub mod wait;
