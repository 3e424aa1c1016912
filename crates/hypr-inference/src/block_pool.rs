//! The blocks of all sequences' keys and values, within one budget of bytes.
//!
//! A block is *used* by one or more sequences, or *cached*: nobody uses it, but it is still found by the tokens that
//! led to it, or *free*. A request for blocks takes free memory first, then what the budget still allows, then the
//! cached block that was used longest ago.
//!
//! **Prefix sharing.** Full blocks form a tree: a block is found by its parent's number and its own sixteen tokens, and
//! a chain starts at a root that stands for one version of one model with one version of its adapter. So two sequences
//! share a block only if everything before it is equal: tokens are compared, no hash is trusted, and numbers are
//! never used twice. New weights mean a new root; blocks of the old one are found no more.
//!
//! Invariants: a user of a block uses all its ancestors too, and sequences give blocks back last first, so
//! a block is never evicted before its descendants; `taken_bytes` is at most the budget. Taken once per sixteen tokens
//! of a sequence, the lock is not in the way. Deliberately absent: who may have blocks (the scheduler's business).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use hypr_tensor::{KvBlock, KvShape};
use parking_lot::Mutex;

use crate::kv_cache::KvCache;

/// What a chain of blocks was computed with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CacheIdentity {
    /// The model's id.
    pub model: String,
    /// The version of its weights.
    pub version: u64,
    /// The version of the adapter over them; 0 for none.
    pub adapter_version: u64,
}

/// A root or a published block. Never used twice in one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixId(u64);

/// What finds a published block: its parent and its own tokens.
pub type BlockKey = (PrefixId, [u32; KvBlock::TOKENS]);

impl fmt::Display for PrefixId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A cheap reference to the pool.
#[derive(Clone)]
pub struct BlockPool(Arc<Mutex<Blocks>>);

/// How much of the budget is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockUsage {
    /// The budget.
    pub budget_bytes: usize,
    /// Blocks that sequences use.
    pub used_blocks: usize,
    /// Their bytes.
    pub used_bytes: usize,
    /// Blocks that no sequence uses and that a prefix may still find.
    pub cached_blocks: usize,
    /// Their bytes.
    pub cached_bytes: usize,
    /// Bytes of the budget that are neither; cached blocks make room too when it is needed.
    pub free_bytes: usize,
}

/// A published block.
struct Node {
    root: PrefixId,
    key: BlockKey,
    block: Arc<KvBlock>,
    /// Sequences whose tables have it.
    users: usize,
    /// Its place in `cached` while it has no users.
    released: u64,
    computed_us: i64,
}

/// The state behind the lock.
struct Blocks {
    budget_bytes: usize,
    /// Memory of all blocks that exist: used, cached and free.
    taken_bytes: usize,
    used: Tally,
    cached: Tally,
    /// Memory to use again; each is referenced from here alone.
    free: Vec<Arc<KvBlock>>,
    nodes: HashMap<PrefixId, Node>,
    /// Parent and tokens to published block.
    children: HashMap<BlockKey, PrefixId>,
    /// Published blocks without users, longest unused first.
    unused: BTreeMap<u64, PrefixId>,
    roots: HashMap<PrefixId, CacheIdentity>,
    last_id: u64,
    releases: u64,
    /// As [`BlockPool::tick`] says.
    now_us: i64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    blocks: usize,
    bytes: usize,
}

impl Tally {
    fn add(&mut self, block: &KvBlock) {
        self.blocks += 1;
        self.bytes += block.shape().block_bytes();
    }

    fn remove(&mut self, block: &KvBlock) {
        self.blocks -= 1;
        self.bytes -= block.shape().block_bytes();
    }
}

impl fmt::Debug for BlockPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockPool({:?})", self.usage())
    }
}

impl BlockPool {
    /// A pool that holds at most `budget_bytes` bytes of blocks.
    pub fn new(budget_bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(Blocks {
            budget_bytes,
            taken_bytes: 0,
            used: Tally::default(),
            cached: Tally::default(),
            free: Vec::new(),
            nodes: HashMap::new(),
            children: HashMap::new(),
            unused: BTreeMap::new(),
            roots: HashMap::new(),
            last_id: 0,
            releases: 0,
            now_us: 0,
        })))
    }

    /// A pool without a limit, for a sequence of its own.
    pub fn unlimited() -> Self {
        Self::new(usize::MAX)
    }

    /// A fresh root for chains computed with `identity`.
    pub fn open(&self, identity: CacheIdentity) -> PrefixId {
        let mut blocks = self.0.lock();
        let root = blocks.next_id();
        blocks.roots.insert(root, identity);
        root
    }

    /// Forgets every chain of `model`: its weights have changed. Sequences keep the blocks that they use.
    pub fn retire(&self, model: &str) {
        self.0.lock().retire(model);
    }

    /// Whether `count` more blocks of `shape` can be had.
    pub fn has_room(&self, shape: KvShape, count: usize) -> bool {
        self.0.lock().has_room(shape, count)
    }

    /// How much is in use.
    pub fn usage(&self) -> BlockUsage {
        let blocks = self.0.lock();
        BlockUsage {
            budget_bytes: blocks.budget_bytes,
            used_blocks: blocks.used.blocks,
            used_bytes: blocks.used.bytes,
            cached_blocks: blocks.cached.blocks,
            cached_bytes: blocks.cached.bytes,
            free_bytes: blocks.budget_bytes - blocks.used.bytes - blocks.cached.bytes,
        }
    }

    /// Gives memory that no block holds back to the process.
    pub fn trim(&self) {
        let mut blocks = self.0.lock();
        while let Some(block) = blocks.free.pop() {
            blocks.taken_bytes -= block.shape().block_bytes();
        }
    }

    /// Appends `count` blocks to `table`; `false`, with nothing taken or evicted, where there is no room for them.
    pub(crate) fn take(&self, shape: KvShape, count: usize, table: &mut Vec<Arc<KvBlock>>) -> bool {
        let mut blocks = self.0.lock();
        if !blocks.has_room(shape, count) {
            return false;
        }
        for _ in 0..count {
            let block = blocks.take(shape);
            table.push(block);
        }
        true
    }

    /// See [`KvCache::adopt_prefix`].
    pub(crate) fn adopt(&self, cache: &mut KvCache, root: PrefixId, tokens: &[u32]) {
        let mut blocks = self.0.lock();
        let blocks = &mut *blocks;
        loop {
            let at = cache.published.len();
            let parent = cache.published.last().copied().unwrap_or(root);
            let Some(own) = block_of(tokens, at).filter(|_| tokens.len() > (at + 1) * KvBlock::TOKENS) else { return };
            let Some(&id) = blocks.children.get(&(parent, own)) else { return };
            let Some(block) = blocks.use_node(id) else { return };
            cache.published.push(id);
            if at < cache.blocks.len() {
                // Reserved, and needed no more.
                blocks.recycle(std::mem::replace(&mut cache.blocks[at], block));
            } else {
                cache.blocks.push(block);
            }
        }
    }

    /// See [`KvCache::publish`].
    pub(crate) fn publish(&self, cache: &mut KvCache, root: PrefixId, tokens: &[u32]) {
        let mut blocks = self.0.lock();
        let blocks = &mut *blocks;
        if !blocks.roots.contains_key(&root) {
            return;
        }
        while (cache.published.len() + 1) * KvBlock::TOKENS <= cache.tokens() {
            let at = cache.published.len();
            let parent = cache.published.last().copied().unwrap_or(root);
            let Some(own) = block_of(tokens, at) else { return };
            let key = (parent, own);
            let known = blocks.children.get(&key).copied();
            if let Some((id, block)) = known.and_then(|id| Some((id, blocks.use_node(id)?))) {
                // Another sequence has computed the same at the same time: the same bits, so one copy will do.
                blocks.recycle(std::mem::replace(&mut cache.blocks[at], block));
                cache.published.push(id);
                continue;
            }
            let id = blocks.next_id();
            let (block, computed_us) = (Arc::clone(&cache.blocks[at]), blocks.now_us);
            let node = Node { root, key, block, users: 1, released: 0, computed_us };
            blocks.nodes.insert(id, node);
            blocks.children.insert(key, id);
            cache.published.push(id);
        }
    }

    /// Takes the blocks of a sequence back, the last first.
    pub(crate) fn give_back(&self, table: &mut Vec<Arc<KvBlock>>, published: &mut Vec<PrefixId>) {
        if table.is_empty() {
            return;
        }
        let mut blocks = self.0.lock();
        while let Some(block) = table.pop() {
            let id = if published.len() > table.len() { published.pop() } else { None };
            match id {
                Some(id) if blocks.nodes.contains_key(&id) => blocks.release_node(id),
                _ => blocks.recycle(block),
            }
        }
    }
}

/// The tokens of block `at`; `None` where they do not fill it.
pub(crate) fn block_of(tokens: &[u32], at: usize) -> Option<[u32; KvBlock::TOKENS]> {
    tokens.get(at * KvBlock::TOKENS..(at + 1) * KvBlock::TOKENS)?.try_into().ok()
}

impl Blocks {
    fn next_id(&mut self) -> PrefixId {
        self.last_id += 1;
        PrefixId(self.last_id)
    }

    fn has_room(&self, shape: KvShape, count: usize) -> bool {
        shape.block_bytes().checked_mul(count).is_some_and(|bytes| bytes <= self.budget_bytes - self.used.bytes)
    }

    /// A block that nobody else refers to, where there is room for it.
    fn take(&mut self, shape: KvShape) -> Arc<KvBlock> {
        let bytes = shape.block_bytes();
        loop {
            if let Some(at) = self.free.iter().rposition(|block| block.shape() == shape) {
                let block = self.free.swap_remove(at);
                self.used.add(&block);
                return block;
            }
            if bytes <= self.budget_bytes - self.taken_bytes {
                let block = Arc::new(KvBlock::new(shape));
                self.taken_bytes += bytes;
                self.used.add(&block);
                return block;
            }
            // Free memory of another shape, then what was used longest ago.
            if let Some(block) = self.free.pop() {
                self.taken_bytes -= block.shape().block_bytes();
            } else if let Some((_, id)) = self.unused.pop_first() {
                self.forget(id);
            } else {
                unreachable!("blocks that are neither used nor cached nor free");
            }
        }
    }

    /// Makes a cached block free. It is in `unused` no more.
    fn forget(&mut self, id: PrefixId) {
        if let Some(node) = self.nodes.remove(&id) {
            self.children.remove(&node.key);
            self.cached.remove(&node.block);
            self.free.push(node.block);
        }
    }

    /// Takes back a sequence's reference to a block that no prefix finds. It is free once it was the last.
    fn recycle(&mut self, mut block: Arc<KvBlock>) {
        if Arc::get_mut(&mut block).is_some() {
            self.used.remove(&block);
            self.free.push(block);
        }
    }

    /// One more user of a published block.
    fn use_node(&mut self, id: PrefixId) -> Option<Arc<KvBlock>> {
        let node = self.nodes.get_mut(&id)?;
        if node.users == 0 {
            self.unused.remove(&node.released);
            self.cached.remove(&node.block);
            self.used.add(&node.block);
        }
        node.users += 1;
        Some(Arc::clone(&node.block))
    }

    /// One user less.
    fn release_node(&mut self, id: PrefixId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.users -= 1;
        if node.users == 0 {
            self.releases += 1;
            node.released = self.releases;
            self.unused.insert(self.releases, id);
            self.used.remove(&node.block);
            self.cached.add(&node.block);
        }
    }

    fn retire(&mut self, model: &str) {
        let roots: Vec<PrefixId> =
            self.roots.extract_if(|_, identity| identity.model == model).map(|(id, _)| id).collect();
        let of_model = self.nodes.iter().filter(|(_, node)| roots.contains(&node.root));
        let gone: Vec<PrefixId> = of_model.map(|(id, _)| *id).collect();
        for id in gone {
            let Some(node) = self.nodes.get(&id) else { continue };
            if node.users == 0 {
                self.unused.remove(&node.released);
                self.forget(id);
            } else if let Some(node) = self.nodes.remove(&id) {
                // Its sequences give it back as they would a block that was never published.
                self.children.remove(&node.key);
            }
        }
    }
}

mod reading;
#[cfg(test)]
mod tests;
