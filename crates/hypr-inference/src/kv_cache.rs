//! Keys and values of the tokens that a sequence has seen.
//!
//! Invariant: every layer holds the same number of tokens outside a forward pass. Memory grows by blocks of
//! [`BLOCK_TOKENS`], so a token costs no allocation.

use half::f16;
use half::slice::HalfFloatSliceExt;
use hypr_tensor::KvRows;

/// Tokens by which a cache grows.
pub const BLOCK_TOKENS: usize = 256;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvPrecision {
    /// Half precision: half the memory and bandwidth.
    #[default]
    F16,
    /// Single precision, to check the arithmetic of everything else.
    F32,
}

/// Rows of one layer's keys or values, `[tokens, kv_width]`.
#[derive(Debug)]
enum Rows {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Rows {
    fn new(precision: KvPrecision) -> Self {
        match precision {
            KvPrecision::F16 => Self::F16(Vec::new()),
            KvPrecision::F32 => Self::F32(Vec::new()),
        }
    }

    fn append(&mut self, values: &[f32], block: usize) {
        match self {
            Self::F16(rows) => {
                let len = rows.len();
                if rows.capacity() - len < values.len() {
                    rows.reserve_exact(values.len().next_multiple_of(block));
                }
                rows.resize(len + values.len(), f16::ZERO);
                rows[len..].convert_from_f32_slice(values);
            }
            Self::F32(rows) => {
                if rows.capacity() - rows.len() < values.len() {
                    rows.reserve_exact(values.len().next_multiple_of(block));
                }
                rows.extend_from_slice(values);
            }
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::F16(rows) => rows.truncate(len),
            Self::F32(rows) => rows.truncate(len),
        }
    }

    fn view(&self) -> KvRows<'_> {
        match self {
            Self::F16(rows) => KvRows::F16(rows),
            Self::F32(rows) => KvRows::F32(rows),
        }
    }
}

/// The cache of one sequence.
#[derive(Debug)]
pub struct KvCache {
    /// Per layer: keys and values.
    layers: Vec<(Rows, Rows)>,
    /// Values per token and layer: `kv_heads * head_dim`.
    kv_width: usize,
    tokens: usize,
}

impl KvCache {
    /// An empty cache for `layers` layers of `kv_width` values a token.
    pub fn new(layers: usize, kv_width: usize, precision: KvPrecision) -> Self {
        let layers = (0..layers).map(|_| (Rows::new(precision), Rows::new(precision))).collect();
        Self { layers, kv_width, tokens: 0 }
    }

    /// Tokens in the cache.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Appends the keys and values of new tokens to one layer, `[n, kv_width]` each.
    pub(crate) fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let block = BLOCK_TOKENS * self.kv_width;
        self.layers[layer].0.append(keys, block);
        self.layers[layer].1.append(values, block);
    }

    /// Keys and values of one layer, with those of a pass that is under way.
    pub(crate) fn layer(&self, layer: usize) -> (KvRows<'_>, KvRows<'_>) {
        (self.layers[layer].0.view(), self.layers[layer].1.view())
    }

    /// Ends a pass that appended `n` tokens to every layer.
    pub(crate) fn advance(&mut self, n: usize) {
        self.tokens += n;
    }

    /// Forgets all tokens but the first `tokens`.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
        for (keys, values) in &mut self.layers {
            keys.truncate(self.tokens * self.kv_width);
            values.truncate(self.tokens * self.kv_width);
        }
    }
}
