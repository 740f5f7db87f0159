//! Every example of `spec/pipelines.md` is a pipeline that runs.

use super::*;

const PAGE: &str = include_str!("../../../../spec/pipelines.md");

/// The examples: blocks of YAML that begin with a name. Others show a part.
fn examples() -> Vec<String> {
    let blocks = PAGE.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let whole: Vec<&str> = blocks.filter(|block| block.starts_with("name:")).collect();
    let of = |text: &&str| {
        let definition = parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
        let Some(extends) = definition.extends else { return (*text).to_owned() };
        // One that extends another runs as a part of that.
        let named = format!("name: {}\n", extends.pipeline);
        let base = whole.iter().find(|text| text.starts_with(&named)).expect("an example, too");
        let extension = crate::extend::Extension { name: &definition.name, text };
        crate::extend::extended(base, &[extension]).unwrap_or_else(|why| panic!("{text}: {why}"))
    };
    whole.iter().map(of).collect()
}

#[test]
fn every_example_runs_to_its_end_also_with_crashes() {
    let examples = examples();
    assert!(examples.len() >= 3, "{} examples", examples.len());
    for example in &examples {
        for seed in 0..4 {
            let crash = if seed == 0 { 0 } else { 15 };
            let faults = Faults { crash, ..Faults::default() };
            let mut world = World::with(example, seed, faults);
            let end = drive(&mut world, example);
            assert_eq!(end, RunState::Succeeded, "{example}: {:?}", world.run.state());
        }
    }
}

/// Until the run ends; somebody starts it, approves of it, serves it, resumes it.
fn drive(world: &mut World, example: &str) -> RunState {
    /// Far more than any example takes.
    const STEPS_MAX: usize = 100_000;
    let (mut asked, mut crashes) = (None, 0);
    for _ in 0..STEPS_MAX {
        let state = world.run.state().0;
        if state.is_end() {
            return state;
        }
        // What a crash lost is asked for again.
        if world.crashes > crashes {
            (asked, crashes) = (None, world.crashes);
        }
        let wants = world.run.wants();
        match state {
            RunState::Recorded if asked.is_none() => asked = Some(world.want(Command::Start)),
            RunState::Scheduled if wants.services => {
                world.handle(Event::Services);
                // It may want its key now, before time goes on.
                continue;
            }
            RunState::Scheduled if wants.key => world.handle(Event::Key),
            RunState::Scheduled => asked = None,
            RunState::Running if asked.is_none() && example.contains("signal: approved") => {
                let payload = Bytes::from_static(br#"{"by": "Ann"}"#);
                let name = "approved".to_owned();
                asked = Some(world.want(Command::Signal { name, payload }));
            }
            RunState::Paused => {
                world.want(Command::Resume);
            }
            _ => {}
        }
        world.step();
    }
    panic!("{example} does not end: {:?}", world.run.state());
}
