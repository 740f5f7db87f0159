//! Expressions: what stands between `{{` and `}}` in a definition.
//!
//! The language is minijinja's expressions, without statements. One engine serves
//! all, strict about what is undefined, with a budget for every evaluation.
//! An expression is compiled once and evaluated against a scope value; it knows
//! the names it reads, from which the dependencies between steps are found.
//!
//! ```text
//!  "{{ item.id % 3 }}"        one expression, its value keeps its type
//!  "user-{{ item.id }}.txt"   text with expressions inside, always text
//! ```
//!
//! Called by `definition` (compile) and `input` (evaluate).

use std::collections::BTreeSet;
use std::sync::LazyLock;

use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};

/// The longest expression, in bytes: minijinja's parser recurses on chains of
/// operators, and a longer chain would end the process with its stack.
pub const EXPRESSION_MAX_BYTES: usize = 1024;

/// The budget of one evaluation, in the engine's instructions and in the bytes and
/// items that they make. Each expression runs for every item, so one that needs more
/// does not belong in a definition.
pub const EXPRESSION_FUEL: u64 = 20_000;

/// The longest text an expression or a text with expressions may give, in bytes:
/// what a message may hold anyway.
pub const TEXT_MAX_BYTES: usize = 4 << 20;

/// Names that mean something of their own in expressions.
pub const RESERVED_NAMES: &[&str] = &[
    "params",
    "item",
    "index",
    "run",
    "true",
    "false",
    "none",
    "True",
    "False",
    "None",
    "not",
    "and",
    "or",
    "in",
    "is",
    "if",
    "else",
    "range",
    "dict",
    "namespace",
    "debug",
    "loop",
    "self",
];

/// The functions of the engine, which look like names but are not references.
const FUNCTIONS: &[&str] = &["range", "dict", "namespace", "debug"];

static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut engine = Environment::new();
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.set_fuel(Some(EXPRESSION_FUEL));
    engine
});

/// Why an expression gave no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// It is longer than [`EXPRESSION_MAX_BYTES`].
    #[error("the expression has {0} bytes; the most is {EXPRESSION_MAX_BYTES}")]
    TooLong(usize),
    /// It is not an expression.
    #[error("not an expression: {0}")]
    Syntax(String),
    /// `{{` without `}}`.
    #[error("`{{{{` is not closed by `}}}}`")]
    NotClosed,
    /// `{% … %}` was written.
    #[error("statements (`{{% … %}}`) are not taken, only expressions (`{{{{ … }}}}`)")]
    Statement,
    /// It read something that is not there.
    #[error("`{source_text}` is undefined: {detail}")]
    Undefined {
        /// The expression.
        source_text: String,
        /// What was missing.
        detail: String,
    },
    /// It used up [`EXPRESSION_FUEL`].
    #[error(
        "`{0}` takes or makes too much: {EXPRESSION_FUEL} instructions, bytes and items are the most"
    )]
    OutOfFuel(String),
    /// It gave a text above [`TEXT_MAX_BYTES`].
    #[error("`{0}` gives more than {TEXT_MAX_BYTES} bytes")]
    TooLarge(String),
    /// Anything else that went wrong in it.
    #[error("`{source_text}`: {detail}")]
    Failed {
        /// The expression.
        source_text: String,
        /// What went wrong.
        detail: String,
    },
}

/// A name with the fields after it: `users.address.city`.
pub type Path = Vec<String>;

/// One compiled expression.
#[derive(Debug)]
pub struct Expression {
    source: String,
    compiled: minijinja::Expression<'static, 'static>,
    paths: BTreeSet<Path>,
    plain: Option<Path>,
}

impl Expression {
    /// Compiles the text between the braces.
    pub fn compile(source: &str) -> Result<Self, ExpressionError> {
        let source = source.trim().to_owned();
        if source.len() > EXPRESSION_MAX_BYTES {
            return Err(ExpressionError::TooLong(source.len()));
        }
        let compiled = ENGINE
            .compile_expression_owned(source.clone())
            .map_err(|error| ExpressionError::Syntax(detail(&error)))?;
        let paths = compiled
            .undeclared_variables(true)
            .into_iter()
            .map(|path| path.split('.').map(str::to_owned).collect::<Path>())
            .filter(|path| !FUNCTIONS.contains(&path[0].as_str()))
            .collect();
        let plain = plain_path(&source);
        Ok(Self { source, compiled, paths, plain })
    }

    /// The text it was compiled from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Every name it reads, with the fields that can be told before it runs.
    pub fn paths(&self) -> &BTreeSet<Path> {
        &self.paths
    }

    /// The path, when the expression is nothing but one.
    pub fn plain_path(&self) -> Option<&Path> {
        self.plain.as_ref()
    }

    /// Its value in a scope: a value with one attribute for every name.
    pub fn evaluate(&self, scope: &Value) -> Result<Value, ExpressionError> {
        let source_text = || self.source.clone();
        let value = self.compiled.eval(scope.clone()).map_err(|error| match error.kind() {
            ErrorKind::UndefinedError => {
                ExpressionError::Undefined { source_text: source_text(), detail: detail(&error) }
            }
            ErrorKind::OutOfFuel => ExpressionError::OutOfFuel(source_text()),
            _ => ExpressionError::Failed { source_text: source_text(), detail: detail(&error) },
        })?;
        // A missing leaf is undefined even in strict mode, as long as nothing reads it.
        if value.is_undefined() {
            let detail = "there is no such field".to_owned();
            return Err(ExpressionError::Undefined { source_text: source_text(), detail });
        }
        if value.as_str().is_some_and(|text| text.len() > TEXT_MAX_BYTES) {
            return Err(ExpressionError::TooLarge(source_text()));
        }
        Ok(value)
    }
}

/// The engine's words without its position, which is of no use in one line.
fn detail(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    }
}

/// `a.b.c`, when the expression is only that.
fn plain_path(source: &str) -> Option<Path> {
    let parts: Path = source.split('.').map(|part| part.trim().to_owned()).collect();
    let constant =
        |name: &str| matches!(name, "true" | "false" | "none" | "True" | "False" | "None");
    (parts.iter().all(|part| is_name(part)) && !constant(&parts[0])).then_some(parts)
}

/// Whether this is a name as expressions have them.
pub fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// A text of a definition that may hold expressions.
#[derive(Debug)]
pub enum Template {
    /// No expression in it.
    Literal(String),
    /// Nothing but one expression: its value keeps its type.
    Expression(Expression),
    /// Text with expressions inside.
    Text(Text),
}

/// Text with expressions inside; evaluates to text.
#[derive(Debug)]
pub struct Text(Vec<Part>);

#[derive(Debug)]
enum Part {
    Literal(String),
    Expression(Expression),
}

impl Template {
    /// Finds and compiles the expressions of a text.
    pub fn compile(text: &str) -> Result<Self, ExpressionError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find("{{") {
            literal(&rest[..start], &mut parts)?;
            let inside = &rest[start + 2..];
            let end = closing(inside).ok_or(ExpressionError::NotClosed)?;
            parts.push(Part::Expression(Expression::compile(&inside[..end])?));
            rest = &inside[end + 2..];
        }
        literal(rest, &mut parts)?;
        Ok(match (parts.pop(), parts.is_empty()) {
            (None, _) => Self::Literal(String::new()),
            (Some(Part::Literal(text)), true) => Self::Literal(text),
            (Some(Part::Expression(expression)), true) => Self::Expression(expression),
            (Some(last), false) => {
                parts.push(last);
                Self::Text(Text(parts))
            }
        })
    }
}

fn literal(text: &str, parts: &mut Vec<Part>) -> Result<(), ExpressionError> {
    if text.contains("{%") {
        return Err(ExpressionError::Statement);
    }
    if !text.is_empty() {
        parts.push(Part::Literal(text.to_owned()));
    }
    Ok(())
}

/// Where the `}}` is that closes an expression: not one in quotes, nor one that
/// closes maps of the expression itself.
fn closing(inside: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0_usize, None, false);
    for (at, letter) in inside.char_indices() {
        match (quote, letter) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), letter) if open == letter => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(letter),
            (None, '{') => depth += 1,
            (None, '}') if depth > 0 => depth -= 1,
            (None, '}') if inside[at..].starts_with("}}") => return Some(at),
            (None, _) => {}
        }
    }
    None
}

impl Text {
    /// The expressions in it.
    pub fn expressions(&self) -> impl Iterator<Item = &Expression> {
        self.0.iter().filter_map(|part| match part {
            Part::Expression(expression) => Some(expression),
            Part::Literal(_) => None,
        })
    }

    /// Its text in a scope.
    pub fn evaluate(&self, scope: &Value) -> Result<String, ExpressionError> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Expression(expression) => {
                    let value = expression.evaluate(scope)?;
                    if value.is_none() {
                        return Err(ExpressionError::Failed {
                            source_text: expression.source.clone(),
                            detail: "it is null and cannot stand in a text".to_owned(),
                        });
                    }
                    match value.as_str() {
                        Some(part) => text.push_str(part),
                        None => text.push_str(&value.to_string()),
                    }
                    if text.len() > TEXT_MAX_BYTES {
                        return Err(ExpressionError::TooLarge(expression.source.clone()));
                    }
                }
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    fn evaluate(source: &str) -> Result<Value, ExpressionError> {
        let long = "x".repeat(TEXT_MAX_BYTES + 1);
        let scope = context! {
            item => context! { id => 7, name => "Ann", big => u64::MAX, none => (), long => long },
            params => context! { groups => 3 },
        };
        Expression::compile(source)?.evaluate(&scope)
    }

    #[test]
    fn values_keep_their_types() {
        assert_eq!(evaluate("item.id % params.groups").unwrap(), Value::from(1));
        assert_eq!(evaluate("item.name ~ '!'").unwrap(), Value::from("Ann!"));
        assert_eq!(u64::try_from(evaluate("item.big").unwrap()).unwrap(), u64::MAX);
        assert!(evaluate("item.id > 3").unwrap().is_true());
    }

    #[test]
    fn names_with_fields_are_found() {
        let expression =
            Expression::compile("users.address.city ~ item['x'] ~ range(params.n)").unwrap();
        let paths: Vec<String> = expression.paths().iter().map(|path| path.join(".")).collect();
        assert_eq!(paths, ["item", "params.n", "users.address.city"]);
        assert_eq!(expression.plain_path(), None);
        let plain = Expression::compile(" users . id ").unwrap();
        assert_eq!(plain.plain_path().unwrap().join("."), "users.id");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let long = "1+".repeat(600) + "1";
        let minus = "-".repeat(1023) + "1";
        for (source, want) in [
            ("item.nick", "undefined"),
            ("item.nick.first", "undefined"),
            ("nobody", "undefined"),
            ("1 +", "not an expression"),
            ("range(100000)|sum", "20000 instructions, bytes and items"),
            ("item.id / 0", "item.id / 0"),
            (&long, "the most is 1024"),
            ("'x' * 5000000", "20000 instructions, bytes and items"),
            ("item.long", "more than 4194304 bytes"),
        ] {
            let error = evaluate(source).expect_err(source).to_string();
            assert!(error.contains(want), "{source:.40}: {error}");
        }
        // The longest chain of operators may give an error or a value, but returns.
        let _returns = evaluate(&minus).is_ok();
    }

    #[test]
    fn templates_are_literal_expression_or_text() {
        assert!(matches!(Template::compile("plain } text").unwrap(), Template::Literal(_)));
        assert!(matches!(Template::compile("{{ item.id }}").unwrap(), Template::Expression(_)));
        let Template::Text(text) =
            Template::compile("u-{{ item.id }}-{{ '}}' ~ {'a': {}}.a }}.").unwrap()
        else {
            panic!("text with expressions");
        };
        let scope = context! { item => context! { id => 7 } };
        assert_eq!(text.evaluate(&scope).unwrap(), "u-7-}}{}.");
        assert_eq!(text.expressions().count(), 2);
        for (text, want) in [
            ("{{ item", "not closed"),
            ("{{ '}}", "not closed"),
            ("{% if x %}", "statements"),
            ("{{ }}", "not an expression"),
        ] {
            let error = Template::compile(text).expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn null_does_not_become_text() {
        let Template::Text(text) = Template::compile("a{{ item.none }}").unwrap() else {
            panic!("text with expressions");
        };
        let scope = context! { item => context! { none => () } };
        assert!(text.evaluate(&scope).unwrap_err().to_string().contains("null"));
    }
}
