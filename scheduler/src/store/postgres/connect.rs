//! Reaching the database, and what its errors mean for the store.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use futures_util::future::BoxFuture;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::StoreError;
use super::{PostgresOptions, tls};

/// Connections for all but appends: they wait for the database, not for a processor.
const POOL_CONNECTIONS: usize = 8;

/// How long a connection may take to come about.
pub(super) const CONNECT: Duration = Duration::from_secs(5);

/// How long a statement may take. One that is not answered by then leaves its connection,
/// which may be dead without anybody having said so.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// What every connection is set to, whatever the database's defaults are. A commit is on
/// disk before it is acknowledged; and who waits for a lock asks again, so that a peer that
/// is stuck does not hold up everything.
const SESSION: &str = "-c synchronous_commit=on -c default_transaction_isolation=read\\ committed \
                       -c lock_timeout=3000 -c client_min_messages=warning";

/// What drives a connection.
pub(super) type Driver = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// Why a statement did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was refused, for a reason of the store's own.
    Refused(StoreError),
    /// PostgreSQL failed, or the way to it.
    Postgres(tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

/// A database, and the pool of connections to it.
#[derive(Clone)]
pub(super) struct Database {
    config: Config,
    tls: MakeRustlsConnect,
    pool: Pool,
    /// For the lease alone: it does not wait behind anything.
    lease: Pool,
    place: Arc<str>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Database").field(&self.place).finish()
    }
}

impl Database {
    /// Reads a URL. Nothing is reached yet.
    pub(super) fn new(url: &str, options: &PostgresOptions) -> Result<Self, StoreError> {
        let unusable = |why: String| StoreError::Unusable { path: GIVEN.to_owned(), why };
        // The same here, where the name is checked in either case, and a word that is not known.
        let url = url.replace("sslmode=verify-full", "sslmode=require");
        let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
            unusable(format!("it is no URL of a database: {}", words(&error)))
        })?;
        let encrypted = config.get_ssl_mode() == SslMode::Require;
        if !encrypted {
            // Who does not ask for it cannot tell either whom it is encrypted for.
            config.ssl_mode(SslMode::Disable);
        }
        let authorities = options.authorities.as_deref();
        if authorities.is_some() && !encrypted {
            let why =
                "there are authorities for its certificate, but it does not say sslmode=require";
            return Err(unusable(why.to_owned()));
        }
        let tls = tls::connector(encrypted, authorities)
            .map_err(|why| unusable(format!("sslmode=require: {why}")))?;
        let more = config.get_options().map(|own| format!("{own} ")).unwrap_or_default();
        config.options(format!("{more}{SESSION}"));
        config.connect_timeout(CONNECT);
        config.application_name(format!("zex {}", options.name).trim());
        let place: Arc<str> = place(&config).into();
        let pool = |connections| {
            let recycling_method = RecyclingMethod::Fast;
            let manager = Manager::from_config(
                config.clone(),
                tls.clone(),
                ManagerConfig { recycling_method },
            );
            Pool::builder(manager)
                .max_size(connections)
                .runtime(Runtime::Tokio1)
                .wait_timeout(Some(ANSWER))
                .create_timeout(Some(CONNECT))
                .build()
                .map_err(|error| unusable(error.to_string()))
        };
        let (pool, lease) = (pool(POOL_CONNECTIONS)?, pool(1)?);
        Ok(Self { config, tls, pool, lease, place })
    }

    /// Where it is, for people.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Makes a connection of one's own; its second part drives the first.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] if that takes longer than [`CONNECT`]; what PostgreSQL or the way
    /// to it says.
    pub(super) async fn connect(&self) -> Result<(Client, Driver), StoreError> {
        let connected = tokio::time::timeout(CONNECT, self.config.connect(self.tls.clone())).await;
        let connected = connected.map_err(|_elapsed| self.unreachable("no answer"))?;
        connected.map_err(|error| self.means(&error))
    }

    pub(super) fn unusable(&self, why: String) -> StoreError {
        StoreError::Unusable { path: self.place.to_string(), why }
    }

    pub(super) fn unreachable(&self, why: &str) -> StoreError {
        StoreError::Unreachable(format!("{}: {why}", self.place))
    }

    /// Does something with a connection of the pool.
    pub(super) async fn with<T>(
        &self,
        act: impl for<'a> FnOnce(&'a Object) -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, StoreError> {
        self.on(&self.pool, act).await
    }

    /// Does something for the lease.
    pub(super) async fn with_lease<T>(
        &self,
        act: impl for<'a> FnOnce(&'a Object) -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, StoreError> {
        self.on(&self.lease, act).await
    }

    async fn on<T>(
        &self,
        pool: &Pool,
        act: impl for<'a> FnOnce(&'a Object) -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, StoreError> {
        let client = match pool.get().await {
            Ok(client) => client,
            Err(deadpool_postgres::PoolError::Backend(error)) => return Err(self.means(&error)),
            Err(error) => return Err(self.unreachable(&error.to_string())),
        };
        match tokio::time::timeout(ANSWER, act(&client)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failure::Refused(error))) => Err(error),
            Ok(Err(Failure::Postgres(error))) => Err(self.means(&error)),
            Err(_elapsed) => {
                // What it still does would be in the way of the next.
                drop(Object::take(client));
                Err(self.unreachable(&format!("no answer in {} s", ANSWER.as_secs())))
            }
        }
    }

    /// What a failure of PostgreSQL means for the store.
    pub(super) fn means(&self, error: &tokio_postgres::Error) -> StoreError {
        let said = words(error);
        let Some(code) = error.code() else {
            // Not the server's: the connection is gone, or never was.
            return match error.is_closed() || lost(error) {
                _ if tls::refused(error) => self.unusable(said),
                true => self.unreachable(&said),
                false => StoreError::Broken(format!("{}: {said}", self.place)),
            };
        };
        match code.code() {
            "53100" => StoreError::Full(format!("{}: {said}", self.place)),
            // Not now: it starts, stops, has no place, is a standby; a lock is held for long.
            _ if *code == SqlState::LOCK_NOT_AVAILABLE
                || *code == SqlState::READ_ONLY_SQL_TRANSACTION
                || again(code) =>
            {
                self.unreachable(&said)
            }
            other => match &other[..2] {
                "08" | "53" | "57" => self.unreachable(&said),
                // An I/O error of the server: such as a full disk, where it could not say so.
                "58" if said.contains("No space left") => {
                    StoreError::Full(format!("{}: {said}", self.place))
                }
                "58" => self.unreachable(&said),
                "28" | "3D" => self.unusable(said),
                _ => StoreError::Broken(format!("{}: {said} ({other})", self.place)),
            },
        }
    }
}

/// Whether the same once more may succeed at once.
pub(super) fn again(code: &SqlState) -> bool {
    *code == SqlState::T_R_DEADLOCK_DETECTED || *code == SqlState::T_R_SERIALIZATION_FAILURE
}

/// Whether a connection broke.
fn lost(error: &tokio_postgres::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.is::<std::io::Error>() {
            return true;
        }
        cause = error.source();
    }
    // What it says when a connection ends in the middle, and when it takes too long.
    let said = error.to_string();
    said.contains("connecting to server")
        || said.contains("communicating")
        || said.contains("timed out")
}

/// What an error says, with what led to it.
pub(super) fn words(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return error.message().to_owned();
    }
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        cause = error.source();
    }
    said
}

/// What is said of a URL that is not understood: nothing of it, since its password may be anywhere.
const GIVEN: &str = "the database's URL";

fn place(config: &Config) -> String {
    let host = match (config.get_hosts().last(), config.get_ports().last()) {
        (Some(Host::Tcp(name)), Some(port)) => format!("{name}:{port}"),
        (Some(Host::Tcp(name)), None) => name.clone(),
        (Some(Host::Unix(path)), _) => path.display().to_string(),
        (None, _) => "localhost".to_owned(),
    };
    format!("postgres://{host}/{}", config.get_dbname().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_shown_without_its_password() {
        let options = PostgresOptions { name: "s".to_owned(), authorities: None };
        let database = |url: &str| Database::new(url, &options);
        let place = |url: &str| database(url).unwrap().place().to_owned();
        assert_eq!(place("postgres://me:secret@db.example:7/zex"), "postgres://db.example:7/zex");
        assert_eq!(place("postgres://me:sec?ret@db:7/zex"), "postgres://db:7/zex");
        assert_eq!(place("postgres://me@%2Frun%2Fpg/zex"), "postgres:///run/pg/zex");
        for (url, want) in [
            ("postgres://me:secret@db:port/zex", "no URL of a database"),
            ("postgres://db:port/zex?password=secret", "no URL of a database"),
            ("host=db port=x password='a secret'", "no URL of a database"),
            ("host=db port=x password=secret://b", "no URL of a database"),
        ] {
            let error = database(url).unwrap_err().to_string();
            assert!(error.contains(want) && !error.contains("secret"), "{error}");
        }
    }
}
