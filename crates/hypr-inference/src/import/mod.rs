//! Importers: the bytes of published model files become `ModelTables`.
//!
//! Invariant: the tables' weights are slices of the bytes that were given; nothing is converted or copied. A
//! file that is damaged, hostile or of an unknown kind is an error that says what to do.

mod gguf;
mod gguf_tokenizer;
mod safetensors;
mod tables;

pub use gguf::gguf;
pub use safetensors::safetensors;
