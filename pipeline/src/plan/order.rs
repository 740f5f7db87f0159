//! Which steps wait for which, and an order in which all can run.
//!
//! ```text
//!  planned steps ─ link ─▶ each knows who waits for it ─ order ─▶ Plan::order, or a cycle in words
//! ```
//!
//! Called by `plan`, which has found what each step needs.

use std::collections::BTreeSet;

use super::PlannedStep;
use crate::input::BoundInput;

/// Fills in what follows from the other steps.
pub(super) fn link(steps: &mut [PlannedStep]) {
    for index in 0..steps.len() {
        for other in steps[index].waits_for.clone() {
            steps[other].unblocks.insert(index);
        }
        let whole = match steps[index].input {
            BoundInput::Step(other) => Some(other),
            _ => None,
        };
        for other in steps[index].reads.clone() {
            // A whole reference needs no decoding, unless the list or a condition reads it
            // as well.
            let list = steps[index].list().is_some()
                || !steps[index].when.is_empty()
                || steps[index].poll.is_some();
            if whole != Some(other) || list {
                steps[other].output_is_decoded = true;
            }
        }
        let undo = steps[index].undo.as_ref().map(|undo| match undo.input {
            BoundInput::Step(whole) => {
                undo.reads.iter().copied().filter(|read| *read != whole).collect()
            }
            _ => undo.reads.iter().copied().collect::<Vec<usize>>(),
        });
        for other in undo.into_iter().flatten() {
            steps[other].output_is_decoded = true;
        }
        if let Some(source) = steps[index].source() {
            steps[source].takers.push(index);
        }
        if let Some(stream) = steps[index].sends_to()
            && let Some(feed) = &mut steps[stream].feed
        {
            feed.senders.push(index);
        }
        for other in steps[index].waits_for_begin.clone() {
            steps[other].unblocks_at_begin.insert(index);
        }
    }
}

/// The steps in an order in which they can run, or the step at which no order is.
///
/// A source ends only when its takers took every item, and they take none before
/// they begin; and as what waits between stages is bounded, all stages behind them
/// have to have begun. So beginning and end of a step are nodes of their own here:
///
/// ```text
///  begin(step) needs end(every step it waits for) and begin(its source, its stream)
///  end(step)   needs begin(step), end(its source), begin(every taker of its items, and
///              of their results), end(every step that sends into its stream)
/// ```
pub(super) fn order(steps: &[PlannedStep]) -> Result<Vec<usize>, (usize, String)> {
    let (begin, end) = (|step: usize| 2 * step, |step: usize| 2 * step + 1);
    let needs = |node: usize| -> Vec<usize> {
        let step = &steps[node / 2];
        let mut needs = Vec::new();
        let source = step.source();
        if node.is_multiple_of(2) {
            needs.extend(step.waits_for.iter().map(|other| end(*other)));
            needs.extend(source.map(begin));
            needs.extend(step.waits_for_begin.iter().map(|other| begin(*other)));
        } else {
            needs.push(begin(node / 2));
            needs.extend(source.map(end));
            let (mut behind, mut seen) = (step.takers.clone(), BTreeSet::new());
            while let Some(taker) = behind.pop() {
                if seen.insert(taker) {
                    needs.push(begin(taker));
                    behind.extend(&steps[taker].takers);
                }
            }
            let senders = step.feed.iter().flat_map(|feed| &feed.senders);
            needs.extend(senders.map(|sender| end(*sender)));
        }
        needs
    };
    // Depth first with a stack of its own: a definition may be one long chain.
    let (mut done, mut open) = (vec![false; 2 * steps.len()], vec![false; 2 * steps.len()]);
    let mut order = Vec::new();
    for root in 0..2 * steps.len() {
        let mut stack = vec![(root, needs(root))];
        if done[root] {
            continue;
        }
        open[root] = true;
        while let Some((node, rest)) = stack.last_mut() {
            let node = *node;
            match rest.pop() {
                Some(next) if done[next] => {}
                Some(next) if open[next] => {
                    let from = stack.iter().position(|(on, _)| *on == next).unwrap_or(0);
                    return Err(cycle(steps, stack[from..].iter().map(|(on, _)| *on).collect()));
                }
                Some(next) => {
                    open[next] = true;
                    stack.push((next, needs(next)));
                }
                None => {
                    (done[node], open[node]) = (true, false);
                    if node.is_multiple_of(2) {
                        order.push(node / 2);
                    }
                    stack.pop();
                }
            }
        }
    }
    Ok(order)
}

/// What to say of steps that wait for each other.
fn cycle(steps: &[PlannedStep], nodes: Vec<usize>) -> (usize, String) {
    let mut names: Vec<&str> = Vec::new();
    for node in &nodes {
        let id: &str = &steps[node / 2].id;
        if names.last() != Some(&id) {
            names.push(id);
        }
    }
    if names.len() > 1 && names.first() == names.last() {
        names.pop();
    }
    let at = nodes[0] / 2;
    if names.len() == 1 {
        return (at, format!("step `{}` waits for itself", names[0]));
    }
    let some = |is: fn(&PlannedStep) -> bool| nodes.iter().any(|node| is(&steps[node / 2]));
    let why = if some(|step| step.sends_to().is_some()) {
        " (a stream ends when every step that sends into it has ended)"
    } else if some(|step| step.source().is_some()) {
        " (a stream ends when every step that takes its items has taken them)"
    } else {
        ""
    };
    names.push(names[0]);
    (at, format!("these steps wait for each other: {}{why}", names.join(" → ")))
}
