//! Attention against f64 softmax, at every level.

use std::sync::Arc;

use half::f16;

use super::*;
use crate::{KvBlock, KvPages, KvPart, KvPrecision, KvShape};

#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
    n: usize,
    mask: Mask,
}

impl Case {
    fn attention<'a>(&self, queries: &'a [f32], keys: KvRows<'a>, values: KvRows<'a>) -> Attention<'a> {
        Attention {
            queries,
            keys,
            values,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            mask: self.mask,
        }
    }

    /// Output `(query, head)` in f64.
    fn exact(&self, queries: &[f32], keys: &[f32], values: &[f32], query: usize, head: usize) -> Vec<f64> {
        let dim = self.head_dim;
        let kv_head = head / (self.heads / self.kv_heads);
        let visible = if let Mask::Causal { start } = self.mask { start + query + 1 } else { self.tokens };
        let q = &queries[(query * self.heads + head) * dim..][..dim];
        let row = |rows: &[f32], t: usize| -> Vec<f64> {
            rows[(t * self.kv_heads + kv_head) * dim..][..dim].iter().map(|&v| f64::from(v)).collect()
        };
        let scores: Vec<f64> = (0..visible)
            .map(|t| q.iter().zip(row(keys, t)).map(|(&q, k)| f64::from(q) * k).sum::<f64>() / (dim as f64).sqrt())
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let mut out = vec![0.0; dim];
        for (t, score) in scores.iter().enumerate() {
            for (out, v) in out.iter_mut().zip(row(values, t)) {
                *out += (score - max).exp() / total * v;
            }
        }
        out
    }
}

fn cases() -> impl Strategy<Value = Case> {
    (
        1usize..4,
        1usize..4,
        prop::sample::select(vec![16usize, 20, 32, 48, 64, 128, 256, 5]),
        1usize..70,
        1usize..12,
        any::<bool>(),
    )
        .prop_map(|(kv_heads, group, head_dim, tokens, n, causal)| {
            let n = n.min(tokens);
            let mask = if causal { Mask::Causal { start: tokens - n } } else { Mask::Full };
            Case { heads: kv_heads * group, kv_heads, head_dim, tokens, n, mask }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn attention_matches_softmax(
        case in cases(), seed: u64, half_keys: bool, half_values: bool, threads in 1usize..4,
    ) {
        let width = case.heads * case.head_dim;
        let queries: Vec<f32> = Bits(seed).floats(case.n * width).iter().map(|v| v * 6.0).collect();
        let rows = |seed: u64| Bits(seed).floats(case.tokens * case.kv_heads * case.head_dim);
        let (mut keys, mut values) = (rows(seed ^ 1), rows(seed ^ 2));
        let narrow = |rows: &[f32]| -> Vec<f16> { rows.iter().map(|&v| f16::from_f32(v)).collect() };
        let (keys16, values16) = (narrow(&keys), narrow(&values));
        if half_keys {
            keys = keys16.iter().map(|v| v.to_f32()).collect();
        }
        if half_values {
            values = values16.iter().map(|v| v.to_f32()).collect();
        }
        let cached = (
            if half_keys { KvRows::F16(&keys16) } else { KvRows::F32(&keys) },
            if half_values { KvRows::F16(&values16) } else { KvRows::F32(&values) },
        );
        for level in levels() {
            let mut out = vec![f32::NAN; case.n * width];
            kernels(level, threads).attention(&case.attention(&queries, cached.0, cached.1), &mut out);
            for query in 0..case.n {
                for head in 0..case.heads {
                    let want = case.exact(&queries, &keys, &values, query, head);
                    let got = &out[(query * case.heads + head) * case.head_dim..][..case.head_dim];
                    for (got, want) in got.iter().zip(&want) {
                        prop_assert!((f64::from(*got) - want).abs() < 1e-5, "{level} {query} {head}: {got}, not {want}");
                    }
                }
                // Alone, with the same keys in sight, a query gives the same bits.
                let mask = match case.mask { Mask::Causal { start } => Mask::Causal { start: start + query }, full => full };
                let alone = Case { n: 1, mask, ..case };
                let mut one = vec![f32::NAN; width];
                let q = &queries[query * width..][..width];
                kernels(level, 1).attention(&alone.attention(q, cached.0, cached.1), &mut one);
                prop_assert_eq!(&out[query * width..][..width], &one[..], "{}", level);
            }
        }
    }
}

#[test]
fn several_sequences_in_one_call_are_each_on_their_own() {
    let case = |tokens| Case { heads: 4, kv_heads: 2, head_dim: 16, tokens, n: 3, mask: Mask::Full };
    let cases = [case(7), case(40), case(3)];
    let data: Vec<_> = cases
        .iter()
        .map(|c| (Bits(c.tokens as u64).floats(3 * 64), Bits(c.tokens as u64 + 9).floats(c.tokens * 32)))
        .collect();
    for level in levels() {
        let kernels = kernels(level, 2);
        let mut outs = vec![vec![0.0f32; 3 * 64]; 3];
        let mut sequences: Vec<_> = cases
            .iter()
            .zip(&data)
            .zip(&mut outs)
            .map(|((c, (q, kv)), out)| (c.attention(q, KvRows::F32(kv), KvRows::F32(kv)), &mut out[..]))
            .collect();
        kernels.attention_many(&mut sequences);
        for ((c, (q, kv)), out) in cases.iter().zip(&data).zip(&outs) {
            let mut one = vec![0.0; 3 * 64];
            kernels.attention(&c.attention(q, KvRows::F32(kv), KvRows::F32(kv)), &mut one);
            assert_eq!(out, &one);
        }
    }
}

#[test]
fn scores_far_apart_do_not_overflow() {
    let case = Case { heads: 1, kv_heads: 1, head_dim: 16, tokens: 40, n: 1, mask: Mask::Full };
    let mut keys = vec![0.0f32; 40 * 16];
    for (t, key) in keys.chunks_mut(16).enumerate() {
        key.fill(t as f32 * 10.0);
    }
    let values: Vec<f32> = (0..40 * 16).map(|i| (i / 16) as f32).collect();
    for level in levels() {
        let mut out = vec![0.0; 16];
        kernels(level, 1).attention(&case.attention(&[10.0; 16], KvRows::F32(&keys), KvRows::F32(&values)), &mut out);
        assert_eq!(out, [39.0; 16], "{level}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Blocks that lie anywhere give the bits of rows that lie one after the other, however many are seen at once.
    #[test]
    fn paged_rows_give_the_bits_of_flat_ones(case in cases(), seed: u64, half: bool) {
        let kv_width = case.kv_heads * case.head_dim;
        let queries = Bits(seed).floats(case.n * case.heads * case.head_dim);
        let (keys, values) = (Bits(seed ^ 1).floats(case.tokens * kv_width), Bits(seed ^ 2).floats(case.tokens * kv_width));
        let narrow = |rows: &[f32]| -> Vec<f16> { rows.iter().map(|&v| f16::from_f32(v)).collect() };
        let (keys16, values16) = (narrow(&keys), narrow(&values));
        let flat = if half { (KvRows::F16(&keys16), KvRows::F16(&values16)) } else { (KvRows::F32(&keys), KvRows::F32(&values)) };
        let precision = if half { KvPrecision::F16 } else { KvPrecision::F32 };
        // The second of three layers, and a block more than is needed.
        let (layer, len) = (1, KvBlock::TOKENS * kv_width);
        let mut blocks: Vec<Arc<KvBlock>> = Vec::new();
        for (keys, values) in keys.chunks(len).zip(values.chunks(len)) {
            let mut block = KvBlock::new(KvShape { layers: 3, width: kv_width, precision });
            let split = keys.len() / kv_width / 2;
            block.write(layer, 0, &keys[..split * kv_width], &values[..split * kv_width]);
            block.write(layer, split, &keys[split * kv_width..], &values[split * kv_width..]);
            blocks.push(block.into());
        }
        blocks.push(Arc::clone(&blocks[0]));
        let pages = |part| KvRows::Paged(KvPages { blocks: &blocks, layer, part, tokens: case.tokens });
        for level in levels() {
            let kernels = kernels(level, 2);
            let (mut want, mut got) = (vec![f32::NAN; queries.len()], vec![f32::NAN; queries.len()]);
            kernels.attention(&case.attention(&queries, flat.0, flat.1), &mut want);
            kernels.attention(&case.attention(&queries, pages(KvPart::Keys), pages(KvPart::Values)), &mut got);
            prop_assert_eq!(&want, &got, "{}", level);
        }
    }
}

#[test]
#[should_panic(expected = "attention: keys")]
fn a_table_shorter_than_its_tokens_is_refused() {
    let case = Case { heads: 1, kv_heads: 1, head_dim: 16, tokens: 17, n: 1, mask: Mask::Full };
    let blocks = [Arc::new(KvBlock::new(KvShape { layers: 1, width: 16, precision: KvPrecision::F16 }))];
    let pages = |part| KvRows::Paged(KvPages { blocks: &blocks, layer: 0, part, tokens: 17 });
    kernels(detect(), 1)
        .attention(&case.attention(&[1.0; 16], pages(KvPart::Keys), pages(KvPart::Values)), &mut [0.0; 16]);
}
