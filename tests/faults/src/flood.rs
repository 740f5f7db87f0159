//! Who connects to do harm.
