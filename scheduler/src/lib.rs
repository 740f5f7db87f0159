//! The scheduler of the Zex mesh: takes pipelines, keeps them, runs them.
//!
//! ```text
//!            mesh                                 this crate                        disk
//!  zex.Pipelines ─▶ worker SDK ─▶ service ─▶ prepare ─▶ store.create ──────────▶ ┌───────┐
//!                                              │ spawn                           │ store │
//!                                              ▼                                 │       │
//!  any service ◀── client ◀── calls ◀── task (one a run) ⇄ zex_pipeline::Run ──▶ │       │
//!                                              │ events                          └───────┘
//!  who watches ◀───────────── service ◀────────┴──── read ◀──────────────────────────┘
//! ```
//!
//! The scheduler uses the public SDK only: towards the mesh it is a worker and a
//! client like any other. What a run decides is in `zex_pipeline`; here are the
//! clock, the calls, the store and the people who ask.
//!
//! | module | for |
//! | --- | --- |
//! | [`store`] | runs, journals and descriptors that outlive the process |
//! | `scheduler` | start, stop, what all parts share |
//! | `task` | one run: load, drive, again when it was evicted |
//! | `calls` | the calls and streams of one run that are in flight |
//! | `known` | the services that were ever seen, with their descriptors |
//! | `prepare` | a definition and parameters into what runs |
//! | `service` | `zex.Pipelines`, served to the mesh |
//! | `watch` | events of a run, from any offset, live |
//! | `views` | runs, steps and records as protobuf messages |

mod calls;
mod known;
mod prepare;
mod scheduler;
mod service;
pub mod store;
mod task;
mod views;
mod watch;

pub use scheduler::{Scheduler, SchedulerError, SchedulerSettings};
pub use service::SERVICE;
