//! What the stages of a run do with their time, as `zex pipeline show` has it: the slow one works
//! all the time, those before it wait for room, those behind it for input.

use zex_spec::proto::{RunView, StageView};

use crate::output::{Table, passed};

/// The stages that were counted; empty if there are none.
pub(super) fn table(run: &RunView) -> Option<Table> {
    let mut table = Table::new([
        "STAGE", "#ITEMS", "#RATE", "#AT ONCE", "#WORK", "#RECORD", "#INPUT", "#ROOM", "#OTHER",
        "BUFFER", "FOR",
    ]);
    let stages = run.steps.iter().filter_map(|step| Some((step, step.stage.as_ref()?)));
    let mut any = false;
    for (step, stage) in stages {
        any = true;
        let share = |ms: u64| match stage.places * stage.for_ms {
            0 => String::new(),
            all => format!("{:.0} %", 100.0 * ms as f64 / all as f64),
        };
        table.row([
            step.id.clone(),
            stage.items.to_string(),
            format!("{:.1}/s", stage.rate),
            stage.places.to_string(),
            share(stage.work_ms),
            share(stage.record_ms),
            share(stage.input_ms),
            share(stage.room_ms),
            share(stage.other_ms),
            buffer(stage),
            passed(stage.for_ms),
        ]);
    }
    any.then_some(table)
}

/// `12 of 32, most 30`.
fn buffer(stage: &StageView) -> String {
    match stage.buffer_bound {
        0 if stage.buffer_most == 0 => String::new(),
        0 => format!("{}, most {}", stage.buffer, stage.buffer_most),
        bound => format!("{} of {bound}, most {}", stage.buffer, stage.buffer_most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zex_spec::proto::StepView;

    #[test]
    fn shares_are_of_all_places_and_a_run_without_stages_has_no_table() {
        assert!(table(&RunView::default()).is_none());
        let stage = StageView {
            for_ms: 2_000,
            places: 4,
            items: 1_000,
            rate: 500.0,
            work_ms: 6_000,
            room_ms: 2_000,
            buffer: 3,
            buffer_most: 8,
            buffer_bound: 8,
            ..StageView::default()
        };
        let step = StepView { id: "a".into(), stage: Some(stage), ..StepView::default() };
        let text = table(&RunView { steps: vec![step], ..RunView::default() }).unwrap().text();
        let row: Vec<&str> = text.lines().nth(1).unwrap().split("  ").collect();
        let row: Vec<&str> =
            row.into_iter().map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let want = [
            "a",
            "1000",
            "500.0/s",
            "4",
            "75 %",
            "0 %",
            "0 %",
            "25 %",
            "0 %",
            "3 of 8, most 8",
            "2.0 s",
        ];
        assert_eq!(row, want);
    }
}
