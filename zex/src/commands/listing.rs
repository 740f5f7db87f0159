//! The options that `services`, `workers` and `brokers` share.

use clap::Args;

use crate::settings::mesh::InPipes;

/// The options of a listing.
#[derive(Args, Debug)]
pub(crate) struct Listing {
    /// One JSON object a line, with the fields of spec/proto/zex
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) in_pipes: InPipes,
}
