//! A worker that stands next to any gRPC service and calls it by reflection.
//!
//! ```text
//!   mesh ◀──▶ zex-worker ◀── Adapter ── call ──▶ gRPC service
//!                               ▲                  │  │
//!                               └── follow ◀───────┘  │ reflection, health
//!                                     ▲───────────────┘
//! ```
//!
//! * [`Adapter`]: what drives the rest.
//! * [`target`]: where the service is, and the line to it.
//! * [`reflection`]: what the service offers.
//! * [`call`]: any method, with bytes that stay bytes.
//! * [`follow`]: is it there, and which of it takes work?

mod adapter;
pub mod call;
mod cause;
pub mod follow;
mod health;
pub mod reflection;
pub mod target;

pub use adapter::Adapter;
pub use follow::{Follower, Offer};
pub use reflection::{Catalogue, Kind, Method, ReflectionError, Service};
pub use target::{Line, Target, TargetError};
