//! The Users service: shows the users of a seed, one or all.

use crate::{
    pb::{GetUser, ListUsers, User},
    people,
};
use std::pin::Pin;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// How many users there are, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsersOptions {
    /// Ids run from 1 to this.
    pub count: u64,
    /// Other seeds make other people.
    pub seed: u64,
}

impl Default for UsersOptions {
    fn default() -> Self {
        Self { count: 1_000, seed: 1 }
    }
}

/// The service itself, to put into any tonic server.
#[derive(Debug, Clone)]
pub struct Users {
    options: UsersOptions,
}

impl Users {
    /// Users as the options have them.
    pub fn new(options: UsersOptions) -> Self {
        Self { options }
    }
}

#[tonic::async_trait]
impl crate::pb::users_server::Users for Users {
    type ListStream = Pin<Box<dyn Stream<Item = Result<User, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<ListUsers>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let ListUsers { from_id, limit } = request.into_inner();
        let UsersOptions { count, seed } = self.options;
        let limit = if limit == 0 { usize::MAX } else { limit.try_into().unwrap_or(usize::MAX) };
        // Made one by one as the reader takes them: HTTP/2 flow control is the only buffer.
        let users = (from_id.max(1)..=count).take(limit).map(move |id| Ok(people::user(seed, id)));
        Ok(Response::new(Box::pin(tokio_stream::iter(users))))
    }

    async fn get(&self, request: Request<GetUser>) -> Result<Response<User>, Status> {
        let id = request.into_inner().id;
        let UsersOptions { count, seed } = self.options;
        if !(1..=count).contains(&id) {
            return Err(Status::not_found(format!("user {id}: ids run from 1 to {count}")));
        }
        Ok(Response::new(people::user(seed, id)))
    }
}
