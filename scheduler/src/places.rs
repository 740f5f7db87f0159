//! Places for calls: so many are in flight in all, shared fairly between the runs.
//!
//! ```text
//!  calls of a run ─ place().await ─▶ zex_pipeline::share ─▶ Place, given back when dropped
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use zex_pipeline::limits::Priority;
use zex_pipeline::share::{RunNumber, Share, Ticket};

/// All places of a scheduler.
pub(crate) struct Places {
    kept: Mutex<Kept>,
}

struct Kept {
    share: Share,
    next: u64,
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
}

/// A run that may have places. Dropped, it gives back all it has.
pub(crate) struct Member {
    places: Arc<Places>,
    run: RunNumber,
}

/// A place that is taken.
pub(crate) struct Place {
    member: Arc<Member>,
}

/// A wish for a place: when it is not wanted any more it is taken back, or the place is.
struct Wish {
    member: Arc<Member>,
    ticket: Ticket,
    fulfilled: bool,
}

impl Places {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        let kept = Kept { share: Share::new(places), next: 0, waiting: HashMap::new() };
        Arc::new(Self { kept: Mutex::new(kept) })
    }

    /// A run comes.
    pub(crate) fn join(self: &Arc<Self>, pipeline: &str, priority: Priority) -> Arc<Member> {
        let mut kept = self.kept();
        kept.next += 1;
        let run = kept.next;
        kept.share.join(run, pipeline, priority);
        Arc::new(Member { places: Arc::clone(self), run })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Gives out what is free.
    fn give(&mut self) {
        while let Some((run, ticket)) = self.share.poll() {
            // Nobody waits for it: it was taken back in between.
            let told = self.waiting.remove(&ticket).is_some_and(|who| who.send(()).is_ok());
            if !told {
                self.share.done(run);
            }
        }
    }
}

impl Member {
    /// Waits for a place.
    pub(crate) async fn place(self: &Arc<Self>) -> Place {
        let (told, place) = oneshot::channel();
        let mut wish = {
            let mut kept = self.places.kept();
            kept.next += 1;
            let ticket = kept.next;
            kept.waiting.insert(ticket, told);
            kept.share.want(self.run, ticket);
            kept.give();
            Wish { member: Arc::clone(self), ticket, fulfilled: false }
        };
        // It is never dropped untold while somebody waits.
        let _told = place.await;
        wish.fulfilled = true;
        Place { member: Arc::clone(self) }
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        if self.fulfilled {
            return;
        }
        let mut kept = self.member.places.kept();
        kept.waiting.remove(&self.ticket);
        if !kept.share.withdraw(self.member.run, self.ticket) {
            kept.share.done(self.member.run);
            kept.give();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut kept = self.member.places.kept();
        kept.share.done(self.member.run);
        kept.give();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut kept = self.places.kept();
        kept.share.leave(self.run);
        kept.give();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn places_come_back_whatever_becomes_of_who_had_or_wanted_them() {
        let places = Places::new(2);
        let (a, b) = (places.join("a", Priority::Normal), places.join("b", Priority::Normal));
        let (first, second) = (a.place().await, a.place().await);
        let mut given_up = Box::pin(b.place());
        let mut waits = Box::pin(a.place());
        assert!(given_up.as_mut().now_or_never().is_none());
        assert!(waits.as_mut().now_or_never().is_none());
        drop(first);
        // It was given to b, who does not take it any more: so a has it.
        drop(given_up);
        let third = waits.now_or_never().expect("the place of who gave up");
        assert!(b.place().now_or_never().is_none(), "both are taken");
        drop((second, third));
        let both = (b.place().now_or_never(), b.place().now_or_never());
        assert!(both.0.is_some() && both.1.is_some());
        assert!(a.place().now_or_never().is_none());
    }
}
