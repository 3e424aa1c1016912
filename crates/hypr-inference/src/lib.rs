//! The inference engine: model files become Arrow tables, and Arrow tables become text and vectors.
//!
//! One token's way through this crate: [`import`] turns a GGUF or safetensors file into
//! `hypr_common::model::ModelTables`; the engine opens those tables through a `ModelSource`, views their
//! buffers as weights without copying them, and runs one shared transformer over them.
//!
//! Invariants: no file or network I/O, no wall clock, no copy of a weight. Deliberately absent: SQL, storage
//! and anything that knows where a model came from.

pub mod api;
pub mod audio;
pub mod block_pool;
pub mod chat;
pub mod config;
pub mod convert;
pub mod encoder;
pub mod engine;
pub mod families;
pub mod grammar;
pub mod image_processor;
pub mod import;
pub mod input;
pub mod kv_cache;
pub mod kv_table;
pub mod logprobs;
pub mod model;
pub mod onnx;
pub mod paging;
pub mod prompt;
pub mod sampler;
pub mod tokenizer;
pub mod tools;
pub mod transformer;
pub mod vision;
pub mod weights;
pub mod window;

pub use api::{
    ChatMessage, Constraint, EmbedInput, EmbedRequest, FinishReason, GenerateRequest, Generation, Inference,
    LoadedModel, Logprob, Prompt, Sampling, Speculative, Task, Token, TokenLogprobs, Tool, ToolCall, ToolChoice,
};
pub use engine::{EngineHandle, EngineMetrics, EngineOptions, EngineService, engine};
