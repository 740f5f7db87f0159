//! What the tests of this crate share: a few services, compiled from text.

use std::sync::LazyLock;

use crate::catalog::Catalog;

/// The services of the tests.
const PROTO: &str = r#"
syntax = "proto3";
package test;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/struct.proto";

enum Colour { RED = 0; GREEN = 1; }
message Empty {}
message User { int64 id = 1; string name = 2; repeated string tags = 3; Address address = 4; }
message Address { string city = 1; }
message ListRequest { uint64 count = 1; }
message Page { repeated User users = 1; uint64 total = 2; }
message Membership { int64 user_id = 1; string group = 2; Colour colour = 3; User user = 4; repeated int64 ids = 5; map<string, int64> scores = 6; }
message Reply { bool created = 1; uint64 total = 2; Everything all = 3; }
message Everything {
  int64 i64 = 1; uint64 u64 = 2; int32 i32 = 3; uint32 u32 = 4; double d = 5; float f = 6;
  string s = 7; bool yes = 8; Colour colour = 9; repeated int64 list = 10;
  map<string, int64> names = 11; map<int32, string> counts = 12;
  google.protobuf.Timestamp when = 13; google.protobuf.Int64Value wrapped = 14;
  google.protobuf.Value any_json = 15; Everything nested = 16; bytes raw = 17; optional int64 maybe = 18;
}
service Users {
  rpc List(ListRequest) returns (stream User);
  rpc Page(ListRequest) returns (Page);
  rpc Get(ListRequest) returns (User);
  rpc Upload(stream User) returns (Page);
  rpc Work(ListRequest) returns (stream User);
  rpc Mirror(stream User) returns (stream User);
}
service Groups {
  rpc Add(Membership) returns (Reply);
  rpc AddUser(User) returns (Reply);
  rpc Count(Empty) returns (Reply);
}
"#;

/// The services of the examples in `spec/pipelines.md`.
const SHOP: &str = r#"
syntax = "proto3";
package shop;

message Nothing {}
message User { int64 id = 1; string name = 2; string mail = 3; }
message ListUsers { uint64 limit = 1; }
message Order { int64 id = 1; int64 user_id = 2; uint64 total = 3; bool paid = 4; }
message Charge { string id = 1; int64 order_id = 2; uint64 amount = 3; }
message Letter { string to = 1; string text = 2; }
message Letters { repeated Letter letters = 1; repeated User users = 2; }
message Status { bool done = 1; uint64 percent = 2; }
message Entry { string text = 1; }
message Booked { uint64 entries = 1; }
message Model { uint64 percent = 1; string checkpoint = 2; }
service Models { rpc Train(Model) returns (stream Model); }
service Ledger { rpc Upload(stream Entry) returns (Booked); rpc Book(stream Entry) returns (Booked); }
service Users { rpc List(ListUsers) returns (stream User); rpc Get(User) returns (User); }
service Orders {
  rpc Create(Order) returns (Order);
  rpc Cancel(Order) returns (Nothing);
  rpc Ship(Order) returns (Status);
  rpc Shipped(Order) returns (Status);
}
service Cards { rpc Charge(Charge) returns (Charge); rpc Refund(Charge) returns (Nothing); }
service Mail { rpc Send(Letter) returns (Nothing); rpc SendMany(Letters) returns (Nothing); }
"#;

/// The encoded descriptors of the tests' services.
pub(crate) fn descriptors() -> Vec<u8> {
    struct Text;
    impl protox::file::FileResolver for Text {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            match name {
                "test.proto" => protox::file::File::from_source(name, PROTO),
                "shop.proto" => protox::file::File::from_source(name, SHOP),
                _ => protox::file::GoogleFileResolver::new().open_file(name),
            }
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(Text);
    compiler.include_imports(true);
    for file in ["test.proto", "shop.proto"] {
        compiler.open_file(file).expect("the text above compiles");
    }
    compiler.encode_file_descriptor_set()
}

/// A catalog with the tests' services.
pub(crate) fn catalog() -> Catalog {
    static CATALOG: LazyLock<Catalog> = LazyLock::new(|| with(&["test.Users", "test.Groups"]));
    CATALOG.clone()
}

/// A catalog with the services of the tests and of the examples.
pub(crate) fn catalog_with_shop() -> Catalog {
    static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
        with(&[
            "test.Users",
            "test.Groups",
            "shop.Users",
            "shop.Orders",
            "shop.Cards",
            "shop.Mail",
            "shop.Ledger",
            "shop.Models",
        ])
    });
    CATALOG.clone()
}

fn with(services: &[&str]) -> Catalog {
    let mut catalog = Catalog::default();
    for service in services {
        catalog.insert(service, &descriptors()).expect("the text above compiles");
    }
    catalog
}
