//! The commands, one file each: its part of the command line, and what it does.

pub(crate) mod adapter;
pub(crate) mod agent;
pub(crate) mod agents;
pub(crate) mod bench;
pub(crate) mod broker;
pub(crate) mod brokers;
pub(crate) mod call;
pub(crate) mod demo;
pub(crate) mod gateway;
pub(crate) mod keygen;
mod listing;
pub(crate) mod pipe;
pub(crate) mod pipeline;
pub(crate) mod scheduler;
pub(crate) mod schedulers;
pub(crate) mod services;
pub(crate) mod up;
pub(crate) mod workers;
