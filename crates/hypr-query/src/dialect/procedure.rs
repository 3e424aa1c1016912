//! Statements that sqlparser has no form for, carried through its tree as calls of procedures:
//! `RESTORE TABLE t TO VERSION AS OF 3` is `CALL hyprstream.restore(t, version => 3)`.
//!
//! The grammar of such a statement is a function over the parser, tried before sqlparser's own
//! ([`super::sql_dialect`]); [`crate::prepared::Action`] takes the call apart. So the passes over the tree see the
//! expressions and queries inside as they see any other.

use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgOperator, FunctionArgumentList, FunctionArguments, Ident,
    ObjectName, ObjectNamePart, Statement, Value,
};
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;
use hypr_common::{Error, Result};

use crate::call::Arguments;

/// The qualifier of procedure names.
const QUALIFIER: &str = "hyprstream";

/// Builds the call of a procedure.
pub(crate) struct Call {
    name: &'static str,
    args: Vec<FunctionArg>,
}

impl Call {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, args: Vec::new() }
    }

    /// Adds a positional argument.
    #[must_use]
    pub(crate) fn arg(mut self, expr: Expr) -> Self {
        self.args.push(FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)));
        self
    }

    /// Adds a named argument.
    #[must_use]
    pub(crate) fn option(mut self, name: impl Into<String>, expr: Expr) -> Self {
        self.args.push(FunctionArg::Named {
            name: Ident::new(name),
            arg: FunctionArgExpr::Expr(expr),
            operator: FunctionArgOperator::RightArrow,
        });
        self
    }

    pub(crate) fn build(self) -> Statement {
        let list = FunctionArgumentList { duplicate_treatment: None, args: self.args, clauses: Vec::new() };
        Statement::Call(Function {
            name: ObjectName::from(vec![Ident::new(QUALIFIER), Ident::new(self.name)]),
            uses_odbc_syntax: false,
            parameters: FunctionArguments::None,
            args: FunctionArguments::List(list),
            filter: None,
            null_treatment: None,
            over: None,
            within_group: Vec::new(),
        })
    }
}

/// A call taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Procedure {
    pub name: String,
    pub args: Vec<Expr>,
    /// By name, lower case, in the order they were written.
    pub options: Vec<(String, Expr)>,
}

impl Procedure {
    /// The procedure that `statement` calls; `None` when it calls none of ours.
    pub(crate) fn of(statement: &Statement) -> Option<Self> {
        let Statement::Call(Function { name, args, .. }) = statement else { return None };
        let [qualifier, name] = name.0.as_slice() else { return None };
        if qualifier.as_ident()?.value != QUALIFIER {
            return None;
        }
        let Arguments { args, options } = Arguments::of(args)?;
        Some(Self { name: name.as_ident()?.value.clone(), args, options })
    }

    /// The positional argument at `at` as the name of a table or column.
    pub(crate) fn name_at(&self, at: usize) -> Result<ObjectName> {
        let parts = match self.args.get(at) {
            Some(Expr::Identifier(ident)) => vec![ident.clone()],
            Some(Expr::CompoundIdentifier(parts)) => parts.clone(),
            _ => return Err(Error::invalid("a table's name was expected")),
        };
        Ok(ObjectName(parts.into_iter().map(ObjectNamePart::Identifier).collect()))
    }

    /// The positional argument at `at` as text.
    pub(crate) fn text_at(&self, at: usize) -> Result<String> {
        self.args.get(at).and_then(text).ok_or_else(|| Error::invalid("a quoted text was expected"))
    }

    /// The named argument.
    pub(crate) fn option(&self, name: &str) -> Option<&Expr> {
        self.options.iter().find(|(option, _)| option == name).map(|(_, expr)| expr)
    }

    /// True when the named argument is there and not false.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.option(name).is_some()
    }
}

/// The text of a literal.
pub(crate) fn text(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// A quoted literal.
pub(crate) fn literal(text: impl Into<String>) -> Expr {
    Expr::value(Value::SingleQuotedString(text.into()))
}

/// A name as an expression.
pub(crate) fn name_expr(name: ObjectName) -> Expr {
    let mut parts: Vec<Ident> = name.0.into_iter().filter_map(|part| part.as_ident().cloned()).collect();
    if parts.len() == 1 { Expr::Identifier(parts.remove(0)) } else { Expr::CompoundIdentifier(parts) }
}

/// True, and the word is consumed, when the next token is the unquoted `word`.
pub(crate) fn take_word(parser: &mut Parser, word: &str) -> bool {
    let found = matches!(
        &parser.peek_token_ref().token,
        Token::Word(next) if next.quote_style.is_none() && next.value.eq_ignore_ascii_case(word)
    );
    if found {
        parser.next_token();
    }
    found
}

/// Takes all of `words`, or none.
pub(crate) fn take_words(parser: &mut Parser, words: &[&str]) -> bool {
    let all = words.iter().enumerate().all(|(at, word)| {
        matches!(
            &parser.peek_nth_token_ref(at).token,
            Token::Word(next) if next.quote_style.is_none() && next.value.eq_ignore_ascii_case(word)
        )
    });
    if all {
        for _ in words {
            parser.next_token();
        }
    }
    all
}

/// Takes `word` or fails.
pub(crate) fn expect_word(parser: &mut Parser, word: &str) -> Result<(), ParserError> {
    if take_word(parser, word) { Ok(()) } else { parser.expected_ref(word, parser.peek_token_ref()) }
}
