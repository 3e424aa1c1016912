//! Qwen3 (arXiv:2505.09388): Qwen2 without the biases, with queries and keys normalised per head.

use super::{Architecture, qwen2};
use crate::config::ModelConfig;

/// The network.
pub fn architecture(config: &ModelConfig) -> Architecture {
    Architecture { qk_norm: true, ..qwen2::architecture(config) }
}
