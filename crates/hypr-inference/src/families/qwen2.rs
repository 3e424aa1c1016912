//! Qwen2 and Qwen2.5 (arXiv:2407.10671): LLaMA with biases on queries, keys and values, which the engine adds
//! wherever a model has them.

use super::{Architecture, llama};
use crate::config::ModelConfig;

/// The network.
pub fn architecture(config: &ModelConfig) -> Architecture {
    llama::architecture(config)
}
