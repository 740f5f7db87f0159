//! Steps whose method takes a stream of messages, checked, and those that send into one
//! that is open.
//!
//! ```text
//!  its input · the items of `each` · steps with `send` ─▶ Feed ─▶ one call
//! ```
//!
//! Called by `plan` and `bind`.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::MethodDescriptor;

use super::StepKind;
use super::bind::Checked;
use crate::definition::{Input, Own, Step};
use crate::expression::Expression;
use crate::problem::{Problems, suggest};

/// Where the messages of a call come from that takes a stream of them.
#[derive(Debug)]
pub struct Feed {
    /// Those that it begins with.
    pub from: Fed,
    /// It stays open until all else of the run has succeeded.
    pub open: bool,
    /// The steps that send into it.
    pub senders: Vec<usize>,
}

/// Where the messages come from that a stream begins with.
#[derive(Debug)]
pub enum Fed {
    /// There are none.
    Nothing,
    /// Its input is the only one.
    Input,
    /// They are made of the items of this step, which come as messages.
    Items(usize),
    /// They are made of the elements of a list.
    List {
        /// Gives the list.
        list: Expression,
        /// Where it stands, for errors.
        place: String,
    },
}

/// What a step cannot be whose method takes a stream, and what only such a step can be.
pub(super) fn check(step: &Step, method: &MethodDescriptor, problems: &mut Problems) {
    let call = format!("{}/{}", step.service, step.method);
    if !method.is_client_streaming() {
        if step.open {
            let text =
                format!("{call} takes one message; only a method that takes a stream stays open");
            problems.add(&step.place.field("stream"), text);
        }
        return;
    }
    if step.finalize {
        let text = format!("{call} takes a stream of messages; a step of `finalize` is one call");
        problems.add(&step.place.field("call"), text);
    }
    let refused = [
        ("batch", step.batch.is_some(), "every item is a message of one call"),
        ("poll", step.poll.is_some(), "a stream does not poll"),
    ];
    for (field, _, why) in refused.into_iter().filter(|(_, given, _)| *given) {
        problems.add(&step.place.field(field), why);
    }
}

/// What the steps that send take, which is what the methods of their streams do; the
/// streams by those steps.
pub(super) fn senders(
    steps: &mut [Checked],
    ids: &BTreeMap<String, usize>,
    problems: &mut Problems,
) -> BTreeMap<usize, usize> {
    let open = |checked: &Checked| checked.step.open && checked.takes;
    let mut found = BTreeMap::new();
    for (index, checked) in steps.iter().enumerate() {
        let Some(Own::Send(sending)) = &checked.step.own else { continue };
        match ids.get(&sending.to) {
            Some(stream) if open(&steps[*stream]) => {
                found.insert(index, *stream);
            }
            // What is wrong with the stream is said where it stands.
            Some(stream) if steps[*stream].input.is_none() && steps[*stream].step.open => {}
            Some(_) => {
                let to = &sending.to;
                let text = format!(
                    "`{to}` is no stream that is open: its method takes one, and it has `stream: open`"
                );
                problems.add(&sending.place, text);
            }
            None => {
                let streams = steps.iter().filter(|checked| open(checked));
                let near = suggest(&sending.to, streams.map(|checked| checked.step.id.as_str()));
                problems.add(&sending.place, format!("there is no step `{}`{near}", sending.to));
            }
        }
    }
    for (index, stream) in &found {
        let message = steps[*stream].input.clone();
        steps[*index].input.clone_from(&message);
        steps[*index].output = message;
    }
    found
}

/// How a step runs whose method takes a stream, made of how it would run if not.
pub(super) fn kind(
    kind: Option<StepKind>,
    (streams, open): (bool, bool),
    input: &Input,
) -> (Option<StepKind>, Option<Feed>) {
    let from = match kind {
        None => return (None, None),
        Some(StepKind::EachItem { source, .. }) => Fed::Items(source),
        Some(StepKind::EachElement { list, place, .. }) => Fed::List { list, place },
        Some(_) if open && matches!(input, Input::Empty) => Fed::Nothing,
        Some(_) => Fed::Input,
    };
    let kind = if streams { StepKind::Source } else { StepKind::Stream };
    (Some(kind), Some(Feed { from, open, senders: Vec::new() }))
}

/// The steps before this one that are open streams: in a sequence it is behind their
/// beginning, for their end is that of the run.
pub(super) fn begun_before(
    before: &mut BTreeSet<usize>,
    sends_to: Option<usize>,
    open: &BTreeSet<usize>,
    finalize: bool,
) -> BTreeSet<usize> {
    let mut begun: BTreeSet<usize> = sends_to.into_iter().collect();
    if !finalize {
        begun.extend(before.intersection(open));
        before.retain(|step| !open.contains(step));
    }
    begun
}
