//! Labels: what is special about a worker, or where it runs, so that a caller can ask for that.
//!
//! A worker with labels serves each of its services under further names, `pkg.Service@label`. So
//! the mesh needs to know nothing of labels: who calls that name gets a worker that has the label,
//! and the worker's tasks are counted together, under whatever name they come.
//!
//! A label is a word such as `gpu`, or a pair such as `node=a`.

use crate::builder::WorkerError;

/// Most labels of a worker: each is one more name for each of its services, at every broker.
pub const LABELS_MAX: usize = 8;
/// The longest label, bytes: it travels behind the names of services, which have their own bound.
pub const LABEL_MAX_BYTES: usize = 64;
/// What stands between a service and a label. No gRPC service has it in its name.
pub const LABEL_SIGN: char = '@';

/// Whether this is a label: letters, digits, `_`, `-` and `.`, and one `=` in between.
pub fn is_label(label: &str) -> bool {
    let word = |word: &str| {
        let fits = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
        !word.is_empty() && word.chars().all(fits)
    };
    let (key, value) = label.split_once('=').unwrap_or((label, "true"));
    label.len() <= LABEL_MAX_BYTES && word(key) && word(value)
}

/// The name of a service under a label.
pub fn labelled(service: &str, label: &str) -> String {
    format!("{service}{LABEL_SIGN}{label}")
}

/// A name that a worker serves: the service, and the label if it is under one.
pub fn split_label(name: &str) -> (&str, Option<&str>) {
    match name.split_once(LABEL_SIGN) {
        Some((service, label)) => (service, Some(label)),
        None => (name, None),
    }
}

/// Checked labels, each of them once.
pub(crate) fn check(labels: Vec<String>) -> Result<Vec<String>, WorkerError> {
    let mut checked: Vec<String> = Vec::new();
    for label in labels {
        if !is_label(&label) {
            return Err(WorkerError::Label(label));
        }
        if !checked.contains(&label) {
            checked.push(label);
        }
    }
    match checked.len() {
        0..=LABELS_MAX => Ok(checked),
        count => Err(WorkerError::Labels(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_word_or_a_pair() {
        for good in ["gpu", "node=a", "zone=eu-1.a", "x_y"] {
            assert!(is_label(good), "{good}");
        }
        let long = "a".repeat(LABEL_MAX_BYTES + 1);
        for bad in ["", "=a", "a=", "a=b=c", "a b", "a@b", "a,b", &long] {
            assert!(!is_label(bad), "{bad}");
        }
        assert_eq!(split_label(&labelled("a.B", "node=c")), ("a.B", Some("node=c")));
        assert_eq!(split_label("a.B"), ("a.B", None));
        let many = (0..=LABELS_MAX).map(|number| format!("l{number}"));
        assert!(matches!(check(many.collect()), Err(WorkerError::Labels(9))));
        assert!(matches!(check(vec!["a b".into()]), Err(WorkerError::Label(_))));
        assert_eq!(check(vec!["a".into(), "a".into()]).unwrap(), ["a"]);
    }
}
