//! The straight line: FX payload -> IR -> passes, and StableHLO of it.

use crate::options::ProgramSettings;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use torchtpu_emit::{EmitOptions, emit_bytecode, emit_text};
use torchtpu_import::{Bindings, Kind, Payload};
use torchtpu_ir::text::print_graph;
use torchtpu_ir::{CompileError, Graph, Stage};
use torchtpu_lowering::{Check, InputSpec, OutputSpec, lower};
use torchtpu_passes::{PassOptions, PassReport};

type Result<T> = std::result::Result<T, CompileError>;

/// One compiled graph, before any plugin has seen it.
pub struct Program {
    pub name: String,
    pub kind: Kind,
    /// The FX payload, as it was handed over.
    pub payload: Vec<u8>,
    /// The IR as lowered. Kept because people ask why a pass did what it did.
    before: Graph,
    after: Graph,
    pub inputs: Vec<InputSpec>,
    pub outputs: Vec<OutputSpec>,
    /// Predicates among the outputs that must be false, with what to say where one is not.
    pub checks: Vec<Check>,
    pub uses_seed: bool,
    /// Wall time of each stage, in order.
    pub stages: Vec<(&'static str, Duration)>,
    pub passes: Vec<PassReport>,
}

impl Program {
    /// Compiles a payload to StableHLO. `bindings` gives every symbol of the inputs its value.
    pub fn new(json: &[u8], bindings: &Bindings, settings: &ProgramSettings) -> Result<Program> {
        let mut clock = Clock::default();
        let mut payload = clock.time("import", || Payload::from_json(json))?;
        if payload.is_symbolic() {
            clock.time("bind", || payload.bind(bindings))?;
        }
        let lowered = clock.time("lower", || lower(&payload, settings.check_bounds))?;
        let before = lowered.graph;
        let mut after = before.clone();
        let dumps = std::cell::RefCell::new(Vec::new());
        let collect = |d: &torchtpu_passes::Dump<'_>| {
            dumps.borrow_mut().push((format!("{:02}_{}", d.application, d.pass), d.after.to_string()));
        };
        let options = PassOptions {
            disabled: settings.disabled_passes.clone(),
            verify: settings.verify,
            dump: settings.dump_dir.is_some().then_some(&collect as &dyn Fn(&torchtpu_passes::Dump<'_>)),
            ..PassOptions::default()
        };
        let passes = clock.time("passes", || torchtpu_passes::run(&mut after, &options))?;
        let program = Program {
            name: payload.name.clone(),
            kind: payload.kind,
            payload: json.to_vec(),
            before,
            after,
            inputs: lowered.inputs,
            outputs: lowered.outputs,
            checks: lowered.checks,
            uses_seed: lowered.uses_seed,
            stages: clock.stages,
            passes,
        };
        if let Some(dir) = &settings.dump_dir {
            program.dump(dir, json, &dumps.into_inner())?;
        }
        Ok(program)
    }

    /// The IR after the passes: what is emitted.
    pub fn graph(&self) -> &Graph {
        &self.after
    }

    /// StableHLO for plugins.
    pub fn bytecode(&self) -> Result<Vec<u8>> {
        emit_bytecode(&self.after, &EmitOptions::default())
    }

    /// StableHLO for people.
    pub fn text(&self, locations: bool) -> Result<String> {
        emit_text(&self.after, &EmitOptions::default(), locations)
    }

    /// Our IR before and after the passes.
    pub fn graph_text(&self, after: bool) -> String {
        print_graph(if after { &self.after } else { &self.before })
    }

    /// How often each operation occurs in the program.
    pub fn ops(&self) -> BTreeMap<&'static str, usize> {
        let mut ops = BTreeMap::new();
        for id in self.after.node_ids() {
            *ops.entry(self.after.op(id).name()).or_default() += 1;
        }
        ops
    }

    fn dump(&self, dir: &Path, payload: &[u8], passes: &[(String, String)]) -> Result<()> {
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(dir))
                .and_then(|()| std::fs::write(&path, bytes))
                .map_err(|e| CompileError::new(Stage::Emit, format!("cannot write {}: {e}", path.display())))
        };
        write("payload.json", payload)?;
        write("ir_before.txt", self.graph_text(false).as_bytes())?;
        write("ir_after.txt", self.graph_text(true).as_bytes())?;
        for (name, text) in passes {
            write(&format!("passes/{name}.txt"), text.as_bytes())?;
        }
        write("stablehlo.mlir", self.text(true)?.as_bytes())?;
        write("stablehlo.bc", &self.bytecode()?)
    }
}

#[derive(Default)]
struct Clock {
    stages: Vec<(&'static str, Duration)>,
}

impl Clock {
    fn time<T>(&mut self, stage: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work();
        self.stages.push((stage, start.elapsed()));
        result
    }
}
