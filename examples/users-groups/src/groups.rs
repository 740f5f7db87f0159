//! The Groups service: writes each `Add` into the ledger, then answers. It keeps nothing
//! in memory; what it tells about groups it reads from the ledger, which other processes
//! may be writing too.

use crate::{
    ledger::{Account, Ledger, LedgerError},
    pb::{
        AddToGroup, Added, CountGroups, Counts, GroupCount, ListMembers, Membership, ProcessCount,
    },
};
use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Who this Groups process is and how it behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupsOptions {
    /// The name in the ledger's lines.
    pub process: String,
    /// The ledger's file; several processes may share it.
    pub ledger: PathBuf,
    /// How long each `Add` takes on top of its work. Calls wait side by side.
    pub delay: Duration,
}

/// The service itself, to put into any tonic server.
#[derive(Debug, Clone)]
pub struct Groups {
    ledger: Arc<Ledger>,
    delay: Duration,
}

impl Groups {
    /// Opens the ledger.
    pub fn open(options: GroupsOptions) -> Result<Self, LedgerError> {
        let ledger = Ledger::open(options.ledger, &options.process)?;
        Ok(Self { ledger: Arc::new(ledger), delay: options.delay })
    }

    /// Reads the ledger off the runtime's threads: it may be large.
    async fn account(&self) -> Result<Account, Status> {
        let path = self.ledger.path().to_owned();
        tokio::task::spawn_blocking(move || Ledger::read(path))
            .await
            .map_err(|error| Status::internal(format!("reading the ledger: {error}")))?
            .map_err(status)
    }
}

#[tonic::async_trait]
impl crate::pb::groups_server::Groups for Groups {
    async fn add(&self, request: Request<AddToGroup>) -> Result<Response<Added>, Status> {
        let AddToGroup { user_id, group } = request.into_inner();
        if user_id == 0 {
            return Err(Status::invalid_argument("user_id: missing; ids begin at 1"));
        }
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        // Some forty bytes into the page cache: not worth a thread of its own.
        self.ledger.add(user_id, &group).map_err(status)?;
        Ok(Response::new(Added { user_id, group, process: self.ledger.process().to_owned() }))
    }

    async fn count(&self, _: Request<CountGroups>) -> Result<Response<Counts>, Status> {
        let account = self.account().await?;
        let groups = account
            .sizes()
            .into_iter()
            .map(|(group, users)| GroupCount { group: group.to_owned(), users })
            .collect();
        let processes = account
            .calls_by
            .into_iter()
            .map(|(process, calls)| ProcessCount { process, calls })
            .collect();
        Ok(Response::new(Counts {
            groups,
            processes,
            calls: account.calls,
            repeats: account.repeats,
        }))
    }

    type MembersStream = Pin<Box<dyn Stream<Item = Result<Membership, Status>> + Send>>;

    async fn members(
        &self,
        _: Request<ListMembers>,
    ) -> Result<Response<Self::MembersStream>, Status> {
        let members = self.account().await?.groups_of.into_iter().map(|(user_id, groups)| {
            Ok(Membership { user_id, groups: groups.into_iter().collect() })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(members))))
    }
}

fn status(error: LedgerError) -> Status {
    match error {
        LedgerError::Name { .. } => Status::invalid_argument(error.to_string()),
        LedgerError::Io { .. } => Status::unavailable(error.to_string()),
        LedgerError::Malformed { .. } => Status::data_loss(error.to_string()),
    }
}
