//! The interactive prompt: lines until a semicolon, history across sessions, completion with Tab.

use std::borrow::Cow;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use arrow::array::AsArray;
use futures::TryStreamExt;
use hypr_common::{Error, Result};
use hypr_query::{is_incomplete, split_statements};
use hypr_server::ClientOutcome;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::HistoryHinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Editor, Helper, Hinter};

use super::connection::Connection;
use super::output::Printer;

const PROMPT: &str = "hyprstream> ";
const HISTORY_LINES: usize = 10_000;
const HELP: &str = "\
Statements end with a semicolon and may span lines. Tab completes keywords, tables and columns.
  help     this text
  \\d       the tables
  quit     leave, as do exit, \\q and Ctrl-D; Ctrl-C drops the line or stops the statement";
const TABLES: &str = "SELECT table_schema, table_name, table_type FROM information_schema.tables \
                      WHERE table_schema <> 'information_schema' ORDER BY table_schema, table_name";
const NAMES: &str = "SELECT DISTINCT table_name AS name FROM information_schema.columns \
                     UNION SELECT DISTINCT column_name AS name FROM information_schema.columns";
const KEYWORDS: &[&str] = &[
    "ALTER",
    "AND",
    "ARRAY",
    "AS",
    "ASC",
    "BETWEEN",
    "BIGINT",
    "BLOB",
    "BOOLEAN",
    "BY",
    "CASE",
    "CAST",
    "CONTEXT",
    "COUNT",
    "CREATE",
    "CROSS",
    "DELETE",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "DOUBLE",
    "DROP",
    "ELSE",
    "END",
    "EXISTS",
    "EXPLAIN",
    "FROM",
    "FULL",
    "GENERATE_RESPONSE",
    "GROUP",
    "HAVING",
    "IN",
    "INNER",
    "INSERT",
    "INT",
    "INTO",
    "IS",
    "JOIN",
    "JSONB",
    "KEY",
    "LEFT",
    "LIKE",
    "LIMIT",
    "NOT",
    "NULL",
    "OFFSET",
    "ON",
    "OR",
    "ORDER",
    "OUTER",
    "OVER",
    "PARTITION",
    "PRIMARY",
    "RIGHT",
    "SELECT",
    "SET",
    "SHOW",
    "TABLE",
    "TABLES",
    "TEXT",
    "THEN",
    "TIMESTAMP",
    "UNION",
    "UPDATE",
    "USING",
    "VALUES",
    "VECTOR",
    "WHEN",
    "WHERE",
    "WITH",
    "cosine_distance",
    "cosine_similarity",
    "embed",
    "inner_product",
    "l2_distance",
];

/// Reads and runs statements until the user leaves. A statement that fails does not end the session.
pub async fn run(connection: &mut Connection, printer: &mut Printer) -> Result<()> {
    let mut editor = editor().map_err(prompt_error)?;
    let history = history_path();
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    eprintln!("hyprstream {}; \"help\" helps, Ctrl-D leaves", env!("CARGO_PKG_VERSION"));
    learn_names(connection, &mut editor).await;
    loop {
        let input = match editor.readline(PROMPT) {
            Ok(input) => input,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(prompt_error(error)),
        };
        let line = input.trim().trim_end_matches(';').trim();
        if line.is_empty() {
            continue;
        }
        editor.add_history_entry(input.trim()).map_err(prompt_error)?;
        match line {
            "quit" | "exit" | "\\q" => break,
            "help" | "\\?" => eprintln!("{HELP}"),
            "\\d" => run_all(connection, printer, &mut editor, TABLES).await,
            _ => run_all(connection, printer, &mut editor, &input).await,
        }
        if printer.pipe_closed() {
            break;
        }
    }
    save_history(&mut editor, history);
    Ok(())
}

type Prompt = Editor<SqlHelper, FileHistory>;

async fn run_all(connection: &mut Connection, printer: &mut Printer, editor: &mut Prompt, script: &str) {
    for statement in split_statements(script) {
        let started = Instant::now();
        let mut changes_names = false;
        let done = tokio::select! {
            done = async {
                let outcome = connection.execute(&statement.sql).await?;
                changes_names = matches!(outcome, ClientOutcome::Affected(_));
                printer.print(outcome, started).await
            } => done,
            _ = tokio::signal::ctrl_c() => Err(Error::new(hypr_common::ErrorKind::Cancelled, "stopped")),
        };
        if let Err(error) = done {
            eprintln!("error: {error}");
            return;
        }
        if changes_names {
            learn_names(connection, editor).await;
        }
    }
}

/// Tells completion the tables and columns that exist. It is a convenience: without an answer it knows keywords.
async fn learn_names(connection: &mut Connection, editor: &mut Prompt) {
    match names(connection).await {
        Ok(names) => {
            if let Some(helper) = editor.helper_mut() {
                helper.names = names;
            }
        }
        Err(error) => tracing::debug!(%error, "no names to complete"),
    }
}

async fn names(connection: &mut Connection) -> Result<Vec<String>> {
    let ClientOutcome::Rows { mut stream, .. } = connection.execute(NAMES).await? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    while let Some(batch) = stream.try_next().await? {
        let column = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8)?;
        names.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
    }
    Ok(names)
}

fn editor() -> rustyline::Result<Prompt> {
    let config = Config::builder()
        .max_history_size(HISTORY_LINES)?
        .history_ignore_space(true)
        .completion_type(CompletionType::List)
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(SqlHelper { names: Vec::new(), hinter: HistoryHinter::new() }));
    Ok(editor)
}

/// `$XDG_STATE_HOME/hyprstream/history`, by default below `~/.local/state`.
fn history_path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("hyprstream/history"))
}

fn save_history(editor: &mut Prompt, path: Option<PathBuf>) {
    let Some(path) = path else { return };
    let saved = path.parent().map_or(Ok(()), fs::create_dir_all).map_err(ReadlineError::from);
    if let Err(error) = saved.and_then(|()| editor.save_history(&path)) {
        eprintln!("warning: the history {} cannot be written: {error}", path.display());
    }
}

fn prompt_error(error: ReadlineError) -> Error {
    match error {
        ReadlineError::Io(error) => Error::io("the prompt failed", error),
        error => Error::internal(format!("the prompt failed: {error}")).with_source(error),
    }
}

/// What the editor asks about a line.
#[derive(Helper, Hinter)]
struct SqlHelper {
    /// Tables and columns.
    names: Vec<String>,
    #[rustyline(Hinter)]
    hinter: HistoryHinter,
}

impl Completer for SqlHelper {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(completions(line, pos, &self.names))
    }
}

impl Highlighter for SqlHelper {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(format!("\x1b[2m{hint}\x1b[0m"))
    }
}

impl Validator for SqlHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let incomplete = wants_more(context.input());
        Ok(if incomplete { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

/// The prompt's own commands are complete without a semicolon.
fn wants_more(input: &str) -> bool {
    let word = input.trim();
    !word.starts_with('\\') && !matches!(word, "quit" | "exit" | "help") && is_incomplete(input)
}

/// Words that may stand in place of the one that ends at `pos`, and where it starts.
fn completions(line: &str, pos: usize, names: &[String]) -> (usize, Vec<String>) {
    let before = &line[..pos];
    let start = before.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |at| at + 1);
    let word = before[start..].to_lowercase();
    if word.is_empty() {
        return (pos, Vec::new());
    }
    let typed_lower = before[start..].starts_with(char::is_lowercase);
    let keywords =
        KEYWORDS.iter().map(|keyword| if typed_lower { keyword.to_lowercase() } else { (*keyword).to_owned() });
    let mut words: Vec<String> = names.iter().cloned().chain(keywords).collect();
    words.retain(|candidate| candidate.to_lowercase().starts_with(&word));
    words.sort();
    words.dedup();
    (start, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completion_offers_names_and_keywords_in_the_case_that_was_typed() {
        let names = ["selected_docs".to_owned(), "Text".to_owned()];
        assert_eq!(completions("sel", 3, &names), (0, vec!["select".to_owned(), "selected_docs".to_owned()]));
        assert_eq!(completions("SELECT a FR", 11, &names), (9, vec!["FROM".to_owned()]));
        assert_eq!(completions("x.te", 4, &names), (2, vec!["Text".to_owned(), "text".to_owned()]));
        assert_eq!(completions("a ", 2, &names), (2, vec![]));
        assert_eq!(completions("é", 2, &names), (0, vec![]));
    }

    #[test]
    fn a_statement_goes_on_until_its_semicolon_and_a_command_does_not() {
        assert!(wants_more("SELECT 1"));
        assert!(wants_more("SELECT ';"));
        assert!(!wants_more("SELECT 1;"));
        assert!(!wants_more("\\d") && !wants_more("quit") && !wants_more(""));
    }
}
