//! DataFusion's and sqlparser's errors as [`hypr_common::Error`]: a kind, a position, a suggestion, and
//! nothing of the inside.

use datafusion::arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Location;
use hypr_common::{Error, ErrorKind};

/// An error of the text at a position, both from 1.
pub(crate) fn syntax(message: &str, line: u64, column: u64) -> Error {
    Error::invalid(format!("syntax error at line {line}, column {column}: {message}"))
}

/// `error` with the place where the text ends, if that is what is wrong: the parser gives it none.
pub(crate) fn at_end(error: Error, end: Option<Location>) -> Error {
    let what = error.message().strip_prefix("syntax error: ").and_then(|what| what.strip_suffix("found: EOF"));
    match (what, end) {
        (Some(what), Some(end)) => syntax(&format!("{what}found: the end"), end.line, end.column),
        _ => error,
    }
}

/// Our error inside DataFusion, found again by [`from_datafusion`].
pub(crate) fn to_datafusion(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Maps an error of planning or execution.
pub fn from_datafusion(error: DataFusionError) -> Error {
    let (kind, message) = describe(&error);
    let message = match position(&error) {
        Some((line, column)) if !message.contains(" at line ") => {
            format!("{message} (at line {line}, column {column})")
        }
        _ => message,
    };
    Error::new(kind, message).with_source(error)
}

fn describe(error: &DataFusionError) -> (ErrorKind, String) {
    match error {
        DataFusionError::External(source) => describe_external(source.as_ref()),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => describe(inner),
        DataFusionError::Shared(inner) => describe(inner),
        DataFusionError::Collection(all) => match all.first() {
            Some(first) => describe(first),
            None => (ErrorKind::Internal, "the statement failed".to_owned()),
        },
        DataFusionError::SQL(parser, _) => (ErrorKind::InvalidInput, parser_message(parser)),
        DataFusionError::SchemaError(schema, _) => (ErrorKind::InvalidInput, schema_message(schema)),
        DataFusionError::Plan(message) | DataFusionError::Configuration(message) => {
            (ErrorKind::InvalidInput, tidy(message))
        }
        DataFusionError::Execution(message) => (ErrorKind::InvalidInput, tidy(message)),
        DataFusionError::NotImplemented(message) => (ErrorKind::Unsupported, tidy(message)),
        DataFusionError::ResourcesExhausted(message) => (ErrorKind::ResourceExhausted, exhausted(message).to_owned()),
        DataFusionError::ArrowError(arrow, _) => describe_arrow(arrow),
        DataFusionError::IoError(io) => describe_io(io),
        _ => (ErrorKind::Internal, "internal error while running the statement; the log has the details".to_owned()),
    }
}

/// Which limit was reached; who held how much memory is for the log.
fn exhausted(message: &str) -> &'static str {
    if message.contains("disk space") {
        "the statement spills more to disk than the limit on temporary data allows; raise it or ask for less"
    } else {
        "the statement needs more memory than query.memory_limit_mb allows; raise it or ask for less"
    }
}

fn describe_external(source: &(dyn std::error::Error + Send + Sync + 'static)) -> (ErrorKind, String) {
    if let Some(ours) = source.downcast_ref::<Error>() {
        (ours.kind(), ours.message().to_owned())
    } else if let Some(inner) = source.downcast_ref::<DataFusionError>() {
        describe(inner)
    } else if let Some(arrow) = source.downcast_ref::<ArrowError>() {
        describe_arrow(arrow)
    } else if let Some(io) = source.downcast_ref::<std::io::Error>() {
        describe_io(io)
    } else {
        (ErrorKind::Internal, "internal error while reading the data; the log has the details".to_owned())
    }
}

fn describe_arrow(error: &ArrowError) -> (ErrorKind, String) {
    match error {
        ArrowError::ExternalError(source) => describe_external(source.as_ref()),
        ArrowError::CastError(message)
        | ArrowError::ParseError(message)
        | ArrowError::ComputeError(message)
        | ArrowError::InvalidArgumentError(message)
        | ArrowError::ArithmeticOverflow(message)
        | ArrowError::SchemaError(message) => (ErrorKind::InvalidInput, tidy(message)),
        ArrowError::DivideByZero => (ErrorKind::InvalidInput, "division by zero".to_owned()),
        ArrowError::NotYetImplemented(message) => (ErrorKind::Unsupported, tidy(message)),
        ArrowError::IoError(_, io) => describe_io(io),
        ArrowError::MemoryError(message) => (ErrorKind::ResourceExhausted, tidy(message)),
        _ => (ErrorKind::Internal, "internal error in columnar data; the log has the details".to_owned()),
    }
}

fn describe_io(error: &std::io::Error) -> (ErrorKind, String) {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(ours) => (ours.kind(), ours.message().to_owned()),
        None => match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => (
                ErrorKind::ResourceExhausted,
                "the disk is full: free space in the data directory or the temporary directory".to_owned(),
            ),
            _ => (ErrorKind::Internal, "input/output error while running the statement".to_owned()),
        },
    }
}

/// sqlparser puts the position last: `Expected: x, found: y at Line: 1, Column: 8`.
fn parser_message(error: &ParserError) -> String {
    match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
            match message.rsplit_once(" at Line: ") {
                Some((what, position)) => {
                    let position = position.replace("Column: ", "column ");
                    format!("syntax error at line {position}: {}", lower_first(what))
                }
                None => format!("syntax error: {}", lower_first(message)),
            }
        }
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".to_owned(),
    }
}

fn schema_message(error: &SchemaError) -> String {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let names: Vec<String> = valid_fields.iter().map(|field| field.name.clone()).collect();
            let hint = match hint(&field.name, names.iter().map(String::as_str)) {
                none if none.is_empty() && !names.is_empty() => format!("; there is: {}", list(&names)),
                hint => hint,
            };
            format!("column \"{}\" does not exist{hint}", field.flat_name())
        }
        SchemaError::AmbiguousReference { field } => {
            format!("column \"{}\" is ambiguous; put the table's name before it", field.name)
        }
        other => tidy(&other.to_string()),
    }
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", ..");
    }
    text
}

fn position(error: &DataFusionError) -> Option<(u64, u64)> {
    let span = error.diagnostic()?.span?;
    (span.start.line > 0).then_some((span.start.line, span.start.column))
}

/// Drops the prefixes and the request to file a bug that DataFusion adds to its messages.
fn tidy(message: &str) -> String {
    let mut text = message.split("\nThis issue was likely caused by").next().unwrap_or(message);
    if let Some((_, ours)) = text.split_once("user-defined coercion failed with: ") {
        text = ours.split(" No function matches the given name").next().unwrap_or(ours);
    }
    if let Some((got, wanted)) = text.strip_prefix(CANNOT_STORE).and_then(|types| types.split_once(" and ")) {
        return format!("a value of type {got} cannot be stored in a column of type {wanted}");
    }
    for prefix in ["Error during planning: ", "Execution error: ", "Arrow error: ", "Cast error: ", "External error: "]
    {
        text = text.strip_prefix(prefix).unwrap_or(text);
    }
    lower_first(text.trim()).replace(".\nDid you mean", "; did you mean")
}

/// How DataFusion starts to say that `VALUES` do not fit the columns.
const CANNOT_STORE: &str = "type mismatch and can't cast to got ";

/// Lower-cases the first letter, unless the word is all capitals.
fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), text.chars().nth(1)) {
        (Some(first), Some(second)) if first.is_uppercase() && !second.is_uppercase() => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// The candidate that `name` is most likely a misspelling of.
pub(crate) fn suggest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let folded = name.to_lowercase();
    let limit = (folded.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (strsim::osa_distance(&folded, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// The end of a message about the unknown `name`: what was probably meant, or nothing.
pub(crate) fn hint<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    suggest(name, candidates).map_or_else(String::new, |close| format!("; did you mean \"{close}\"?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_is_suggested_and_a_stranger_is_not() {
        let names = ["sherlock_text", "sherlock_images"];
        assert_eq!(suggest("sherlok_text", names.into_iter()), Some("sherlock_text"));
        assert_eq!(suggest("Sherlock_Images", names.into_iter()), Some("sherlock_images"));
        assert_eq!(suggest("watson", names.into_iter()), None);
    }

    #[test]
    fn our_errors_survive_the_way_through_datafusion() {
        let inner = to_datafusion(Error::new(ErrorKind::Busy, "the queue is full"));
        let wrapped = DataFusionError::Context("while scanning".into(), Box::new(inner));
        let error = from_datafusion(wrapped);
        assert_eq!((error.kind(), error.message()), (ErrorKind::Busy, "the queue is full"));
    }

    #[test]
    fn internal_errors_do_not_leak() {
        let error = from_datafusion(DataFusionError::Internal("/secret/path: oops".into()));
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(!error.message().contains("secret"));
    }
}
