//! A Rust file without its comments and literals, and the functions in it.
//!
//! The scanner knows just enough of Rust to find braces that are code: line and nested block comments, strings, raw
//! strings, characters against lifetimes. Deliberately absent: a parser.

/// A source file that the rules look at.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Path from the workspace root, with `/`.
    pub path: String,
    /// Number of lines.
    pub lines: usize,
    /// The text with comments and the insides of literals blanked; line breaks stay where they were.
    pub code: String,
}

/// A function with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its identifier.
    pub name: String,
    /// Line of the `fn` keyword, from 1.
    pub first_line: usize,
    /// Lines from the `fn` keyword to the closing brace, both included.
    pub lines: usize,
}

impl SourceFile {
    /// Masks `text`, the file at `path`.
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), lines: text.lines().count(), code: mask(text) }
    }

    /// Every function with a body, in order; nested ones too.
    pub fn functions(&self) -> Vec<Function> {
        let mut functions = Vec::new();
        for start in words(&self.code, "fn") {
            let rest = &self.code[start + 2..];
            let name: String = rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if name.is_empty() {
                continue; // a function pointer type, or a macro's `fn $name`
            }
            if let Some(end) = body_end(&self.code, start) {
                let first_line = line_of(&self.code, start);
                functions.push(Function { name, first_line, lines: line_of(&self.code, end) - first_line + 1 });
            }
        }
        functions
    }

    /// The code with items under `#[cfg(test)]` blanked.
    pub fn code_without_tests(&self) -> String {
        let mut code = self.code.clone();
        while let Some(start) = code.find("#[cfg(test)]") {
            let end = item_end(&code, start + "#[cfg(test)]".len()).unwrap_or(code.len() - 1);
            blank(&mut code, start, end + 1);
        }
        code
    }
}

/// Line number, from 1, of a byte offset.
pub fn line_of(code: &str, offset: usize) -> usize {
    code[..offset].bytes().filter(|byte| *byte == b'\n').count() + 1
}

/// Offsets at which `word` stands as a whole identifier.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_identifier = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(start, _)| start).filter(move |start| {
        let before = start.checked_sub(1).and_then(|index| bytes.get(index));
        !is_identifier(before) && !is_identifier(bytes.get(start + word.len()))
    })
}

fn blank(code: &mut String, start: usize, end: usize) {
    let blanked: String = code[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
    code.replace_range(start..end, &blanked);
}

/// Offset of the brace that closes the function which starts at `start`; nothing for one without a body.
fn body_end(code: &str, start: usize) -> Option<usize> {
    item_end(code, start).filter(|end| code.as_bytes()[*end] == b'}')
}

/// Offset of the `;` or closing `}` that ends the item at `start`.
fn item_end(code: &str, start: usize) -> Option<usize> {
    let (mut round, mut curly) = (0_usize, 0_usize);
    for (offset, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => round += 1,
            b')' | b']' => round = round.saturating_sub(1),
            b'{' => curly += 1,
            b'}' => {
                curly = curly.saturating_sub(1);
                if curly == 0 && round == 0 {
                    return Some(offset);
                }
            }
            b';' if round == 0 && curly == 0 => return Some(offset),
            _ => {}
        }
    }
    None
}

/// Blanks comments and the insides of literals.
fn mask(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut masked = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => block_comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' if !after_identifier(&chars, at) => raw_string_end(&chars, at),
            '\'' => character_end(&chars, at),
            _ => at,
        };
        if end == at {
            masked.push(if chars[at].is_ascii() { chars[at] } else { 'x' });
            at += 1;
        } else {
            masked.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    masked
}

/// Whether the character before `at` continues an identifier. The `b` of a byte string is none, nor a `c`.
fn after_identifier(chars: &[char], at: usize) -> bool {
    let is_identifier = |index: usize| chars[index].is_alphanumeric() || chars[index] == '_';
    match at.checked_sub(1) {
        None => false,
        Some(before) if matches!(chars[before], 'b' | 'c') => before.checked_sub(1).is_some_and(is_identifier),
        Some(before) => is_identifier(before),
    }
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |length| at + length)
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0_usize;
    let mut index = at;
    while index < chars.len() {
        match (chars[index], chars.get(index + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                index += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                index += 2;
                if depth == 0 {
                    return index;
                }
            }
            _ => index += 1,
        }
    }
    chars.len()
}

fn string_end(chars: &[char], at: usize) -> usize {
    let mut index = at + 1;
    while index < chars.len() {
        match chars[index] {
            '\\' => index += 2,
            '"' => return index + 1,
            _ => index += 1,
        }
    }
    chars.len()
}

/// End of the raw string at `at`, or `at` where there is none (`r#type` is an identifier).
fn raw_string_end(chars: &[char], at: usize) -> usize {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + 1 + hashes) != Some(&'"') {
        return at;
    }
    let closes = |index: usize| {
        chars[index] == '"' && chars[index + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    (at + 2 + hashes..chars.len()).find(|index| closes(*index)).map_or(chars.len(), |index| index + 1 + hashes)
}

/// End of the character literal at `at`, or `at` for a lifetime.
fn character_end(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), Some(_)) => {
            chars[at + 3..].iter().position(|c| *c == '\'').map_or(chars.len(), |length| at + 4 + length)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn functions(text: &str) -> Vec<(String, usize)> {
        SourceFile::new("a.rs", text).functions().into_iter().map(|f| (f.name, f.lines)).collect()
    }

    #[test]
    fn braces_in_literals_and_comments_do_not_count() {
        let text = "fn a() {\n let s = \"}\"; // }\n let c = '}'; /* } /* } */ */\n let r = r#\"}\"}\"#;\n let e = '\\'';\n}\nfn b() {}\n";
        assert_eq!(functions(text), [("a".into(), 6), ("b".into(), 1)]);
    }

    #[test]
    fn lifetimes_are_no_characters() {
        assert_eq!(functions("fn a<'a>(x: &'a str) -> &'a str {\n x\n}"), [("a".into(), 3)]);
    }

    #[test]
    fn byte_strings_and_raw_identifiers_are_told_apart() {
        assert_eq!(functions("fn a() {\n let b = br\"{\"; let r#type = b\"{\"; let c = b'{';\n}"), [("a".into(), 3)]);
    }

    #[test]
    fn declarations_and_pointer_types_have_no_body() {
        let text = "trait T {\n fn a(&self, f: fn(u8) -> u8);\n fn b(&self) -> [u8; { 1 + 1 }] {\n [0; 2]\n }\n}";
        assert_eq!(functions(text), [("b".into(), 3)]);
    }

    #[test]
    fn nested_functions_are_counted_too() {
        assert_eq!(functions("fn a() {\n fn b() {\n }\n}"), [("a".into(), 4), ("b".into(), 2)]);
    }

    #[test]
    fn test_items_are_blanked_and_lines_kept() {
        let file = SourceFile::new("a.rs", "fn a() {}\n#[cfg(test)]\nmod tests {\n fn t() { x() }\n}\nfn z() {}\n");
        let code = file.code_without_tests();
        assert!(!code.contains("x()") && code.contains("fn z"));
        assert_eq!(code.lines().count(), 6);
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(words("unsafe_code unsafe {", "unsafe").collect::<Vec<_>>(), [12]);
    }
}
