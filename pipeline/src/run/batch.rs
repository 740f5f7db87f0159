//! Items of an `each` put together into calls, by number or by time.
//!
//! ```text
//!  items ─▶ loose ─ enough, or long enough ─▶ Record::Batches ─▶ one entry for each batch
//! ```
//!
//! Which items a batch has is on record before it is sent: after a crash it is sent
//! again with the same ones, under the same key. A batch goes by the number of its first
//! item, and from there on is treated like an item.

use super::steps::Work;
use super::{Run, Time, Wake};
use crate::definition::Batch;
use crate::record::Record;

/// The most bytes of items in a batch, far below what may be read ahead: a batch that can
/// never be full would wait for ever.
const BATCH_MAX_BYTES: usize = 1 << 20;

impl Run {
    /// Puts loose items together.
    pub(super) fn cut_batches(&mut self, step: usize, batch: Batch) {
        let concurrency = self.plan.steps[step].kind.concurrency();
        let now = self.now;
        let Work::Each(each) = &mut self.steps[step].work else { return };
        let (mut sizes, mut again): (Vec<u32>, Option<Time>) = (Vec::new(), None);
        loop {
            let (size, full) = each.next_batch(batch.items as usize, BATCH_MAX_BYTES);
            if size == 0 {
                each.loose_since = None;
                break;
            }
            let since = *each.loose_since.get_or_insert(now);
            if !full && !each.complete {
                let Some(ms) = batch.within_ms else { break };
                if since.plus_ms(ms) > now {
                    again = Some(since.plus_ms(ms));
                    break;
                }
                // While there is no place for it, others may still join it.
                if each.busy as usize + each.ready.len() + each.cuts >= concurrency as usize {
                    break;
                }
            }
            sizes.push(size as u32);
            (each.cutting, each.cuts) = (each.cutting + size, each.cuts + 1);
            each.loose_since = None;
        }
        if let Some(at) = again {
            self.timers.insert((at, Wake::Batch(step)));
        }
        if !sizes.is_empty() {
            self.outbox.push(Record::Batches { step: step as u32, sizes });
        }
    }

    pub(super) fn apply_batches(&mut self, index: usize, sizes: &[u32]) -> Result<(), String> {
        let live = self.live();
        let each = super::results::each_of(&mut self.steps[index])?;
        for size in sizes {
            let Some(first) = each.batch(*size as usize) else {
                let has = each.loose.len();
                return Err(format!("a batch of {size} items, and {has} wait in step {index}"));
            };
            if live {
                each.cutting = each.cutting.saturating_sub(*size as usize);
                each.cuts = each.cuts.saturating_sub(1);
                each.ready.push_back(first);
            }
        }
        self.dirty.insert(index);
        Ok(())
    }
}
