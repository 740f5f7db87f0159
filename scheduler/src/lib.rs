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
//! | `lease` | which runs are this scheduler's, where several share a store |
//! | `letters`, `others` | asking the scheduler that has a run; news of such runs |
//! | `handle` | what reaches the task of a run |
//! | `calls` | the calls and streams of one run that are in flight |
//! | `changed` | steps whose methods have changed since they were recorded |
//! | `budget`, `places` | what a run may take: calls, memory, disk |
//! | `preferred` | calls that are better made by workers with a label |
//! | `known` | the services that were ever seen, with their descriptors |
//! | `accept` | a definition into a run that is kept |
//! | `keys` | one run with a key at a time |
//! | `subruns`, `saved` | pipelines that steps run, and those that are stored by name |
//! | `schedules` | runs by the calendar |
//! | `hooks`, `retention` | whom a run tells, and how long it is kept |
//! | `artifacts` | what a run keeps for others |
//! | `prepare` | a definition and parameters into what runs |
//! | `service` | `zex.Pipelines`, served to the mesh |
//! | `watch` | events of a run, from any offset, live |
//! | `views` | runs, steps and records as protobuf messages |

mod accept;
mod artifacts;
mod budget;
mod calls;
mod changed;
mod extensions;
mod handle;
mod hooks;
mod keys;
mod known;
mod lease;
mod letters;
mod others;
mod places;
mod preferred;
mod prepare;
mod retention;
mod saved;
mod scheduler;
mod schedules;
mod service;
pub mod store;
mod subruns;
mod task;
mod views;
mod watch;

pub use budget::SchedulerLimits;
pub use scheduler::{Scheduler, SchedulerError, SchedulerSettings};
pub use service::SERVICE;
