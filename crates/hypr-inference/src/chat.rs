//! The chat template: a conversation becomes the text that the model was trained on.
//!
//! Templates are Jinja with the methods of Python's strings and lists, as `transformers` runs them. Invariant: a
//! template can only compute; it runs with a step limit, so a hostile one is an error and not a hang.

use hypr_common::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, UndefinedBehavior, Value, context};

use crate::api::{ChatMessage, Tool};
use crate::tools::{self, ToolFormat};

/// Instructions of the template engine that one rendering may take.
const STEPS: u64 = 1_000_000;

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether it says what to do with `tools`.
    knows_tools: bool,
    tool_format: ToolFormat,
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
        environment.add_filter("tojson", |value: Value, indent: Option<Value>, options: Kwargs| {
            minijinja::filters::tojson(&value, indent, options)
                .map(|json| without_html_escapes(json.as_str().unwrap_or("")))
        });
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|error| Error::corrupted(format!("the model's chat template does not compile: {error}")))?;
        Ok(Self { environment, knows_tools: source.contains("tools"), tool_format: ToolFormat::of_template(source) })
    }

    /// The text of `messages`, ending where the assistant's answer begins. `bos` and `eos` are the texts of
    /// those tokens.
    ///
    /// # Errors
    /// `InvalidInput` with the template's own words where it refuses the conversation.
    pub fn render(&self, messages: &[ChatMessage], bos: &str, eos: &str) -> Result<String> {
        self.render_with_tools(messages, &[], bos, eos)
    }

    /// How its model writes calls of tools.
    pub fn tool_format(&self) -> ToolFormat {
        self.tool_format
    }

    /// As [`ChatTemplate::render`], offering `tools`.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with_tools(
        &self,
        messages: &[ChatMessage],
        offered: &[Tool],
        bos: &str,
        eos: &str,
    ) -> Result<String> {
        if !self.knows_tools && !offered.is_empty() {
            return self.render_with_tools(&with_instruction(messages, offered), &[], bos, eos);
        }
        let template = self
            .environment
            .get_template("chat")
            .map_err(|error| Error::internal(format!("the chat template is gone: {error}")))?;
        let messages: Vec<Value> = messages.iter().map(message).collect();
        // As `transformers` has it: none where there are no tools.
        let tools = if offered.is_empty() { Value::from(()) } else { offered.iter().map(tool).collect() };
        template
            .render(context! { messages, tools, bos_token => bos, eos_token => eos, add_generation_prompt => true })
            .map_err(|error| Error::invalid(format!("the model's chat template refuses the conversation: {error}")))
    }
}

/// A message as templates expect it: arguments of calls are objects.
fn message(message: &ChatMessage) -> Value {
    let mut fields =
        vec![("role", Value::from(message.role.as_str())), ("content", Value::from(message.content.as_str()))];
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            let arguments = json(&serde_json::from_str(&call.arguments).unwrap_or_default());
            let function = context! { name => call.name.as_str(), arguments };
            context! { id => call.id.as_str(), type => "function", function }
        });
        fields.push(("tool_calls", calls.collect()));
    }
    if let Some(id) = &message.tool_call_id {
        fields.push(("tool_call_id", Value::from(id.as_str())));
    }
    if let Some(name) = &message.name {
        fields.push(("name", Value::from(name.as_str())));
    }
    Value::from_pairs(fields)
}

/// A tool in OpenAI's shape.
fn tool(tool: &Tool) -> Value {
    let function = [
        ("name", Value::from(tool.name.as_str())),
        ("description", Value::from(tool.description.as_str())),
        ("parameters", json(&tool.parameters)),
    ];
    Value::from_pairs([("type", Value::from("function")), ("function", Value::from_pairs(function))])
}

/// JSON as a template sees it, its names in their order.
fn json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(json).collect(),
        Json::Object(fields) => Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), json(value)))),
    }
}

/// JSON without the escapes that make it fit into HTML, as `transformers` has it: models were trained without them.
fn without_html_escapes(json: &str) -> String {
    const ESCAPES: [(&str, char); 4] = [("u003c", '<'), ("u003e", '>'), ("u0026", '&'), ("u0027", '\'')];
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some((before, escape)) = rest.split_once('\\') {
        out.push_str(before);
        rest = match ESCAPES.iter().find(|(code, _)| escape.starts_with(code)) {
            Some((code, character)) => {
                out.push(*character);
                &escape[code.len()..]
            }
            None => {
                // What is escaped is kept with its escape; a backslash is, too.
                let end = escape.chars().next().map_or(0, char::len_utf8);
                out.push('\\');
                out.push_str(&escape[..end]);
                &escape[end..]
            }
        };
    }
    out + rest
}

/// The conversation with `offered` told by the system.
pub(crate) fn with_instruction(messages: &[ChatMessage], offered: &[Tool]) -> Vec<ChatMessage> {
    let mut messages = messages.to_vec();
    let instruction = tools::instruction(offered);
    match messages.first_mut().filter(|first| first.role == "system") {
        Some(system) => system.content = format!("{}\n\n{instruction}", system.content),
        None => messages.insert(0, ChatMessage::new("system", &instruction)),
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ToolCall;

    fn user(content: &str) -> Vec<ChatMessage> {
        vec![ChatMessage::new("user", content)]
    }

    #[test]
    fn tools_and_calls_reach_the_template_in_openais_shape() {
        let tool = Tool {
            name: "weather".into(),
            description: "It's <hot> \\u003c?".into(),
            parameters: serde_json::json!({ "type": "object", "properties": { "city": { "type": "string" } } }),
        };
        let template = ChatTemplate::new(
            "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}{% for m in messages %}[{{ m.role }}]\
             {{ m.content }}{% for call in m.tool_calls %}{{ call.function.name }}:{{ call.function.arguments | tojson }}{% endfor %}\
             {% if m.role == 'tool' %}({{ m.name }}, {{ m.tool_call_id }}){% endif %}{% endfor %}",
        )
        .unwrap();
        let call = ToolCall { id: "call_0".into(), name: "weather".into(), arguments: "{\"city\":\"Oslo\"}".into() };
        let conversation = vec![
            ChatMessage::new("user", "How warm?"),
            ChatMessage { tool_calls: vec![call], ..ChatMessage::new("assistant", "") },
            ChatMessage {
                tool_call_id: Some("call_0".into()),
                name: Some("weather".into()),
                ..ChatMessage::new("tool", "7")
            },
        ];
        let text = template.render_with_tools(&conversation, std::slice::from_ref(&tool), "", "").unwrap();
        assert_eq!(
            text,
            "{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"description\": \"It's <hot> \\\\u003c?\", \"parameters\": \
             {\"type\": \"object\", \"properties\": {\"city\": {\"type\": \"string\"}}}}}\n\
             [user]How warm?[assistant]weather:{\"city\": \"Oslo\"}[tool]7(weather, call_0)"
        );
        // A template that knows nothing of them has a system's message instead.
        let plain = ChatTemplate::new("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}").unwrap();
        let text = plain.render_with_tools(&user("How warm?"), &[tool], "", "").unwrap();
        assert!(
            text.starts_with("[system]You may call") && text.contains("weather") && text.ends_with("[user]How warm?")
        );
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
