//! The layers under the environment and the flags: the file, and the names of EZ Arch.
//!
//! ```text
//!   zex.yaml ─▶ config ─┐
//!                       ├─▶ Given (setting → values, and whence) ─▶ defaults of the clap Command
//!   IN_PIPE_PORT_A … ───┘
//! ```
//!
//! clap then puts `ZEX_*` over its defaults and flags over those. Called by `main` alone.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command};
use config::{Config, File, Value, ValueKind};

/// What the settings were called in EZ Arch, whose scripts still set these. `LOG_LEVEL` takes the
/// same words in capitals.
pub(crate) const EZ_NAMES: [(&str, &str); 11] = [
    ("IN_PIPE_HOST", "in-pipe-host"),
    ("IN_PIPE_PORT_A", "in-pipe-port"),
    ("IN_PIPE_PORT_B", "in-pipe-broker-port"),
    ("BROKER_PIPE_HOST", "state-pipe-host"),
    ("BROKER_PIPE_PORT_A", "state-pipe-port"),
    // Its script and its README disagree; the script's name wins.
    ("BROKER_PIPE_BROADCAST_PORT", "state-pipe-publish-port"),
    ("BROKER_BROADCAST_PORT", "state-pipe-publish-port"),
    ("WORKER_PIPE_HOST", "worker-pipe-host"),
    ("WORKER_PIPE_PORT_A", "worker-pipe-port"),
    ("WORKER_PIPE_PORT_B", "worker-pipe-broker-port"),
    ("LOG_LEVEL", "log"),
];

/// The values of the lower layers by setting, each with where it comes from.
#[derive(Debug, Default)]
pub(crate) struct Given(BTreeMap<String, (Vec<String>, String)>);

impl Given {
    /// Reads the file, if one is named, and the old names through `environment`.
    pub(crate) fn read(
        command: &Command,
        file: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Self> {
        let mut given = Self::default();
        if let Some(path) = file {
            given.read_file(command, path)?;
        }
        for (name, setting) in EZ_NAMES {
            if let Some(value) = environment(name).filter(|value| !value.is_empty()) {
                given.0.insert(setting.to_owned(), (vec![value], name.to_owned()));
            }
        }
        Ok(given)
    }

    fn read_file(&mut self, command: &Command, path: &Path) -> anyhow::Result<()> {
        // What the file says in ${NAME} stays so: one way from the environment is enough.
        let file = Config::builder().add_source(File::from(path)).build();
        let path = path.display();
        let file = file.with_context(|| format!("--config {path}"))?;
        let known = settings(command);
        for (key, value) in file.cache.into_table().with_context(|| format!("--config {path}"))? {
            let setting = key.replace('_', "-");
            if !known.contains_key(&setting) {
                let near = crate::nearest::hint(&setting, known.keys().map(String::as_str));
                bail!("--config {path}: `{key}` is not a setting{near}");
            }
            let values = texts(value).with_context(|| {
                format!("--config {path}: `{key}`: a value or a list of values is wanted")
            })?;
            self.0.insert(setting, (values, path.to_string()));
        }
        Ok(())
    }

    /// Makes them the defaults of every command that has the setting.
    pub(crate) fn under(&self, command: Command) -> Command {
        let names: Vec<_> =
            command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        let command = command.mut_args(|arg| match self.of(&arg) {
            Some((values, _)) => arg.default_values(values.clone()),
            None => arg,
        });
        names
            .into_iter()
            .fold(command, |command, name| command.mut_subcommand(name, |sub| self.under(sub)))
    }

    fn of(&self, arg: &Arg) -> Option<&(Vec<String>, String)> {
        arg.get_env()?;
        self.0.get(arg.get_long()?)
    }

    /// Where a value that clap refuses comes from, if it was none of the flags: clap itself names
    /// the flag, and nobody wrote one.
    pub(crate) fn whence(&self, error: &clap::Error, command: &Command) -> Option<String> {
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let (flag, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
        let setting = flag.split_whitespace().next()?.strip_prefix("--")?;
        let name = settings(command).remove(setting)?;
        let flag = format!("--{setting}");
        let args = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
        if args.into_iter().any(|arg| arg == flag || arg.starts_with(&format!("{flag}="))) {
            return None;
        }
        if std::env::var(&name).is_ok_and(|set| set.split(',').any(|part| part == value)) {
            return Some(format!("the environment variable {name}"));
        }
        self.0.get(setting).map(|(_, whence)| whence.clone())
    }
}

/// The file with settings: the flag's, else the environment's. It has to be read before clap can
/// parse the rest.
pub(crate) fn config_file(
    args: impl Iterator<Item = OsString>,
    environment: Option<OsString>,
) -> Option<PathBuf> {
    let mut args = args.take_while(|arg| arg != "--");
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        // A path may be any bytes; what stands before it is ours.
        if let Some(path) = arg.as_bytes().strip_prefix(b"--config=") {
            return Some(PathBuf::from(OsStr::from_bytes(path)));
        }
    }
    environment.filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Every setting with the name of its environment variable.
pub(crate) fn settings(command: &Command) -> BTreeMap<String, String> {
    let own = command.get_arguments().filter_map(|arg| {
        Some((arg.get_long()?.to_owned(), arg.get_env()?.to_string_lossy().into_owned()))
    });
    own.chain(command.get_subcommands().flat_map(settings)).collect()
}

/// A scalar, or a list of scalars.
fn texts(value: Value) -> Option<Vec<String>> {
    match value.kind {
        ValueKind::Table(_) | ValueKind::Nil => None,
        ValueKind::Array(values) => {
            values.into_iter().map(|value| Value::into_string(value).ok()).collect()
        }
        _ => Some(vec![value.into_string().ok()?]),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

    use super::*;
    use crate::cli::Cli;
    use crate::settings::mesh::InPipes;

    /// A command line with a setting in a command, and an option that is none.
    #[derive(Parser)]
    struct Toy {
        #[command(subcommand)]
        command: ToyCommand,
        #[arg(long, env = "ZEX_TOY_LOG", global = true)]
        log: Option<String>,
    }

    #[derive(Subcommand)]
    enum ToyCommand {
        Brokers {
            #[command(flatten)]
            in_pipes: InPipes,
            #[arg(long)]
            json: bool,
        },
    }

    fn with_file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn given(text: &str, environment: &[(&str, &str)]) -> anyhow::Result<Given> {
        let file = with_file(text);
        let look = |name: &str| {
            environment.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned())
        };
        Given::read(&Toy::command(), Some(file.path()), look)
    }

    /// Where `toy brokers` with these arguments looks for the mesh.
    fn endpoints(given: &Given, args: &[&str]) -> Vec<String> {
        let command = given.under(Toy::command());
        let matches = command.try_get_matches_from([&["toy", "brokers"], args].concat()).unwrap();
        let ToyCommand::Brokers { in_pipes, json } =
            Toy::from_arg_matches(&matches).unwrap().command;
        assert!(!json);
        in_pipes.for_clients().unwrap()
    }

    #[test]
    fn a_flag_wins_over_an_old_name_and_that_over_the_file() {
        let file = "in_pipe_host: [a, b]\nin-pipe-port: 7000\nlog: debug\n";
        let file_alone = given(file, &[]).unwrap();
        assert_eq!(endpoints(&file_alone, &[]), ["tcp://a:7000", "tcp://b:7000"]);
        let both = given(file, &[("IN_PIPE_PORT_A", "7001")]).unwrap();
        assert_eq!(endpoints(&both, &[]), ["tcp://a:7001", "tcp://b:7001"]);
        let flag = ["--in-pipe-port", "7002", "--in-pipe-host=c"];
        assert_eq!(endpoints(&both, &flag), ["tcp://c:7002"]);
    }

    #[test]
    fn a_wrong_file_says_which_setting_is_wrong() {
        let error = given("in_pipe_hosts: a\n", &[]).unwrap_err().to_string();
        assert!(
            error.contains("`in_pipe_hosts` is not a setting; did you mean `in-pipe-host`?"),
            "{error}"
        );
        let error = given("in_pipe_host: {a: b}\n", &[]).unwrap_err().to_string();
        assert!(error.contains("`in_pipe_host`: a value or a list of values"), "{error}");
        assert!(given("a: [\n", &[]).is_err());
        let missing = Given::read(&Toy::command(), Some(Path::new("/nowhere/zex.yaml")), |_| None);
        assert!(missing.unwrap_err().to_string().contains("/nowhere/zex.yaml"));
    }

    #[test]
    fn an_option_of_the_command_line_is_not_for_the_file() {
        let error = given("json: true\n", &[]).unwrap_err().to_string();
        assert!(error.contains("`json` is not a setting"), "{error}");
    }

    #[test]
    fn the_file_is_found_wherever_its_flag_stands() {
        let file = |args: &[&str]| config_file(args.iter().map(OsString::from), None);
        assert_eq!(file(&["zex", "up", "--config", "a"]), Some("a".into()));
        assert_eq!(file(&["zex", "--config=a", "up"]), Some("a".into()));
        assert_eq!(file(&["zex", "call", "--", "--config", "a"]), None);
        let set = |value: &str| config_file(std::iter::once("zex".into()), Some(value.into()));
        assert_eq!((set("b"), set("")), (Some("b".into()), None));
        let bytes = OsStr::from_bytes(b"--config=\xff");
        let found = config_file([OsString::from("zex"), bytes.to_owned()].into_iter(), None);
        assert_eq!(found, Some(OsStr::from_bytes(b"\xff").into()));
    }

    #[test]
    fn a_refused_value_names_the_file() {
        let given = given("in-pipe-port: many\n", &[]).unwrap();
        let command = given.under(Toy::command());
        let error = command.clone().try_get_matches_from(["zex", "brokers"]).unwrap_err();
        assert!(given.whence(&error, &command).unwrap().ends_with(".yaml"));
    }

    #[test]
    fn every_old_name_is_a_setting() {
        let known = settings(&Cli::command());
        for (_, setting) in EZ_NAMES {
            assert!(known.contains_key(setting), "{setting}");
        }
    }
}
