//! What all pipelines of a scheduler together may take.

use clap::Args;
use zex_scheduler::SchedulerLimits;

/// The bounds of a scheduler.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Scheduler")]
pub(crate) struct Bounds {
    /// Calls of pipelines in flight, over all runs; runs share them fairly
    #[arg(long, env = "ZEX_MAX_CALLS", value_name = "CALLS", default_value_t = 8192,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_calls: u32,
    /// Memory for items that runs have read ahead of their calls, over all runs
    #[arg(long, env = "ZEX_MAX_BUFFER", value_name = "SIZE", default_value = "256MiB",
          value_parser = size)]
    max_buffer: u64,
    /// The most that the scheduler's store may take on disk; what the disk has if not given. When
    /// it is full, runs wait
    #[arg(long, env = "ZEX_MAX_DISK", value_name = "SIZE", value_parser = size)]
    pub(crate) max_disk: Option<u64>,
}

impl Bounds {
    /// For the scheduler.
    pub(crate) fn limits(&self) -> SchedulerLimits {
        SchedulerLimits {
            calls: self.max_calls as usize,
            buffer_bytes: usize::try_from(self.max_buffer).unwrap_or(usize::MAX),
        }
    }
}

fn size(text: &str) -> Result<u64, String> {
    let bytes = zex_pipeline::limits::size_bytes(text).filter(|bytes| *bytes >= 1 << 20);
    bytes.ok_or_else(|| "write it as 16MiB or 2GiB, at least 1MiB".to_owned())
}
