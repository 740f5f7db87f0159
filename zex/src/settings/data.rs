//! Where a role keeps what must outlive its process.

use std::path::PathBuf;

use clap::Args;

/// Used when nobody says where, below the working directory.
const DEFAULT: &str = "zex-data";

/// The directory of a role.
#[derive(Args, Clone, Debug)]
pub(crate) struct Data {
    /// Directory for what must outlive the process: the scheduler's store, and the ledger of
    /// `zex demo`. zex-data if not given; `zex demo` then uses a temporary one
    #[arg(long, env = "ZEX_DATA", value_name = "DIR", help_heading = "General")]
    pub(crate) data: Option<PathBuf>,
}

impl Data {
    /// What was given, or the default.
    pub(crate) fn directory(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| PathBuf::from(DEFAULT))
    }
}
