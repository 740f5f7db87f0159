//! What becomes of a step whose method is no longer what it was when the pipeline was recorded: who has it
//! now refuses the call, and then this is asked.
//!
//! ```yaml
//! - {id: add, call: shop.Groups/Add, each: users, on_change: {share: 20}}
//! ```
//!
//! Called by `definition`; read by the scheduler.

use crate::document::Content;
use crate::fields::Fields;
use crate::problem::Problems;

/// The largest share, in calls: who tries more before he trusts it looks at the results himself.
const SHARE_MAX: u32 = 1_000_000;

/// What becomes of a step whose method has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnChange {
    /// Its calls are refused: they fail for good.
    #[default]
    Refuse,
    /// So many calls are made all the same, and the rest when all of them went well.
    Try {
        /// How many.
        share: u32,
    },
}

/// Reads `on_change`.
pub(crate) fn on_change(fields: &mut Fields<'_>, problems: &mut Problems) -> OnChange {
    let Some((node, place)) = fields.take("on_change") else { return OnChange::default() };
    let share = match &node.content {
        Content::Text(text) if text == "refuse" => return OnChange::Refuse,
        Content::Text(text) if text == "try" => 1,
        Content::Map(_) => {
            let Some(mut fields) = Fields::open(node, &place, problems) else {
                return OnChange::default();
            };
            let share = fields.whole("share", (1, SHARE_MAX), 1, problems);
            fields.close(problems);
            share
        }
        _ => {
            let text = "it is `refuse`, `try`, or `{share: N}`: how many calls are tried first";
            problems.add(&place, text);
            return OnChange::default();
        }
    };
    OnChange::Try { share }
}
