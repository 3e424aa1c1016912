//! How an index is built and searched: a graph in memory, or one of Lance's indexes on disk and its parameters.

use hypr_ann::{Index, Metric, Params};
use hypr_common::{Error, Result};
use lance::index::vector::{IndexFileVersion, StageParams, VectorIndexParams};
use lance_index::vector::bq::RQBuildParams;
use lance_index::vector::hnsw::builder::HnswBuildParams;
use lance_index::vector::ivf::IvfBuildParams;
use lance_index::vector::pq::PQBuildParams;
use lance_index::vector::sq::builder::SQBuildParams;
use serde::{Deserialize, Serialize};

use super::nearest::Effort;

/// What the name of every Lance index begins with that is ours.
const NAME_PREFIX: &str = "hypr_vector_";
/// Values of all vectors from which on codes of few bits are chosen: product quantizers take long to encode as many.
const RQ_VALUES: usize = 4 << 30;
/// Rows of a graph of an `IVF_HNSW_SQ` index.
const HNSW_PARTITION_ROWS: usize = 16_384;
/// Partitions that a search looks at: a share of them, within bounds.
const PROBED_SHARE: usize = 8;
const PROBES: (usize, usize) = (20, 64);
/// Candidates compared exactly for each row wanted.
const REFINE_FACTOR: usize = 10;
/// Vectors that a product quantizer of 8 bits is trained with at least.
pub(super) const TRAINING_ROWS: usize = 256;

/// How the rows near a vector are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexMethod {
    /// A graph in memory.
    Hnsw(Params),
    /// An index on disk.
    Files(FileParams),
}

impl IndexMethod {
    /// Checks that a column of vectors of `dims` values can have such an index.
    ///
    /// # Errors
    /// `InvalidInput` names the parameter that is out of bounds.
    pub fn check(&self, metric: Metric, dims: usize) -> Result<()> {
        match self {
            Self::Hnsw(params) => Index::new(metric, dims, *params).map(drop),
            Self::Files(params) => params.check(dims),
        }
    }
}

/// The indexes on disk, as Lance names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Partitions of rows that are near each other; their vectors as codes of a product quantizer.
    IvfPq,
    /// The same with codes of a few bits for each value, rotated (RaBitQ).
    IvfRq,
    /// A graph in each partition, over codes of 8 bits for each value.
    IvfHnswSq,
}

impl FileKind {
    /// As SQL and Lance name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::IvfPq => "ivf_pq",
            Self::IvfRq => "ivf_rq",
            Self::IvfHnswSq => "ivf_hnsw_sq",
        }
    }

    /// The kind that is called `name`, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::IvfPq, Self::IvfRq, Self::IvfHnswSq].into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }
}

/// The parameters of an index on disk, by Lance's names. What is not given is chosen by the size of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileParams {
    /// Which index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<FileKind>,
    /// Partitions. The square root of the number of rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_partitions: Option<usize>,
    /// Pieces of a vector that a product quantizer encodes; it divides the dimension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_sub_vectors: Option<usize>,
    /// Bits of a code: 4 or 8 for each sub-vector of `IVF_PQ`, 1 to 9 for each value of `IVF_RQ`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_bits: Option<usize>,
    /// Links of a node of `IVF_HNSW_SQ`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub m: Option<usize>,
    /// Candidates that an insertion into its graphs considers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ef_construction: Option<usize>,
    /// Candidates that a search of its graphs considers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ef_search: Option<usize>,
    /// Partitions that a search looks at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nprobes: Option<usize>,
    /// Candidates compared exactly for each row wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refine_factor: Option<usize>,
}

impl FileParams {
    fn check(&self, dims: usize) -> Result<()> {
        let within = |name: &str, value: Option<usize>, least: usize, most: usize| match value {
            Some(value) if !(least..=most).contains(&value) => {
                Err(Error::invalid(format!("{name} is {value}; it is from {least} to {most}")))
            }
            _ => Ok(()),
        };
        within("num_partitions", self.num_partitions, 1, 65_536)?;
        within("m", self.m, 2, 128)?;
        within("ef_construction", self.ef_construction, 1, 10_000)?;
        within("ef_search", self.ef_search, 1, 100_000)?;
        within("nprobes", self.nprobes, 1, 65_536)?;
        within("refine_factor", self.refine_factor, 1, 1000)?;
        if let Some(pieces) = self.num_sub_vectors
            && (pieces == 0 || !dims.is_multiple_of(pieces))
        {
            let message = format!("num_sub_vectors is {pieces}; it divides the {dims} values of a vector");
            return Err(Error::invalid(message));
        }
        if self.kind == Some(FileKind::IvfRq) && !dims.is_multiple_of(8) {
            return Err(Error::invalid(format!("ivf_rq is for vectors of a multiple of 8 values, not of {dims}")));
        }
        match (self.kind, self.num_bits) {
            (Some(FileKind::IvfPq), Some(bits)) if !matches!(bits, 4 | 8) => {
                Err(Error::invalid(format!("num_bits of ivf_pq is {bits}; it is 4 or 8")))
            }
            (Some(FileKind::IvfRq), bits) => within("num_bits of ivf_rq", bits, 1, 9),
            _ => Ok(()),
        }
    }

    /// The kind that is meant for `rows` vectors of `dims` values.
    pub(super) fn kind(&self, dims: usize, rows: usize) -> FileKind {
        let large = rows.saturating_mul(dims) >= RQ_VALUES && dims.is_multiple_of(8);
        self.kind.unwrap_or(if large { FileKind::IvfRq } else { FileKind::IvfPq })
    }

    /// What the Lance index is called: all that its files depend on, so that files which were built otherwise are not
    /// taken for it.
    pub(super) fn index_name(&self, column_id: u32, metric: Metric) -> String {
        let part =
            |letter: char, value: Option<usize>| value.map_or(String::new(), |value| format!("_{letter}{value}"));
        let parts = [
            part('p', self.num_partitions),
            part('s', self.num_sub_vectors),
            part('b', self.num_bits),
            part('m', self.m),
            part('e', self.ef_construction),
        ];
        let kind = self.kind.map_or("auto", FileKind::name);
        format!("{}{kind}{}", name_of_column(column_id, metric), parts.concat())
    }

    fn num_partitions(&self, kind: FileKind, rows: usize) -> usize {
        let fitting = match kind {
            FileKind::IvfPq | FileKind::IvfRq => rows.isqrt(),
            FileKind::IvfHnswSq => rows / HNSW_PARTITION_ROWS,
        };
        self.num_partitions.unwrap_or(fitting).clamp(1, rows.clamp(1, 65_536))
    }

    /// What Lance builds such an index of `rows` vectors with.
    pub(super) fn for_lance(&self, metric: Metric, dims: usize, rows: usize) -> lance::Result<VectorIndexParams> {
        let kind = self.kind(dims, rows);
        let ivf = IvfBuildParams::new(self.num_partitions(kind, rows));
        let mut stages = vec![StageParams::Ivf(ivf)];
        match kind {
            FileKind::IvfPq => stages.push(StageParams::PQ(PQBuildParams {
                num_sub_vectors: self.num_sub_vectors.unwrap_or_else(|| sub_vectors(dims)),
                num_bits: self.num_bits.unwrap_or(8),
                ..PQBuildParams::default()
            })),
            FileKind::IvfRq => {
                let default = RQBuildParams::default();
                let bits = self.num_bits.and_then(|bits| u8::try_from(bits).ok()).unwrap_or(default.num_bits);
                stages.push(StageParams::RQ(RQBuildParams { num_bits: bits, ..default }));
            }
            FileKind::IvfHnswSq => {
                let default = HnswBuildParams::default();
                let (m, ef) = (self.m.unwrap_or(default.m), self.ef_construction.unwrap_or(default.ef_construction));
                stages.push(StageParams::Hnsw(HnswBuildParams { m, ef_construction: ef, ..default }));
                stages.push(StageParams::SQ(SQBuildParams::default()));
            }
        }
        Ok(VectorIndexParams {
            stages,
            metric_type: lance_metric(metric).try_into()?,
            version: IndexFileVersion::V3,
            skip_transpose: false,
            runtime_hints: Default::default(),
        })
    }

    /// How much a search looks at; `asked` counts before what was declared.
    pub(super) fn effort(&self, asked: Effort) -> Effort {
        let declared = Effort { ef_search: self.ef_search, nprobes: self.nprobes, refine_factor: self.refine_factor };
        asked.or(declared)
    }
}

/// Partitions of `partitions` to look at when nobody says.
pub(super) fn default_probes(partitions: usize) -> usize {
    partitions.div_ceil(PROBED_SHARE).clamp(PROBES.0, PROBES.1)
}

/// Candidates to compare exactly for each row wanted.
pub(super) fn refine_factor(effort: Effort) -> usize {
    effort.refine_factor.unwrap_or(REFINE_FACTOR)
}

/// What the names of the Lance indexes of a column for a metric begin with.
pub(super) fn name_of_column(column_id: u32, metric: Metric) -> String {
    format!("{NAME_PREFIX}{column_id}_{}_", metric.name())
}

/// Lance's name of a metric.
pub(super) fn lance_metric(metric: Metric) -> &'static str {
    match metric {
        Metric::Cosine => "cosine",
        Metric::L2 => "l2",
        Metric::InnerProduct => "dot",
    }
}

/// Pieces of a vector that get a code each: of about eight values, of four where a vector is short.
fn sub_vectors(dims: usize) -> usize {
    let wanted = if dims <= 128 { 4 } else { 8 };
    let widths = (2..=16).filter(|width| dims.is_multiple_of(*width));
    widths.min_by_key(|width| wanted.max(*width) - wanted.min(*width)).map_or(dims, |width| dims / width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_any_width_are_cut_into_equal_pieces() {
        let found = [1, 2, 7, 32, 100, 768, 784, 1536].map(sub_vectors);
        assert_eq!(found, [1, 1, 1, 8, 25, 96, 98, 192]);
        assert!((1..2000).all(|dims| dims % sub_vectors(dims) == 0));
    }

    #[test]
    fn files_of_other_parameters_have_another_name_and_searches_do_not_change_it() {
        let name = |params: FileParams| params.index_name(3, Metric::L2);
        let pq = FileParams { kind: Some(FileKind::IvfPq), ..FileParams::default() };
        assert_eq!(name(FileParams::default()), "hypr_vector_3_l2_auto");
        assert_eq!(
            name(FileParams { num_partitions: Some(7), num_bits: Some(4), ..pq }),
            "hypr_vector_3_l2_ivf_pq_p7_b4"
        );
        assert_eq!(name(FileParams { nprobes: Some(9), refine_factor: Some(2), ..pq }), name(pq));
        assert!(name(pq).starts_with(&name_of_column(3, Metric::L2)));
        assert!(!name(pq).starts_with(&name_of_column(33, Metric::L2)));
    }

    #[test]
    fn the_kind_is_chosen_by_size_and_parameters_are_checked() {
        let auto = FileParams::default();
        assert_eq!(auto.kind(768, 1_000_000), FileKind::IvfPq);
        assert_eq!(auto.kind(768, 10_000_000), FileKind::IvfRq);
        assert_eq!(auto.kind(767, 10_000_000), FileKind::IvfPq, "RQ wants a multiple of 8");
        let refused = |params: FileParams| IndexMethod::Files(params).check(Metric::L2, 30).unwrap_err();
        let named = |kind| FileParams { kind: Some(kind), ..auto };
        assert!(refused(FileParams { num_sub_vectors: Some(7), ..auto }).message().contains("divides the 30"));
        assert!(refused(FileParams { num_bits: Some(5), ..named(FileKind::IvfPq) }).message().contains("4 or 8"));
        let many_bits = IndexMethod::Files(FileParams { num_bits: Some(10), ..named(FileKind::IvfRq) });
        assert!(many_bits.check(Metric::L2, 32).unwrap_err().message().contains("from 1 to 9"));
        assert!(refused(named(FileKind::IvfRq)).message().contains("multiple of 8"));
        assert!(refused(FileParams { refine_factor: Some(0), ..auto }).message().contains("from 1 to 1000"));
        IndexMethod::Files(FileParams { num_sub_vectors: Some(6), ..auto }).check(Metric::L2, 30).unwrap();
    }
}
