//! The commands, one file each: its part of the command line, and what it does.

pub(crate) mod pipe;
