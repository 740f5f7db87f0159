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
//! * [`target`]: where a service is, and the line to it; there can be several.
//! * [`reflection`]: what the service offers.
//! * [`Settings`]: encryption, compression, limits.
//! * [`call`]: any method, with bytes that stay bytes.
//! * [`follow`]: is it there, and which of it takes work?

mod adapter;
pub mod call;
mod cause;
mod cut;
pub mod follow;
mod health;
mod metadata;
pub mod reflection;
mod routes;
mod settings;
pub mod target;

pub use adapter::Adapter;
pub use follow::{Follower, Offer};
pub use reflection::{Catalogue, Kind, Method, ReflectionError, Service};
pub use settings::{Compression, Settings, Tls};
pub use target::{Line, Target, TargetError};
pub use zex_spec::schema::SCHEMA;
