//! Who may connect: CURVE keys, and the list of what each key is allowed to be.
//!
//! ```text
//!   member ─ CURVE: own key, the pipes' public key ─▶ gate: its own key, an allow-list
//!                                                      └─ zap: key × role ─▶ in, or refused and counted
//! ```
//!
//! - [`Keys`], [`PublicKey`]: what `zex keygen` makes.
//! - [`AllowList`]: which key is a client, a broker, a worker of which services.
//! - `zap`: the thread that libzmq asks about each new connection.
//!
//! Pipes are gates, all others are members; [`crate::Context`] gives every socket what it needs.

mod allow;
mod keys;
pub(crate) mod zap;

pub use allow::{AllowError, AllowList, Role};
pub use keys::{KeyError, Keys, PublicKey};
