//! Importers: the bytes of published model files become `ModelTables`.
//!
//! Invariant: the tables' weights are slices of the bytes that were given; nothing is converted or copied, but for
//! ONNX files, whose weights are copied once. A file that is damaged, hostile or of an unknown kind is an error that says what to do.

mod gguf;
mod gguf_tokenizer;
mod onnx;
mod safetensors;
mod tables;
mod vision;

pub use gguf::gguf;
pub use onnx::onnx;
pub use safetensors::safetensors;
