//! Imports run one way: `firn -> source, live, nbd, format, pool -> disk`. A crate of the workspace may depend
//! on the crates that stand beside it in [`RULES`] and on no other crate of the workspace.

use crate::problem::{Problem, line_of};
use serde_json::Value;
use std::path::Path;

/// What one crate may import.
struct Rule {
    name: &'static str,
    /// Crates of the workspace that it may depend on.
    may_use: &'static [&'static str],
    /// Further ones for its tests alone, which want real images or a real client at the other end.
    tests_may_use: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule { name: "firn-disk", may_use: &[], tests_may_use: &[] },
    Rule { name: "firn-format", may_use: &["firn-disk"], tests_may_use: &[] },
    Rule { name: "firn-nbd", may_use: &["firn-disk"], tests_may_use: &["firn-format"] },
    Rule { name: "firn-pool", may_use: &["firn-disk"], tests_may_use: &["firn-format"] },
    Rule { name: "firn-live", may_use: &["firn-pool", "firn-disk"], tests_may_use: &["firn-nbd", "firn-format"] },
    Rule { name: "firn-source", may_use: &["firn-nbd", "firn-format", "firn-disk"], tests_may_use: &[] },
    Rule {
        name: "firn",
        may_use: &["firn-source", "firn-live", "firn-nbd", "firn-format", "firn-pool", "firn-disk"],
        tests_may_use: &[],
    },
    Rule { name: "xtask", may_use: &[], tests_may_use: &[] },
];

/// Crates from outside that only the named crates may depend on, and why.
const RESERVED: &[(&str, &[&str], &str)] = &[
    ("anyhow", &["firn"], "libraries return firn_disk::Error; anyhow is for the binary"),
    ("tokio", &["firn-pool", "firn"], "the core is synchronous; async stands at the object store and the daemon only"),
    (
        "futures",
        &["firn-pool", "firn"],
        "the core is synchronous; async stands at the object store and the daemon only",
    ),
    ("object_store", &["firn-pool"], "only the pool knows where objects lie"),
];

/// A crate of the workspace with what its `Cargo.toml` asks for.
#[derive(Debug)]
pub struct Package {
    name: String,
    /// Path of the manifest relative to the workspace.
    manifest: String,
    manifest_text: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug)]
struct Dependency {
    name: String,
    for_tests: bool,
    in_workspace: bool,
}

/// The workspace's packages as `cargo metadata` describes them.
pub fn read_packages(root: &Path, metadata: &Value) -> Result<Vec<Package>, String> {
    let members = metadata["workspace_members"].as_array().ok_or("cargo metadata names no workspace members")?;
    let all = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let mut packages = Vec::new();
    for package in all.iter().filter(|package| members.contains(&package["id"])) {
        let path = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        packages.push(Package {
            name: package["name"].as_str().unwrap_or_default().to_owned(),
            manifest: path.strip_prefix(root).unwrap_or(path).display().to_string(),
            manifest_text: text,
            dependencies: read_dependencies(package),
        });
    }
    Ok(packages)
}

fn read_dependencies(package: &Value) -> Vec<Dependency> {
    let listed = package["dependencies"].as_array().map_or(&[][..], Vec::as_slice);
    let read = |dependency: &Value| Dependency {
        name: dependency["name"].as_str().unwrap_or_default().to_owned(),
        for_tests: dependency["kind"].as_str() == Some("dev"),
        in_workspace: dependency["path"].is_string(),
    };
    listed.iter().map(read).collect()
}

/// Every dependency that runs against the direction.
pub fn check(packages: &[Package]) -> Vec<Problem> {
    packages.iter().flat_map(check_package).collect()
}

fn check_package(package: &Package) -> Vec<Problem> {
    let Some(rule) = RULES.iter().find(|rule| rule.name == package.name) else {
        let advice = "add it to RULES in xtask/src/check/imports.rs and to ARCHITECTURE.md";
        return vec![Problem::new(&package.manifest, 1, format!("crate {} has no import rule", package.name), advice)];
    };
    let mut problems = Vec::new();
    for dependency in &package.dependencies {
        let line = || line_of(&package.manifest_text, |line| line.trim_start().starts_with(&dependency.name));
        if dependency.in_workspace && !is_allowed(rule, dependency) {
            let message = format!("{} must not import {}", package.name, dependency.name);
            let advice = match rule.may_use {
                [] => "it imports no crate of the workspace; move what is shared into it or pass it in".to_owned(),
                names => format!("it may import {}; move what is shared down or pass it in", names.join(", ")),
            };
            problems.push(Problem::new(&package.manifest, line(), message, advice));
        }
        if let Some((_, _, why)) = reserved_elsewhere(package, dependency) {
            let message = format!("{} must not depend on {}", package.name, dependency.name);
            problems.push(Problem::new(&package.manifest, line(), message, *why));
        }
    }
    problems
}

fn is_allowed(rule: &Rule, dependency: &Dependency) -> bool {
    let name = dependency.name.as_str();
    // A crate's tests may depend on the crate itself, to switch a feature on.
    let for_tests = dependency.for_tests && (name == rule.name || rule.tests_may_use.contains(&name));
    rule.may_use.contains(&name) || for_tests
}

type Reservation = (&'static str, &'static [&'static str], &'static str);

fn reserved_elsewhere(package: &Package, dependency: &Dependency) -> Option<&'static Reservation> {
    let reservation = RESERVED.iter().find(|(name, _, _)| *name == dependency.name)?;
    let allowed = dependency.for_tests || reservation.1.contains(&package.name.as_str());
    if allowed { None } else { Some(reservation) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, bool, bool)]) -> Package {
        let read = |&(name, for_tests, in_workspace): &(&str, bool, bool)| Dependency {
            name: name.to_owned(),
            for_tests,
            in_workspace,
        };
        Package {
            name: name.to_owned(),
            manifest: format!("crates/{name}/Cargo.toml"),
            manifest_text: "[dependencies]\nfirn-pool.workspace = true\n".to_owned(),
            dependencies: dependencies.iter().map(read).collect(),
        }
    }

    #[test]
    fn lets_imports_run_downwards() {
        let good = [
            package("firn", &[("firn-pool", false, true), ("anyhow", false, false)]),
            package("firn-pool", &[("firn-disk", false, true), ("tokio", false, false)]),
            package("firn-disk", &[("firn-disk", true, true), ("nix", false, false)]),
            package("firn-nbd", &[("firn-format", true, true)]),
        ];
        assert_eq!(check(&good), []);
    }

    #[test]
    fn refuses_imports_upwards_and_sideways_with_the_line() {
        let problems = check(&[package("firn-format", &[("firn-pool", false, true)])]);
        assert_eq!(problems.len(), 1);
        assert_eq!((problems[0].file.as_str(), problems[0].line), ("crates/firn-format/Cargo.toml", 2));

        for (name, dependency, for_tests) in [
            ("firn-disk", "firn-format", false),
            ("firn-disk", "firn-pool", true),
            ("firn-source", "firn-pool", true),
            ("firn-nbd", "firn-format", false),
            ("firn-pool", "firn-pool", false),
        ] {
            let problems = check(&[package(name, &[(dependency, for_tests, true)])]);
            assert_eq!(problems.len(), 1, "{name} -> {dependency}");
        }
    }

    #[test]
    fn keeps_reserved_crates_where_they_belong() {
        assert_eq!(check(&[package("firn-disk", &[("anyhow", false, false)])]).len(), 1);
        assert_eq!(check(&[package("firn-format", &[("tokio", false, false)])]).len(), 1);
        assert_eq!(check(&[package("firn-format", &[("tokio", true, false)])]), []);
    }

    #[test]
    fn asks_for_a_rule_for_each_new_crate() {
        assert_eq!(check(&[package("firn-new", &[])]).len(), 1);
    }
}
