//! News: one connection that listens, and tells what this scheduler has written.
//!
//! ```text
//!  appended events ─▶ queue ─▶ NOTIFY, many runs in one ─▶ every scheduler ─▶ News
//!  letters, answers, goodbyes: NOTIFY by the statement that writes them ──┘
//! ```
//!
//! Events are told here and not by the append: commits that notify wait for each other in
//! all of a database, and this one, which promises nothing, need not reach the disk. News
//! may be lost with the connection; whoever gets [`News::Missed`] looks by himself.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::poll_fn;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio_postgres::AsyncMessage;

use super::super::News;
use super::connect::{ANSWER, Database};

/// The channel of the database that all schedulers listen to.
pub(super) const CHANNEL: &str = "zex";

/// How much news waits for one who listens; who is slower has missed some.
const NEWS_WAITING: usize = 4096;

/// How much waits to be told; beyond it, it is not.
const TELL_WAITING: usize = 8192;

/// The most bytes that are told at once: PostgreSQL takes less than 8000.
const TOLD_BYTES_MAX: usize = 7000;

/// The first wait before the database is reached for again, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long nothing may be heard before the connection is tried: who listens notices no end else.
const PING: Duration = Duration::from_secs(5);

/// Listens and tells, until it is dropped.
#[derive(Debug)]
pub(super) struct Link {
    news: broadcast::Sender<News>,
    tell: mpsc::Sender<News>,
    task: JoinHandle<()>,
}

impl Link {
    pub(super) fn start(database: &Database) -> Self {
        let (news, _) = broadcast::channel(NEWS_WAITING);
        let (tell, queue) = mpsc::channel(TELL_WAITING);
        let task = tokio::spawn(follow(database.clone(), news.clone(), queue));
        Self { news, tell, task }
    }

    /// What others do from now on.
    pub(super) fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    /// Takes what the others are to be told.
    pub(super) fn sender(&self) -> mpsc::Sender<News> {
        self.tell.clone()
    }

    /// Tells the others something.
    pub(super) fn tell(&self, news: News) {
        // Too much waits: this is not told.
        let _missed = self.tell.try_send(news).is_err();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(database: Database, news: broadcast::Sender<News>, mut tell: mpsc::Receiver<News>) {
    let mut wait = AGAIN.0;
    loop {
        match listen(&database, &news, &mut tell).await {
            Ok(()) => wait = AGAIN.0,
            Err(error) => tracing::debug!(%error, "no news of the other schedulers"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN.1);
        // What came meanwhile is old by the time that anybody hears of it.
        while tell.try_recv().is_ok() {}
    }
}

/// Listens until the connection ends. An error when it does not come about.
async fn listen(
    database: &Database,
    news: &broadcast::Sender<News>,
    tell: &mut mpsc::Receiver<News>,
) -> Result<(), String> {
    let connected = database.connect().await;
    let (client, mut connection) = connected.map_err(|error| error.to_string())?;
    let (messages, mut heard) = mpsc::channel(NEWS_WAITING);
    let driver = tokio::spawn(async move {
        let mut stream = poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = stream.next().await {
            if let AsyncMessage::Notification(told) = message
                && messages.send(told.payload().to_owned()).await.is_err()
            {
                return;
            }
        }
    });
    let _ended = Ended(driver);
    // What is told here is told again by who looks: no commit of it waits for the disk.
    let begin = format!("SET synchronous_commit = off; LISTEN {CHANNEL}");
    in_time(client.batch_execute(&begin)).await?;
    let _nobody = news.send(News::Missed).is_err();
    let notify = format!("SELECT pg_notify('{CHANNEL}', $1)");
    let notify = in_time(client.prepare(&notify)).await?;
    loop {
        tokio::select! {
            told = heard.recv() => match told {
                Some(told) => spread(&told, news),
                None => return Ok(()),
            },
            Some(first) = tell.recv() => {
                for told in gather(first, tell) {
                    if in_time(client.execute(&notify, &[&told])).await.is_err() {
                        return Ok(());
                    }
                }
            }
            () = tokio::time::sleep(PING) => {
                if in_time(client.batch_execute("")).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// The answer to a statement. A connection on which none comes may be dead without anybody having said
/// so.
async fn in_time<T>(
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(|error| super::connect::words(&error)),
        Err(_elapsed) => Err(format!("no answer in {} s", ANSWER.as_secs())),
    }
}

/// What waits to be told, as few notifications.
fn gather(first: News, tell: &mut mpsc::Receiver<News>) -> Vec<String> {
    let (mut told, mut events) = (Vec::new(), String::new());
    let mut next = Some(first);
    while let Some(news) = next {
        match news {
            News::Events { run } if events.is_empty() => events = format!("e {run}"),
            News::Events { run } => {
                events.push(' ');
                events.push_str(&run);
            }
            News::Note { kind } => told.push(format!("n {kind}")),
            News::Gone => told.push("g".to_owned()),
            // Told by the statements that write them.
            News::Letter { .. } | News::Answer { .. } | News::Missed => {}
        }
        next = if events.len() < TOLD_BYTES_MAX { tell.try_recv().ok() } else { None };
    }
    if !events.is_empty() {
        told.push(events);
    }
    told
}

/// Ends a task with whoever holds it.
struct Ended(JoinHandle<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn spread(told: &str, news: &broadcast::Sender<News>) {
    let (kind, rest) = told.split_once(' ').unwrap_or((told, ""));
    // Nobody may be listening.
    let send = |what: News| {
        let _nobody = news.send(what).is_err();
    };
    match kind {
        "e" => rest.split(' ').for_each(|run| send(News::Events { run: run.to_owned() })),
        "l" => send(News::Letter { run: rest.to_owned() }),
        "a" => {
            if let Ok(letter) = rest.parse() {
                send(News::Answer { letter });
            }
        }
        "n" => send(News::Note { kind: rest.to_owned() }),
        "g" => send(News::Gone),
        // A newer scheduler says more.
        _ => {}
    }
}
