//! `zex pipeline signal …`: tells a run that something has happened.

use anyhow::{Context as _, bail};
use clap::Args;
use zex_spec::proto::SignalRequest;

use super::{Common, changed};
use crate::pipelines::Pipelines;
use crate::reach::Reach;

/// Tell a run that something has happened that one of its steps waits for
///
/// One that comes before the step waits is kept.
#[derive(Args, Debug)]
#[command(
    override_usage = "zex pipeline signal [OPTIONS] <RUN> <NAME> [JSON]\n       zex pipeline signal --run-key <KEY> <NAME> [JSON]"
)]
pub(super) struct SignalArgs {
    /// The run's id, unless a key is given; the signal's name; what there is to say, JSON
    #[arg(value_name = "RUN NAME JSON", required = true, num_args = 1..=3)]
    words: Vec<String>,
    /// The run that has this key (`--key` is the file with this process's own)
    #[arg(long, value_name = "KEY")]
    run_key: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Tells it and prints how the run is.
pub(super) async fn run(args: SignalArgs) -> anyhow::Result<()> {
    let request = request(args.words, args.run_key)?;
    let reach = Reach::connect(&args.common.in_pipes)?;
    let pipelines = Pipelines(&reach);
    changed(&pipelines, pipelines.signal(&request).await, args.common.json).await
}

fn request(words: Vec<String>, key: Option<String>) -> anyhow::Result<SignalRequest> {
    let mut words = words.into_iter();
    let run_id = if key.is_none() { words.next().unwrap_or_default() } else { String::new() };
    let Some(name) = words.next() else { bail!("the name of the signal is missing") };
    let payload_json = words.next().unwrap_or_default();
    if let Some(more) = words.next() {
        bail!("`{more}` is one too many: a run or --run-key, a name, and JSON");
    }
    if !payload_json.is_empty() {
        serde_json::from_str::<serde_json::Value>(&payload_json)
            .with_context(|| format!("`{payload_json}` is not JSON; text is written '\"text\"'"))?;
    }
    Ok(SignalRequest { run_id, key: key.unwrap_or_default(), name, payload_json })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_by_their_places() {
        let read = |words: &[&str], key: Option<&str>| {
            let words = words.iter().map(|word| (*word).to_owned()).collect();
            request(words, key.map(str::to_owned))
        };
        let signal = read(&["r", "ok", "{\"by\": 1}"], None).unwrap();
        assert_eq!((signal.run_id.as_str(), signal.name.as_str()), ("r", "ok"));
        let signal = read(&["ok", "7"], Some("k")).unwrap();
        assert_eq!((signal.key.as_str(), signal.payload_json.as_str()), ("k", "7"));
        for (words, key, want) in [
            (vec!["r"], None, "the name of the signal is missing"),
            (vec!["r", "ok", "yes"], None, "`yes` is not JSON"),
            (vec!["ok", "1", "2"], Some("k"), "`2` is one too many"),
        ] {
            let said = read(&words, key).unwrap_err().to_string();
            assert!(said.contains(want), "{words:?}: {said}");
        }
    }
}
