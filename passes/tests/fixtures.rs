//! Runs every `tests/passes/<family>/<name>.ttir` through the passes that its first line names, and holds the change
//! against `snapshots/passes/<family>__<name>.snap`: a diff of the text before and after.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use similar::TextDiff;
use std::path::{Path, PathBuf};
use torchtpu_ir::text::print_graph;
use torchtpu_ir::verify::parse_verified;
use torchtpu_passes::{PassOptions, find, names, run_list};

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/passes");
    let mut files: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|family| family.unwrap().path())
        // An analysis changes nothing: `fusion.rs` reads these.
        .filter(|family| family.file_name().is_some_and(|name| name != "fusion"))
        .flat_map(|family| std::fs::read_dir(family).unwrap())
        .map(|file| file.unwrap().path())
        .filter(|file| file.extension().is_some_and(|e| e == "ttir"))
        .collect();
    files.sort();
    files
}

fn name_of(file: &Path) -> (String, String) {
    let family = file.parent().unwrap().file_name().unwrap().to_str().unwrap();
    (family.to_string(), file.file_stem().unwrap().to_str().unwrap().to_string())
}

/// The diff, or the whole graph where nothing changes.
fn change(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let header = text.lines().next().unwrap();
    let list = header.strip_prefix("// run: ").unwrap_or_else(|| panic!("{}: no `// run:`", file.display()));
    let passes: Vec<_> = list
        .split(", ")
        .map(|name| find(name).unwrap_or_else(|| panic!("{}: `{name}` is not a pass", file.display())))
        .collect();
    let mut graph = parse_verified(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let before = print_graph(&graph);
    run_list(&mut graph, &passes, &PassOptions { verify: true, ..PassOptions::default() })
        .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let after = print_graph(&graph);
    if before == after {
        return format!("unchanged\n{before}");
    }
    let again = run_list(&mut graph, &passes, &PassOptions::default()).unwrap();
    let left: Vec<_> = again.iter().filter(|report| report.rewrites > 0).collect();
    assert!(left.is_empty(), "{}: not a fixpoint: {left:?}", file.display());
    TextDiff::from_lines(&before, &after)
        .unified_diff()
        .context_radius(1000)
        .header("before", "after")
        .to_string()
}

#[test]
fn fixtures_change_as_reviewed() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../snapshots/passes");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let files = fixtures();
    assert!(files.len() > 30);
    for file in files {
        let (family, name) = name_of(&file);
        settings.set_input_file(&file);
        settings.bind(|| insta::assert_snapshot!(format!("{family}__{name}"), change(&file)));
    }
}

/// A fixture that says `kept` in its name shows what a pass must leave alone, apart from dead code.
#[test]
fn kept_fixtures_keep_every_returned_operation() {
    for file in fixtures().iter().filter(|f| name_of(f).1.ends_with("_kept")) {
        let (family, _) = name_of(file);
        assert!(names().contains(&family.as_str()), "{}", file.display());
        let text = change(file);
        let added = text.lines().filter(|l| l.starts_with('+') && !l.starts_with("+++")).count();
        let reviewed = ["fold_constants"].contains(&family.as_str());
        assert!(added == 0 || reviewed, "{}:\n{text}", file.display());
    }
}
