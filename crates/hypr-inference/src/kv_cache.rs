//! Keys and values of the tokens that one sequence has seen: its table of blocks.
//!
//! Invariants: every layer holds the same number of tokens outside a forward pass; a block that other sequences may
//! read is full and never written again; dropping a cache gives its blocks back to the pool at once. A token costs no
//! allocation, and only each sixteenth asks the pool for a block.

use std::sync::Arc;

pub use hypr_tensor::KvPrecision;
use hypr_tensor::{KvBlock, KvPages, KvPart, KvRows, KvShape};

use crate::block_pool::{BlockKey, BlockPool, PrefixId, block_of};

/// The cache of one sequence.
#[derive(Debug)]
pub struct KvCache {
    pool: BlockPool,
    shape: KvShape,
    /// In order of position; those past `tokens` are reserved.
    pub(crate) blocks: Vec<Arc<KvBlock>>,
    /// The first of `blocks` that the pool knows by what led to them; shared, perhaps.
    pub(crate) published: Vec<PrefixId>,
    tokens: usize,
}

impl KvCache {
    /// An empty cache of tokens of `shape`, with blocks of `pool`.
    pub fn new(pool: BlockPool, shape: KvShape) -> Self {
        Self { pool, shape, blocks: Vec::new(), published: Vec::new(), tokens: 0 }
    }

    /// Tokens in the cache.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// What it keeps of a token.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Makes room for `n` more tokens; `false`, with nothing taken, where the pool's budget has none left.
    #[must_use]
    pub fn reserve(&mut self, n: usize) -> bool {
        let needed = (self.tokens + n).div_ceil(KvBlock::TOKENS);
        needed <= self.blocks.len() || self.pool.take(self.shape, needed - self.blocks.len(), &mut self.blocks)
    }

    /// Starts with, or goes on with, blocks that other sequences have computed for the same `tokens` after the same
    /// `root`. At least the last of `tokens` is left to compute. Returns how many tokens that saved.
    pub fn adopt_prefix(&mut self, root: PrefixId, tokens: &[u32]) -> usize {
        let before = self.tokens;
        if before.is_multiple_of(KvBlock::TOKENS) && self.published.len() * KvBlock::TOKENS == before {
            self.pool.clone().adopt(self, root, tokens);
            self.tokens = self.published.len() * KvBlock::TOKENS;
        }
        self.tokens - before
    }

    /// The full block of `tokens` that comes next, where everything before it is published and it is not the last to
    /// compute.
    pub fn next_block(&self, root: PrefixId, tokens: &[u32]) -> Option<BlockKey> {
        let at = self.published.len();
        let next = self.tokens == at * KvBlock::TOKENS && tokens.len() > (at + 1) * KvBlock::TOKENS;
        let parent = self.published.last().copied().unwrap_or(root);
        next.then(|| block_of(tokens, at)).flatten().map(|own| (parent, own))
    }

    /// Lets others share the blocks that are full; `tokens` are all that the sequence has seen.
    pub fn publish(&mut self, root: PrefixId, tokens: &[u32]) {
        if self.tokens / KvBlock::TOKENS > self.published.len() {
            self.pool.clone().publish(self, root, tokens);
        }
    }

    /// Appends the keys and values of new tokens to one layer, `[n, width]` each, into reserved room.
    pub(crate) fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let width = self.shape.width;
        let mut at = self.tokens;
        let (mut keys, mut values) = (keys, values);
        while !keys.is_empty() {
            let (block, first) = (at / KvBlock::TOKENS, at % KvBlock::TOKENS);
            let rows = (KvBlock::TOKENS - first).min(keys.len() / width);
            let (own_keys, own_values);
            (own_keys, keys) = keys.split_at(rows * width);
            (own_values, values) = values.split_at(rows * width);
            let Some(block) = self.blocks.get_mut(block).and_then(Arc::get_mut) else {
                panic!("keys and values need a reserved block that nobody shares")
            };
            block.write(layer, first, own_keys, own_values);
            at += rows;
        }
    }

    /// Keys and values of one layer, with those of `new` tokens of a pass that is under way.
    pub(crate) fn layer(&self, layer: usize, new: usize) -> (KvRows<'_>, KvRows<'_>) {
        let pages = |part| KvPages { blocks: &self.blocks, layer, part, tokens: self.tokens + new };
        (KvRows::Paged(pages(KvPart::Keys)), KvRows::Paged(pages(KvPart::Values)))
    }

    /// Ends a pass that appended `n` tokens to every layer.
    pub(crate) fn advance(&mut self, n: usize) {
        self.tokens += n;
    }

    /// Fills reserved room with the keys and values of the first `tokens` of a text, as blocks' bytes one after another.
    pub(crate) fn fill(&mut self, bytes: &[u8], tokens: usize) {
        for (block, own) in self.blocks.iter_mut().zip(bytes.chunks_exact(self.shape.block_bytes())) {
            let Some(block) = Arc::get_mut(block) else {
                panic!("keys and values need a reserved block that nobody shares")
            };
            block.copy_from_bytes(own);
        }
        self.tokens = tokens;
    }

    /// Copies of the blocks that the pool does not know, for reading.
    pub(crate) fn unpublished(&self) -> Vec<KvBlock> {
        let used = self.tokens.div_ceil(KvBlock::TOKENS);
        let rest = self.blocks[..used.min(self.blocks.len())].iter().skip(self.published.len());
        rest.map(|block| KvBlock::clone(block)).collect()
    }

    /// The last block that the pool knows.
    pub(crate) fn last_published(&self) -> Option<PrefixId> {
        self.published.last().copied()
    }

    /// Blocks that room for `n` more tokens takes of the pool.
    pub fn missing_blocks(&self, n: usize) -> usize {
        (self.tokens + n).div_ceil(KvBlock::TOKENS).saturating_sub(self.blocks.len())
    }

    /// Whether it holds blocks.
    pub fn has_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Forgets all but the first `tokens` tokens; what is published stays. Their blocks are kept for what comes instead.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens.max(self.published.len() * KvBlock::TOKENS));
    }

    /// Forgets everything and gives all blocks back; what is published may be found again.
    pub fn clear(&mut self) {
        self.tokens = 0;
        self.pool.give_back(&mut self.blocks, &mut self.published);
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        self.clear();
    }
}
