//! Splits a script into statements, for the command line.

/// One statement of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptStatement {
    /// The text without the closing semicolon and without blanks around it.
    pub sql: String,
    /// The line of the script on which it starts, from 1.
    pub line: usize,
}

/// Splits `script` at semicolons that are outside of quotes, comments and `$tag$ .. $tag$`.
///
/// Text after the last semicolon is a statement too. What holds only blanks and comments is left out.
pub fn split_statements(script: &str) -> Vec<ScriptStatement> {
    let bytes = script.as_bytes();
    let mut statements = Vec::new();
    let (mut start, mut at) = (0, 0);
    let mut has_content = false;
    while at < bytes.len() {
        let next = skip(script, at);
        match bytes[at] {
            b';' => {
                push(&mut statements, script, start, at, has_content);
                (start, has_content) = (at + 1, false);
            }
            b'-' | b'/' if next > at + 1 => {}
            byte => has_content |= !byte.is_ascii_whitespace(),
        }
        at = next;
    }
    push(&mut statements, script, start, bytes.len(), has_content);
    statements
}

/// True when `script` ends inside a quote, a comment or without a semicolon, so that a prompt should ask on.
pub fn is_incomplete(script: &str) -> bool {
    let bytes = script.as_bytes();
    let (mut at, mut open) = (0, false);
    while at < bytes.len() {
        let next = skip(script, at);
        match bytes[at] {
            b';' => open = false,
            b'-' if next > at + 1 => {}
            byte => open |= !byte.is_ascii_whitespace(),
        }
        at = next;
    }
    open
}

fn push(statements: &mut Vec<ScriptStatement>, script: &str, start: usize, end: usize, has_content: bool) {
    if has_content {
        let text = &script[start..end];
        let lead = text.len() - text.trim_start().len();
        let line = 1 + script[..start + lead].matches('\n').count();
        statements.push(ScriptStatement { sql: text.trim().to_owned(), line });
    }
}

/// The position after the lexical unit that starts at `at`; an unclosed one reaches to the end.
fn skip(script: &str, at: usize) -> usize {
    let rest = &script[at..];
    let end_of =
        |from: usize, close: &str| rest[from..].find(close).map_or(script.len(), |p| at + from + p + close.len());
    match rest.as_bytes()[0] {
        quote @ (b'\'' | b'"' | b'`') => end_of(1, char::from(quote).encode_utf8(&mut [0; 4])),
        b'-' if rest.starts_with("--") => end_of(2, "\n"),
        b'/' if rest.starts_with("/*") => end_of_block_comment(script, at),
        b'$' => match dollar_tag(rest) {
            Some(tag) => end_of(tag.len(), tag),
            None => at + 1,
        },
        _ => at + rest.chars().next().map_or(1, char::len_utf8),
    }
}

/// Block comments nest.
fn end_of_block_comment(script: &str, start: usize) -> usize {
    let bytes = script.as_bytes();
    let (mut at, mut depth) = (start + 2, 1);
    while at + 1 < bytes.len() && depth > 0 {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    if depth > 0 { script.len() } else { at }
}

/// `$$` or `$name$` at the start of `text`.
fn dollar_tag(text: &str) -> Option<&str> {
    let end = text[1..].find('$')? + 1;
    let name = &text[1..end];
    let is_name =
        name.chars().all(|c| c.is_alphanumeric() || c == '_') && !name.starts_with(|c: char| c.is_ascii_digit());
    is_name.then(|| &text[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(script: &str) -> Vec<String> {
        split_statements(script).into_iter().map(|statement| statement.sql).collect()
    }

    #[test]
    fn semicolons_in_quotes_comments_and_dollar_bodies_do_not_split() {
        let script = "SELECT 'a;''b', \"c;d\" -- e;\n; /* f; /* g; */ h; */ SELECT $$i;j$$;\nSELECT $t$ ; $$ ; $t$";
        assert_eq!(
            texts(script),
            ["SELECT 'a;''b', \"c;d\" -- e;", "/* f; /* g; */ h; */ SELECT $$i;j$$", "SELECT $t$ ; $$ ; $t$"]
        );
    }

    #[test]
    fn parameters_are_no_dollar_quotes_and_blanks_are_no_statements() {
        assert_eq!(texts("SELECT $1; SELECT $2;;  -- nothing\n"), ["SELECT $1", "SELECT $2"]);
    }

    #[test]
    fn lines_count_from_one() {
        let lines: Vec<usize> = split_statements("SELECT 1;\n\n  SELECT 2").iter().map(|s| s.line).collect();
        assert_eq!(lines, [1, 3]);
    }

    #[test]
    fn an_open_quote_is_incomplete() {
        assert!(is_incomplete("SELECT 'a;"));
        assert!(is_incomplete("SELECT 1"));
        assert!(!is_incomplete("SELECT 'a;b'; -- done"));
        assert!(!is_incomplete(""));
    }
}
