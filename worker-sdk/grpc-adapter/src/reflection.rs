//! Reads what the service offers from its reflection: names, methods and the files that
//! describe them, byte for byte as the service has them.
//!
//! ```text
//!   list_services ─▶ names ─▶ file_containing_symbol ─▶ file ─▶ its imports ─▶ … ─▶ Catalogue
//!        v1, else v1alpha        one stream a question          file_by_filename
//! ```
//!
//! Both versions have the same messages, so the one path is all that differs. A question has a
//! stream of its own: some servers end the stream with a status when something is not found
//! (tonic), others answer inside it (grpcio), and either is over after one question. Nor can a
//! server then leave out files it has "already sent".
//!
//! Files are kept as bytes, not as decoded descriptors: decoding would lose custom options.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint},
};
use prost_reflect::DescriptorPool;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse,
    server_reflection_request::MessageRequest as Question,
    server_reflection_response::MessageResponse as Answer,
};
use zex_spec::{MAX_BODY_BYTES, MAX_NAME_BYTES, schema};

use crate::{cause::Cause, target::Line};

/// How long one question may take, in milliseconds. It reads memory, next door.
const QUESTION_TIMEOUT_MS: u64 = 2_000;
/// The most services one target may offer: each is announced to every broker.
const MAX_SERVICES: usize = 256;
/// The most files read from one target: far above what any real service imports, and an end to
/// a server that makes up imports.
const MAX_FILES: usize = 2_048;
/// The most bytes of files kept of one target.
const MAX_FILES_BYTES: usize = 4 * MAX_BODY_BYTES;

const V1: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const V1ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

/// Services about the server itself, which stay at home.
const NOT_OFFERED: [&str; 3] = [
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "grpc.health.v1.Health",
];

/// Why the reflection could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReflectionError {
    /// Nobody is there, or the connection broke.
    #[error("{url}: cannot be reached: {why}")]
    Unreachable {
        /// The target.
        url: String,
        /// What the system said.
        why: String,
    },
    /// Somebody is there and does not answer.
    #[error("{url}: no answer from its reflection within {QUESTION_TIMEOUT_MS} ms")]
    Silent {
        /// The target.
        url: String,
    },
    /// Neither version of the reflection service is there.
    #[error(
        "{url}: it has no reflection (grpc.reflection.v1 or v1alpha); switch it on in the service, or \
         give its descriptors to the adapter"
    )]
    Missing {
        /// The target.
        url: String,
    },
    /// The answers make no sense.
    #[error("{url}: its reflection {what}")]
    Nonsense {
        /// The target.
        url: String,
        /// What it did.
        what: String,
    },
}

/// How many messages go each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One request, one answer.
    Unary,
    /// One request, a stream of answers.
    ServerStream,
    /// A stream of requests, one answer.
    ClientStream,
    /// A stream each way.
    BidiStream,
}

/// A method of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method {
    /// `/pkg.Service/Method`, ready for a call.
    pub path: PathAndQuery,
    /// How many messages go each way.
    pub kind: Kind,
    /// A short word for its request and its answer as they are now.
    pub schema: String,
}

/// A service with everything a caller must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// A serialized `FileDescriptorSet`: the file with the service and all it imports, imports
    /// first.
    pub descriptors: Bytes,
    /// The methods by name.
    pub methods: BTreeMap<String, Method>,
}

/// What a target offers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalogue {
    /// The services by full name, without those about the server itself.
    pub services: BTreeMap<String, Service>,
    /// The services that cannot be offered, with the reason.
    pub left_out: BTreeMap<String, String>,
}

/// Reads all that the service at the other end of the line offers.
pub async fn read(line: &Line) -> Result<Catalogue, ReflectionError> {
    let (mut reader, names) = Reader::begin(line).await?;
    let mut catalogue = Catalogue::default();
    for name in names {
        let found = match check_name(&name, catalogue.services.len()) {
            Ok(()) => reader.service(&name).await,
            Err(why) => Err(Trouble::Here(why)),
        };
        match found {
            Ok(service) => drop(catalogue.services.insert(name, service)),
            Err(Trouble::Here(why)) => drop(catalogue.left_out.insert(name, why)),
            Err(Trouble::Everywhere(error)) => return Err(error),
        }
    }
    Ok(catalogue)
}

impl Catalogue {
    /// What the services of a serialized `FileDescriptorSet` are, for a target that does not tell.
    /// All of them, but those about a server itself.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn of_descriptors(set: &[u8]) -> Result<Self, String> {
        // Of the set the names alone; the bytes of its files stay as they are.
        let files = FileDescriptorSet::decode(set).map_err(|error| format!("{error}"))?.file;
        let mut catalogue = Self::default();
        for file in &files {
            for service in &file.service {
                let name = match file.package() {
                    "" => service.name().to_owned(),
                    package => format!("{package}.{}", service.name()),
                };
                if NOT_OFFERED.contains(&name.as_str()) {
                    continue;
                }
                let descriptors = Bytes::copy_from_slice(set);
                check_name(&name, catalogue.services.len())
                    .map_err(|why| format!("{name}: {why}"))?;
                let methods = methods(&name, set).map_err(|why| format!("{name}: {why}"))?;
                catalogue.services.insert(name, Service { descriptors, methods });
            }
        }
        if catalogue.services.is_empty() {
            return Err("it has no service".to_owned());
        }
        if set.len() > MAX_BODY_BYTES {
            return Err(format!("it has {} bytes; a message holds {MAX_BODY_BYTES}", set.len()));
        }
        Ok(catalogue)
    }
}

/// Asks for the list of services and forgets it: a sign of life where there is no health
/// service.
pub(crate) async fn probe(line: &Line) -> Result<(), ReflectionError> {
    Reader::begin(line).await.map(drop)
}

fn check_name(name: &str, so_far: usize) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(format!("a service's name has 1 to {MAX_NAME_BYTES} bytes"));
    }
    if name.starts_with("zex.") {
        return Err("names that begin with \"zex.\" are the mesh's own".to_owned());
    }
    if so_far >= MAX_SERVICES {
        return Err(format!("there are {MAX_SERVICES} services already"));
    }
    Ok(())
}

/// What keeps a service out of the catalogue, or ends the reading.
enum Trouble {
    Here(String),
    Everywhere(ReflectionError),
}

/// What the other end said to a question.
enum Refusal {
    /// It has no such thing.
    NotFound,
    /// It does not serve this version of the reflection.
    Unimplemented,
    /// It failed.
    Failed(ReflectionError),
}

struct File {
    bytes: Bytes,
    imports: Vec<String>,
}

struct Reader<'a> {
    line: &'a Line,
    path: &'static str,
    files: BTreeMap<String, File>,
    files_bytes: usize,
}

impl<'a> Reader<'a> {
    /// Finds the version that is served, and with it the names of the services.
    async fn begin(line: &'a Line) -> Result<(Self, BTreeSet<String>), ReflectionError> {
        for path in [V1, V1ALPHA] {
            let reader = Self { line, path, files: BTreeMap::new(), files_bytes: 0 };
            match reader.ask(Question::ListServices(String::new())).await {
                Ok(Answer::ListServicesResponse(list)) => {
                    let names = list.service.into_iter().map(|service| service.name);
                    let offered = |name: &String| !NOT_OFFERED.contains(&name.as_str());
                    return Ok((reader, names.filter(offered).collect()));
                }
                Ok(_) => return Err(reader.nonsense("answers the list of services otherwise")),
                Err(Refusal::NotFound | Refusal::Unimplemented) => {}
                Err(Refusal::Failed(error)) => return Err(error),
            }
        }
        Err(ReflectionError::Missing { url: line.url().to_owned() })
    }

    async fn service(&mut self, name: &str) -> Result<Service, Trouble> {
        let files = self.files_of(Question::FileContainingSymbol(name.to_owned())).await?;
        let Some(files) = files else {
            return Err(Trouble::Here("its reflection lists it but has no file for it".into()));
        };
        let declares = |file: &FileDescriptorProto| {
            file.service.iter().any(|service| match file.package() {
                "" => service.name() == name,
                package => name
                    .strip_prefix(package)
                    .and_then(|rest| rest.strip_prefix('.'))
                    .is_some_and(|rest| rest == service.name()),
            })
        };
        let Some(root) = files.iter().find(|file| declares(file)) else {
            return Err(Trouble::Here("the file that reflection gives does not declare it".into()));
        };
        let descriptors = self.with_imports(root.name()).await?;
        if descriptors.len() > MAX_BODY_BYTES {
            let bytes = descriptors.len();
            return Err(Trouble::Here(format!(
                "its descriptors have {bytes} bytes; a message holds {MAX_BODY_BYTES}"
            )));
        }
        let methods = methods(name, &descriptors).map_err(Trouble::Here)?;
        Ok(Service { descriptors, methods })
    }

    /// The file with everything it imports, imports first, as a serialized `FileDescriptorSet`.
    async fn with_imports(&mut self, root: &str) -> Result<Bytes, Trouble> {
        let mut set = BytesMut::new();
        let mut seen = BTreeSet::from([root.to_owned()]);
        // Files on the way down, each with how many of its imports are done.
        let mut way = vec![(root.to_owned(), 0)];
        while let Some((name, done)) = way.last_mut() {
            self.fetch(name).await?;
            let file = &self.files[name.as_str()];
            let Some(import) = file.imports.get(*done) else {
                encode_key(FILE_TAG, WireType::LengthDelimited, &mut set);
                encode_varint(file.bytes.len() as u64, &mut set);
                set.put_slice(&file.bytes);
                way.pop();
                continue;
            };
            *done += 1;
            if seen.insert(import.clone()) {
                let import = import.clone();
                way.push((import, 0));
            }
        }
        Ok(set.freeze())
    }

    /// Makes sure that the file is among those that are known.
    async fn fetch(&mut self, name: &str) -> Result<(), Trouble> {
        if self.files.contains_key(name) {
            return Ok(());
        }
        let files = self.files_of(Question::FileByFilename(name.to_owned())).await?;
        if files.is_some() && self.files.contains_key(name) {
            return Ok(());
        }
        // Servers often forget the files that come with protobuf itself. We have them.
        let known = DescriptorPool::global().get_file_by_name(name);
        match known.filter(|_| name.starts_with("google/protobuf/")) {
            Some(file) => self.keep(file.file_descriptor_proto().encode_to_vec().into()).map(drop),
            None => Err(Trouble::Here(format!("its reflection lacks the imported file {name:?}"))),
        }
    }

    /// Asks for files and keeps them; `None` when there are none.
    async fn files_of(
        &mut self,
        question: Question,
    ) -> Result<Option<Vec<FileDescriptorProto>>, Trouble> {
        match self.ask(question).await {
            Ok(Answer::FileDescriptorResponse(answer)) => {
                let files = answer.file_descriptor_proto.into_iter();
                files.map(|bytes| self.keep(bytes.into())).collect::<Result<_, _>>().map(Some)
            }
            Ok(_) => {
                Err(Trouble::Everywhere(self.nonsense("answers a question about files otherwise")))
            }
            Err(Refusal::NotFound) => Ok(None),
            Err(Refusal::Unimplemented) => {
                Err(Trouble::Everywhere(self.nonsense("does not implement what it must")))
            }
            Err(Refusal::Failed(error)) => Err(Trouble::Everywhere(error)),
        }
    }

    fn keep(&mut self, bytes: Bytes) -> Result<FileDescriptorProto, Trouble> {
        let file = FileDescriptorProto::decode(bytes.clone()).map_err(|error| {
            Trouble::Everywhere(self.nonsense(&format!("gives a file that is none: {error}")))
        })?;
        let many =
            self.files.len() >= MAX_FILES || self.files_bytes + bytes.len() > MAX_FILES_BYTES;
        if let Entry::Vacant(place) = self.files.entry(file.name().to_owned()) {
            if many {
                return Err(Trouble::Everywhere(self.nonsense(&format!(
                    "has more than {MAX_FILES} files or {MAX_FILES_BYTES} bytes of them"
                ))));
            }
            self.files_bytes += bytes.len();
            place.insert(File { bytes, imports: file.dependency.clone() });
        }
        Ok(file)
    }

    /// Asks one question on a stream of its own.
    async fn ask(&self, question: Question) -> Result<Answer, Refusal> {
        let limit = Duration::from_millis(QUESTION_TIMEOUT_MS);
        let answer = match tokio::time::timeout(limit, self.exchange(question)).await {
            Err(_) => return Err(Refusal::Failed(self.silent())),
            Ok(Err(status)) => return Err(self.refusal(status)),
            Ok(Ok(None)) => return Err(self.failed("ends without an answer")),
            Ok(Ok(Some(answer))) => answer.message_response,
        };
        self.line.heard();
        match answer {
            None => Err(self.failed("gives an empty answer")),
            Some(Answer::ErrorResponse(error)) => {
                Err(self
                    .refusal(Status::new(Code::from_i32(error.error_code), error.error_message)))
            }
            Some(answer) => Ok(answer),
        }
    }

    async fn exchange(
        &self,
        question: Question,
    ) -> Result<Option<ServerReflectionResponse>, Status> {
        let question =
            ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let mut grpc = Grpc::new(self.line.channel()).max_decoding_message_size(MAX_FILES_BYTES);
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let mut request = Request::new(tokio_stream::once(question));
        request.set_timeout(Duration::from_millis(QUESTION_TIMEOUT_MS));
        let codec = ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
        let path = PathAndQuery::from_static(self.path);
        grpc.streaming(request, path, codec).await?.into_inner().message().await
    }

    fn refusal(&self, status: Status) -> Refusal {
        let url = self.line.url().to_owned();
        match Cause::of(&status) {
            Cause::NotBegun => {
                let why = "the connection closes".to_owned();
                return Refusal::Failed(ReflectionError::Unreachable { url, why });
            }
            Cause::Gone(why) | Cause::NotReached(why) => {
                return Refusal::Failed(ReflectionError::Unreachable { url, why });
            }
            Cause::Late => return Refusal::Failed(self.silent()),
            Cause::Service => self.line.heard(),
        }
        match status.code() {
            Code::NotFound => Refusal::NotFound,
            Code::Unimplemented => Refusal::Unimplemented,
            code => self.failed(&format!("fails with {code:?}: {}", status.message())),
        }
    }

    fn silent(&self) -> ReflectionError {
        ReflectionError::Silent { url: self.line.url().to_owned() }
    }

    fn failed(&self, what: &str) -> Refusal {
        Refusal::Failed(self.nonsense(what))
    }

    fn nonsense(&self, what: &str) -> ReflectionError {
        ReflectionError::Nonsense { url: self.line.url().to_owned(), what: what.to_owned() }
    }
}

/// The number of the field `file` in `FileDescriptorSet`.
const FILE_TAG: u32 = 1;

/// The methods of a service by its descriptors, which are checked as a whole on the way.
fn methods(name: &str, descriptors: &[u8]) -> Result<BTreeMap<String, Method>, String> {
    // prost-reflect 0.16 panics where it should say that two files define one name; nothing but
    // the new pool is touched by that.
    let pool = std::panic::catch_unwind(|| DescriptorPool::decode(descriptors))
        .map_err(|_| "its descriptors contradict one another".to_owned())?
        .map_err(|error| format!("its descriptors do not fit together: {error}"))?;
    let service = pool
        .get_service_by_name(name)
        .ok_or_else(|| "its descriptors do not have it".to_owned())?;
    let mut methods = BTreeMap::new();
    for method in service.methods() {
        let path = PathAndQuery::try_from(format!("/{name}/{}", method.name()))
            .map_err(|error| format!("its method {:?} cannot be called: {error}", method.name()))?;
        let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
            (false, false) => Kind::Unary,
            (false, true) => Kind::ServerStream,
            (true, false) => Kind::ClientStream,
            (true, true) => Kind::BidiStream,
        };
        let schema = schema::hash(&method);
        methods.insert(method.name().to_owned(), Method { path, kind, schema });
    }
    Ok(methods)
}
