//! Readers of blocks beside the sequences that compute them.

use std::collections::HashSet;

use hypr_tensor::{KvBlock, KvShape};

use super::{BlockPool, CacheIdentity, PrefixId};
use crate::kv_cache::KvCache;

/// A chain of published blocks that no sequence goes on from.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its last block.
    pub leaf: PrefixId,
    pub identity: CacheIdentity,
    pub tokens: usize,
    pub shape: KvShape,
    /// When its last block was computed.
    pub computed_us: i64,
}

impl BlockPool {
    /// Says what time it is; blocks that are published from now on have it.
    pub(crate) fn tick(&self, now_us: i64) {
        self.0.lock().now_us = now_us;
    }

    /// When a published block was computed.
    pub(crate) fn computed_us(&self, id: PrefixId) -> Option<i64> {
        self.0.lock().nodes.get(&id).map(|node| node.computed_us)
    }

    /// The chains that nobody uses, in the order in which they began. What is listed may be gone when it is read.
    pub(crate) fn chains(&self) -> Vec<Chain> {
        let blocks = self.0.lock();
        let parents: HashSet<PrefixId> = blocks.nodes.values().map(|node| node.key.0).collect();
        let leaves = blocks.nodes.iter().filter(|(id, node)| node.users == 0 && !parents.contains(*id));
        let mut chains: Vec<Chain> = leaves
            .filter_map(|(id, node)| {
                let identity = blocks.roots.get(&node.root)?.clone();
                let (mut count, mut at) = (0, *id);
                while let Some(node) = blocks.nodes.get(&at) {
                    (count, at) = (count + 1, node.key.0);
                }
                let tokens = count * KvBlock::TOKENS;
                Some(Chain { leaf: *id, identity, tokens, shape: node.block.shape(), computed_us: node.computed_us })
            })
            .collect();
        chains.sort_by_key(|chain| chain.leaf);
        chains
    }

    /// Uses the chain that ends with `leaf` for as long as what is returned lives; `None` where it is gone.
    pub(crate) fn pin(&self, leaf: PrefixId, shape: KvShape) -> Option<KvCache> {
        let mut cache = KvCache::new(self.clone(), shape);
        let mut blocks = self.0.lock();
        let mut chain = Vec::new();
        let mut at = leaf;
        while let Some(node) = blocks.nodes.get(&at) {
            chain.push(at);
            at = node.key.0;
        }
        for id in chain.into_iter().rev() {
            cache.blocks.extend(blocks.use_node(id));
            cache.published.push(id);
        }
        drop(blocks);
        (!cache.blocks.is_empty()).then_some(cache)
    }
}
