//! Every example of `spec/pipelines.md` is a pipeline that runs.

use super::*;

const PAGE: &str = include_str!("../../../../spec/pipelines.md");

/// The examples: blocks of YAML that begin with a name. Others show a part.
fn examples() -> Vec<&'static str> {
    let blocks = PAGE.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.starts_with("name:")).collect()
}

#[test]
fn every_example_runs_to_its_end_also_with_crashes() {
    let examples = examples();
    assert!(examples.len() >= 3, "{} examples", examples.len());
    for example in examples {
        for seed in 0..4 {
            let crash = if seed == 0 { 0 } else { 15 };
            let faults = Faults { crash, ..Faults::default() };
            let mut world = World::with(example, seed, faults);
            let end = world.drive(|world| {
                let (state, reason) = world.run.state();
                assert_eq!(state, RunState::Paused, "{example}: {reason}");
                world.want(Command::Resume);
            });
            assert_eq!(end, RunState::Succeeded, "{example}: {:?}", world.run.state());
        }
    }
}
