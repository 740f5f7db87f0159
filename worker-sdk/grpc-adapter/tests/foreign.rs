//! Everything that a call can carry, through the whole mesh to a server that knows nothing of it and
//! is written in Python: client, pipes, broker, adapter, grpcio, and back. Prints SKIPPED where python3
//! has no grpcio.

#![allow(clippy::unwrap_used)] // All of this file is tests.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use zex_adapter::{Adapter, Catalogue, Compression, SCHEMA, Settings, Target, Tls};
use zex_broker::{LocalEndpoints, LocalMesh};
use zex_client::{Answer, Call, Client, ClientOptions, Code, Metadata};
use zex_worker::Worker;

const SERVICE: &str = "py.v1.Foreign";
/// No wait in these tests lasts longer.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

fn text(text: impl ToString) -> Bytes {
    Text { text: text.to_string() }.encode_to_vec().into()
}

fn read(body: Bytes) -> String {
    Text::decode(body).unwrap().text
}

struct Stage {
    client: Client,
    adapter: Adapter,
    heard: Lines<BufReader<ChildStdout>>,
    _mesh: LocalMesh,
    _python: Child,
    _folder: tempfile::TempDir,
}

/// Authority, certificate and key of a server and of a client, as files.
struct Certificates {
    authority: String,
    client: (String, String),
    files: [PathBuf; 3],
}

impl Certificates {
    fn make(folder: &Path) -> Self {
        let mut authority = rcgen::CertificateParams::default();
        authority.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertifiedIssuer::self_signed(authority, key).unwrap();
        let vouched = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            // Else it has the authority's own name, and counts as vouched for by itself.
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            (params.signed_by(&key, &authority).unwrap().pem(), key.serialize_pem())
        };
        let server = vouched("foreign.test");
        let files = ["ca", "cert", "key"].map(|name| folder.join(name));
        for (file, pem) in files.iter().zip([authority.pem(), server.0, server.1]) {
            std::fs::write(file, pem).unwrap();
        }
        Self { authority: authority.pem(), client: vouched("adapter"), files }
    }

    fn tls(&self, identity: bool) -> Tls {
        let (certificate, key) = &self.client;
        let identity = identity.then(|| (certificate.clone().into(), key.clone().into()));
        let authorities = Some(self.authority.clone().into());
        Tls { authorities, identity, name: Some("foreign.test".into()) }
    }
}

impl Stage {
    /// `None` where there is no grpcio.
    async fn start(settings: Settings, certificates: Option<&Certificates>) -> Option<Self> {
        let imports = ["-c", "import grpc"];
        let run = Command::new("python3").args(imports).stderr(Stdio::null()).status().await;
        if !run.is_ok_and(|status| status.success()) {
            println!("SKIPPED: python3 has no grpcio");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let descriptors = folder.path().join("descriptors");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stage/foreign.py");
        let mut python = Command::new("python3")
            .arg(script)
            .arg(&descriptors)
            .args(certificates.iter().flat_map(|it| &it.files))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut heard = BufReader::new(python.stdout.take().unwrap()).lines();
        let port = word(&mut heard).await;
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let catalogue = Catalogue::of_descriptors(&std::fs::read(descriptors).unwrap()).unwrap();
        let settings = Settings { catalogue: Some(Arc::new(catalogue)), ..settings };
        let url = format!("{scheme}://127.0.0.1:{port}");
        let target = Target::parse(&url, Arc::new(settings)).unwrap();
        let mesh = LocalMesh::start(2, LocalEndpoints::default()).unwrap();
        let options = ClientOptions { context: Some(mesh.context().clone()), ..Default::default() };
        let client = Client::connect([mesh.for_clients()], options).unwrap();
        let worker = Worker::builder().worker_pipes([mesh.for_workers()]).name("foreign");
        let adapter = Adapter::start(vec![target], worker).unwrap();
        Some(Self { client, adapter, heard, _mesh: mesh, _python: python, _folder: folder })
    }

    async fn call(&self, method: &str, body: Bytes, metadata: Metadata) -> Answer {
        let call = Call::new(SERVICE, method, body).metadata(metadata).wait_for_worker(true);
        self.client.unary_answer(call.deadline(PATIENCE)).await
    }

    async fn done(self) {
        self.adapter.drain(PATIENCE).await;
    }
}

/// The next line that the server says.
async fn word(heard: &mut Lines<BufReader<ChildStdout>>) -> String {
    let line = tokio::time::timeout(PATIENCE, heard.next_line()).await;
    line.expect("a word in time").unwrap().expect("it runs")
}

fn sent() -> Metadata {
    let entries: [(&str, &[u8]); 4] = [
        ("x-trace", b"a b"),
        ("x-trace", b"again"),
        ("x-token-bin", &[0, 0xff, b',']),
        ("grpc-timeout", b"1n"),
    ];
    Metadata::new(entries).unwrap()
}

fn entries(metadata: &Metadata) -> Vec<(String, Bytes)> {
    let mut entries: Vec<_> = metadata
        .iter()
        .map(|(name, value)| (name.to_owned(), Bytes::copy_from_slice(value)))
        .filter(|(name, _)| name.starts_with("x-"))
        .collect();
    // Between names HTTP/2 has no order.
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries
}

fn of(pairs: &[(&str, &[u8])]) -> Vec<(String, Bytes)> {
    pairs.iter().map(|(name, value)| ((*name).into(), Bytes::copy_from_slice(value))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_and_trailers_go_both_ways_around_answers_and_streams() {
    let Some(stage) = Stage::start(Settings::default(), None).await else { return };
    let back = of(&[("x-token-bin", &[0, 0xff, b',']), ("x-trace", b"a b"), ("x-trace", b"again")]);
    let end = of(&[("x-end", b"over"), ("x-end-bin", &[0, 0xff])]);
    let answer = stage.call("Echo", text("hé"), sent()).await;
    assert_eq!(read(answer.outcome.unwrap()), "hé");
    assert_eq!((entries(&answer.headers), entries(&answer.trailers)), (back.clone(), end.clone()));

    let call = Call::new(SERVICE, "Count", text(100)).metadata(sent()).deadline(PATIENCE);
    let mut count = stage.client.server_stream(call).await.unwrap();
    assert_eq!(entries(count.headers().await), back);
    for number in 0..100 {
        assert_eq!(read(count.next().await.unwrap().unwrap()), number.to_string());
    }
    assert!(count.next().await.is_none());
    assert_eq!(entries(count.trailers()), end);
    stage.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_status_comes_with_its_message_details_and_trailers() {
    let Some(stage) = Stage::start(Settings::default(), None).await else { return };
    for code in Code::ALL.into_iter().skip(1) {
        let answer = stage.call("Fail", text(code.number()), sent()).await;
        let status = answer.outcome.unwrap_err();
        assert_eq!((status.code, status.message), (code, format!("schön {}", code.number())));
        // A google.rpc.Status, of which we look at the first field: its code.
        assert_eq!(status.details[..2], [0x08, code.number()]);
        assert!(status.details.windows(7).any(|part| part == b"because"));
        assert_eq!(entries(&answer.trailers), of(&[("x-end", b"badly")]));
        assert_eq!(entries(&answer.headers).len(), 3);
    }
    stage.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_told_and_kept_and_who_gives_up_is_noticed() {
    let Some(mut stage) = Stage::start(Settings::default(), None).await else { return };
    let left = stage.call("Left", text(""), Metadata::EMPTY).await.outcome.unwrap();
    let left: f64 = read(left).parse().unwrap();
    assert!((0.0..=PATIENCE.as_secs_f64()).contains(&left), "{left} s");

    const TIME: Duration = Duration::from_millis(500);
    let begun = Instant::now();
    let hang = || Call::new(SERVICE, "Hang", text(""));
    let status = stage.client.unary(hang().deadline(TIME)).await.unwrap_err();
    assert_eq!(status.code, Code::DeadlineExceeded);
    println!("a deadline of {TIME:?} was kept in {:?}", begun.elapsed());
    assert!(begun.elapsed() >= TIME);
    assert_eq!(
        [word(&mut stage.heard).await, word(&mut stage.heard).await],
        ["begun", "cancelled"]
    );

    let client = stage.client.clone();
    let call = tokio::spawn(async move { client.unary(hang().deadline(PATIENCE)).await });
    assert_eq!(word(&mut stage.heard).await, "begun");
    let given_up = Instant::now();
    call.abort();
    assert_eq!(word(&mut stage.heard).await, "cancelled");
    println!("a cancel was noticed after {:?}", given_up.elapsed());
    stage.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_with_words_and_what_is_large_travels_compressed() {
    let settings = |max_message_bytes, compression| Settings {
        max_message_bytes,
        compression,
        ..Settings::default()
    };
    for compression in [None, Some(Compression::Gzip), Some(Compression::Zstd)] {
        let Some(stage) = Stage::start(settings(8 << 20, compression), None).await else { return };
        // grpcio takes no zstd: the adapter finds out and goes on without.
        let large = "y".repeat(4 << 20);
        let answer = stage.call("Echo", text(&large), Metadata::EMPTY).await;
        assert_eq!(read(answer.outcome.unwrap()).len(), 4 << 20, "{compression:?}");
        stage.done().await;
    }
    let Some(stage) = Stage::start(settings(1_000, None), None).await else { return };
    for (method, body, says) in [
        (
            "Echo",
            text("x".repeat(2_000)),
            "the request has 2003 bytes, the adapter's limit is 1000",
        ),
        ("Large", text(2_000), "above the adapter's limit of 1000 bytes"),
    ] {
        let status = stage.call(method, body, Metadata::EMPTY).await.outcome.unwrap_err();
        assert_eq!(status.code, Code::ResourceExhausted, "{status}");
        assert!(status.message.contains(says), "{status}");
    }
    stage.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_speaks_tls_and_wants_a_certificate_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(folder.path());
    let settings = |identity| Settings { tls: certificates.tls(identity), ..Settings::default() };
    let Some(stage) = Stage::start(settings(true), Some(&certificates)).await else { return };
    let answer = stage.call("Echo", text("in private"), sent()).await;
    assert_eq!(read(answer.outcome.unwrap()), "in private");
    stage.done().await;
    // Who shows no certificate is not let in, and serves nothing.
    let Some(stage) = Stage::start(settings(false), Some(&certificates)).await else { return };
    let call = Call::new(SERVICE, "Echo", text("")).wait_for_worker(true);
    let status = stage.client.unary(call.deadline(Duration::from_secs(2))).await.unwrap_err();
    assert_eq!(status.code, Code::DeadlineExceeded, "{status}");
    assert_eq!(stage.adapter.passed_on(), 0);
    stage.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_knows_another_schema_is_refused() {
    let Some(stage) = Stage::start(Settings::default(), None).await else { return };
    let ask = Call::new(SERVICE, zex_spec::DESCRIPTORS_METHOD, "").wait_for_worker(true);
    let told = stage.client.unary_answer(ask.deadline(PATIENCE)).await;
    let pool = DescriptorPool::decode(told.outcome.unwrap()).unwrap();
    let message = pool.get_message_by_name("py.v1.Text").unwrap();
    assert!(DynamicMessage::decode(message, text("hi")).is_ok());
    let schemas: Vec<_> = told.headers.iter().filter(|(name, _)| *name == SCHEMA).collect();
    assert_eq!(schemas.len(), 6);
    let echo = schemas.iter().find_map(|(_, value)| value.strip_prefix(b"Echo=")).unwrap();
    let with = |schema: &[u8]| Metadata::new([(SCHEMA, schema)]).unwrap();
    let answer = stage.call("Echo", text("known"), with(echo)).await;
    assert_eq!(read(answer.outcome.unwrap()), "known");
    let status = stage.call("Echo", text("old"), with(b"0123456789abcdef")).await.outcome;
    let status = status.unwrap_err();
    assert_eq!(status.code, Code::FailedPrecondition);
    assert!(status.message.contains("Echo has changed"), "{status}");
    stage.done().await;
}
