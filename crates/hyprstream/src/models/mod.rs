//! `hyprstream model`: foundation models in and out of a data directory.

mod cache;
mod download;
mod package;
mod pull;
pub mod registry;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt64Array};
use arrow::util::pretty::pretty_format_batches;
use hypr_common::{Error, Result};
use hypr_storage::models::ModelEntry;

use crate::Failure;
use crate::cli::{DirectoryArgs, ModelArgs, ModelCommand};
use crate::library::Library;
use cache::Cache;
use pull::Sources;
use registry::{KnownModel, Source};

/// Side file that says which files a pulled model was made from.
const SOURCE_FILE: &str = "source.json";
/// Files beside an ONNX file that say what goes into it.
const ONNX_SETTINGS: [&str; 2] =
    [hypr_inference::onnx::DESCRIPTION_FILE, hypr_inference::image_processor::PREPROCESSOR_FILE];
/// Files of a model directory that an importer may want, by extension.
const IMPORTED_EXTENSIONS: [&str; 5] = ["safetensors", "onnx", "json", "txt", "jinja"];

/// Runs a model command.
pub async fn run(args: ModelArgs) -> Result<(), Failure> {
    match args.command {
        ModelCommand::Pull { model, id, source, directory } => {
            let known = registry::find(&model).ok_or_else(|| Failure::Usage(unknown(&model)))?;
            pull_model(&open(&directory)?, known, id.as_deref().unwrap_or(known.name), source).await?;
        }
        ModelCommand::Import { id, path, directory } => {
            let library = open(&directory)?;
            let imported = model_files(&path).and_then(|files| library.import(&id, &files, &[], BTreeMap::new()));
            print(&published(&imported.map_err(|error| cannot_import(&path.display().to_string(), error))?))?;
        }
        ModelCommand::Convert { id, to, name, directory } => {
            let name = name.unwrap_or_else(|| format!("{id}_{}", to.name().to_lowercase()));
            let entry = open(&directory)?.convert(&id, &name, to)?;
            print(&format!("converted '{id}' to '{name}' (version {}, {} bytes)", entry.version, entry.bytes))?;
        }
        ModelCommand::List { directory } => list(&open(&directory)?.list()?)?,
        ModelCommand::Remove { id, directory } => {
            open(&directory)?.remove(&id)?;
            print(&format!("removed '{id}'"))?;
        }
    }
    Ok(())
}

fn open(directory: &DirectoryArgs) -> Result<Library, Failure> {
    Ok(Library::open(&directory.load(Vec::new())?.storage.data_dir)?)
}

fn unknown(name: &str) -> Error {
    let known: Vec<String> = registry::KNOWN.iter().map(|model| format!("{} ({})", model.name, model.about)).collect();
    Error::not_found(format!("no known model '{name}'; there are: {}", known.join("; ")))
}

/// Fetches and imports a model, unless the same files are imported and sound already.
async fn pull_model(library: &Library, known: &KnownModel, id: &str, source: Source) -> Result<()> {
    let note = source_note(known)?;
    if let Some(entry) = library.find(id)?
        && matches!(library.side_file(id, SOURCE_FILE), Ok(Some(found)) if found == note)
    {
        match library.verify(id) {
            Ok(()) => return print(&format!("'{id}' is up to date (version {})", entry.version)),
            Err(error) => eprintln!("warning: {error}; importing it again"),
        }
    }
    let files = pull::pull(Cache::from_environment()?, &Sources::from_environment()?, known, source).await?;
    let imported = library.import(id, &files, known.settings, BTreeMap::from([(SOURCE_FILE.to_owned(), note)]));
    print(&published(&imported.map_err(|error| cannot_import(known.name, error))?))
}

fn cannot_import(what: &str, error: Error) -> Error {
    Error::new(error.kind(), format!("cannot import {what}: {error}")).with_source(error)
}

fn source_note(known: &KnownModel) -> Result<Vec<u8>> {
    let files: BTreeMap<&str, &str> = known.files.iter().map(|file| (file.path, file.sha256)).collect();
    let settings: BTreeMap<&str, &str> = known.settings.iter().copied().collect();
    let mut note =
        serde_json::json!({"name": known.name, "hub": known.hub.as_ref().map(|hub| hub.repo), "sha256": files});
    if !settings.is_empty() {
        note["settings"] = serde_json::json!(settings);
    }
    serde_json::to_vec_pretty(&note).map_err(|error| Error::internal("the source note is not JSON").with_source(error))
}

/// The files of a model by name: a GGUF file alone, an ONNX file with what describes it beside it, or those of a
/// directory.
fn model_files(path: &Path) -> Result<BTreeMap<String, PathBuf>> {
    if !path.is_dir() {
        let is = |end: &str| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(end));
        if is("onnx") {
            let beside = ONNX_SETTINGS.map(|name| (name.to_owned(), path.with_file_name(name)));
            let mut files: BTreeMap<String, PathBuf> = beside.into_iter().filter(|(_, path)| path.is_file()).collect();
            files.insert("model.onnx".to_owned(), path.to_owned());
            return Ok(files);
        }
        if path.exists() && !is("gguf") {
            let message = format!("{} is neither a .gguf or .onnx file nor a directory of safetensors", path.display());
            return Err(Error::invalid(message));
        }
        return Ok(BTreeMap::from([("model.gguf".to_owned(), path.to_owned())]));
    }
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(path).map_err(|error| cannot_list(path, error))? {
        let entry = entry.map_err(|error| cannot_list(path, error))?.path();
        let Some(name) = entry.file_name().and_then(|name| name.to_str()) else { continue };
        let wanted = entry.extension().is_some_and(|end| IMPORTED_EXTENSIONS.iter().any(|wanted| end == *wanted));
        // sentence-transformers keeps the settings of its modules in folders of their own.
        let settings = entry.join("config.json");
        if wanted && entry.is_file() {
            files.insert(name.to_owned(), entry);
        } else if settings.is_file() {
            files.insert(format!("{name}/config.json"), settings);
        }
    }
    Ok(files)
}

fn cannot_list(dir: &Path, error: std::io::Error) -> Error {
    Error::io(format!("cannot list {}", dir.display()), error)
}

fn published(entry: &ModelEntry) -> String {
    let about = entry.metadata.as_ref().map_or_else(ToString::to_string, |metadata| {
        format!(
            "{}, {} parameters, {} layers",
            metadata.model_type, metadata.total_parameters, metadata.num_hidden_layers
        )
    });
    format!("imported '{}' (version {}, {about})", entry.model_id, entry.version)
}

fn list(entries: &[ModelEntry]) -> Result<()> {
    let metadata = || entries.iter().map(|entry| entry.metadata.as_ref());
    let model_types =
        metadata().map(|row| row.map_or_else(|error| format!("damaged: {error}"), |row| row.model_type.clone()));
    let columns: [(&str, ArrayRef); 5] = [
        ("model_id", Arc::new(StringArray::from_iter_values(entries.iter().map(|entry| &entry.model_id)))),
        ("version", Arc::new(UInt64Array::from_iter_values(entries.iter().map(|entry| entry.version)))),
        ("model_type", Arc::new(StringArray::from_iter_values(model_types))),
        ("parameters", Arc::new(Int64Array::from_iter(metadata().map(|row| row.ok().map(|row| row.total_parameters))))),
        ("bytes", Arc::new(UInt64Array::from_iter_values(entries.iter().map(|entry| entry.bytes)))),
    ];
    let table = RecordBatch::try_from_iter(columns)?;
    print(&pretty_format_batches(&[table])?.to_string())
}

/// One result on standard output.
fn print(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").map_err(|error| Error::io("standard output cannot be written", error))
}
