//! A folder of pictures: every picture becomes an asset whose id is its path in the folder and whose title is its name.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::domain::AssetKind;

use super::draft::{Draft, Found, Problem, rfc3339};

const PICTURES: &[&str] = &["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// The drafts of all pictures below a folder, in the order of their paths.
pub(super) fn read(folder: &Path, kind: AssetKind) -> Result<impl Iterator<Item = Found> + use<>, Problem> {
    let problem = |error: std::io::Error| Problem { place: folder.display().to_string(), message: error.to_string() };
    let root = folder.canonicalize().map_err(problem)?;
    let mut pictures = Vec::new();
    collect(&root, &mut pictures).map_err(problem)?;
    pictures.sort();
    Ok(pictures.into_iter().map(move |path| draft(&root, &path, kind)))
}

fn collect(folder: &Path, pictures: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&path, pictures)?;
        } else if kind.is_file() && is_picture(&path) {
            pictures.push(path);
        }
    }
    Ok(())
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|extension| PICTURES.contains(&extension.as_str()))
}

fn draft(root: &Path, path: &Path, kind: AssetKind) -> Found {
    let place = path.display().to_string();
    let problem = |message: &str| Problem { place: place.clone(), message: message.to_owned() };
    let url = url::Url::from_file_path(path).map_err(|()| problem("has no file:// URL"))?;
    let relative = path.strip_prefix(root).unwrap_or(path).with_extension("");
    let id = relative.to_str().ok_or_else(|| problem("its name is not UTF-8"))?.to_owned();
    let title = relative.file_name().and_then(|name| name.to_str()).unwrap_or(&id).replace(['-', '_'], " ");
    let modified =
        path.metadata().and_then(|metadata| metadata.modified()).map_err(|error| problem(&error.to_string()))?;
    let name = if kind == AssetKind::Product { "title" } else { "headline" };
    let mut message = Map::new();
    message.insert("id".to_owned(), id.into());
    message.insert(name.to_owned(), title.into());
    message.insert("media".to_owned(), json!([{ "url": url.as_str(), "role": "main" }]));
    message.insert("event_time".to_owned(), Value::String(rfc3339(modified)));
    Ok(Draft::of_message(place, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_become_products_and_other_files_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("mugs")).unwrap();
        for name in ["mugs/blue_mug-2.JPG", "b.png", "notes.txt"] {
            std::fs::write(folder.path().join(name), b"x").unwrap();
        }
        let drafts: Vec<_> = read(folder.path(), AssetKind::Product).unwrap().map(Result::unwrap).collect();
        let keys: Vec<_> = drafts.iter().map(|draft| draft.key.clone().unwrap()).collect();
        assert_eq!(keys, ["b", "mugs/blue_mug-2"]);
        let message: Value = serde_json::from_slice(drafts[1].payload.as_ref().unwrap()).unwrap();
        assert_eq!(message["title"], "blue mug 2");
        assert!(message["media"][0]["url"].as_str().unwrap().starts_with("file:///"));
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = read(Path::new("/no/such/folder"), AssetKind::Ad).err().unwrap();
        assert!(error.to_string().starts_with("/no/such/folder: "));
    }
}
