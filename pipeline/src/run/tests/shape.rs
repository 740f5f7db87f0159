//! Groups and conditions, each also with a crash at each append.

use super::failure::everywhere;
use super::*;

const TREE: &str = r#"
name: t
parameters: {paid: {type: boolean, default: PAID}}
steps:
  - sequence:
      - {id: page, call: test.Users/Page}
      - concurrence:
          - {id: b, call: test.Groups/Count}
          - when: "{{ params.paid }}"
            sequence:
              - {id: c, call: test.Users/Page}
              - {id: d, call: test.Groups/Add, input: {user_id: "{{ c.total }}"}}
              - {id: users, call: test.Users/List}
              - {id: copy, call: test.Groups/AddUser, each: users, input: "{{ item }}"}
      - {id: e, call: test.Groups/Count, when: "{{ page.total > 1000 }}"}
  - {id: f, call: test.Groups/Count, after: e}
"#;

#[test]
fn conditions_leave_out_steps_and_what_reads_them_without_a_warning() {
    for (paid, states) in [
        (
            "true",
            "page succeeded, b succeeded, c succeeded, d succeeded, users succeeded, copy succeeded, e omitted, f succeeded",
        ),
        (
            "false",
            "page succeeded, b succeeded, c omitted, d omitted, users omitted, copy omitted, e omitted, f succeeded",
        ),
    ] {
        everywhere(
            &TREE.replace("PAID", paid),
            &[],
            |_| panic!("it waits for nobody"),
            |world, end| {
                assert_eq!(end, RunState::Succeeded, "{:?}", world.run.state());
                assert_eq!(world.states(), states);
            },
        );
    }
}

#[test]
fn steps_of_a_sequence_follow_each_other() {
    let text = "name: t\nsteps: [{sequence: [{id: a, call: test.Groups/Count}, {concurrence: [{id: b, call: test.Groups/Count}, {id: c, call: test.Groups/Count}]}, {id: d, call: test.Groups/Count}]}]";
    let mut world = World::with(text, 1, Faults::default());
    let mut seen: Vec<Vec<usize>> = Vec::new();
    while world.ended.is_none() {
        let now: Vec<usize> = world.in_flight.values().map(|call| call.step).collect();
        // All that may run beside each other does before anything is answered.
        if world.appending.is_some() {
            world.append();
            continue;
        }
        seen.push(now);
        assert!(world.step());
    }
    let most: BTreeSet<Vec<usize>> = seen.into_iter().filter(|now| !now.is_empty()).collect();
    assert!(most.contains(&vec![0]) && most.contains(&vec![1, 2]) && most.contains(&vec![3]));
    assert!(most.iter().all(|now| [&[0][..], &[1, 2], &[1], &[2], &[3]].contains(&&now[..])));
}

#[test]
fn a_condition_that_is_neither_true_nor_false_fails_the_step() {
    let text = |when: &str| {
        format!(
            "name: t\nsteps: [{{id: a, call: test.Users/Page}}, {{id: b, call: test.Groups/Count, when: '{{{{ {when} }}}}'}}]"
        )
    };
    for (when, want) in [
        (
            "a.total + 1",
            "step `b`: steps[1].when: `a.total + 1` is the number 301 and not true or false",
        ),
        ("a.users[9].id > 1", "step `b`: steps[1].when: `a.users[9].id > 1` is undefined"),
    ] {
        let mut world = World::with(&text(when), 1, Faults::default());
        assert_eq!(world.settle(), RunState::Failed);
        assert!(world.run.state().1.starts_with(want), "{}", world.run.state().1);
    }
    for (when, want) in [
        ("a.totl > 1", "steps[1].when: `a`: test.Page has no field `totl`; did you mean `total`?"),
        ("a.total", "steps[1].when: `a.total`: true or false is wanted, this is uint64"),
        ("b.total > 1", "step `b` waits for itself"),
        ("item > 1", "`item` is known only in a step with `each`"),
    ] {
        let definition = parse(&text(when)).unwrap();
        let problems = Plan::new(definition, &catalog()).expect_err(when).to_string();
        assert!(problems.contains(want), "{when}: {problems}");
    }
}
