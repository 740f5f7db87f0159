//! What the README shows is what there is.

#![allow(clippy::unwrap_used)] // All of this file is tests.

use std::process::Command;

fn file(path: &str) -> String {
    std::fs::read_to_string(format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn the_pipeline_in_the_readme_is_the_example() {
    let yaml = file("examples/users-groups/pipeline.yaml");
    let lines = yaml.lines().filter(|line| !line.starts_with('#'));
    let block: String = lines.map(|line| format!("{line}\n")).collect();
    assert!(file("README.md").contains(&format!("```yaml\n{block}```")), "copy it:\n{block}");
}

/// Every `zex COMMAND [VERB]` in the README's shell blocks is one that this binary has.
#[test]
fn the_commands_in_the_readme_exist() {
    let readme = file("README.md");
    let mut seen = 0;
    for block in readme.split("```sh\n").skip(1) {
        let block = block.split("```").next().unwrap();
        for command in block.split(['\n', ';']).map(str::trim) {
            let Some(words) = command.strip_prefix("zex ") else { continue };
            let mut words: Vec<&str> = words.split_whitespace().take(2).collect();
            if words.first() != Some(&"pipeline") && words.first() != Some(&"pipe") {
                words.truncate(1);
            }
            let help = Command::new(env!("CARGO_BIN_EXE_zex")).args(&words).arg("--help").output();
            assert!(help.unwrap().status.success(), "zex {}", words.join(" "));
            seen += 1;
        }
    }
    assert!(seen >= 8, "only {seen} commands were found in the README");
}
