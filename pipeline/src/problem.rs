//! What is wrong with a definition, and where: the words a person reads when a
//! pipeline is refused.
//!
//! A [`Problem`] is one place (`steps[2].input.user_id`), the line of the text it
//! stands in when that is known, and a sentence. Parsing and validation collect
//! [`Problems`] instead of stopping at the first, so that one refusal names
//! everything that has to be mended. [`nearest`] finds the name somebody meant.
//!
//! Called by `document`, `definition` and `plan`.

use std::fmt;

/// How many problems one refusal names: more would not be read.
pub const PROBLEMS_MAX: usize = 50;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The path into the definition, such as `steps[2].input.user_id`; empty for the whole.
    pub place: String,
    /// The line of the definition's text, from 1, where it is known.
    pub line: Option<u32>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.message)?;
        match self.line {
            Some(line) => write!(f, " (line {line})"),
            None => Ok(()),
        }
    }
}

/// All that is wrong with a definition, one line each when displayed.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct Problems(Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().take(PROBLEMS_MAX).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        match self.0.len().saturating_sub(PROBLEMS_MAX) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl Problems {
    /// Adds a problem.
    pub fn add(&mut self, place: &Place, message: impl Into<String>) {
        let (place, line) = (place.path.clone(), place.line);
        self.0.push(Problem { place, line, message: message.into() });
    }

    /// Adds a problem that is already put into words.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// `value` when nothing is wrong, else what is.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every problem found.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// A place in a definition: the path, and the line it stands in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The path, such as `steps[2].input`.
    pub path: String,
    /// The line of the text, from 1, where it is known.
    pub line: Option<u32>,
}

impl Place {
    /// The whole definition.
    pub fn root() -> Self {
        Self::default()
    }

    /// The field `name` of this place.
    pub fn field(&self, name: &str) -> Self {
        let path = match self.path.is_empty() {
            true => name.to_owned(),
            false => format!("{}.{name}", self.path),
        };
        Self { path, line: self.line }
    }

    /// The element `index` of this place.
    pub fn index(&self, index: usize) -> Self {
        Self { path: format!("{}[{index}]", self.path), line: self.line }
    }

    /// The same place, on this line when it is known.
    pub fn on_line(mut self, line: Option<u32>) -> Self {
        self.line = line.or(self.line);
        self
    }

    /// A problem at this place.
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        Problem { place: self.path.clone(), line: self.line, message: message.into() }
    }
}

/// The candidate that is nearest to `name`, when one is near enough to be meant.
///
/// ```
/// use zex_pipeline::problem::nearest;
/// assert_eq!(nearest("user_idd", ["group", "user_id"]), Some("user_id"));
/// assert_eq!(nearest("colour", ["group", "user_id"]), None);
/// ```
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the name may differ: enough for a slip, too little for a guess.
    let most = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, candidate)| candidate)
}

/// `did you mean …?` for a near name, else the list of what there is.
pub(crate) fn suggest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    /// More names than these are not worth listing.
    const LISTED_MAX: usize = 12;
    let candidates: Vec<&str> = candidates.into_iter().collect();
    if let Some(near) = nearest(name, candidates.iter().copied()) {
        return format!("; did you mean `{near}`?");
    }
    match candidates.len() {
        0 => String::new(),
        count if count > LISTED_MAX => {
            format!(
                "; there are {} and {} more",
                candidates[..LISTED_MAX].join(", "),
                count - LISTED_MAX
            )
        }
        _ => format!("; there is {}", candidates.join(", ")),
    }
}

/// Letters to change, add, drop or swap to get from one name to the other
/// (optimal string alignment), case not counting.
fn distance(left: &str, right: &str) -> usize {
    /// Names are short; longer ones are compared by their beginning.
    const COMPARED_CHARS: usize = 128;
    let letters = |text: &str| -> Vec<char> {
        text.chars().take(COMPARED_CHARS).flat_map(char::to_lowercase).collect()
    };
    let (left, right) = (letters(left), letters(right));
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut best = (row[j] + usize::from(a != b)).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                best = best.min(before[j - 1] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_changes_and_swaps() {
        for (left, right, want) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "", 3),
            ("user_id", "usre_id", 1),
            ("List", "list", 0),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(left, right), want, "{left} {right}");
        }
    }

    #[test]
    fn a_problem_names_place_and_line() {
        let place = Place::root().field("steps").index(2).field("input").on_line(Some(7));
        assert_eq!(place.problem("no").to_string(), "steps[2].input: no (line 7)");
        assert_eq!(Place::root().problem("no").to_string(), "no");
    }

    #[test]
    fn many_problems_are_cut() {
        let mut problems = Problems::default();
        for _ in 0..PROBLEMS_MAX + 3 {
            problems.add(&Place::root(), "no");
        }
        let text = problems.to_string();
        assert_eq!(text.lines().count(), PROBLEMS_MAX + 1);
        assert!(text.ends_with("and 3 more"));
    }

    #[test]
    fn suggestions_are_near_names_or_the_list() {
        assert_eq!(suggest("retri", ["retry", "each"]), "; did you mean `retry`?");
        assert_eq!(suggest("xyz", ["retry", "each"]), "; there is retry, each");
        assert_eq!(suggest("xyz", []), "");
    }
}
