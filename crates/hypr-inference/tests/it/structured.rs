//! Answers of a given form: schemas, regular expressions, grammars and tool calls, on a network of random weights, which
//! would say anything, and on a real one.

use std::thread;

use arrow_buffer::Buffer;
use futures::StreamExt;
use futures::executor::block_on;
use futures::future::join_all;
use hypr_common::ErrorKind;
use hypr_common::model::ModelTables;
use hypr_inference::{
    Constraint, EngineHandle, EngineOptions, FinishReason, GenerateRequest, Generation, Inference, Prompt, Sampling,
    Speculative, Tool, ToolChoice, engine, import,
};
use serde_json::{Map, Value, json};

use crate::support::*;

const CONTEXT: usize = 512;
/// Pairs that the tokenizer below joins.
const MERGES: [&str; 9] = ["{ \"", "\" :", ", Ġ", "\" }", "e r", "i n", "t r", "1 2", "\": Ġ"];

/// A byte-level tokenizer of 64 tokens: an end, what JSON and tags are written with, the bytes of `é`, and some pairs.
fn tokenizer() -> Buffer {
    let characters = "{}[]\":,-.\\<>_/0123456789abcdefghijklmnopqrstuvwxyzĠĊÃ©";
    let merged = MERGES.iter().map(|pair| pair.replace(' ', ""));
    let tokens = ["<end>".to_owned()].into_iter().chain(characters.chars().map(String::from)).chain(merged);
    let vocab: Map<String, Value> = tokens.zip(0..).map(|(token, id)| (token, json!(id))).collect();
    assert_eq!(vocab.len(), 64);
    let end = json!({"id": 0, "content": "<end>", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": MERGES},
    });
    Buffer::from_vec(json.to_string().into_bytes())
}

fn tiny(end: Value) -> ModelTables {
    let mut files = checkpoint(&fixture("tiny-llama"));
    files.insert("tokenizer.json".into(), tokenizer());
    let mut config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
    config["max_position_embeddings"] = CONTEXT.into();
    config["eos_token_id"] = end;
    files.insert("config.json".into(), Buffer::from_vec(config.to_string().into_bytes()));
    import::safetensors(&files, "tiny").unwrap()
}

fn start(tables: ModelTables, options: EngineOptions) -> EngineHandle {
    let (handle, service) = engine(Models::new([tables]), EngineOptions { threads: 2, ..options });
    thread::spawn(|| service.run());
    handle
}

fn request(constraint: Constraint, seed: u64) -> GenerateRequest {
    GenerateRequest {
        prompt: Prompt::Raw("tell me".into()),
        max_tokens: 400,
        sampling: Sampling { temperature: 1.5, seed, ..Sampling::default() },
        constraint: Some(constraint),
        ..GenerateRequest::default()
    }
}

fn schema(schema: &Value) -> Constraint {
    Constraint::JsonSchema(schema.to_string().into())
}

/// Whether `value` is what `schema` asks for, of the keywords that are used here.
fn valid(schema: &Value, value: &Value) -> bool {
    if let Some(choices) = schema.get("anyOf") {
        return choices.as_array().unwrap().iter().any(|choice| valid(choice, value));
    }
    if let Some(choices) = schema.get("enum") {
        return choices.as_array().unwrap().contains(value);
    }
    let limit = |name: &str| schema.get(name).and_then(Value::as_i64);
    let within = |n: i64, least: &str, most: &str| {
        limit(least).is_none_or(|least| n >= least) && limit(most).is_none_or(|most| n <= most)
    };
    match schema["type"].as_str().unwrap() {
        "integer" => value.as_i64().is_some_and(|n| within(n, "minimum", "maximum")),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "string" => value.as_str().is_some_and(|text| within(text.chars().count() as i64, "minLength", "maxLength")),
        "array" => value.as_array().is_some_and(|items| {
            within(items.len() as i64, "minItems", "maxItems") && items.iter().all(|item| valid(&schema["items"], item))
        }),
        "object" => value.as_object().is_some_and(|fields| {
            let properties = schema["properties"].as_object().unwrap();
            let required = schema["required"].as_array().unwrap();
            required.iter().all(|name| fields.contains_key(name.as_str().unwrap()))
                && fields.iter().all(|(name, value)| properties.get(name).is_some_and(|schema| valid(schema, value)))
        }),
        other => panic!("no rule for {other}"),
    }
}

/// A schema that some small value fits.
fn random_schema(random: &mut impl FnMut(u64) -> u64, depth: u64) -> Value {
    match random(if depth == 0 { 5 } else { 8 }) {
        0 => {
            let least = random(300) as i64 - 150;
            json!({"type": "integer", "minimum": least, "maximum": least + random(200) as i64})
        }
        1 => json!({"type": "boolean"}),
        2 => json!({"type": "null"}),
        3 => {
            json!({"enum": (0..random(4) + 1).map(|i| format!("{}é{i}", ["in", "er", "\"x"][random(3) as usize])).collect::<Vec<_>>()})
        }
        4 => {
            let least = random(3);
            json!({"type": "string", "minLength": least, "maxLength": least + random(5)})
        }
        5 => json!({"anyOf": (0..random(2) + 2).map(|_| random_schema(random, depth - 1)).collect::<Vec<_>>()}),
        6 => {
            let least = random(2);
            let items = random_schema(random, depth - 1);
            json!({"type": "array", "items": items, "minItems": least, "maxItems": least + random(3)})
        }
        _ => {
            let names: Vec<String> =
                (0..random(3) + 1).map(|i| format!("{}{i}", ["a", "name", "e\\"][i as usize])).collect();
            let properties: Map<String, Value> =
                names.iter().map(|name| (name.clone(), random_schema(random, depth - 1))).collect();
            let required: Vec<&String> = names.iter().filter(|_| random(2) == 0).collect();
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}

/// Numbers below their argument.
fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

fn whole(answer: &Generation) -> Value {
    assert_eq!(answer.finish_reason, FinishReason::Stop, "{answer:?}");
    serde_json::from_str(&answer.text).unwrap_or_else(|error| panic!("{error}: {}", answer.text))
}

#[test]
fn what_is_answered_fits_the_schema_whatever_schema_and_seed() {
    let handle = start(tiny(json!(0)), EngineOptions { queue_depth: 360, ..EngineOptions::default() });
    let mut random = random(11);
    let schemas: Vec<Value> = (0..60).map(|_| random_schema(&mut random, 3)).collect();
    let asked = schemas.iter().flat_map(|wanted| (0..6).map(|seed| handle.generate(request(schema(wanted), seed))));
    let answers = block_on(join_all(asked.collect::<Vec<_>>()));
    let mut texts = std::collections::BTreeSet::new();
    for (at, answer) in answers.into_iter().enumerate() {
        let (wanted, answer) = (&schemas[at / 6], answer.unwrap());
        assert!(valid(wanted, &whole(&answer)), "{wanted}\n{}", answer.text);
        texts.insert(answer.text);
    }
    // They are not all the same, nor all empty.
    assert!(texts.len() > 100 && texts.iter().any(|text| text.contains('é')), "{texts:?}");
    nothing_is_left(&handle);
}

#[test]
fn numbers_references_and_the_order_of_properties_are_kept() {
    let handle = start(tiny(json!(0)), EngineOptions::default());
    let wanted = json!({
        "type": "object",
        "properties": {"x": {"type": "number", "minimum": -1, "maximum": 1}, "b": {"$ref": "#/$defs/b"}, "a": {"const": 12}},
        "required": ["x", "b", "a"], "additionalProperties": false,
        "$defs": {"b": {"type": "string", "pattern": "^[a-f]{3}$"}},
    });
    for seed in 0..30 {
        let answer = block_on(handle.generate(request(schema(&wanted), seed))).unwrap();
        let value = whole(&answer);
        assert!(value["x"].as_f64().unwrap().abs() <= 1.0, "{value}");
        let b = value["b"].as_str().unwrap();
        assert!(b.len() == 3 && b.bytes().all(|byte| (b'a'..=b'f').contains(&byte)), "{value}");
        assert!(answer.text.starts_with("{\"x\": ") && answer.text.ends_with(", \"a\": 12}"), "{}", answer.text);
    }
}

#[test]
fn an_object_is_json_whatever_is_in_it() {
    let handle = start(tiny(json!(0)), EngineOptions::default());
    let mut ended = 0;
    for seed in 0..20 {
        let answer = block_on(handle.generate(request(Constraint::JsonObject, seed))).unwrap();
        if answer.finish_reason == FinishReason::Stop {
            match serde_json::from_str::<Value>(&answer.text) {
                Ok(value) => assert!(value.is_object(), "{}", answer.text),
                // JSON has numbers that no f64 holds.
                Err(error) => assert!(error.to_string().contains("number out of range"), "{error}: {}", answer.text),
            }
            ended += 1;
        }
    }
    assert!(ended > 10, "only {ended} of 20 came to an end");
}

#[test]
fn regular_expressions_and_grammars_are_followed() {
    // Also without a token that ends an answer: nothing can follow.
    for end in [json!(0), Value::Null] {
        let handle = start(tiny(end), EngineOptions::default());
        let ask = |constraint: Constraint, seed| block_on(handle.generate(request(constraint, seed))).unwrap();
        for seed in 0..20 {
            let date = ask(Constraint::Regex(r"\d{4}-[01]\d-[0-3]\d".into()), seed);
            let parts: Vec<&str> = date.text.split('-').collect();
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [4, 2, 2], "{}", date.text);
            assert!(date.text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'));
            let word = ask(Constraint::Regex("é{2}(in|er){1,3}\\.".into()), seed).text;
            let middle = word.strip_prefix("éé").and_then(|word| word.strip_suffix('.')).unwrap();
            assert!(
                [2, 4, 6].contains(&middle.len()) && middle.replace("in", "").replace("er", "").is_empty(),
                "{word}"
            );
            let sum = ask(Constraint::Lark("start: n (\"-\" n){2}\nn: /[1-9]/ | \"[\" start \"]\"\n".into()), seed);
            if sum.finish_reason == FinishReason::Stop {
                let count = |byte| sum.text.bytes().filter(|&other| other == byte).count();
                assert_eq!((count(b'['), count(b'-')), (count(b']'), 2 * (count(b'[') + 1)), "{}", sum.text);
            }
        }
    }
}

#[test]
fn what_is_forced_is_read_in_one_pass_and_does_not_change_the_answer() {
    let wanted = json!({"type": "object", "properties": {"name": {"enum": ["er", "in"]}, "description": {"type": "boolean"}},
        "required": ["name", "description"], "additionalProperties": false});
    for seed in 0..10 {
        let ask = |request: GenerateRequest| {
            let handle = start(tiny(json!(0)), EngineOptions::default());
            let answer = block_on(handle.generate(request)).unwrap();
            (answer, handle.metrics())
        };
        let (fast, passes) = ask(request(schema(&wanted), seed));
        let logprobs = GenerateRequest { logprobs: Some(2), ..request(schema(&wanted), seed) };
        let (slow, slow_passes) = ask(logprobs.clone());
        assert_eq!((&fast.text, fast.completion_tokens), (&slow.text, slow.completion_tokens));
        assert!(valid(&wanted, &whole(&fast)));
        assert!(passes.steps < fast.completion_tokens as u64 / 2, "{passes:?}");
        // Where every token's probability is asked for, what is forced is guessed, so that a pass gives several too.
        assert_eq!(
            (slow.logprobs.len(), slow_passes.drafted_tokens),
            (slow.completion_tokens, slow_passes.accepted_tokens)
        );
        assert!(slow_passes.accepted_tokens > 10, "{slow_passes:?}");
        let guessed =
            GenerateRequest { speculative: Some(Speculative::PromptLookup { max_ngram: 3, tokens: 8 }), ..logprobs };
        assert_eq!(ask(guessed).0, slow);
    }
}

#[test]
fn many_at_once_in_little_memory_are_answered_as_if_alone() {
    let wanted = json!({"type": "array", "items": {"type": "string", "minLength": 8, "maxLength": 12}, "minItems": 3, "maxItems": 6});
    let ask = |seed| GenerateRequest { logit_bias: vec![(10, 2.0)], ..request(schema(&wanted), seed) };
    // Of 16 tokens, two layers of keys and values, sixteen halves each; an answer needs about six blocks.
    let tight = EngineOptions { kv_cache_bytes: 40 * 2 * 2 * 16 * 16 * 2, ..EngineOptions::default() };
    let (many, alone) = (start(tiny(json!(0)), tight), start(tiny(json!(0)), EngineOptions::default()));
    let asked: Vec<_> = (0..40).map(|seed| many.generate(ask(seed))).collect();
    for (seed, answer) in (0..).zip(block_on(join_all(asked))) {
        let answer = answer.unwrap();
        assert_eq!(answer, block_on(alone.generate(ask(seed))).unwrap());
        assert!(valid(&wanted, &whole(&answer)), "{}", answer.text);
    }
    assert!(many.metrics().preemptions > 0, "{:?}", many.metrics());
}

#[test]
fn a_stream_a_stop_string_and_the_length_end_as_ever() {
    let handle = start(tiny(json!(0)), EngineOptions::default());
    let wanted = json!({"type": "array", "items": {"enum": ["er", "in"]}, "minItems": 4, "maxItems": 4});
    let text = block_on(handle.generate(request(schema(&wanted), 3))).unwrap().text;
    let streamed = block_on(handle.generate_stream(request(schema(&wanted), 3)).collect::<Vec<_>>());
    assert_eq!(streamed.into_iter().map(|token| token.unwrap().text).collect::<String>(), text);
    // Over the border of tokens that are forced.
    let stopped = GenerateRequest { stop: vec!["\", \"".into()], ..request(schema(&wanted), 3) };
    let stopped = block_on(handle.generate(stopped)).unwrap();
    assert_eq!((stopped.text.as_str(), stopped.finish_reason), (&text[..4], FinishReason::Stop));
    let short = block_on(handle.generate(GenerateRequest { max_tokens: 3, ..request(schema(&wanted), 3) })).unwrap();
    assert_eq!((short.finish_reason, short.completion_tokens), (FinishReason::Length, 3));
    assert!(text.starts_with(&short.text));
    // What is dropped is gone.
    let mut stream = handle.generate_stream(request(Constraint::Regex("[a-z]*".into()), 1));
    block_on(stream.next()).unwrap().unwrap();
    drop(stream);
    block_on(handle.generate(request(schema(&wanted), 4))).unwrap();
    nothing_is_left(&handle);
}

/// Waits until the engine has seen that the last requests are done; a request that stays hangs the test.
fn nothing_is_left(handle: &EngineHandle) {
    while handle.metrics().running > 0 {
        thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(handle.metrics().waiting, 0);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let handle = start(tiny(json!(0)), EngineOptions::default());
    let refused = |request: GenerateRequest| {
        let error = block_on(handle.generate(request)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        error.message().to_owned()
    };
    let wrong = json!({"properties": {"list": {"items": {"type": "integre"}}}});
    assert!(refused(request(schema(&wrong), 0)).contains("at /properties/list/items"));
    assert!(refused(request(Constraint::JsonSchema("{".into()), 0)).contains("line 1"));
    assert!(refused(request(Constraint::Regex("(".into()), 0)).contains("regular expression"));
    // No token of this model has a capital letter.
    assert!(refused(request(Constraint::Regex("[A-Z]+".into()), 0)).contains("no token of the model"));
    assert!(refused(request(Constraint::Regex("a[A-Z]b".into()), 0)).contains("cannot go on"));
    let forbidden = GenerateRequest {
        logit_bias: (0..64).map(|id| (id, f32::NEG_INFINITY)).collect(),
        ..request(Constraint::Regex("[a-c]".into()), 0)
    };
    assert!(refused(forbidden).contains("logit_bias"));
    // And others go on.
    assert_eq!(block_on(handle.generate(request(Constraint::Regex("ab".into()), 0))).unwrap().text, "ab");
    // A tokenizer of whole words does not say which bytes a token is.
    let words = start(crate::engine::model("tiny-llama", "words", 64), EngineOptions::default());
    let error = block_on(words.generate(request(Constraint::JsonObject, 0))).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.message().contains("byte-level"), "{error}");
}

fn weather() -> Tool {
    let city = json!({"enum": ["oslo", "rome"]});
    Tool {
        name: "weather".into(),
        description: "how warm it is".into(),
        parameters: json!({"type": "object", "properties": {"city": city}, "required": ["city"], "additionalProperties": false}),
    }
}

fn call(request: GenerateRequest, choice: ToolChoice) -> GenerateRequest {
    let time = Tool { name: "time".into(), description: String::new(), parameters: Value::Null };
    GenerateRequest {
        prompt: Prompt::Instruction("how warm is it in oslo".into()),
        tools: vec![weather(), time],
        tool_choice: choice,
        constraint: None,
        ..request
    }
}

#[test]
fn a_call_that_is_required_is_one_of_the_tools_with_arguments_that_fit() {
    let handle = start(tiny(json!(0)), EngineOptions::default());
    let mut called = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let asked = call(request(Constraint::JsonObject, seed), ToolChoice::Required);
        let answer = block_on(handle.generate(asked)).unwrap();
        assert_eq!((answer.text.as_str(), answer.finish_reason), ("", FinishReason::ToolCalls), "{answer:?}");
        let [found] = &answer.tool_calls[..] else { panic!("{answer:?}") };
        let arguments: Value = serde_json::from_str(&found.arguments).unwrap();
        match found.name.as_str() {
            "weather" => assert!(valid(&weather().parameters, &arguments), "{arguments}"),
            other => assert_eq!((other, arguments), ("time", json!({}))),
        }
        called.insert(found.name.clone());
    }
    assert_eq!(called.len(), 2);
    let named = call(request(Constraint::JsonObject, 1), ToolChoice::Named("time".into()));
    let answer = block_on(handle.generate(named)).unwrap();
    let shape = json!([{"id": "call_0", "type": "function", "function": {"name": "time", "arguments": "{}"}}]);
    assert_eq!(serde_json::to_value(&answer.tool_calls).unwrap(), shape);
}

#[test]
fn tools_that_contradict_something_are_refused() {
    let handle = start(tiny(json!(0)), EngineOptions::default());
    let base = request(Constraint::JsonObject, 0);
    let refused = |request: GenerateRequest| block_on(handle.generate(request)).unwrap_err().message().to_owned();
    assert!(refused(call(base.clone(), ToolChoice::Named("rm".into()))).contains("weather, time"));
    let none = GenerateRequest { tools: vec![], ..call(base.clone(), ToolChoice::Required) };
    assert!(refused(none).contains("no tool is offered"));
    let raw = GenerateRequest { prompt: Prompt::Raw("a".into()), ..call(base.clone(), ToolChoice::Auto) };
    assert!(refused(raw).contains("an instruction or a conversation"));
    let both = GenerateRequest { constraint: base.constraint.clone(), ..call(base, ToolChoice::Required) };
    assert!(refused(both).contains("contradict"));
}

/// A model that has learnt something: what it says fits the schema, and means something.
#[test]
fn smollm2_answers_as_a_schema_wants_it_and_calls_a_tool() {
    let Some(path) = real("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let tables = import::gguf(read(&path), "smollm2").unwrap();
    let handle = start(tables, EngineOptions { max_context_tokens: 1024, ..EngineOptions::default() });
    let wanted = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 30},
            "country": {"enum": ["France", "Norway", "Côte d'Ivoire", "日本"]},
            "inhabitants": {"type": "integer", "minimum": 1, "maximum": 100_000_000},
            "known_for": {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 1, "maxItems": 2},
        },
        "required": ["city", "country", "inhabitants", "known_for"], "additionalProperties": false,
    });
    let ask = |seed| GenerateRequest {
        prompt: Prompt::Instruction("Describe the capital of France as JSON.".into()),
        sampling: Sampling { temperature: 0.4 * seed as f32, seed, ..Sampling::default() },
        max_tokens: 160,
        ..request(schema(&wanted), seed)
    };
    let answers = block_on(join_all((0..4).map(|seed| handle.generate(ask(seed)))));
    for (seed, answer) in answers.into_iter().enumerate() {
        let answer = answer.unwrap();
        println!("{}", answer.text);
        assert!(valid(&wanted, &whole(&answer)));
        if seed == 0 {
            assert!(answer.text.contains("Paris"), "{}", answer.text);
        }
    }
    let japan = block_on(handle.generate(request(Constraint::Regex("日本|Côte d'Ivoire".into()), 0))).unwrap();
    assert!(["日本", "Côte d'Ivoire"].contains(&japan.text.as_str()), "{}", japan.text);
    let asked = call(request(Constraint::JsonObject, 1), ToolChoice::Named("weather".into()));
    let answer = block_on(handle.generate(asked)).unwrap();
    println!("{:?}", answer.tool_calls);
    let arguments: Value = serde_json::from_str(&answer.tool_calls[0].arguments).unwrap();
    assert!(valid(&weather().parameters, &arguments));
}
