//! Real processes and bad days: each file is one of them, decided by ledger and effects. One runs at
//! a time. `ZEX_FAULTS=full cargo test -p zex-faults` takes the full numbers.

#![allow(clippy::unwrap_used)] // All of this is tests.

mod brokers_and_pipes;
mod chain;
mod cut_off;
mod disks;
mod flood;
mod items;
mod keys;
mod rolling;
mod schedulers;
mod slow;
mod soak;
mod streams;
mod worker_kill;
