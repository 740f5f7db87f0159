use bytes::Bytes;
use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, MethodDescriptor};
use serde_json::json;

use super::*;
use crate::testing;

fn method(service: &str, name: &str) -> MethodDescriptor {
    testing::catalog().method(service, name).unwrap()
}

/// A request in protobuf's JSON as bytes.
fn body(method: &MethodDescriptor, json: Json) -> Bytes {
    DynamicMessage::deserialize(method.input(), json).unwrap().encode_to_vec().into()
}

fn said(fields: Json) -> Said {
    Said { fields: fields.as_object().unwrap().clone(), ..Said::default() }
}

fn recorded(
    recording: &mut Recording,
    of: &str,
    json: Json,
    said: &Said,
) -> Result<String, String> {
    let (service, name) = of.split_once('/').unwrap();
    let method = method(service, name);
    recording.add(&method, &body(&method, json), said)
}

#[test]
fn calls_become_steps_that_refer_to_each_other() {
    let mut recording = Recording::new("t", "{deadline: 1h}", false).unwrap();
    let mut add = |of: &str, json, said: &Said| recorded(&mut recording, of, json, said).unwrap();
    assert_eq!(add("test.Users/List", json!({"count": 5}), &Said::default()), "list");
    assert_eq!(add("test.Users/Get", json!({"count": 5}), &Said::default()), "get");
    let mut each = said(json!({"id": "put", "each": "list", "retry": {"attempts": 3}}));
    each.set = vec![("user_id".into(), "item.id".into()), ("user.name".into(), "get.name".into())];
    assert_eq!(add("test.Groups/Add", json!({"group": "g"}), &each), "put");
    let whole = Said { input: Some("get".into()), ..said(json!({"after": ["put"]})) };
    assert_eq!(add("test.Groups/AddUser", json!({}), &whole), "add_user");
    assert_eq!(add("test.Groups/Count", json!({}), &Said::default()), "count");
    assert_eq!(add("test.Groups/Count", json!({}), &Said::default()), "count_2");
    let text = recording.definition();
    let want = r#"name: "t"
deadline: "1h"
steps:
  - id: list
    call: test.Users/List
    input: {"count":5}
  - id: get
    call: test.Users/Get
    input: {"count":5}
  - id: put
    call: test.Groups/Add
    input: {"group":"g","user_id":"{{ item.id }}","user":{"name":"{{ get.name }}"}}
    each: list
    retry: {"attempts":3}
  - id: add_user
    call: test.Groups/AddUser
    input: "{{ get }}"
    after: ["put"]
  - id: count
    call: test.Groups/Count
  - id: count_2
    call: test.Groups/Count
"#;
    assert_eq!(text, want);
    assert!(Plan::new(definition::parse(&text).unwrap(), &testing::catalog()).is_ok());
    assert!(recording.bytes().abs_diff(text.len()) < 200, "{}", recording.bytes());
}

#[test]
fn in_order_each_step_comes_after_the_one_before() {
    let mut recording = Recording::new("t", "", true).unwrap();
    let mut add = |of: &str, said: &Said| recorded(&mut recording, of, json!({}), said).unwrap();
    add("test.Users/List", &Said::default());
    add("test.Groups/Add", &said(json!({"each": "list"})));
    add("test.Groups/Count", &Said::default());
    add("test.Groups/Count", &said(json!({"after": "list"})));
    let definition = definition::parse(&recording.definition()).unwrap();
    let after = |step: usize| -> Vec<&str> {
        definition.steps[step].after.iter().map(|(id, _)| id.as_str()).collect()
    };
    assert_eq!(
        [after(0), after(1), after(2), after(3)],
        [vec![], vec![], vec!["add"], vec!["list"]]
    );
}

#[test]
fn what_is_wrong_is_told_at_once_and_nothing_is_recorded() {
    let mut recording = Recording::new("t", "", false).unwrap();
    recorded(&mut recording, "test.Users/Get", json!({}), &Said::default()).unwrap();
    let before = recording.definition();
    let set = |path: &str, expression: &str| Said {
        set: vec![(path.into(), expression.into())],
        ..Said::default()
    };
    let add = "test.Groups/Add";
    for (of, said, want) in [
        (
            add,
            set("user_idd", "get.id"),
            "user_idd=get.id: test.Membership has no field `user_idd`; did you mean `user_id`?",
        ),
        (add, set("group.x", "get.id"), "`group` is no message"),
        (add, set("user_id", "gte.id"), "input.user_id: "),
        (add, set("user_id", "get.name"), "input.user_id: `get.name`: "),
        (add, set("user_id", "get.id +"), "input.user_id: "),
        (add, said(json!({"id": "get"})), "there are two steps with the id `get`"),
        (add, said(json!({"id": "item"})), "`item` means something else"),
        (add, said(json!({"after": "gte"})), "after: there is no step `gte`"),
        (add, said(json!({"each": "get"})), "each: `get` gives no stream"),
        (add, said(json!({"retyr": 1})), "unknown field `retyr`; did you mean `retry`?"),
        ("test.Users/Upload", Said::default(), "takes a stream of messages"),
    ] {
        let why = recorded(&mut recording, of, json!({}), &said).unwrap_err();
        assert!(why.contains(want) && !why.contains("steps["), "{want}: {why}");
        assert_eq!(why.lines().count(), 1, "{why}");
    }
    let whole = Said { input: Some("get".into()), ..Said::default() };
    let why = recorded(&mut recording, "test.Groups/AddUser", json!({"id": 1}), &whole);
    assert!(why.unwrap_err().contains("must be empty"));
    assert_eq!(recording.definition(), before);
    for (name, head, want) in [
        ("", "", "a name has 1 to 128 bytes"),
        ("t", "steps: []", "`steps` does not stand here"),
        ("t", "name: x", "`name` does not stand here"),
        ("t", "deadlin: 1h", "unknown field `deadlin`; did you mean `deadline`?"),
        ("t", "[1]", "a map is wanted"),
        ("t", "{", ""),
    ] {
        let why = Recording::new(name, head, false).map(drop).unwrap_err();
        assert!(why.contains(want), "{head}: {why}");
    }
}

#[test]
fn a_request_is_said_as_it_is_or_refused() {
    let add = method("test.Groups", "Add");
    // Everything is nowhere an input, so it is tried by itself.
    let all = testing::catalog().message("test.Everything").unwrap();
    for json in [
        json!({}),
        json!({"i64": i64::MIN, "u64": u64::MAX, "d": 0.1, "f": 0.1, "yes": true}),
        json!({"s": "a {{ b }} {% c %} {{{", "raw": "AP8=", "colour": "GREEN", "maybe": 0}),
        json!({"s": "\u{1}\u{1f600}\" ' # : \n- x", "list": [1, 2], "names": {"a b": 1}}),
        json!({"counts": {"3": "x"}, "when": "2026-01-02T03:04:05Z", "wrapped": 7}),
        json!({"nested": {"nested": {"s": "no"}}, "any_json": {"a": [null, 1.5, "x"]}, "d": 1e300}),
    ] {
        let message = DynamicMessage::deserialize(all.clone(), json.clone()).unwrap();
        let bytes: Bytes = message.encode_to_vec().into();
        let said = literal(&all, &bytes).unwrap_or_else(|why| panic!("{json}: {why}"));
        assert!(!said.to_string().contains("{{{"), "{said}");
    }
    for (bytes, want) in [
        (&b"\xff"[..], "not a test.Membership"),
        (b"\x48\x01", "the request has a field 9, which test.Membership had not"),
        (b"\x22\x02\x48\x01", "something of it would be lost"),
    ] {
        let why = literal(&add.input(), &Bytes::from_static(bytes)).unwrap_err();
        assert!(why.contains(want), "{why}");
    }
    let mut nan = DynamicMessage::new(all.clone());
    nan.set_field_by_name("d", prost_reflect::Value::F64(f64::NAN));
    assert!(literal(&all, &nan.encode_to_vec().into()).unwrap_err().contains("cannot be said"));
    // And what the step sends is what was recorded, braces and all.
    let text = "{{ params.x }} {% if %} {{{";
    let mut recording = Recording::new("t", "", false).unwrap();
    recorded(&mut recording, "test.Groups/Add", json!({"group": text}), &Said::default()).unwrap();
    let plan = Plan::new(definition::parse(&recording.definition()).unwrap(), &testing::catalog());
    let sent = plan.unwrap().steps[0].input.encode(&minijinja::context! {}).unwrap();
    let sent = DynamicMessage::decode(add.input(), sent).unwrap();
    assert_eq!(sent.get_field_by_name("group").unwrap().as_str(), Some(text));
}

#[test]
fn a_recording_is_bounded() {
    let mut recording = Recording::new("t", "", false).unwrap();
    let large = json!({"group": "x".repeat(DEFINITION_MAX_BYTES)});
    let why = recorded(&mut recording, "test.Groups/Add", large, &Said::default()).unwrap_err();
    assert!(why.contains("the definition would have"), "{why}");
    for _ in 0..STEPS_MAX {
        // As many as there can be, without the checks, which take their time.
        let mut step = Map::new();
        step.insert("id".into(), "x".into());
        recording.steps.push(step);
    }
    let why = recorded(&mut recording, "test.Groups/Count", json!({}), &Said::default());
    assert!(why.unwrap_err().contains("at most 1000 steps"));
}

#[test]
fn a_step_is_put_behind_what_a_file_has() {
    let count = method("test.Groups", "Count");
    let make = |ids: &[&str]| step(&count, &Bytes::new(), &Said::default(), |id| ids.contains(&id));
    let new = append("", "fresh", make).unwrap();
    assert_eq!(new, "name: \"fresh\"\nsteps:\n  - id: count\n    call: test.Groups/Count\n");
    let twice = append(&new, "fresh", make).unwrap();
    assert_eq!(twice, format!("{new}  - id: count_2\n    call: test.Groups/Count\n"));
    let own = "# mine\nname: x # so\nsteps:\n- {id: a, call: b.C/D} # first\n# the end";
    let put = append(own, "", make).unwrap();
    assert_eq!(put, format!("{own}\n- id: count\n  call: test.Groups/Count\n"));
    let json = r#"{"name": "j", "steps": [{"id": "a", "call": "b.C/D"}]}"#;
    let put = append(json, "", make).unwrap();
    assert_eq!(definition::parse(&put).unwrap().steps[1].id, "count");
    for (text, want) in [
        ("name: x\nsteps:\n  - {id: a, call: b.C/D}\ndeadline: 1h\n", "has to be the last thing"),
        ("name: x\nsteps: [{id: a, call: b.C/D}]\n", "has to be the last thing"),
        ("name: x\n", "`steps` is missing"),
        ("{\"name\": ", ""),
    ] {
        let why = append(text, "", make).unwrap_err();
        assert!(why.contains(want), "{text}: {why}");
    }
    let bad = append(&new, "", |ids| {
        let said = said(json!({"retyr": 1}));
        step(&count, &Bytes::new(), &said, |id| ids.contains(&id))
    });
    assert!(bad.unwrap_err().contains("unknown field `retyr`"));
}
