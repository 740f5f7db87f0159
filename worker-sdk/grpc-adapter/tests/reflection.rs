//! Reading what a service offers: both versions, imports, and servers that do it badly.

#![allow(clippy::unwrap_used)] // All of this file is tests.

mod stage;

use std::collections::BTreeSet;

use prost::Message as _;
use prost_reflect::DescriptorPool;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto, ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use stage::{Mortal, line, listener, reflection, users};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use tonic_reflection::pb::v1alpha::{
    ErrorResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest,
    ServerReflectionResponse, ServiceResponse,
    server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
    server_reflection_server::{ServerReflection, ServerReflectionServer},
};
use users_groups::UsersOptions;
use zex_adapter::{Kind, ReflectionError, reflection::read};

#[tokio::test]
async fn a_real_service_is_read_with_its_methods_and_its_files_untouched() {
    let server =
        users_groups::serve_users(listener().await, UsersOptions { count: 1, seed: 1 }).unwrap();
    let catalogue = read(&line(server.address())).await.unwrap();
    assert_eq!(catalogue.left_out, [].into());
    // Reflection and health are served too, and are not offered.
    assert!(catalogue.services.keys().eq(["example.v1.Users"]));
    let service = &catalogue.services["example.v1.Users"];
    let methods: Vec<_> = service
        .methods
        .iter()
        .map(|(name, method)| (name.as_str(), method.path.as_str(), method.kind))
        .collect();
    assert_eq!(
        methods,
        [
            ("Get", "/example.v1.Users/Get", Kind::Unary),
            ("List", "/example.v1.Users/List", Kind::ServerStream),
        ]
    );
    let set = FileDescriptorSet::decode(service.descriptors.clone()).unwrap();
    assert!(
        set.file
            .iter()
            .map(FileDescriptorProto::name)
            .eq(["example/v1/user.proto", "example/v1/users.proto"])
    );
    let original = FileDescriptorSet::decode(users_groups::pb::DESCRIPTORS).unwrap();
    assert!(set.file.iter().all(|file| original.file.contains(file)));
    let pool = DescriptorPool::decode(service.descriptors.clone()).unwrap();
    assert!(pool.get_message_by_name("example.v1.User").is_some());
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_with_v1alpha_alone_is_read_all_the_same() {
    let router = Server::builder().add_service(users(1));
    let both = Mortal::start(router.add_service(reflection().build_v1().unwrap())).await;
    let router = Server::builder().add_service(users(1));
    let old = Mortal::start(router.add_service(reflection().build_v1alpha().unwrap())).await;
    let from_old = read(&line(old.address)).await.unwrap();
    assert!(from_old.services.contains_key("example.v1.Users"));
    assert_eq!(from_old, read(&line(both.address)).await.unwrap());
}

#[tokio::test]
async fn without_reflection_or_without_anybody_the_error_says_so() {
    let bare = Mortal::start(Server::builder().add_service(users(1))).await;
    let error = read(&line(bare.address)).await.unwrap_err();
    assert!(matches!(error, ReflectionError::Missing { .. }));
    assert!(error.to_string().contains("switch it on in the service"), "{error}");

    let nobody = listener().await.local_addr().unwrap();
    let error = read(&stage::target(nobody).open()).await.unwrap_err();
    assert!(matches!(error, ReflectionError::Unreachable { .. }));
    let said = error.to_string();
    assert!(said.contains(&nobody.to_string()) && said.contains("onnection refused"), "{said}");
}

#[tokio::test]
async fn somebody_who_does_not_answer_is_silent() {
    let mute = listener().await;
    let error = read(&line(mute.local_addr().unwrap())).await.unwrap_err();
    assert!(matches!(error, ReflectionError::Silent { .. }), "{error}");
}

fn file(name: &str, imports: &[&str]) -> FileDescriptorProto {
    FileDescriptorProto {
        name: Some(name.into()),
        syntax: Some("proto3".into()),
        dependency: imports.iter().map(|name| (*name).into()).collect(),
        ..Default::default()
    }
}

/// A file with the service `t.<name>`, whose one method takes what `of` says and answers the same.
fn service_file(name: &str, imports: &[&str], of: &str) -> FileDescriptorProto {
    FileDescriptorProto {
        package: Some("t".into()),
        service: vec![ServiceDescriptorProto {
            name: Some(name.into()),
            method: vec![MethodDescriptorProto {
                name: Some("Do".into()),
                input_type: Some(of.into()),
                output_type: Some(of.into()),
                client_streaming: Some(true),
                server_streaming: Some(true),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..file(&format!("{name}.proto"), imports)
    }
}

#[tokio::test]
async fn one_bad_service_does_not_keep_the_others_out() {
    let set = FileDescriptorSet {
        file: vec![
            service_file(
                "Timed",
                &["google/protobuf/timestamp.proto"],
                ".google.protobuf.Timestamp",
            ),
            service_file("Torn", &["nowhere.proto"], ".nowhere.Message"),
            service_file("Wrong", &[], ".t.NoSuchMessage"),
        ],
    };
    let mut reflection = reflection().register_file_descriptor_set(set);
    for name in ["t.Timed", "t.Torn", "t.Wrong", "t.Ghost", "zex.Mesh"] {
        reflection = reflection.with_service_name(name);
    }
    let router = Server::builder().add_service(reflection.build_v1().unwrap());
    let server = Mortal::start(router).await;
    let catalogue = read(&line(server.address)).await.unwrap();

    assert!(catalogue.services.keys().eq(["example.v1.Users", "t.Timed"]));
    let timed = &catalogue.services["t.Timed"];
    assert_eq!(timed.methods["Do"].kind, Kind::BidiStream);
    assert!(DescriptorPool::decode(timed.descriptors.clone()).is_ok());
    let left_out: Vec<_> = catalogue.left_out.into_iter().collect();
    let says = |name: &str, what: &str| {
        left_out.iter().any(|(service, why)| service == name && why.contains(what))
    };
    assert!(says("t.Torn", "lacks the imported file \"nowhere.proto\""), "{left_out:?}");
    assert!(says("t.Wrong", "do not fit together"), "{left_out:?}");
    assert!(says("t.Ghost", "has no file for it"), "{left_out:?}");
    assert!(says("zex.Mesh", "the mesh's own"), "{left_out:?}");
    assert_eq!(left_out.len(), 4);
}

/// A reflection made by hand: v1alpha alone, and it refuses inside the stream, as grpcio does.
struct ByHand<F>(F);

#[tonic::async_trait]
impl<F> ServerReflection for ByHand<F>
where
    F: Fn(&MessageRequest) -> MessageResponse + Send + Sync + Clone + 'static,
{
    type ServerReflectionInfoStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let answer = self.0.clone();
        Ok(Response::new(Box::pin(request.into_inner().map(move |request| {
            let response = answer(request?.message_request.as_ref().unwrap());
            Ok(ServerReflectionResponse { message_response: Some(response), ..Default::default() })
        }))))
    }
}

async fn by_hand<F>(answer: F) -> Mortal
where
    F: Fn(&MessageRequest) -> MessageResponse + Send + Sync + Clone + 'static,
{
    let service = ServerReflectionServer::new(ByHand(answer));
    Mortal::start(Server::builder().add_service(service)).await
}

fn list(names: &[&str]) -> MessageResponse {
    let service = names.iter().map(|name| ServiceResponse { name: (*name).into() }).collect();
    MessageResponse::ListServicesResponse(ListServiceResponse { service })
}

fn files(files: &[FileDescriptorProto]) -> MessageResponse {
    let file_descriptor_proto = files.iter().map(|file| file.encode_to_vec()).collect();
    MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto })
}

#[tokio::test]
async fn a_refusal_inside_the_stream_is_understood_and_files_may_come_together() {
    let server = by_hand(|request| match request {
        MessageRequest::ListServices(_) => list(&["t.Good", "t.Ghost"]),
        MessageRequest::FileContainingSymbol(name) if name == "t.Good" => {
            let message = DescriptorProto {
                name: Some("Message".into()),
                field: vec![FieldDescriptorProto {
                    name: Some("text".into()),
                    number: Some(1),
                    label: Some(Label::Optional.into()),
                    r#type: Some(Type::String.into()),
                    ..Default::default()
                }],
                ..Default::default()
            };
            let mut other = file("other.proto", &[]);
            other.package = Some("t".into());
            other.message_type = vec![message];
            // The file itself first, then its import: the other way round than a set needs.
            files(&[service_file("Good", &["other.proto"], ".t.Message"), other])
        }
        _ => MessageResponse::ErrorResponse(ErrorResponse {
            error_code: 5,
            error_message: "not found".into(),
        }),
    })
    .await;
    let catalogue = read(&line(server.address)).await.unwrap();
    assert!(catalogue.services.keys().eq(["t.Good"]));
    assert!(catalogue.left_out.keys().eq(["t.Ghost"]));
}

#[tokio::test]
async fn hostile_reflections_end_in_an_error_and_not_in_a_full_memory() {
    // Imports without end.
    let endless = by_hand(|request| match request {
        MessageRequest::ListServices(_) => list(&["t.Endless"]),
        MessageRequest::FileContainingSymbol(_) => {
            files(&[service_file("Endless", &["1"], ".t.Message")])
        }
        MessageRequest::FileByFilename(name) => {
            let next = name.parse::<u64>().unwrap() + 1;
            files(&[file(name, &[&next.to_string()])])
        }
        _ => list(&[]),
    })
    .await;
    let error = read(&line(endless.address)).await.unwrap_err().to_string();
    assert!(error.contains("more than 2048 files"), "{error}");

    // Files that import each other, and themselves.
    let circle = by_hand(|request| match request {
        MessageRequest::ListServices(_) => list(&["t.Circle"]),
        MessageRequest::FileContainingSymbol(_) => {
            files(&[service_file("Circle", &["a", "Circle.proto"], ".t.Message")])
        }
        _ => files(&[file("a", &["Circle.proto", "a"])]),
    })
    .await;
    let catalogue = read(&line(circle.address)).await.unwrap();
    assert!(catalogue.left_out["t.Circle"].contains("do not fit together"));

    // Bytes that are no file.
    let garbage = by_hand(|request| match request {
        MessageRequest::ListServices(_) => list(&["t.Garbage"]),
        _ => MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
            file_descriptor_proto: vec![vec![0xff; 9]],
        }),
    })
    .await;
    let error = read(&line(garbage.address)).await.unwrap_err().to_string();
    assert!(error.contains("gives a file that is none"), "{error}");

    // More services than anybody has.
    let many: BTreeSet<String> = (0..300).map(|i| format!("t.Many{i}")).collect();
    let crowd = by_hand(move |request| match request {
        MessageRequest::ListServices(_) => {
            list(&many.iter().map(String::as_str).collect::<Vec<_>>())
        }
        MessageRequest::FileContainingSymbol(name) => files(&[service_file(
            &name["t.".len()..],
            &["google/protobuf/empty.proto"],
            ".google.protobuf.Empty",
        )]),
        _ => MessageResponse::ErrorResponse(ErrorResponse { error_code: 5, ..Default::default() }),
    })
    .await;
    let catalogue = read(&line(crowd.address)).await.unwrap();
    assert_eq!((catalogue.services.len(), catalogue.left_out.len()), (256, 44));
}
