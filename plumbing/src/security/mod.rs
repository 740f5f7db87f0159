//! Who may connect: CURVE keys, and the list of what each key is allowed to be.
//!
//! ```text
//!   member ─ CURVE: own key, the pipes' public key ─▶ gate: its own key, an allow-list
//!                                                      └─ zap: key × role ─▶ in, or refused and counted
//! ```
//!
//! - [`Keys`], [`PublicKey`]: what `zex keygen` makes.
//! - [`AllowList`]: which key is a client, a worker of which services, a broker; [`AllowFile`]: the
//!   same in a file, read again when it changes.
//! - `zap`: the thread that libzmq asks about each new connection.
//!
//! Pipes are gates, all others are members; [`crate::Context`] gives every socket what it needs.

mod allow;
mod allow_file;
mod keys;
pub(crate) mod zap;

pub use allow::{AllowError, AllowList, Role};
pub use allow_file::{AllowFile, AllowFileError};
pub use keys::{KeyError, Keys, PublicKey};
