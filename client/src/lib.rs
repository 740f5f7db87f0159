//! The async client of the Zex mesh.
//!
//! ```text
//!   your tasks ─ Client (cheap to clone) ─ commands ─▶ one thread: core::session::client ⇄ DEALERs ⇄ in pipes
//!        ◀───────── oneshot / chunks ─────────────────┘
//! ```
//!
//! - [`Client`], [`Call`]: calls of all four kinds; each has one final outcome, by its deadline. A
//!   unary call is sent again safely under its key; a stream that breaks is `UNAVAILABLE`.
//!   [`Answer`]: a reply with the metadata around it.
//! - [`Replies`]: a stream of replies; credit flows as it is read, dropping it cancels.
//! - [`Requests`]: a stream of requests; sending waits for the worker, dropping it unfinished cancels.
//! - [`Mesh`]: what the brokers say of themselves, and the descriptors of services.
//! - [`Middleware`], [`Chain`]: what stands around every call, for metrics and the like.
//! - [`ez`]: one request in the dialect of 2020.
//!
//! ```no_run
//! use zex_client::{Call, Client, ClientOptions};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(["tcp://127.0.0.1:9000"], ClientOptions::default())?;
//! let reply = client.unary(Call::new("example.Echo", "Say", "hello")).await?;
//!
//! let mut replies = client.server_stream(Call::new("example.Users", "List", "")).await?;
//! while let Some(message) = replies.next().await {
//!     println!("{} bytes", message?.len());
//! }
//!
//! // Many requests; one reply (`only`) or many (`next`), in step or not.
//! let (requests, replies) = client.stream(Call::new("example.Sums", "Add", "")).await?;
//! for number in [1_u8, 2, 3] {
//!     requests.send(vec![number]).await?;
//! }
//! requests.finish().await;
//! let sum = replies.only().await?;
//! # drop((reply, sum));
//! # Ok(())
//! # }
//! ```
//!
//! Decisions (resends, deadlines, order of streams) are in `zex_core::session`; here are only the
//! thread with the sockets and the async surface. Bodies are bytes: this crate knows no protobuf
//! save that of `zex.Mesh`.

mod call;
mod client;
pub mod ez;
mod keys;
mod mesh;
mod replies;
mod requests;
mod thread;

pub use call::{Answer, Call};
pub use client::{Client, ClientError, ClientOptions};
pub use keys::random_key;
pub use mesh::Mesh;
pub use replies::Replies;
pub use requests::Requests;
pub use zex_core::session::client::Limits;
pub use zex_plumbing::{Chain, Middleware, Subject};
pub use zex_spec::{Code, Key, Metadata, MetadataError, Status};
