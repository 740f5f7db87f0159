//! What stands around calls: metrics, traces, checks of one's own; in a client, in a worker, and in a
//! scheduler, whose steps are calls of its client.
//!
//! ```text
//!   caller ──▶ begin 1 ──▶ begin 2 ──▶ the mesh, or the handler
//!          ◀──  end 1  ◀──  end 2  ◀── outcome
//! ```
//!
//! The SDKs say what a call is ([`Subject`]) and how it ended; without middleware that costs them one
//! comparison a call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zex_spec::{Code, Key, Metadata, Status};

/// A call, as middleware sees it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// `pkg.Service`; with `@label` where workers with one were asked for.
    pub service: String,
    /// `Method`.
    pub method: String,
    /// Its key: the same when it is sent again.
    pub key: Key,
    /// What goes along with the request; may be changed before it goes.
    pub metadata: Metadata,
    /// What it is a part of, if its caller has said so: of a step `run/step/item/attempt`, of which an
    /// item is `-` where there is none.
    pub part_of: Option<Arc<str>>,
}

/// Something that stands around calls. What it does is in the way of every call: it must not block. A
/// panic in it is the end of that call (`INTERNAL`), or of nothing when the call has ended.
pub trait Middleware: Send + Sync {
    /// Before a call goes out, or before its handler begins.
    ///
    /// # Errors
    /// A status is the call's outcome: it goes no further.
    fn begin(&self, call: &mut Subject) -> Result<(), Status> {
        let _ = call;
        Ok(())
    }

    /// After it has ended, once for each that has begun here: of a stream with its last message, and
    /// with `CANCELLED` when its caller has let go of it.
    fn end(&self, call: &Subject, took: Duration, outcome: Result<(), &Status>) {
        let _ = (call, took, outcome);
    }
}

/// Middleware, the outermost first. Clones are the same chain.
#[derive(Clone, Default)]
pub struct Chain(Arc<[Arc<dyn Middleware>]>);

impl Chain {
    /// Of these, the outermost first.
    pub fn new(chain: impl IntoIterator<Item = Arc<dyn Middleware>>) -> Self {
        Self(chain.into_iter().collect())
    }

    /// Whether nothing stands around calls.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Begins a call: the metadata that goes with it, and what to end it by.
    ///
    /// # Errors
    /// What one of them has refused it with.
    pub fn begin(&self, mut call: Subject) -> Result<(Metadata, Underway), Status> {
        let since = Instant::now();
        for (place, one) in self.0.iter().enumerate() {
            let begun = catch_unwind(AssertUnwindSafe(|| one.begin(&mut call)));
            let panicked =
                |_| Err(Status::new(Code::Internal, "what stands around calls panicked"));
            if let Err(status) = begun.unwrap_or_else(panicked) {
                let begun = Some((Self(Arc::clone(&self.0)), place, call, since));
                Underway(begun).end(Err(&status));
                return Err(status);
            }
        }
        let metadata = call.metadata.clone();
        Ok((metadata, Underway(Some((self.clone(), self.0.len(), call, since)))))
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} middleware", self.0.len())
    }
}

/// A call that has begun, for so many of a chain. Dropped, it was let go of.
#[derive(Debug, Default)]
#[must_use = "dropped, the call was cancelled"]
pub struct Underway(Option<(Chain, usize, Subject, Instant)>);

impl Underway {
    /// It has ended. What is said of it later does not count.
    pub fn end(&mut self, outcome: Result<(), &Status>) {
        let Some((chain, begun, call, since)) = self.0.take() else { return };
        let took = since.elapsed();
        for one in chain.0[..begun].iter().rev() {
            // The hook of panics has told of one. The call has ended, and the others hear of it.
            let _panicked = catch_unwind(AssertUnwindSafe(|| one.end(&call, took, outcome)));
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.end(Err(&Status::new(Code::Cancelled, "its caller has let go of it")));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Notes(&'static str, Arc<Mutex<Vec<String>>>);

    impl Middleware for Notes {
        fn begin(&self, call: &mut Subject) -> Result<(), Status> {
            self.1.lock().unwrap().push(format!("begin {}", self.0));
            assert_ne!(call.method, format!("{} panics", self.0), "as told");
            match call.method == self.0 {
                true => Err(Status::new(Code::PermissionDenied, "not this one")),
                false => Ok(()),
            }
        }

        fn end(&self, call: &Subject, _: Duration, outcome: Result<(), &Status>) {
            let code = outcome.map_or_else(|status| status.code, |()| Code::Ok);
            self.1.lock().unwrap().push(format!("end {} {code:?}", self.0));
            assert_ne!(call.method, format!("{} panics at the end", self.0), "as told");
        }
    }

    fn noted(method: &str, act: impl FnOnce(Result<(Metadata, Underway), Status>)) -> Vec<String> {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let note = |name| Arc::new(Notes(name, Arc::clone(&notes))) as Arc<dyn Middleware>;
        let chain = Chain::new([note("a"), note("b"), note("c")]);
        act(chain.begin(Subject {
            service: "s".into(),
            method: method.into(),
            key: Key([0; 16]),
            metadata: Metadata::EMPTY,
            part_of: None,
        }));
        std::mem::take(&mut notes.lock().unwrap())
    }

    #[test]
    fn each_that_has_begun_a_call_hears_its_end_once_the_innermost_first() {
        let begins = ["begin a", "begin b", "begin c"];
        let ended = noted("m", |begun| {
            let mut underway = begun.unwrap().1;
            underway.end(Ok(()));
            underway.end(Err(&Status::new(Code::Internal, "later")));
        });
        assert_eq!(ended, [&begins[..], &["end c Ok", "end b Ok", "end a Ok"]].concat());
        let dropped = noted("m", drop);
        let cancelled = ["end c Cancelled", "end b Cancelled", "end a Cancelled"];
        assert_eq!(dropped, [&begins[..], &cancelled].concat());
    }

    #[test]
    fn who_refuses_a_call_ends_it_for_those_around_him() {
        let refused = noted("b", |begun| assert_eq!(begun.unwrap_err().message, "not this one"));
        assert_eq!(refused, ["begin a", "begin b", "end a PermissionDenied"]);
    }
    #[test]
    fn a_panic_ends_its_call_and_the_others_hear_of_it() {
        let refused =
            noted("b panics", |begun| assert_eq!(begun.unwrap_err().code, Code::Internal));
        assert_eq!(refused, ["begin a", "begin b", "end a Internal"]);
        let begins = ["begin a", "begin b", "begin c"];
        let ended = noted("b panics at the end", |begun| begun.unwrap().1.end(Ok(())));
        assert_eq!(ended, [&begins[..], &["end c Ok", "end b Ok", "end a Ok"]].concat());
    }
}
