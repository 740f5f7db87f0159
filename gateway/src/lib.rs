//! The front door of the mesh: one HTTP/2 port through which any gRPC client calls any method of any
//! service that is registered, without generated code on this side.
//!
//! ```text
//!   gRPC client, grpcurl ─ HTTP/2 ────┐
//!   browser ─ gRPC-Web, HTTP/1.1 or 2 ┴▶ Gateway ── zex_client::Client ─▶ the mesh ─▶ a worker
//! ```
//!
//! - [`Gateway`]: listens, answers, drains. [`Settings`]: where, and within which bounds.
//! - `grpc`: how a call comes in and goes on, reflection of the whole mesh, its health.
//!
//! Calls can be recorded into pipelines instead of being made (`zex.v1.Pipelines`, `zex.v1.Zex`).
//!
//! It is a client of the mesh like any other: it picks no worker, and keeps nothing but recordings. Used by
//! `zex gateway` and `zex up`.

mod grpc;

pub use grpc::{
    Adapters, DEFAULT_CONNECTIONS, DEFAULT_DEADLINE, DEFAULT_KEEPALIVE, DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_RECORDING_TIME, DEFAULT_RECORDINGS, DEFAULT_STREAMS, Gateway, GatewayError, Settings,
};
