//! The services that simulated pipelines call: their descriptors, and their messages in bytes.

use std::sync::LazyLock;

use bytes::Bytes;
use prost::Message;
use zex_pipeline::catalog::Catalog;

const PROTO: &str = r#"
syntax = "proto3";
package s;
message Number { int64 n = 1; repeated int64 many = 2; }
service S {
  rpc Do(Number) returns (Number);
  rpc Undo(Number) returns (Number);
  rpc List(Number) returns (stream Number);
}
"#;

/// The one message of the services.
#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(int64, tag = "1")]
    n: i64,
    #[prost(int64, repeated, tag = "2")]
    many: Vec<i64>,
}

/// A message with this number.
pub(super) fn number(n: i64) -> Bytes {
    Number { n, many: Vec::new() }.encode_to_vec().into()
}

/// A catalog with the services.
pub(super) fn catalog() -> Catalog {
    static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
        struct Text;
        impl protox::file::FileResolver for Text {
            fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
                protox::file::File::from_source(name, PROTO)
            }
        }
        let mut compiler = protox::Compiler::with_file_resolver(Text);
        compiler.open_file("s.proto").expect("the text above compiles");
        let mut catalog = Catalog::default();
        let set = compiler.encode_file_descriptor_set();
        catalog.insert("s.S", &set).expect("the text above has the service");
        catalog
    });
    CATALOG.clone()
}
