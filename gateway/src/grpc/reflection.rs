//! Reflection of everything that is registered: a generic client sees the whole mesh as one server.
//!
//! ```text
//!   grpc.reflection.v1 ──┐                       ┌─ the live services' files, as they have them
//!                        ├─▶ one question ─▶ ────┤
//!   grpc.reflection.v1alpha (the same messages)  └─ those of what the gateway serves itself
//! ```
//!
//! Two services may have different files of one name: they were built apart. So a question for a symbol
//! is answered with the files of the one service that has it, all of them; and in one exchange a file is
//! first looked for where the last symbol was.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::Request;
use prost_reflect::FileDescriptor;
use tonic::body::Body;
use tonic::codec::Streaming;
use tonic::server::Grpc;
use tonic::{Code, Response, Status};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest as Question;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse as Answer;
use tonic_reflection::pb::v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
};
use tower::Service;

use super::catalogue::{Described, Known};
use super::door::{Door, Target};
use super::{health, left, recorder};

/// The service, in its two versions.
pub(super) const V1: &str = "grpc.reflection.v1.ServerReflection";
pub(super) const V1ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";
const METHOD: &str = "ServerReflectionInfo";
/// Most bytes of files in one answer: clients take 4 MiB. A larger set is given file by file.
const MAX_ANSWER_BYTES: usize = 3 << 20;

/// What the gateway serves itself.
static OWN: LazyLock<Vec<(&str, Described)>> = LazyLock::new(|| {
    use tonic_reflection::pb::{v1, v1alpha};
    let own = [
        (health::SERVICE, tonic_health::pb::FILE_DESCRIPTOR_SET),
        (V1, v1::FILE_DESCRIPTOR_SET),
        (V1ALPHA, v1alpha::FILE_DESCRIPTOR_SET),
        (recorder::PIPELINES, zex_spec::proto::v1::DESCRIPTORS),
        (recorder::FOUNDING, zex_spec::proto::v1::DESCRIPTORS),
    ];
    // Constants; a test reads them.
    own.into_iter()
        .filter_map(|(name, set)| Some((name, Described::read(name, set).ok()?)))
        .collect()
});

/// Answers a call of either version.
pub(super) async fn answer(
    door: Door,
    target: &Target,
    request: Request<Body>,
) -> http::Response<Body> {
    if target.method != METHOD {
        let text = format!("{} has no method {}", target.service, target.method);
        return Status::unimplemented(text).into_http();
    }
    let codec = ProstCodec::<ServerReflectionResponse, ServerReflectionRequest>::default();
    Grpc::new(codec).streaming(Reflection(door), request).await
}

struct Reflection(Door);

type Answers = Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;
type Questions = Streaming<ServerReflectionRequest>;

impl Service<tonic::Request<Questions>> for Reflection {
    type Response = Response<Answers>;
    type Error = Status;
    type Future = std::future::Ready<Result<Response<Answers>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Questions>) -> Self::Future {
        let exchange = Exchange {
            door: self.0.clone(),
            questions: request.into_inner(),
            last: None,
            ended: false,
        };
        let answers = stream::unfold(exchange, |mut exchange| async move {
            let next = exchange.next().await?;
            exchange.ended = next.is_err();
            Some((next, exchange))
        });
        std::future::ready(Ok(Response::new(answers.boxed())))
    }
}

/// The questions of one call.
struct Exchange {
    door: Door,
    questions: Questions,
    /// Where the last symbol was found.
    last: Option<Arc<Known>>,
    ended: bool,
}

impl Exchange {
    async fn next(&mut self) -> Option<Result<ServerReflectionResponse, Status>> {
        if self.ended {
            return None;
        }
        let question = tokio::select! {
            question = self.questions.message() => question,
            () = left(&mut self.door.leaving) => Err(leaves()),
        };
        let asked = match question {
            Ok(asked) => asked?,
            Err(failed) => return Some(Err(failed)),
        };
        let answer = match asked.message_request.clone() {
            Some(question) => self.answer(question).await,
            None => Err(Status::invalid_argument("the request asks nothing")),
        };
        let answer = answer.unwrap_or_else(|failed| {
            let (error_code, error_message) = (failed.code() as i32, failed.message().to_owned());
            Answer::ErrorResponse(ErrorResponse { error_code, error_message })
        });
        Some(Ok(ServerReflectionResponse {
            valid_host: asked.host.clone(),
            original_request: Some(asked),
            message_response: Some(answer),
        }))
    }

    async fn answer(&mut self, question: Question) -> Result<Answer, Status> {
        match question {
            Question::ListServices(_) => Ok(self.list().await),
            Question::FileContainingSymbol(symbol) => {
                let missing = || no_such(&format!("symbol {symbol}"));
                let mut found = None;
                self.look(|described| {
                    let file = file_of_symbol(described, symbol.trim_start_matches('.'))?;
                    found = Some(files(described, &file));
                    Some(())
                })
                .await;
                found.ok_or_else(missing)
            }
            Question::FileByFilename(name) => {
                let mut found = None;
                self.look(|described| {
                    found = described.files.get(&name).cloned();
                    found.as_ref().map(drop)
                })
                .await;
                found.map(|file| given(vec![file])).ok_or_else(|| no_such(&format!("file {name}")))
            }
            Question::FileContainingExtension(asked) => {
                let number = u32::try_from(asked.extension_number).unwrap_or_default();
                let mut found = None;
                self.look(|described| {
                    let extension = described.pool.all_extensions().find(|extension| {
                        extension.number() == number
                            && extension.containing_message().full_name() == asked.containing_type
                    })?;
                    found = Some(files(described, &extension.parent_file()));
                    Some(())
                })
                .await;
                let what = || no_such(&format!("extension {number} of {}", asked.containing_type));
                found.ok_or_else(what)
            }
            Question::AllExtensionNumbersOfType(base_type_name) => {
                let mut numbers = None;
                self.look(|described| {
                    let message = described.pool.get_message_by_name(&base_type_name)?;
                    let all = message.extensions();
                    numbers = Some(all.map(|one| one.number() as i32).collect::<Vec<_>>());
                    Some(())
                })
                .await;
                let extension_number =
                    numbers.ok_or_else(|| no_such(&format!("message {base_type_name}")))?;
                let response = ExtensionNumberResponse { base_type_name, extension_number };
                Ok(Answer::AllExtensionNumbersResponse(response))
            }
        }
    }

    async fn list(&self) -> Answer {
        let live = self.door.catalogue.described().await;
        let mut names: Vec<_> = live.into_iter().map(|(name, _)| name).collect();
        names.extend(OWN.iter().map(|(name, _)| (*name).to_owned()));
        names.sort();
        let service = names.into_iter().map(|name| ServiceResponse { name }).collect();
        Answer::ListServicesResponse(ListServiceResponse { service })
    }

    /// Goes through what is described until `found` has what it wants.
    async fn look(&mut self, mut found: impl FnMut(&Described) -> Option<()>) {
        if let Some(last) = &self.last
            && last.described.as_ref().and_then(&mut found).is_some()
        {
            return;
        }
        if OWN.iter().any(|(_, described)| found(described).is_some()) {
            return;
        }
        let all = self.door.catalogue.described().await;
        let holds = |known: &Arc<Known>| known.described.as_ref().and_then(&mut found).is_some();
        if let Some(known) = all.into_iter().map(|(_, known)| known).find(holds) {
            self.last = Some(known);
        }
    }
}

/// The file that declares a symbol: a type, a service, an extension, or what is named in one.
fn file_of_symbol(described: &Described, symbol: &str) -> Option<FileDescriptor> {
    let pool = &described.pool;
    let declared = |name: &str| {
        let service = || Some(pool.get_service_by_name(name)?.parent_file());
        let message = || Some(pool.get_message_by_name(name)?.parent_file());
        let choice = || Some(pool.get_enum_by_name(name)?.parent_file());
        let extension = || Some(pool.get_extension_by_name(name)?.parent_file());
        service().or_else(message).or_else(choice).or_else(extension)
    };
    declared(symbol).or_else(|| {
        let (parent, member) = symbol.rsplit_once('.')?;
        let method = pool.get_service_by_name(parent);
        let method = method.filter(|service| service.methods().any(|one| one.name() == member));
        let method = method.map(|service| service.parent_file());
        let field = || {
            let message = pool.get_message_by_name(parent)?;
            let oneof = message.oneofs().any(|oneof| oneof.name() == member);
            (oneof || message.get_field_by_name(member).is_some()).then(|| message.parent_file())
        };
        // A value of an enum is named beside it, not in it.
        let value = || {
            let beside = |name: &str| match name.rsplit_once('.') {
                Some((scope, _)) => scope == parent,
                None => parent.is_empty(),
            };
            let mut all = pool.all_enums().filter(|choice| beside(choice.full_name()));
            let holds = |choice: &prost_reflect::EnumDescriptor| {
                choice.values().any(|value| value.name() == member)
            };
            all.find(holds).map(|choice| choice.parent_file())
        };
        method.or_else(field).or_else(value)
    })
}

/// A file and all that it imports, itself first.
fn files(described: &Described, file: &FileDescriptor) -> Answer {
    let mut names = vec![file.name().to_owned()];
    let mut wanted: Vec<FileDescriptor> = file.dependencies().collect();
    while let Some(file) = wanted.pop() {
        if !names.iter().any(|name| name == file.name()) {
            names.push(file.name().to_owned());
            wanted.extend(file.dependencies());
        }
    }
    let mut found: Vec<Bytes> =
        names.iter().filter_map(|name| described.files.get(name).cloned()).collect();
    if found.iter().map(Bytes::len).sum::<usize>() > MAX_ANSWER_BYTES {
        found.truncate(1);
    }
    given(found)
}

fn given(files: Vec<Bytes>) -> Answer {
    let file_descriptor_proto = files.into_iter().map(Vec::from).collect();
    Answer::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto })
}

fn no_such(what: &str) -> Status {
    Status::new(Code::NotFound, format!("no service of the mesh that lives now has the {what}"))
}

/// What a long call is told when the gateway leaves.
pub(super) fn leaves() -> Status {
    Status::unavailable("the gateway leaves; call again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gateway_serves_itself_is_described() {
        let names: Vec<_> = OWN.iter().map(|(name, _)| *name).collect();
        let all = [health::SERVICE, V1, V1ALPHA, recorder::PIPELINES, recorder::FOUNDING];
        assert_eq!(names, all);
    }

    #[test]
    fn symbols_are_found_by_what_declares_them() {
        let (_, health) = &OWN[0];
        for symbol in [
            "grpc.health.v1.Health",
            "grpc.health.v1.Health.Check",
            "grpc.health.v1.HealthCheckRequest",
            "grpc.health.v1.HealthCheckRequest.service",
            "grpc.health.v1.HealthCheckResponse.ServingStatus",
            "grpc.health.v1.HealthCheckResponse.SERVING",
        ] {
            assert!(file_of_symbol(health, symbol).is_some(), "{symbol}");
        }
        for symbol in
            ["", "grpc", "grpc.health.v1.Health.Chuck", "Health", "grpc.health.v1.SERVING"]
        {
            assert!(file_of_symbol(health, symbol).is_none(), "{symbol}");
        }
    }
}
