//! The name that somebody may have meant who wrote another.
//!
//! Used wherever a name from outside is looked up: settings, services, methods.

use zex_pipeline::problem::nearest;

/// `; did you mean this one?`, or nothing if no name comes near. `Users` is near to
/// `example.v1.Users`, too.
pub(crate) fn hint<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let near = nearest(wrong, names.iter().copied()).or_else(|| {
        let near = nearest(last(wrong), names.iter().map(|name| last(name)))?;
        names.iter().copied().find(|name| last(name) == near)
    });
    near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

/// A name without its package.
fn last(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

#[cfg(test)]
mod tests {
    use super::hint;

    #[test]
    fn near_names_are_found_with_and_without_their_package() {
        let names = ["example.v1.Users", "example.v1.Groups", "zex.Mesh"];
        assert_eq!(hint("example.v1.User", names), "; did you mean `example.v1.Users`?");
        assert_eq!(hint("users", names), "; did you mean `example.v1.Users`?");
        assert_eq!(hint("exmple.v2.Group", names), "; did you mean `example.v1.Groups`?");
        assert_eq!(hint("qqq", names), "");
        assert_eq!(hint("", []), "");
    }
}
