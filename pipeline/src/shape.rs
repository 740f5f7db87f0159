//! Values of a definition that may have expressions in them: what a step sends, above all.
//!
//! ```yaml
//! input:
//!   user_id: "{{ item.id }}"                     # an expression, whose value keeps its type
//!   group: "g{{ item.id % params.groups }}"      # text with one
//!   tags: [new, "{{ params.tag }}"]              # lists and maps of them; what has none is a literal
//! ```

use minijinja::Value;

use crate::document::{Content, Node};
use crate::expression::{Expression, Template, Text};
use crate::fields::Fields;
use crate::problem::{Place, Problem, Problems};

/// What a step sends.
#[derive(Debug)]
pub enum Input {
    /// Nothing is said: an empty message.
    Empty,
    /// A map of fields, or one expression.
    Shape(Shape),
}

/// A value with expressions in it, and where it stands.
#[derive(Debug)]
pub struct Shape {
    /// Where it stands in the definition.
    pub place: Place,
    /// What it is.
    pub content: ShapeContent,
}

/// What a [`Shape`] is.
#[derive(Debug)]
pub enum ShapeContent {
    /// A value without expressions.
    Literal(Value),
    /// One expression, its value keeps its type.
    Expression(Expression),
    /// Text with expressions.
    Text(Text),
    /// A list.
    List(Vec<Shape>),
    /// A map.
    Map(Vec<(String, Shape)>),
}

/// Reads `input`.
pub(crate) fn input(fields: &mut Fields<'_>, problems: &mut Problems) -> Input {
    match fields.take("input") {
        Some((node, place)) => shape(node, place, problems).map_or(Input::Empty, Input::Shape),
        None => Input::Empty,
    }
}

/// One name, or a list of names.
pub(crate) fn shape_names(
    node: &Node,
    place: &Place,
    what: &str,
    problems: &mut Problems,
) -> Vec<(String, Place)> {
    let one = |node: &Node, place: Place, problems: &mut Problems| match &node.content {
        Content::Text(id) => Some((id.clone(), place)),
        _ => {
            problems.add(&place, format!("{what} is wanted, this is {}", node.kind()));
            None
        }
    };
    match &node.content {
        Content::List(nodes) => {
            let each = nodes.iter().enumerate();
            each.filter_map(|(index, node)| {
                one(node, place.index(index).on_line(node.line), problems)
            })
            .collect()
        }
        _ => one(node, place.clone(), problems).into_iter().collect(),
    }
}

/// A value with its expressions compiled. What has none inside becomes a literal.
pub(crate) fn shape(node: &Node, place: Place, problems: &mut Problems) -> Option<Shape> {
    let content = match &node.content {
        Content::Text(text) => match Template::compile(text) {
            Ok(Template::Literal(text)) => ShapeContent::Literal(Value::from(text)),
            Ok(Template::Expression(expression)) => ShapeContent::Expression(expression),
            Ok(Template::Text(text)) => ShapeContent::Text(text),
            Err(error) => {
                problems.push(Problem { message: error.to_string(), ..place.problem("") });
                return None;
            }
        },
        Content::List(nodes) => {
            let shapes = nodes.iter().enumerate().filter_map(|(index, node)| {
                shape(node, place.index(index).on_line(node.line), problems)
            });
            ShapeContent::List(shapes.collect())
        }
        Content::Map(entries) => {
            let shapes = entries.iter().filter_map(|(key, node)| {
                let place = place.field(key).on_line(node.line);
                shape(node, place, problems).map(|shape| (key.clone(), shape))
            });
            ShapeContent::Map(shapes.collect())
        }
        _ => ShapeContent::Literal(node.to_value()),
    };
    Some(Shape { place, content })
}

impl Shape {
    /// Every expression in it, with its place.
    pub fn expressions(&self) -> Vec<(&Expression, &Place)> {
        match &self.content {
            ShapeContent::Literal(_) => Vec::new(),
            ShapeContent::Expression(expression) => vec![(expression, &self.place)],
            ShapeContent::Text(text) => {
                text.expressions().map(|expression| (expression, &self.place)).collect()
            }
            ShapeContent::List(shapes) => shapes.iter().flat_map(Self::expressions).collect(),
            ShapeContent::Map(shapes) => {
                shapes.iter().flat_map(|(_, shape)| shape.expressions()).collect()
            }
        }
    }
}
