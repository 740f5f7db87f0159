//! Where a scheduler keeps pipelines: a file in its data directory, or a database that it shares
//! with others.

use std::path::PathBuf;

use clap::Args;

/// The store of a scheduler.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Scheduler")]
pub(crate) struct StoreAt {
    /// PostgreSQL database in which pipelines are kept, such as postgres://USER:PASSWORD@HOST/NAME:
    /// several schedulers share one, and take over from each other. A SQLite file in the data
    /// directory if not given
    #[arg(long, env = "ZEX_STORE", value_name = "URL", hide_env_values = true)]
    pub(crate) store: Option<String>,
    /// Authorities that may vouch for a database whose URL ends in ?sslmode=require, PEM; those of
    /// the system if not given
    #[arg(long, env = "ZEX_STORE_CA", value_name = "FILE", requires = "store")]
    pub(crate) store_ca: Option<PathBuf>,
}
