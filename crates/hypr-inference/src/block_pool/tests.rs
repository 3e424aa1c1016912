use hypr_tensor::{KvPart, KvPrecision};
use proptest::prelude::*;

use super::*;

const SHAPE: KvShape = KvShape { layers: 1, width: 1, precision: KvPrecision::F32 };
const OTHER: KvShape = KvShape { layers: 3, width: 1, precision: KvPrecision::F32 };
const TOKENS: usize = KvBlock::TOKENS;

fn pool(blocks: usize) -> BlockPool {
    BlockPool::new(blocks * SHAPE.block_bytes())
}

fn identity(model: &str) -> CacheIdentity {
    CacheIdentity { model: model.to_owned(), version: 1, adapter_version: 0 }
}

/// What a network would keep of each token: a number that depends on the root and on everything before.
fn states(root: PrefixId, tokens: &[u32]) -> Vec<f32> {
    let mut state = root.0 as u32;
    let next = |token: &u32| {
        state = (state.wrapping_mul(31).wrapping_add(*token)) % 1_000_003;
        state as f32
    };
    tokens.iter().map(next).collect()
}

/// Computes the rest of `tokens`; `false` where there is no room.
fn compute(cache: &mut KvCache, root: PrefixId, tokens: &[u32]) -> bool {
    let seen = cache.tokens();
    if !cache.reserve(tokens.len() - seen) {
        return false;
    }
    let states = states(root, tokens);
    cache.append(0, &states[seen..], &states[seen..]);
    cache.advance(tokens.len() - seen);
    cache.publish(root, tokens);
    true
}

fn held(cache: &KvCache) -> Vec<f32> {
    let mut held: Vec<f32> = cache.blocks.iter().flat_map(|block| block.to_f32(0, KvPart::Values)).collect();
    held.truncate(cache.tokens());
    held
}

#[test]
fn equal_beginnings_share_blocks_and_nothing_else_does() {
    let pool = pool(100);
    let (root, other) = (pool.open(identity("a")), pool.open(identity("b")));
    let tokens: Vec<u32> = (0..40).collect();
    let mut first = KvCache::new(pool.clone(), SHAPE);
    assert!(compute(&mut first, root, &tokens));
    let adopted = |root, tokens: &[u32]| {
        let mut cache = KvCache::new(pool.clone(), SHAPE);
        let saved = cache.adopt_prefix(root, tokens);
        assert_eq!(held(&cache), states(root, tokens)[..saved]);
        saved
    };
    assert_eq!(adopted(root, &tokens), 32);
    // One token is always left to compute.
    assert_eq!((adopted(root, &tokens[..32]), adopted(root, &tokens[..33])), (16, 32));
    assert_eq!((adopted(other, &tokens), adopted(root, &tokens[16..])), (0, 0));
    let mut changed = tokens.clone();
    changed[3] = 99;
    assert_eq!(adopted(root, &changed), 0);
    changed[3] = 3;
    changed[20] = 99;
    assert_eq!(adopted(root, &changed), 16);
    assert_eq!(pool.usage().used_blocks, 3);
    drop(first);
    // Nobody uses them now, and they are still found; the unfinished one is not.
    assert_eq!((pool.usage().used_blocks, pool.usage().cached_blocks), (0, 2));
    assert_eq!(adopted(root, &tokens), 32);
}

#[test]
fn the_same_computed_twice_at_a_time_is_kept_once() {
    let pool = pool(5);
    let root = pool.open(identity("a"));
    let tokens: Vec<u32> = (0..33).collect();
    let mut caches = [KvCache::new(pool.clone(), SHAPE), KvCache::new(pool.clone(), SHAPE)];
    // Neither finds anything to adopt, since both begin before one is done.
    assert!(caches.iter_mut().all(|cache| cache.reserve(16)));
    for cache in &mut caches {
        assert_eq!(cache.adopt_prefix(root, &tokens), 0);
    }
    assert!(caches.iter_mut().all(|cache| compute(cache, root, &tokens[..16])));
    assert_eq!(pool.usage().used_blocks, 1);
    assert!(caches.iter_mut().all(|cache| compute(cache, root, &tokens)));
    // Two shared, and one for each one's last token.
    assert_eq!((pool.usage().used_blocks, pool.usage().free_bytes), (4, SHAPE.block_bytes()));
    assert!(caches.iter().all(|cache| held(cache) == states(root, &tokens)));
}

#[test]
fn the_longest_unused_goes_first_and_a_beginning_after_what_follows_it() {
    let pool = pool(4);
    let root = pool.open(identity("a"));
    let chain = |first: u32, blocks: usize| -> Vec<u32> { (first..).take(blocks * TOKENS).collect() };
    let (old, new) = (chain(0, 2), chain(1000, 2));
    for tokens in [&old, &new] {
        assert!(compute(&mut KvCache::new(pool.clone(), SHAPE), root, tokens));
    }
    let found = |tokens: &[u32]| {
        let longer = [tokens, &[7]].concat();
        KvCache::new(pool.clone(), SHAPE).adopt_prefix(root, &longer)
    };
    let mut cache = KvCache::new(pool.clone(), SHAPE);
    assert!(cache.reserve(1));
    assert_eq!((found(&old), found(&new)), (16, 32));
    // Looking at them was a use: the end of the one looked at first is the oldest now.
    assert!(cache.reserve(2 * TOKENS));
    assert_eq!((found(&old), found(&new)), (0, 32));
    // What cannot be had evicts nothing.
    assert!(!cache.reserve(5 * TOKENS));
    assert_eq!(found(&new), 32);
    assert!(cache.reserve(4 * TOKENS));
    assert_eq!((found(&old), found(&new), pool.usage().used_blocks), (0, 0, 4));
    assert!(!pool.has_room(SHAPE, 1));
}

#[test]
fn blocks_of_another_shape_make_room() {
    let pool = pool(6);
    let root = pool.open(identity("a"));
    assert!(compute(&mut KvCache::new(pool.clone(), SHAPE), root, &(0..96).collect::<Vec<_>>()));
    assert_eq!(pool.usage().cached_blocks, 6);
    let mut wide = KvCache::new(pool.clone(), OTHER);
    assert!(wide.reserve(17) && !wide.reserve(33));
    assert_eq!((pool.usage().used_bytes, pool.usage().cached_blocks), (2 * OTHER.block_bytes(), 0));
    drop(wide);
    pool.trim();
    assert!(KvCache::new(pool.clone(), SHAPE).reserve(96));
}

#[test]
fn new_weights_find_nothing_of_the_old() {
    let pool = pool(10);
    let (old, other) = (pool.open(identity("a")), pool.open(identity("b")));
    let tokens: Vec<u32> = (0..33).collect();
    let mut running = KvCache::new(pool.clone(), SHAPE);
    assert!(compute(&mut running, old, &tokens[..20]));
    assert!(compute(&mut KvCache::new(pool.clone(), SHAPE), other, &tokens));
    assert!(compute(&mut KvCache::new(pool.clone(), SHAPE), old, &tokens));
    pool.retire("a");
    let new = pool.open(identity("a"));
    assert_ne!(old, new);
    for root in [old, new] {
        assert_eq!(KvCache::new(pool.clone(), SHAPE).adopt_prefix(root, &tokens), 0);
    }
    assert_eq!(KvCache::new(pool.clone(), SHAPE).adopt_prefix(other, &tokens), 32);
    // A sequence that began with the old weights ends with them, and leaves nothing behind.
    assert!(compute(&mut running, old, &tokens));
    assert_eq!(held(&running), states(old, &tokens));
    drop(running);
    assert_eq!((pool.usage().used_blocks, pool.usage().cached_blocks), (0, 2));
}

#[derive(Clone, Debug)]
enum Step {
    /// Sequence, tokens to have in the end.
    Compute(usize, usize),
    Adopt(usize),
    Clear(usize),
    Retire,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6usize, 1..90usize).prop_map(|(at, n)| Step::Compute(at, n)),
        4 => (0..6usize).prop_map(Step::Adopt),
        2 => (0..6usize).prop_map(Step::Clear),
        1 => Just(Step::Retire),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever sequences do, each holds what it would have computed alone, and the budget and the tallies hold.
    #[test]
    fn every_sequence_holds_its_own_states(steps in prop::collection::vec(step(), 1..120)) {
        let pool = pool(12);
        // Six sequences in three families that part after 20 or 50 tokens.
        let texts: Vec<Vec<u32>> =
            (0..6).map(|i| (0..100).map(|t| if t < 20 { t } else if t < 50 { t + i / 2 * 100 } else { t + i * 1000 }).collect()).collect();
        let mut root = pool.open(identity("a"));
        let mut caches: Vec<(PrefixId, KvCache)> = (0..6).map(|_| (root, KvCache::new(pool.clone(), SHAPE))).collect();
        for step in steps {
            match step {
                Step::Compute(at, n) => {
                    let (root, cache) = &mut caches[at];
                    if n >= cache.tokens() {
                        compute(cache, *root, &texts[at][..n]);
                    }
                }
                Step::Adopt(at) => {
                    let (root, cache) = &mut caches[at];
                    cache.adopt_prefix(*root, &texts[at]);
                }
                Step::Clear(at) => {
                    caches[at].1.clear();
                    caches[at].0 = root;
                }
                Step::Retire => {
                    pool.retire("a");
                    root = pool.open(identity("a"));
                }
            }
            let mut used = std::collections::HashSet::new();
            for ((root, cache), text) in caches.iter().zip(&texts) {
                prop_assert_eq!(held(cache), &states(*root, text)[..cache.tokens()]);
                used.extend(cache.blocks.iter().map(Arc::as_ptr));
            }
            let (usage, blocks) = (pool.usage(), pool.0.lock());
            prop_assert_eq!(usage.used_blocks, used.len());
            prop_assert_eq!(usage.used_blocks + usage.cached_blocks + blocks.free.len(), blocks.taken_bytes / SHAPE.block_bytes());
            prop_assert!(blocks.taken_bytes <= blocks.budget_bytes);
            prop_assert_eq!(blocks.unused.len(), usage.cached_blocks);
            prop_assert_eq!(blocks.children.len(), blocks.nodes.len());
        }
    }
}
