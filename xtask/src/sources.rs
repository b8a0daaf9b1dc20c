//! Which files the checks look at: all that git tracks, or would track.

use std::path::Path;
use std::process::{Command, Stdio};

/// A text file of the project.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Path relative to the workspace, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

impl SourceFile {
    /// Whether this is Rust.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// All text files of the project in order of their paths. Files that are not UTF-8 are data and left out.
pub fn all(root: &Path) -> Result<Vec<SourceFile>, String> {
    let mut paths = match tracked_by_git(root) {
        Some(paths) => paths,
        None => {
            let mut found = Vec::new();
            walk(root, "", MAX_DEPTH, &mut found)?;
            found
        }
    };
    paths.sort();
    paths.dedup();
    let mut files = Vec::new();
    for path in paths {
        // A file that was deleted but is still in git's index has nothing to be checked.
        let Ok(bytes) = std::fs::read(root.join(&path)) else { continue };
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(SourceFile { path, text });
        }
    }
    Ok(files)
}

/// Tracked files and new ones that are not ignored; `None` where this is no git checkout (a release's tarball).
fn tracked_by_git(root: &Path) -> Option<Vec<String>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    let listing = String::from_utf8(output.stdout).ok()?;
    Some(listing.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

const MAX_DEPTH: usize = 16;

fn walk(root: &Path, below: &str, depth: usize, found: &mut Vec<String>) -> Result<(), String> {
    let folder = root.join(below);
    let describe = |error| format!("cannot list {}: {error}", folder.display());
    for entry in std::fs::read_dir(&folder).map_err(describe)? {
        let entry = entry.map_err(describe)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        let kind = entry.file_type().map_err(describe)?;
        if kind.is_file() {
            found.push(path);
        } else if kind.is_dir() && depth > 0 && name != "target" && name != ".git" {
            walk(root, &path, depth - 1, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_this_file_with_and_without_git() {
        let root = crate::workspace_root();
        let files = all(&root).unwrap();
        assert!(files.iter().any(|file| file.path == "xtask/src/sources.rs" && file.is_rust()));
        assert!(!files.iter().any(|file| file.path.starts_with("target/")));

        let mut walked = Vec::new();
        walk(&root.join("xtask"), "", MAX_DEPTH, &mut walked).unwrap();
        assert!(walked.contains(&"src/sources.rs".to_owned()));
    }
}
