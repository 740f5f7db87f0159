//! Where a scheduler keeps pipelines: a file in its data directory, or a database that it shares
//! with others.

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
}
