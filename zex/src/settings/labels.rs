//! What is special about a worker, for steps of pipelines that ask for it.

use clap::Args;
use zex_worker::{LABEL_MAX_BYTES, is_label};

/// The labels of a worker.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Labels {
    /// What is special about this worker, for steps that say `on` or `prefer`: a word such as gpu,
    /// or a pair such as node=a; at most 8 of them
    #[arg(long = "label", env = "ZEX_LABEL", value_name = "LABEL", value_delimiter = ',')]
    #[arg(help_heading = "Mesh", value_parser = parse)]
    pub(crate) labels: Vec<String>,
}

fn parse(text: &str) -> Result<String, String> {
    let rule = "a label is a word such as gpu, or a pair such as node=a";
    let text = text.trim();
    is_label(text).then(|| text.to_owned()).ok_or_else(|| {
        format!("{rule}, of letters, digits, _, - and ., with at most {LABEL_MAX_BYTES} bytes")
    })
}
