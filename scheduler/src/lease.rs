//! Which runs are this scheduler's, where several share a store.
//!
//! ```text
//!  each half second: renew ─┬─ it came too late ─▶ each run asks whether it is still its own
//!                           └─ somebody has gone ─▶ look: free runs ─▶ spawn ─▶ claim
//! ```
//!
//! Who accepts a run has it. When a scheduler dies its lease ends, and the others take what
//! it had, each its part; a part that nobody takes is anybody's a moment later. One that
//! stops in order gives everything back at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::handle::Command;
use crate::scheduler::{LIVE_RUNS_MAX, Shared, stopped};
use crate::store::{Member, Renewed, StoreError};

/// How often a scheduler says that it lives: several times in a lease.
const RENEW_EVERY: Duration = Duration::from_millis(500);

/// How often inboxes are looked into, in case that news of a letter was lost.
const LETTERS_EVERY: Duration = Duration::from_secs(2);

/// How often free runs are looked for though nobody is known to have gone.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How long the part of another scheduler is left to it.
const OTHERS_FIRST: Duration = Duration::from_secs(1);

/// How long nothing is taken after the own lease had ended: the store was away, perhaps, and the
/// others are about to say that they live.
const AFTER_LAPSE: Duration = Duration::from_secs(2);

/// Runs that are free and fall to others, since when they were seen.
type Left = BTreeMap<String, Instant>;

/// Takes part: how many runs were taken up.
pub(crate) async fn begin(shared: &Arc<Shared>) -> Result<usize, StoreError> {
    shared.store.renew(member(shared)).await?;
    look(shared, &mut Left::new()).await
}

/// Says that this scheduler lives, and takes what others leave, until it stops. Beside each other: what
/// is taken may wait for the store, and the lease does not wait for that.
pub(crate) async fn follow(shared: Arc<Shared>) {
    if shared.alone {
        return stopped(&mut shared.stopping()).await;
    }
    let (told, renewed) = mpsc::channel(1);
    tokio::join!(renew(&shared, told), take(&shared, renewed));
}

/// Renews the lease, and tells what came of it.
async fn renew(shared: &Arc<Shared>, told: mpsc::Sender<Renewed>) {
    let mut stopping = shared.stopping();
    let mut tick = interval(RENEW_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut reached, mut untold) = (true, Renewed::default());
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stopped(&mut stopping) => return,
        }
        match shared.store.renew(member(shared)).await {
            Ok(Renewed { lapsed, gone }) => {
                // The answer that said so may be the one that was lost.
                untold.lapsed |= lapsed || !std::mem::replace(&mut reached, true);
                untold.gone |= gone;
                // Who takes is busy: it is told with the next.
                if told.try_send(untold).is_ok() {
                    untold = Renewed::default();
                }
            }
            Err(error) => {
                if std::mem::replace(&mut reached, false) {
                    tracing::warn!(%error, "the lease cannot be renewed");
                }
            }
        }
    }
}

/// Takes what others leave, and drops what they have taken.
async fn take(shared: &Arc<Shared>, mut renewed: mpsc::Receiver<Renewed>) {
    let mut stopping = shared.stopping();
    let (mut left, mut looked, mut read) = (Left::new(), Instant::now(), Instant::now());
    let mut patient = Instant::now();
    loop {
        let gone = tokio::select! {
            Some(Renewed { lapsed, gone }) = renewed.recv() => {
                if lapsed {
                    tracing::warn!("the lease had ended: what others have taken is dropped");
                    doubt(shared);
                    patient = Instant::now() + AFTER_LAPSE;
                }
                gone
            }
            () = shared.gone.notified() => true,
            () = stopped(&mut stopping) => return,
        };
        let whole = looked.elapsed() > LOOK_EVERY;
        if whole {
            report(forgotten(shared).await, "own runs");
        }
        if (gone || !left.is_empty() || whole) && Instant::now() >= patient {
            looked = Instant::now();
            report(look(shared, &mut left).await.map(|_taken| ()), "free runs");
        }
        if read.elapsed() > LETTERS_EVERY {
            read = Instant::now();
            report(inboxes(shared).await, "inboxes");
        }
    }
}

fn report(done: Result<(), StoreError>, what: &str) {
    if let Err(error) = done {
        tracing::debug!(%error, what, "cannot be looked at");
    }
}

/// This scheduler, as the others see it.
pub(crate) fn member(shared: &Shared) -> Member {
    Member {
        name: shared.name.clone(),
        alive: true,
        runs: shared.live_count() as u64,
        fenced: shared.fenced.load(Ordering::Relaxed),
    }
}

/// Has every run find out whether it is still this scheduler's.
fn doubt(shared: &Arc<Shared>) {
    for run in shared.live_ids().iter().filter_map(|id| shared.live(id)) {
        // One whose queue is full is refused at its next append.
        let _full = run.commands.try_send(Command::Doubt).is_err();
    }
}

/// Takes up free runs: how many.
async fn look(shared: &Arc<Shared>, left: &mut Left) -> Result<usize, StoreError> {
    let now = Instant::now();
    let (mut later, mut taken) = (Left::new(), 0);
    for run in shared.store.free_runs().await? {
        if shared.live(&run.id).is_some() {
            continue;
        }
        let since = left.get(&run.id).copied().unwrap_or(now);
        let turn = run.ours || now.duration_since(since) >= OTHERS_FIRST;
        if turn && shared.live_count() < LIVE_RUNS_MAX {
            shared.spawn(run.id, None);
            taken += 1;
        } else {
            later.insert(run.id, since);
        }
    }
    *left = later;
    if taken > 0 {
        tracing::info!(runs = taken, "runs that nobody had are taken up");
    }
    Ok(taken)
}

/// Takes up runs that are this scheduler's, and that nobody drives: it was not told that they were
/// made, or claimed, when the way to the store broke.
async fn forgotten(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let (driven, mut ours) = (shared.live_ids(), BTreeSet::new());
    for run in shared.store.own_runs().await? {
        ours.insert(run.clone());
        if shared.live(&run).is_none() {
            tracing::info!(run, "it is ours, and nobody drove it");
            shared.spawn(run, None);
        }
    }
    // The other way round: what is driven here and is not ours finds out, also if it has nothing to
    // write.
    for run in driven.iter().filter(|run| !ours.contains(*run)).filter_map(|run| shared.live(run)) {
        let _full = run.commands.try_send(Command::Doubt).is_err();
    }
    Ok(())
}

/// Tells the runs that have letters.
pub(crate) async fn inboxes(shared: &Arc<Shared>) -> Result<(), StoreError> {
    for run in shared.store.inboxes().await? {
        letter(shared, &run);
    }
    Ok(())
}

/// Tells a run that it has a letter, if it is here.
pub(crate) fn letter(shared: &Shared, run: &str) {
    if let Some(run) = shared.live(run) {
        // One whose queue is full is told later.
        let _full = run.commands.try_send(Command::Letters).is_err();
    }
}
