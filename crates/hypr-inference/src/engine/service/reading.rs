//! What the service says about its sequences and its models between two steps.

use std::sync::Arc;

use futures::channel::oneshot;
use hypr_common::Result;

use super::EngineService;
use crate::api::GenerateRequest;
use crate::block_pool::CacheIdentity;
use crate::engine::guarded;
use crate::engine::sequence::Sequence;
use crate::kv_cache::KvPrecision;
use crate::kv_table::{KvSequence, KvState, Root};
use crate::prompt;

/// Asks where the chains of a model begin.
#[derive(Debug)]
pub(in crate::engine) struct RootJob {
    pub model_id: String,
    /// Whose prompt's tokens are wanted too.
    pub request: Option<Box<GenerateRequest>>,
    pub reply: oneshot::Sender<Result<Root>>,
}

impl EngineService {
    /// Every sequence that has keys and values, and every chain that one has left.
    pub(super) fn sequences(&self) -> Vec<KvSequence> {
        let now_us = self.options.clock.now_us();
        let running = self.scheduler.running.iter().map(|sequence| (sequence, KvState::Running));
        let waiting = self.scheduler.waiting().iter().map(|sequence| (sequence, KvState::Waiting));
        let live = running.chain(waiting).filter(|(sequence, _)| sequence.cache.tokens() > 0);
        let mut sequences: Vec<KvSequence> =
            live.map(|(sequence, state)| self.reading(sequence, state, now_us)).collect();
        // Those of sequences that run are not among them, so that no chain is shown twice.
        sequences.extend(self.pool.chains().into_iter().map(|chain| KvSequence {
            id: format!("prefix {}", chain.leaf),
            identity: chain.identity,
            state: KvState::Cached,
            computed_us: chain.computed_us,
            tokens: chain.tokens,
            shape: chain.shape,
            pool: self.pool.clone(),
            leaf: Some(chain.leaf),
            rest: Arc::default(),
        }));
        sequences
    }

    fn reading(&self, sequence: &Sequence, state: KvState, now_us: i64) -> KvSequence {
        let tables = sequence.model().tables();
        let computed = sequence.cache.last_published().and_then(|id| self.pool.computed_us(id));
        KvSequence {
            id: format!("request {}", sequence.urgency().1),
            identity: CacheIdentity {
                model: tables.metadata.model_id.clone(),
                version: tables.version,
                adapter_version: 0,
            },
            state,
            computed_us: computed.unwrap_or(now_us),
            tokens: sequence.cache.tokens(),
            shape: sequence.shape(),
            pool: self.pool.clone(),
            leaf: sequence.cache.last_published(),
            rest: sequence.cache.unpublished().into(),
        }
    }

    /// Answers a [`RootJob`].
    pub(super) fn root(&mut self, job: RootJob) {
        let RootJob { model_id, request, reply } = job;
        let root = guarded(|| {
            let opened = self.models.model(&model_id)?;
            let tokens = match request {
                None => Vec::new(),
                Some(request) => prompt::build(&opened.model, &request)?.tokens,
            };
            let version = opened.model.tables().version;
            Ok(Root {
                root: opened.root,
                identity: CacheIdentity { model: model_id, version, adapter_version: 0 },
                shape: opened.model.transformer().kv_shape(KvPrecision::F16),
                kernels: self.kernels.clone(),
                tokens,
            })
        });
        // A caller that is gone needs no answer.
        drop(reply.send(root));
    }
}
