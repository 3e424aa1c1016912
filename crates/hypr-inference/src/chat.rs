//! The chat template: a conversation becomes the text that the model was trained on.
//!
//! Templates are Jinja with the methods of Python's strings and lists, as `transformers` runs them. Invariant: a
//! template can only compute; it runs with a step limit, so a hostile one is an error and not a hang.

use hypr_common::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value, context};

use crate::api::ChatMessage;

/// Instructions of the template engine that one rendering may take.
const STEPS: u64 = 1_000_000;

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles `source`.
    ///
    /// # Errors
    /// `Corrupted` where it is not a template.
    pub fn new(source: &str) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(
            syntax.build().map_err(|error| Error::internal(format!("the syntax of chat templates: {error}")))?,
        );
        environment.set_fuel(Some(STEPS));
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|error| Error::corrupted(format!("the model's chat template does not compile: {error}")))?;
        Ok(Self { environment })
    }

    /// The text of `messages`, ending where the assistant's answer begins. `bos` and `eos` are the texts of
    /// those tokens.
    ///
    /// # Errors
    /// `InvalidInput` with the template's own words where it refuses the conversation.
    pub fn render(&self, messages: &[ChatMessage], bos: &str, eos: &str) -> Result<String> {
        let template = self
            .environment
            .get_template("chat")
            .map_err(|error| Error::internal(format!("the chat template is gone: {error}")))?;
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        template
            .render(context! { messages, bos_token => bos, eos_token => eos, add_generation_prompt => true })
            .map_err(|error| Error::invalid(format!("the model's chat template refuses the conversation: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: &str) -> Vec<ChatMessage> {
        vec![ChatMessage { role: "user".into(), content: content.into() }]
    }

    #[test]
    fn python_methods_work_and_blocks_are_trimmed() {
        let template = ChatTemplate::new(
            "{% for m in messages %}\n<{{ m['role'].upper() }}>{{ m.content.strip() }}{{ eos_token }}\n{% endfor %}\n\
             {% if add_generation_prompt %}<A>{% endif %}",
        )
        .unwrap();
        assert_eq!(template.render(&user("  hi "), "", "</s>").unwrap(), "<USER>hi</s>\n<A>");
    }

    #[test]
    fn a_refusal_and_an_endless_loop_are_errors() {
        let template = ChatTemplate::new("{{ raise_exception('only two roles') }}").unwrap();
        assert!(template.render(&user("x"), "", "").unwrap_err().message().contains("only two roles"));
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a %}{% endfor %}{% endfor %}";
        assert!(ChatTemplate::new(endless).unwrap().render(&user("x"), "", "").is_err());
        assert!(ChatTemplate::new("{% for %}").is_err());
    }
}
