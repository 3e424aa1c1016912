//! The language of text queries.
//!
//! ```text
//! query  := group
//! group  := chain { [ "OR" ] chain }          any of them; more and rarer words score higher
//! chain  := unary { "AND" unary }             all of them
//! unary  := { "+" | "-" | "NOT" } atom        + must be there, - and NOT must not, within its group
//! atom   := word | word "*" | '"' words '"' | "(" group ")"
//! ```
//! A word of several words (`state-of-the-art`) is a phrase. `AND`, `OR` and `NOT` are operators in capitals only.

use hypr_common::{Error, Result};

use super::analyzer::Analyzer;

/// Groups nested deeper than this are refused; the parser recurses.
const MAX_DEPTH: usize = 32;
/// Words and phrases of one query.
const MAX_ATOMS: usize = 1024;

/// What a document must hold.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Query {
    /// A word as the index has it.
    Word(String),
    /// Words at these distances from one another.
    Phrase(Vec<(String, u32)>),
    /// Any word that begins so; all of them count as one word.
    Prefix(String),
    /// All of `must`, none of `must_not`, and if there is no `must`, at least one of `should`.
    Group { must: Vec<Query>, should: Vec<Query>, must_not: Vec<Query> },
}

impl Query {
    /// True when no document can match: its words were all stop words.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Query::Group { must, should, .. } if must.is_empty() && should.is_empty())
    }
}

/// Parses `text`.
///
/// # Errors
/// `InvalidInput` for text without words, an open quotation or parenthesis, an operator without operands, and a
/// group that only excludes.
pub(crate) fn parse(text: &str, analyzer: &mut Analyzer) -> Result<Query> {
    let mut parser = Parser { text, at: 0, analyzer, atoms: 0, words: false };
    let query = parser.group(0)?;
    if parser.peek() == Some(')') {
        return Err(Error::invalid(format!("the text query has a \")\" without a \"(\" at byte {}", parser.at + 1)));
    }
    if !parser.words {
        return Err(Error::invalid("the text query holds no word to search for"));
    }
    Ok(query)
}

/// How an operand stands in its group.
#[derive(Clone, Copy, PartialEq)]
enum Sign {
    Plain,
    Must,
    Not,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    analyzer: &'a mut Analyzer,
    atoms: usize,
    /// Whether there was a word, stop words too.
    words: bool,
}

/// The parts of a group that is being read.
#[derive(Default)]
struct Group {
    must: Vec<Query>,
    should: Vec<Query>,
    must_not: Vec<Query>,
    /// Operands that were written; one without words stands for nothing and is in none of the lists.
    wanted: usize,
    excluded: usize,
}

impl Group {
    fn add(&mut self, sign: Sign, query: Option<Query>) {
        *(if sign == Sign::Not { &mut self.excluded } else { &mut self.wanted }) += 1;
        let Some(query) = query else { return };
        match sign {
            Sign::Plain => self.should.push(query),
            Sign::Must => self.must.push(query),
            Sign::Not => self.must_not.push(query),
        }
    }

    fn is_new(&self) -> bool {
        self.wanted + self.excluded == 0
    }

    fn into_query(mut self) -> Query {
        if self.must.is_empty() && self.must_not.is_empty() && self.should.len() == 1 {
            return self.should.remove(0);
        }
        Query::Group { must: self.must, should: self.should, must_not: self.must_not }
    }
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn skip_blanks(&mut self) {
        while let Some(blank) = self.peek().filter(|char| char.is_whitespace()) {
            self.at += blank.len_utf8();
        }
    }

    /// Takes `operator` if it comes next as a word of its own.
    fn take_operator(&mut self, operator: &str) -> bool {
        self.skip_blanks();
        let rest = &self.text[self.at..];
        let follows = rest.strip_prefix(operator).is_some_and(|after| {
            after.chars().next().is_none_or(|char| char.is_whitespace() || matches!(char, '(' | '"' | ')'))
        });
        self.at += if follows { operator.len() } else { 0 };
        follows
    }

    fn at_end(&mut self) -> bool {
        self.skip_blanks();
        matches!(self.peek(), None | Some(')'))
    }

    fn group(&mut self, depth: usize) -> Result<Query> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid("the text query is nested too deeply"));
        }
        let start = self.at;
        let mut group = Group::default();
        while !self.at_end() {
            if !self.take_operator("OR") {
                self.chain(&mut group, depth)?;
            } else if self.at_end() || group.is_new() {
                return Err(operand("OR"));
            }
        }
        if group.wanted == 0 && group.excluded > 0 {
            return Err(Error::invalid(format!(
                "the text query \"{}\" only excludes; name at least one word to search for",
                self.text[start..self.at].trim()
            )));
        }
        Ok(group.into_query())
    }

    /// `a AND b`: alone it is an operand without `AND`, which keeps its sign.
    fn chain(&mut self, group: &mut Group, depth: usize) -> Result<()> {
        let (sign, first) = self.unary(depth)?;
        if !self.take_operator("AND") {
            group.add(sign, first);
            return Ok(());
        }
        let mut all = Group::default();
        all.add(if sign == Sign::Not { Sign::Not } else { Sign::Must }, first);
        loop {
            if self.at_end() {
                return Err(operand("AND"));
            }
            let (sign, next) = self.unary(depth)?;
            all.add(if sign == Sign::Not { Sign::Not } else { Sign::Must }, next);
            if !self.take_operator("AND") {
                break;
            }
        }
        if all.wanted == 0 {
            return Err(Error::invalid("AND joins only words to exclude; name at least one word to search for"));
        }
        // A word beside AND must be there; when it is the whole group, that is the group.
        if self.at_end() && group.is_new() {
            *group = all;
        } else {
            group.add(Sign::Plain, Some(all.into_query()).filter(|query| !query.is_empty()));
        }
        Ok(())
    }

    fn unary(&mut self, depth: usize) -> Result<(Sign, Option<Query>)> {
        let mut sign = Sign::Plain;
        loop {
            if self.take_operator("NOT") {
                if self.at_end() {
                    return Err(operand("NOT"));
                }
                sign = Sign::Not;
                continue;
            }
            self.skip_blanks();
            let next = self.text[self.at..].chars().nth(1);
            let binds = next.is_some_and(|char| !char.is_whitespace() && !matches!(char, '+' | '-'));
            match self.peek() {
                Some('+') if binds => sign = if sign == Sign::Not { Sign::Not } else { Sign::Must },
                Some('-') if binds => sign = Sign::Not,
                _ => break,
            }
            self.at += 1;
        }
        if self.take_operator("AND") {
            return Err(operand("AND"));
        }
        Ok((sign, self.atom(depth)?))
    }

    fn atom(&mut self, depth: usize) -> Result<Option<Query>> {
        self.atoms += 1;
        if self.atoms > MAX_ATOMS {
            return Err(Error::invalid(format!("the text query has more than {MAX_ATOMS} words; shorten it")));
        }
        match self.peek() {
            Some('(') => {
                self.at += 1;
                let query = self.group(depth + 1)?;
                if self.peek() != Some(')') {
                    return Err(Error::invalid("the text query has a \"(\" without a \")\""));
                }
                self.at += 1;
                Ok(Some(query).filter(|query| !query.is_empty()))
            }
            Some('"') => {
                let inside = &self.text[self.at + 1..];
                let Some(length) = inside.find('"') else {
                    return Err(Error::invalid("the text query has a phrase without a closing quotation mark"));
                };
                self.at += length + 2;
                Ok(self.phrase(&inside[..length]))
            }
            _ => Ok(self.word()),
        }
    }

    fn word(&mut self) -> Option<Query> {
        let rest = &self.text[self.at..];
        let end = rest.find(|char: char| char.is_whitespace() || matches!(char, '(' | ')' | '"')).unwrap_or(rest.len());
        let word = &rest[..end];
        self.at += end;
        let Some(beginning) = word.strip_suffix('*') else {
            return self.phrase(word);
        };
        let mut words = self.analyzer.whole_words(beginning);
        self.words |= !words.is_empty();
        // Only the last part of a compound is cut off.
        let last = Query::Prefix(words.pop()?);
        if words.is_empty() {
            return Some(last);
        }
        let mut must: Vec<Query> = self.phrase(&words.join(" ")).into_iter().collect();
        must.push(last);
        Some(Query::Group { must, should: Vec::new(), must_not: Vec::new() })
    }

    fn phrase(&mut self, text: &str) -> Option<Query> {
        let mut words = Vec::new();
        self.analyzer.words(text, |word, position| words.push((word.to_owned(), position)));
        self.words |= text.chars().any(char::is_alphanumeric);
        match words.len() {
            0 => None,
            1 => words.pop().map(|(word, _)| Query::Word(word)),
            _ => Some(Query::Phrase(words)),
        }
    }
}

fn operand(operator: &str) -> Error {
    Error::invalid(format!(
        "{operator} in a text query stands between words; write it in lower case to search for the word itself"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::analyzer::TextOptions;
    use super::*;

    fn parsed(text: &str) -> Result<Query> {
        parse(text, &mut Analyzer::new(&TextOptions::default()).unwrap())
    }

    fn word(text: &str) -> Query {
        Query::Word(text.to_owned())
    }

    fn phrase(words: &[&str]) -> Query {
        Query::Phrase(words.iter().zip(0..).map(|(word, at)| ((*word).to_owned(), at)).collect())
    }

    fn group<const A: usize, const B: usize, const C: usize>(
        must: [Query; A],
        should: [Query; B],
        must_not: [Query; C],
    ) -> Query {
        Query::Group { must: must.to_vec(), should: should.to_vec(), must_not: must_not.to_vec() }
    }

    #[test]
    fn plain_words_are_alternatives() {
        assert_eq!(parsed("Sherlock").unwrap(), word("sherlock"));
        let both = group([], [word("red"), word("league")], []);
        assert_eq!(parsed("red league").unwrap(), both);
        assert_eq!(parsed("red OR league").unwrap(), both);
        assert_eq!(parsed("or not and").unwrap(), group([], [word("or"), word("not"), word("and")], []));
    }

    #[test]
    fn signs_and_operators_say_what_must_be_there() {
        assert_eq!(parsed("+red league -king").unwrap(), group([word("red")], [word("league")], [word("king")]));
        assert_eq!(parsed("red AND NOT king").unwrap(), group([word("red")], [], [word("king")]));
        assert_eq!(parsed("a AND b OR c").unwrap(), group([], [group([word("a"), word("b")], [], []), word("c")], []));
        assert_eq!(
            parsed("(a OR b) AND c").unwrap(),
            group([group([], [word("a"), word("b")], []), word("c")], [], [])
        );
        assert_eq!(parsed("5 - 3").unwrap(), group([], [word("5"), word("3")], []));
    }

    #[test]
    fn phrases_prefixes_and_compounds() {
        assert_eq!(parsed("\"the red league\"").unwrap(), phrase(&["the", "red", "league"]));
        assert_eq!(parsed("-\"red league\" king").unwrap(), group([], [word("king")], [phrase(&["red", "league"])]));
        assert_eq!(parsed("state-of-art").unwrap(), phrase(&["state", "of", "art"]));
        assert_eq!(parsed("Léag*").unwrap(), Query::Prefix("leag".to_owned()));
    }

    #[test]
    fn stop_words_stand_for_nothing() {
        let options = TextOptions { stop_words: true, ..TextOptions::default() };
        let mut analyzer = Analyzer::new(&options).unwrap();
        assert!(parse("the", &mut analyzer).unwrap().is_empty());
        assert_eq!(parse("the king", &mut analyzer).unwrap(), word("king"));
        let Query::Phrase(words) = parse("\"house of cards\"", &mut analyzer).unwrap() else { panic!() };
        assert_eq!(words, [("house".to_owned(), 0), ("cards".to_owned(), 2)]);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for (text, expected) in [
            ("", "no word"),
            (" ,.! ", "no word"),
            ("\"red league", "closing quotation"),
            ("(red", "\"(\" without"),
            ("red)", "\")\" without"),
            ("red AND", "AND in a text query"),
            ("AND red", "AND in a text query"),
            ("OR red", "OR in a text query"),
            ("red NOT", "NOT in a text query"),
            ("-red", "only excludes"),
            ("NOT red -king", "only excludes"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.message().contains(expected), "{text}: {error}");
        }
        assert!(parsed(&"(".repeat(100)).unwrap_err().message().contains("deeply"));
        assert!(parsed(&"a ".repeat(2000)).unwrap_err().message().contains("1024"));
    }
}
