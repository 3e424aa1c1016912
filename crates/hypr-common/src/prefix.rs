//! What a model has computed of the beginning of a text, as it is kept on disk: the engine makes it and takes it back,
//! the store writes it, neither knows of the other.

use arrow_buffer::Buffer;
use serde::{Deserialize, Serialize};

/// Which weights, adapter and kernels keys and values were computed with. Others would compute others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixOrigin {
    /// The model's id.
    pub model_id: String,
    /// The version of its weights.
    pub model_version: u64,
    /// The version of the adapter over them; 0 for none.
    pub adapter_version: u64,
    /// The kernels' instruction set: sums are rounded in another order in another.
    pub kernels: String,
}

/// Keys and values of the tokens that a text begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefix {
    /// What computed them.
    pub origin: PrefixOrigin,
    /// Layers of the network.
    pub layers: usize,
    /// Values of a key, and of a value, in one layer.
    pub width: usize,
    /// Format of a value as GGML spells it, little-endian: `F16` or `F32`.
    pub encoding: String,
    /// The tokens; as many as fill blocks.
    pub tokens: Vec<u32>,
    /// Blocks in order of position, `[blocks][layers][keys, values][tokens of a block][width]`.
    pub states: Buffer,
}
