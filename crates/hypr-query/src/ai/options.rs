//! The named options of AI calls: which function takes which, their ranges and defaults.
//!
//! An option is one entry of [`OPTIONS`] and a field of [`CallOptions`]; nothing else knows its name.

use std::time::Duration;

use datafusion::common::ScalarValue;
use datafusion::common::cast::as_string_array;
use datafusion::sql::sqlparser::ast::{DataType as SqlType, ExactNumberInfo};
use hypr_common::{Error, Result};
use hypr_inference::api::{Constraint, GenerateRequest, Sampling, Speculative};
use hypr_inference::grammar;

use super::function::AiFunction;

/// The option that takes passages as a list of texts; `USING CONTEXT` sets it.
pub(super) const CONTEXT: &str = "context";

use AiFunction::{Aggregate, Classify, Embed, Filter, Generate};

const ALL: &[AiFunction] = &[Generate, Embed, Filter, Classify, Aggregate];
const WITH_A_PROMPT: &[AiFunction] = &[Generate, Filter, Classify, Aggregate];
const WRITING: &[AiFunction] = &[Generate, Aggregate];

/// Tokens that a draft model guesses at once; each costs one of its passes.
const GUESSED_BY_DRAFT: usize = 4;
/// Tokens that are guessed at once from the prompt; they cost next to nothing.
const GUESSED_BY_LOOKUP: usize = 8;
/// The last tokens that are looked for in the prompt.
const LOOKED_UP_BY: usize = 3;

/// One option.
pub(super) struct Named {
    pub name: &'static str,
    takers: &'static [AiFunction],
    /// What a bare parameter in its place is.
    pub parameter: Option<SqlType>,
    set: fn(&mut CallOptions, &Value<'_>) -> Result<()>,
}

/// The value of an option.
struct Value<'a> {
    name: &'static str,
    scalar: &'a ScalarValue,
    /// The most tokens that a call may ask for.
    max_tokens: usize,
}

const TEXT: Option<SqlType> = Some(SqlType::Text);
const WHOLE: Option<SqlType> = Some(SqlType::BigInt(None));
const REAL: Option<SqlType> = Some(SqlType::Double(ExactNumberInfo::None));

/// Every option, in the order that errors list them.
pub(super) const OPTIONS: &[Named] = &[
    Named {
        name: "model",
        takers: ALL,
        parameter: TEXT,
        set: |options, value| {
            options.model = Some(value.text()?.to_owned());
            Ok(())
        },
    },
    Named {
        name: "max_tokens",
        takers: WRITING,
        parameter: WHOLE,
        set: |options, value| {
            options.max_tokens = value.whole(1, value.max_tokens as u64)? as usize;
            Ok(())
        },
    },
    Named {
        name: "temperature",
        takers: &[Generate],
        parameter: REAL,
        set: |options, value| {
            options.sampling.temperature = value.real("0 or more", |number| number >= 0.0)?;
            Ok(())
        },
    },
    Named {
        name: "top_k",
        takers: &[Generate],
        parameter: WHOLE,
        set: |options, value| {
            options.sampling.top_k = value.whole(0, u64::from(u32::MAX))? as usize;
            Ok(())
        },
    },
    Named {
        name: "top_p",
        takers: &[Generate],
        parameter: REAL,
        set: |options, value| {
            let is_share = |number| number > 0.0 && number <= 1.0;
            options.sampling.top_p = value.real("above 0 and at most 1", is_share)?;
            Ok(())
        },
    },
    Named {
        name: "repetition_penalty",
        takers: WRITING,
        parameter: REAL,
        set: |options, value| {
            options.sampling.repetition_penalty = value.real("above 0", |number| number > 0.0)?;
            Ok(())
        },
    },
    Named {
        name: "seed",
        takers: &[Generate],
        parameter: WHOLE,
        set: |options, value| {
            options.sampling.seed = value.seed()?;
            options.seeded = true;
            Ok(())
        },
    },
    Named {
        name: "stop",
        takers: WRITING,
        parameter: TEXT,
        set: |options, value| {
            options.stop = value.texts()?;
            Ok(())
        },
    },
    Named {
        name: "system",
        takers: WITH_A_PROMPT,
        parameter: TEXT,
        set: |options, value| {
            options.system = Some(value.text()?.to_owned());
            Ok(())
        },
    },
    Named {
        name: "json_schema",
        takers: &[Generate],
        parameter: TEXT,
        set: |options, value| options.constrain(value.name, Constraint::JsonSchema(value.text()?.into())),
    },
    Named {
        name: "regex",
        takers: &[Generate],
        parameter: TEXT,
        set: |options, value| options.constrain(value.name, Constraint::Regex(value.text()?.into())),
    },
    Named {
        name: "grammar",
        takers: &[Generate],
        parameter: TEXT,
        set: |options, value| options.constrain(value.name, Constraint::Lark(value.text()?.into())),
    },
    Named {
        name: "logit_bias",
        takers: &[Generate],
        parameter: TEXT,
        set: |options, value| {
            options.logit_bias = value.biases()?;
            Ok(())
        },
    },
    Named {
        name: "speculative",
        takers: WRITING,
        parameter: TEXT,
        set: |options, value| {
            options.looks_up = match value.text()?.to_ascii_lowercase().as_str() {
                "prompt_lookup" => true,
                "none" => false,
                _ => return Err(value.refused("'prompt_lookup' or 'none'")),
            };
            Ok(())
        },
    },
    Named {
        name: "draft_model",
        takers: WRITING,
        parameter: TEXT,
        set: |options, value| {
            options.draft_model = Some(value.text()?.to_owned());
            Ok(())
        },
    },
    // Passages; the node reads them itself.
    Named { name: CONTEXT, takers: &[Generate], parameter: None, set: |_, _| Ok(()) },
    Named {
        name: "normalize",
        takers: &[Embed],
        parameter: Some(SqlType::Boolean),
        set: |options, value| {
            options.normalize = value.boolean()?;
            Ok(())
        },
    },
    Named {
        name: "priority",
        takers: WITH_A_PROMPT,
        parameter: WHOLE,
        set: |options, value| {
            options.priority = value.signed()?;
            Ok(())
        },
    },
    Named {
        name: "timeout_s",
        takers: ALL,
        parameter: REAL,
        set: |options, value| {
            let seconds = value.real("above 0", |number| number > 0.0)?;
            let timeout = Duration::try_from_secs_f32(seconds);
            options.timeout = Some(timeout.map_err(|_| value.refused("a number of seconds that fits"))?);
            Ok(())
        },
    },
    Named {
        name: "on_error",
        takers: ALL,
        parameter: TEXT,
        set: |options, value| {
            options.on_error = OnError::of(value.text()?)?;
            Ok(())
        },
    },
];

/// The options that `function` takes.
pub(super) fn of(function: AiFunction) -> impl Iterator<Item = &'static Named> {
    OPTIONS.iter().filter(move |option| option.takers.contains(&function))
}

/// The option `name` of `function`.
///
/// # Errors
/// `InvalidInput`, naming those that there are.
pub(super) fn find(function: AiFunction, name: &str) -> Result<&'static Named> {
    of(function).find(|option| option.name == name).ok_or_else(|| {
        let known: Vec<&str> = of(function).map(|option| option.name).collect();
        Error::invalid(format!("{} has no option \"{name}\"; it has {}", function.name(), known.join(", ")))
    })
}

/// What becomes of a row whose call fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum OnError {
    /// The query fails with it.
    #[default]
    Fail,
    /// It gets NULL.
    Null,
    /// Every row gets a struct of the value and the error.
    Struct,
}

impl OnError {
    /// The word that SQL has for it.
    ///
    /// # Errors
    /// `InvalidInput` for another word.
    pub fn of(word: &str) -> Result<Self> {
        match word.to_ascii_lowercase().as_str() {
            "fail" => Ok(Self::Fail),
            "null" => Ok(Self::Null),
            "struct" => Ok(Self::Struct),
            other => Err(Error::invalid(format!("on_error must be 'fail', 'null' or 'struct', not '{other}'"))),
        }
    }
}

/// The options of one call on one row, context apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CallOptions {
    pub model: Option<String>,
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// True when the caller gave the seed.
    pub seeded: bool,
    pub stop: Vec<String>,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
    /// Token and what is added to its logit.
    pub logit_bias: Vec<(u32, f32)>,
    /// Guess tokens by what stands in the prompt.
    looks_up: bool,
    /// Guess tokens by what this model says.
    draft_model: Option<String>,
    /// Stands before the conversation.
    pub system: Option<String>,
    pub normalize: bool,
    /// The lower, the earlier.
    pub priority: i32,
    /// How long an answer may take, the time in the queue included.
    pub timeout: Option<Duration>,
    pub on_error: OnError,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            model: None,
            max_tokens: GenerateRequest::default().max_tokens,
            sampling: Sampling::default(),
            seeded: false,
            stop: Vec::new(),
            constraint: None,
            logit_bias: Vec::new(),
            looks_up: false,
            draft_model: None,
            system: None,
            normalize: true,
            priority: 0,
            timeout: None,
            on_error: OnError::default(),
        }
    }
}

impl CallOptions {
    /// Sets option `name`; NULL keeps the default.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown name or a value out of range, naming what is valid.
    pub fn set(&mut self, function: AiFunction, name: &str, value: &ScalarValue, max_tokens: usize) -> Result<()> {
        let option = find(function, name)?;
        if value.is_null() {
            return Ok(());
        }
        (option.set)(self, &Value { name: option.name, scalar: value, max_tokens })
    }

    /// One grammar, checked as far as that goes without a model.
    fn constrain(&mut self, name: &str, constraint: Constraint) -> Result<()> {
        if self.constraint.is_some() {
            return Err(Error::invalid(format!(
                "{name} beside another grammar; give one of json_schema, regex and grammar"
            )));
        }
        grammar::check(&constraint)?;
        self.constraint = Some(constraint);
        Ok(())
    }

    /// Who guesses tokens, if anybody; a model rather than the prompt.
    pub fn speculative(&self) -> Option<Speculative> {
        match &self.draft_model {
            Some(model) => Some(Speculative::Draft { model: model.clone(), tokens: GUESSED_BY_DRAFT }),
            None => self
                .looks_up
                .then_some(Speculative::PromptLookup { max_ngram: LOOKED_UP_BY, tokens: GUESSED_BY_LOOKUP }),
        }
    }

    /// True when the same request always has the same answer.
    pub fn is_repeatable(&self) -> bool {
        self.sampling.temperature == 0.0 || self.seeded
    }
}

/// Checks one option by itself.
pub(super) fn check(function: AiFunction, name: &str, value: &ScalarValue, max_tokens: usize) -> Result<()> {
    CallOptions::default().set(function, name, value, max_tokens)
}

impl<'a> Value<'a> {
    fn refused(&self, wanted: &str) -> Error {
        Error::invalid(format!("{} must be {wanted}, not {}", self.name, self.scalar))
    }

    fn is_text(&self) -> bool {
        self.scalar.try_as_str().is_some()
    }

    fn text(&self) -> Result<&'a str> {
        self.scalar.try_as_str().flatten().ok_or_else(|| self.refused("text"))
    }

    fn boolean(&self) -> Result<bool> {
        match self.scalar {
            ScalarValue::Boolean(Some(value)) => Ok(*value),
            _ => Err(self.refused("true or false")),
        }
    }

    fn real(&self, range: &str, valid: impl Fn(f32) -> bool) -> Result<f32> {
        match self.scalar.cast_to(&arrow_schema::DataType::Float32) {
            Ok(ScalarValue::Float32(Some(number))) if number.is_finite() && valid(number) && !self.is_text() => {
                Ok(number)
            }
            _ => Err(self.refused(&format!("a number, {range}"))),
        }
    }

    fn whole(&self, least: u64, most: u64) -> Result<u64> {
        let refuse = || self.refused(&format!("a whole number from {least} to {most}"));
        if self.is_text() || !self.scalar.data_type().is_integer() {
            return Err(refuse());
        }
        match self.scalar.cast_to(&arrow_schema::DataType::UInt64) {
            Ok(ScalarValue::UInt64(Some(number))) if (least..=most).contains(&number) => Ok(number),
            _ => Err(refuse()),
        }
    }

    fn signed(&self) -> Result<i32> {
        match self.scalar.cast_to(&arrow_schema::DataType::Int32) {
            Ok(ScalarValue::Int32(Some(number))) if self.scalar.data_type().is_integer() => Ok(number),
            _ => Err(self.refused("a whole number of 32 bits")),
        }
    }

    /// Any integer is a seed; negative ones wrap.
    fn seed(&self) -> Result<u64> {
        match self.scalar.cast_to(&arrow_schema::DataType::Int64) {
            Ok(ScalarValue::Int64(Some(seed))) if self.scalar.data_type().is_integer() => Ok(seed as u64),
            _ => self.whole(0, u64::MAX),
        }
    }

    /// A JSON object from numbers of tokens to what is added to their logits, as in OpenAI's interface.
    fn biases(&self) -> Result<Vec<(u32, f32)>> {
        let wanted = "a JSON object of tokens' numbers and what is added to their logits, such as '{\"464\": -100}'";
        let given: std::collections::BTreeMap<u32, f32> =
            serde_json::from_str(self.text()?).map_err(|_| self.refused(wanted))?;
        Ok(given.into_iter().collect())
    }

    /// One text or a list of them.
    fn texts(&self) -> Result<Vec<String>> {
        if let Some(Some(one)) = self.scalar.try_as_str() {
            return Ok(vec![one.to_owned()]);
        }
        let refuse = || self.refused("a text or a list of texts");
        let ScalarValue::List(list) = self.scalar else {
            return Err(refuse());
        };
        let items = arrow::compute::cast(list.values(), &arrow_schema::DataType::Utf8)?;
        let items = as_string_array(&items).map_err(|_| refuse())?;
        Ok(items.iter().flatten().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, value: ScalarValue) -> String {
        check(AiFunction::Generate, name, &value, 100).unwrap_err().message().to_owned()
    }

    #[test]
    fn a_refused_option_says_what_is_valid() {
        assert!(message("colour", ScalarValue::from(1)).contains("max_tokens, temperature"));
        assert!(message("max_tokens", ScalarValue::from(101)).contains("from 1 to 100"));
        assert!(message("max_tokens", ScalarValue::from(0.5)).contains("whole number"));
        assert!(message("temperature", ScalarValue::from(-0.1)).contains("0 or more"));
        assert!(message("top_p", ScalarValue::from(1.5)).contains("at most 1"));
        assert!(message("on_error", ScalarValue::from("ignore")).contains("'fail', 'null' or 'struct'"));
        assert!(message("timeout_s", ScalarValue::from(0)).contains("above 0"));
        assert!(message("priority", ScalarValue::from(0.5)).contains("32 bits"));
        assert!(message("json_schema", ScalarValue::from("{")).contains("not JSON"));
        assert!(message("json_schema", ScalarValue::from(r#"{"items": {"type": "no"}}"#)).contains("at /items"));
        assert!(message("regex", ScalarValue::from("(")).contains("regular expression"));
        assert!(message("logit_bias", ScalarValue::from("{\"the\": 1}")).contains("464"));
        assert!(message("speculative", ScalarValue::from("maybe")).contains("'prompt_lookup' or 'none'"));
        let refused = check(AiFunction::Embed, "system", &ScalarValue::from("x"), 100).unwrap_err();
        assert_eq!(refused.message(), "embed has no option \"system\"; it has model, normalize, timeout_s, on_error");
    }

    #[test]
    fn options_are_set_and_null_keeps_the_default() {
        let mut options = CallOptions::default();
        for (name, value) in [
            ("model", ScalarValue::from("m")),
            ("max_tokens", ScalarValue::from(7_i64)),
            ("temperature", ScalarValue::from(0.5_f64)),
            ("seed", ScalarValue::from(-1_i64)),
            ("stop", ScalarValue::from("END")),
            ("top_k", ScalarValue::Int64(None)),
            ("priority", ScalarValue::from(-2)),
            ("timeout_s", ScalarValue::from(1.5)),
            ("on_error", ScalarValue::from("NULL")),
        ] {
            options.set(AiFunction::Generate, name, &value, 100).unwrap();
        }
        assert_eq!((options.model.as_deref(), options.max_tokens), (Some("m"), 7));
        assert_eq!(options.sampling, Sampling { temperature: 0.5, seed: u64::MAX, ..Sampling::default() });
        assert_eq!(options.stop, ["END"]);
        assert_eq!((options.priority, options.timeout), (-2, Some(Duration::from_millis(1500))));
        assert_eq!(options.on_error, OnError::Null);
        assert!(options.is_repeatable());
    }

    #[test]
    fn one_grammar_is_taken_and_a_draft_goes_before_the_prompt() {
        let mut options = CallOptions::default();
        let mut set = |name: &str, text: &str| options.set(AiFunction::Generate, name, &ScalarValue::from(text), 100);
        set("regex", "a+").unwrap();
        assert!(
            set("grammar", "start: \"a\"").unwrap_err().message().contains("one of json_schema, regex and grammar")
        );
        set("logit_bias", "{\"7\": -1.5, \"2\": 3}").unwrap();
        set("speculative", "prompt_lookup").unwrap();
        assert_eq!(options.constraint, Some(Constraint::Regex("a+".into())));
        assert_eq!(options.logit_bias, [(2, 3.0), (7, -1.5)]);
        assert_eq!(options.speculative(), Some(Speculative::PromptLookup { max_ngram: 3, tokens: 8 }));
        options.set(AiFunction::Generate, "draft_model", &ScalarValue::from("small"), 100).unwrap();
        assert_eq!(options.speculative(), Some(Speculative::Draft { model: "small".into(), tokens: 4 }));
    }
}
