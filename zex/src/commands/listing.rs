//! What `services`, `workers` and `brokers` share: their options, and how protobuf messages become
//! lines of JSON.

use anyhow::Context as _;
use clap::Args;
use prost_reflect::DescriptorPool;
use prost_reflect::prost::Message;
use zex_spec::proto::DESCRIPTORS;

use crate::settings::mesh::InPipes;
use crate::{methods, output};

/// The options of a listing.
#[derive(Args, Debug)]
pub(crate) struct Listing {
    /// One JSON object a line, with the fields of spec/proto/zex
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) in_pipes: InPipes,
}

/// Prints messages of the type `zex.name`, a line each.
pub(crate) fn json_lines<M: Message>(name: &str, messages: &[M]) -> anyhow::Result<()> {
    let pool = DescriptorPool::decode(DESCRIPTORS).context("the built-in descriptors")?;
    let name = format!("zex.{name}");
    let message = pool.get_message_by_name(&name);
    let message = message.with_context(|| format!("{name} is not in the built-in descriptors"))?;
    for listed in messages {
        output::json(&methods::decode(&message, &listed.encode_to_vec())?)?;
    }
    Ok(())
}
