//! A PostgreSQL of the tests' own: a private cluster in a temporary directory, on a Unix socket.
//!
//! ```text
//!  Cluster::shared() ─▶ initdb, postgres ─ socket ─▶ database("name") ─▶ postgres://…
//!       └─ keeper: a shell that waits for the end of this process, however it comes, then ends the
//!          server and removes the directory
//! ```
//!
//! `initdb` and the server refuse to run as root: there they run as `postgres`, the user that
//! Debian's package makes. Where PostgreSQL is missing a test fails with a sentence that says what
//! to install; `hooks/install` does.

#![allow(clippy::unwrap_used)] // All of this crate is tests; where it cannot go on it panics.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

/// No server takes longer to start, on two busy cores.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the server is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The port of one of which nothing is said; it names the socket.
const PORT: u16 = 5432;

/// Where Debian keeps the programs of each version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The user of the cluster in the database, who may do everything.
const USER: &str = "zex";

/// Ends the server and removes the directory when its stdin does, which is when we are gone.
const KEEPER: &str = r#"cat >/dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" && tail --pid="$pid" -f /dev/null
rm -rf "$1""#;

/// A PostgreSQL of the tests' own.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    server: Mutex<Option<Child>>,
    databases: AtomicU32,
    keeper: Mutex<(Child, Option<ChildStdin>)>,
    /// Whether the directory is somebody else's, who gave it.
    lent: bool,
    /// Of its socket, and of TCP where it has that.
    port: AtomicU16,
}

impl Cluster {
    /// The one that the tests of a process share. Started when it is first asked for.
    ///
    /// # Panics
    /// If PostgreSQL is not installed or does not start.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Makes a cluster and starts its server.
    ///
    /// # Panics
    /// If PostgreSQL is not installed or does not start.
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("zex-pg-").tempdir().unwrap().keep();
        Self::start_in(directory, false, true)
    }

    /// The same in a directory that is there and empty, such as a small file system.
    ///
    /// # Panics
    /// If PostgreSQL is not installed or does not start.
    pub fn lent(directory: &Path) -> Self {
        Self::start_in(directory.to_owned(), true, true)
    }

    /// The same, as large as PostgreSQL makes one of which nothing is said: to be measured.
    ///
    /// # Panics
    /// If PostgreSQL is not installed or does not start.
    pub fn usual(directory: &Path) -> Self {
        Self::start_in(directory.to_owned(), true, false)
    }

    /// A cluster that is reached by TLS at `localhost`, too, with this certificate and key, in PEM.
    ///
    /// # Panics
    /// If PostgreSQL is not installed or does not start.
    pub fn with_tls(certificate: &str, key: &str) -> Self {
        let cluster = Self::start();
        let data = cluster.directory.join("data");
        for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
            let file = data.join(name);
            fs::write(&file, pem).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            if let Some((user, group)) = other_user() {
                chown(&file, Some(user), Some(group)).unwrap();
            }
        }
        let file = data.join("postgresql.conf");
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let more = format!("listen_addresses = '127.0.0.1'\nport = {free}\nssl = on\n");
        fs::write(&file, fs::read_to_string(&file).unwrap() + &more).unwrap();
        cluster.port.store(free, Ordering::Relaxed);
        cluster.kill();
        cluster.start_again();
        cluster.until_ready();
        cluster
    }

    /// Where its database `postgres` is found by TLS.
    pub fn encrypted(&self) -> String {
        format!(
            "postgres://{USER}@localhost:{}/postgres?sslmode=require&hostaddr=127.0.0.1",
            self.port()
        )
    }

    fn port(&self) -> u16 {
        self.port.load(Ordering::Relaxed)
    }

    fn start_in(directory: PathBuf, lent: bool, small: bool) -> Self {
        if let Some((user, group)) = other_user() {
            chown(&directory, Some(user), Some(group)).unwrap();
        }
        let data = directory.join("data");
        let mut init = as_server("initdb");
        init.arg("-D").arg(&data).args(["-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C"]);
        // A test's cluster need not survive the machine; what its server writes does.
        init.arg("--no-sync");
        if small {
            init.arg("--wal-segsize=1");
        }
        let made = init.output().unwrap_or_else(|error| panic!("initdb: {error}"));
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nmax_connections = 300\n\
             log_min_messages = warning\n",
            directory.display()
        );
        if small {
            settings += "max_wal_size = 64MB\nmin_wal_size = 8MB\nshared_buffers = 64MB\n";
        }
        let file = data.join("postgresql.conf");
        fs::write(&file, fs::read_to_string(&file).unwrap() + &settings).unwrap();
        // Whose directory it is removes it.
        let kept = KEEPER.rsplit_once('\n').map_or(KEEPER, |(ends, _removes)| ends);
        let keeper = if lent { kept } else { KEEPER };
        let mut keeper = Command::new("setsid")
            .args(["sh", "-c", keeper, "sh"])
            .arg(&directory)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = keeper.stdin.take();
        let (server, databases) = (Mutex::new(None), AtomicU32::new(0));
        let keeper = Mutex::new((keeper, stdin));
        let port = AtomicU16::new(PORT);
        let cluster = Self { directory, server, databases, keeper, lent, port };
        cluster.start_again();
        cluster.until_ready();
        cluster
    }

    /// Starts the server, which has been killed, or has ended. Does not wait until it is ready.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_again(&self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut server = as_server("postgres");
        server.arg("-D").arg(self.directory.join("data")).stdin(Stdio::null());
        server.stdout(log.try_clone().unwrap()).stderr(log);
        *lock(&self.server) = Some(server.spawn().unwrap());
    }

    /// Waits until the server takes connections.
    ///
    /// # Panics
    /// If it does not within a minute.
    pub fn until_ready(&self) {
        let end = Instant::now() + PATIENCE;
        while !self.try_psql("postgres", "SELECT 1").is_ok_and(|said| said.contains('1')) {
            assert!(Instant::now() < end, "the server does not start\n{}", self.log());
            sleep(LOOK_AGAIN);
            if !self.runs() {
                // The processes of one that was killed had not all ended yet.
                self.start_again();
            }
        }
    }

    /// `kill -9` for the server and, as they notice it, all its processes.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&self) {
        let mut server = lock(&self.server).take().expect("the server runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Whether the server runs.
    pub fn runs(&self) -> bool {
        lock(&self.server).as_mut().is_some_and(|server| server.try_wait().unwrap().is_none())
    }

    /// Makes an empty database; where it is found.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn database(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// Where a database of this name is found.
    pub fn url(&self, name: &str) -> String {
        // A path stands where others have a host.
        let socket = self.directory.display().to_string().replace('/', "%2F");
        format!("postgres://{USER}@{socket}/{name}")
    }

    /// Runs SQL; what it gives, a line for each row.
    ///
    /// # Panics
    /// If it fails.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        self.try_psql(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs SQL; what it gives, or what it said when it failed.
    ///
    /// # Errors
    /// What `psql` says.
    pub fn try_psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = Command::new(program("psql"));
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", USER, "-d", database]);
        psql.arg("-h").arg(&self.directory).args(["-p", &self.port().to_string(), "-c", sql]);
        let said = psql.output().unwrap();
        match said.status.success() {
            true => Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned()),
            false => Err(String::from_utf8_lossy(&said.stderr).into_owned()),
        }
    }

    /// What the server has written.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        match self.lent {
            // Not on a file system that is filled.
            true => env::temp_dir().join(format!("zex-pg-{}.log", std::process::id())),
            false => self.directory.join("log"),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = lock(&self.server).take() {
            // SIGINT: at once, and in order. Whatever becomes of it, the keeper comes after.
            let pid = server.id().to_string();
            let _asked = Command::new("kill").args(["-INT", &pid]).status();
            let _ended = server.wait();
        }
        if self.lent {
            let _gone = fs::remove_file(self.log_file());
        }
        let mut keeper = lock(&self.keeper);
        keeper.1 = None;
        let _ended = keeper.0.wait();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program of PostgreSQL: on the path, or of the newest version that Debian has put here.
fn program(name: &str) -> PathBuf {
    let on_path = env::var_os("PATH").unwrap_or_default();
    let here = env::split_paths(&on_path).map(|folder| folder.join(name));
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions.map(|entry| entry.path()).collect();
    let number = |path: &PathBuf| -> u32 {
        path.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0)
    };
    versions.sort_by_key(number);
    let debian = versions.into_iter().rev().map(|version| version.join("bin").join(name));
    // Debian's own psql on the path is a Perl wrapper that takes as long as the query.
    debian.chain(here).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("PostgreSQL's {name} is not here: run hooks/install, or install PostgreSQL by hand")
    })
}

/// A program of the server, as a user whom it does not refuse.
fn as_server(name: &str) -> Command {
    let program = program(name);
    let mut command = match other_user() {
        None => Command::new(program),
        Some((user, group)) => {
            let mut command = Command::new("setpriv");
            let (user, group) = (user.to_string(), group.to_string());
            command.args(["--reuid", &user, "--regid", &group, "--clear-groups"]).arg(program);
            command
        }
    };
    // Where its user may be, and nothing of ours.
    command.current_dir("/").env_remove("PGDATA");
    command
}

/// The user and group of the server, when it cannot be ours.
fn other_user() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let found = users.lines().find_map(|line| line.strip_prefix("postgres:"));
    let mut fields = found.expect("a user `postgres`, whom the package makes").split(':').skip(1);
    let mut next = || fields.next().unwrap().parse().unwrap();
    Some((next(), next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_killed_and_starts_again_with_what_it_had() {
        let cluster = Cluster::start();
        let url = cluster.database();
        let name = "t0";
        assert!(url.contains(name), "{url}");
        cluster.psql(name, "CREATE TABLE t (x int); INSERT INTO t VALUES (7)");
        cluster.kill();
        assert!(!cluster.runs() && cluster.try_psql(name, "SELECT 1").is_err());
        cluster.start_again();
        cluster.until_ready();
        assert_eq!(cluster.psql(name, "SELECT x FROM t"), "7");
        let directory = cluster.directory.clone();
        drop(cluster);
        assert!(!directory.exists());
    }
}
