//! Decode and prefill speed of a GGUF model. See `main`.
fn main() {}
