//! Policies in files.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use muster_control_plane::PolicyFiles;

use crate::failure::Failure;

/// Reads files, and those of directories, by their names.
pub(super) fn read(paths: &[PathBuf]) -> Result<BTreeMap<String, String>, Failure> {
    let mut files = BTreeMap::new();
    for path in paths {
        let found = if path.is_dir() {
            inside(path).map_err(|error| Failure::file(path, &error))?
        } else {
            vec![path.clone()]
        };
        for path in found {
            let text = fs::read_to_string(&path).map_err(|error| Failure::file(&path, &error))?;
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if files.insert(name.to_owned(), text).is_some() {
                return Err(Failure::usage(format!("two files are called {name}")));
            }
        }
    }
    Ok(files)
}

fn inside(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.unwrap_or_default();
        if name == "limits.toml" || (name.ends_with(".cedar") && !name.starts_with('.')) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Files that fit the schema.
pub(super) fn policies(files: BTreeMap<String, String>) -> Result<PolicyFiles, Failure> {
    PolicyFiles::read(files).map_err(|error| Failure::usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_files_are_read_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("a.cedar", "permit(principal, action, resource);");
        write("limits.toml", "");
        write("README.md", "no policy");
        write("broken.cedar", "permit(");
        let all = read(&[directory.path().to_owned()]).unwrap();
        assert_eq!(
            all.keys().collect::<Vec<_>>(),
            ["a.cedar", "broken.cedar", "limits.toml"]
        );
        let failure = policies(all).err().unwrap();
        assert!(
            failure.message.starts_with("broken.cedar:1:"),
            "{}",
            failure.message
        );
        let one = read(&[directory.path().join("a.cedar")]).unwrap();
        assert_eq!(policies(one).unwrap().count(), 1);
        assert!(read(&[directory.path().join("none.cedar")]).is_err());
    }
}
