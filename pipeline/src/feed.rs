//! Steps whose method takes a stream of messages, and steps that send messages into one
//! that is open: what a definition says of them.
//!
//! ```yaml
//! - {id: upload, call: shop.Files/Upload, each: parts, input: "{{ item }}"} # one call for all
//! - id: booking
//!   call: shop.Ledger/Book
//!   stream: open                         # until all else of the run has succeeded
//!   input: {text: "run {{ run.id }}"}    # its first message
//! - {id: entry, send: booking, input: {text: "order {{ order.id }}"}}
//! ```
//!
//! Called by `definition` and `own`. `plan::feed` checks it, `run::feed` does it.

use crate::definition::{Step, each, input};
use crate::fields::Fields;
use crate::own::Own;
use crate::problem::{Place, Problems, suggest};

/// Items of a step that sends whose messages are on their way to disk at once: enough for
/// one append to carry many.
const SENDS_AT_ONCE: u32 = 256;

/// A step that sends messages into an open stream.
#[derive(Debug)]
pub struct Sending {
    /// The step whose stream it is.
    pub to: String,
    /// Where that stands.
    pub place: Place,
}

/// Reads `stream`: whether the step's stream stays open.
pub(crate) fn stays_open(fields: &mut Fields<'_>, problems: &mut Problems) -> bool {
    let Some((word, place)) = fields.text("stream", problems) else { return false };
    if word != "open" {
        let near = suggest(&word, ["open"]);
        problems.add(&place, format!("`open` is wanted, not `{word}`{near}"));
    }
    true
}

/// Reads the rest of a step that sends.
pub(crate) fn sending(mut fields: Fields<'_>, step: Step, problems: &mut Problems) -> Option<Step> {
    let to = fields.text("send", problems);
    let items = fields.take("each").and_then(|(node, place)| each(node, place, problems));
    let step = Step {
        input: input(&mut fields, problems),
        each: items,
        concurrency: SENDS_AT_ONCE,
        own: None,
        ..step
    };
    if step.artifact.is_some() {
        problems.add(&step.place.field("artifact"), "a step that sends gives nothing to keep");
    }
    fields.close_as("a step that sends", problems);
    let (to, place) = to?;
    Some(Step { own: Some(Own::Send(Sending { to, place })), ..step })
}

#[cfg(test)]
mod tests {
    use crate::definition::parse;
    use crate::own::Own;

    #[test]
    fn streams_and_what_is_sent_are_read() {
        let text = "name: t\nsteps:\n  - {id: tx, call: a.B/C, stream: open}\n  - {id: s, send: tx, each: '{{ params.x }}', input: {y: 1}}\n";
        let definition = parse(text).unwrap_or_else(|why| panic!("{why}"));
        assert!(definition.steps[0].open && !definition.steps[1].open);
        let Some(Own::Send(sending)) = &definition.steps[1].own else { panic!("it sends") };
        assert_eq!((sending.to.as_str(), sending.place.line), ("tx", Some(4)));
        assert_eq!(definition.services().into_iter().collect::<Vec<_>>(), ["a.B"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (step, want) in [
            (
                "call: a.B/C, stream: opn",
                "steps[0].stream: `open` is wanted, not `opn`; did you mean `open`?",
            ),
            ("call: a.B/C, stream: 1", "steps[0].stream: text is wanted, this is a number"),
            (
                "call: a.B/C, send: t",
                "steps[0]: a step has one of `call`, `wait`, `pipeline` and `send`",
            ),
            ("send: t, retry: {}", "steps[0].retry: unknown field `retry`; a step that sends has"),
            ("send: t, artifact: x", "steps[0].artifact: a step that sends gives nothing to keep"),
            ("send: [t]", "steps[0].send: text is wanted, this is a list"),
        ] {
            let text = format!("name: t\nsteps: [{{id: a, {step}}}]");
            let why = parse(&text).expect_err(step).to_string();
            assert!(why.contains(want), "{step}: {why}");
        }
    }
}
