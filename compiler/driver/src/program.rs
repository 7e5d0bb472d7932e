//! The straight line: FX payload -> IR -> passes, and StableHLO of it.

use crate::bucket::{self, Bucket};
use crate::options::{CompileSettings, ProgramSettings};
use crate::{ranks, tpu};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use torchtpu_emit::{EmitOptions, emit_bytecode, emit_text};
use torchtpu_import::{Bindings, Kind, Payload};
use torchtpu_ir::text::print_graph;
use torchtpu_ir::{CompileError, DType, Graph, Stage, TensorType, Value};
use torchtpu_lowering::{Check, InputSpec, Lowered, OutputSpec, lower_for};
use torchtpu_passes::{PassOptions, PassReport};

type Result<T> = std::result::Result<T, CompileError>;

/// What a caller has to know of a graph.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interface {
    /// Of the first parameters, in order. A seed is one parameter more.
    pub inputs: Vec<InputSpec>,
    pub outputs: Vec<OutputSpec>,
    /// Predicates after the outputs that must be false, with what to say where one is not.
    pub checks: Vec<Check>,
    pub uses_seed: bool,
}

/// How many devices a graph's collectives join; 1 for a graph without.
pub(crate) fn devices(graph: &Graph) -> usize {
    let of = |id| {
        let op = graph.op(id);
        let own = op.devices().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        op.regions().into_iter().map(|region| devices(region)).chain(own).max()
    };
    graph.node_ids().filter_map(of).max().unwrap_or(1)
}

impl Interface {
    pub fn to_json(&self) -> Result<String> {
        crate::ahead::write(self)
    }

    /// Whether a graph has this interface; the error says where it has not.
    pub fn check(&self, graph: &Graph) -> std::result::Result<(), String> {
        let tensors = self.inputs.iter().map(|i| &i.tensor).chain(self.outputs.iter().map(|o| &o.tensor));
        for tensor in tensors {
            let mut order = tensor.order.clone();
            order.sort_unstable();
            if !order.into_iter().eq(0..tensor.ty.rank() as i64) {
                return Err(format!("{:?} is no order of dimensions", tensor.order));
            }
        }
        let type_of = |value| graph.ty(value);
        let parameters: Vec<_> =
            graph.parameters().iter().map(|&node| type_of(Value { node, result: 0 }).clone()).collect();
        let mut promised: Vec<_> = self.inputs.iter().map(|input| input.tensor.memory_type()).collect();
        if self.uses_seed {
            promised.push(TensorType::new(DType::U64, [2]));
        }
        if parameters != promised {
            return Err("its inputs are not those of the graph".into());
        }
        let mut promised: Vec<_> = self.outputs.iter().map(|output| output.tensor.memory_type()).collect();
        promised.extend(self.checks.iter().map(|_| TensorType::new(DType::Bool, [])));
        if !graph.outputs.iter().map(|&value| type_of(value)).eq(&promised) {
            return Err("its outputs are not those of the graph".into());
        }
        let written = self.inputs.iter().enumerate();
        let written: Vec<_> = written.filter_map(|(i, input)| Some((input.mutated_by?, i))).collect();
        if !graph.aliases.iter().map(|a| (a.output, a.parameter)).eq(written) {
            return Err("it writes other inputs than the graph".into());
        }
        Ok(())
    }
}

/// One compiled graph, before any plugin has seen it.
pub struct Program {
    pub name: String,
    pub kind: Kind,
    source: Arc<Source>,
    /// The IR as lowered. Kept because people ask why a pass did what it did.
    before: Graph,
    after: Graph,
    /// Passes that were left out.
    disabled: Vec<String>,
    pub interface: Interface,
    /// Wall time of each stage, in order.
    pub stages: Vec<(&'static str, Duration)>,
    pub passes: Vec<PassReport>,
    /// Where the program is for a range of sizes: how its inputs are padded.
    pub bucket: Option<Bucket>,
    of_all_ranks: bool,
}

/// A payload, parsed once; programs for any sizes are made of it.
pub struct Source {
    /// The FX payload, as it was handed over.
    pub json: Vec<u8>,
    payload: Payload,
    import: Duration,
}

impl Source {
    pub fn parse(json: Vec<u8>) -> Result<Source> {
        let start = Instant::now();
        let payload = Payload::from_json(&json)?;
        Ok(Source { json, payload, import: start.elapsed() })
    }

    /// The IR at these sizes: nothing is traced or parsed again.
    fn lower(
        &self,
        bindings: &Bindings,
        largest: Option<i64>,
        settings: &ProgramSettings,
        clock: &mut Clock,
    ) -> Result<Lowered> {
        if !self.payload.is_symbolic() {
            return clock.time("lower", || lower_for(&self.payload, settings.check_bounds, largest));
        }
        let payload = clock.time("bind", || {
            let mut payload = self.payload.clone();
            payload.bind(bindings).map(|()| payload)
        })?;
        clock.time("lower", || lower_for(&payload, settings.check_bounds, largest))
    }
}

impl Program {
    /// Compiles a payload to StableHLO. `bindings` gives every symbol of the inputs its value.
    pub fn new(source: &Arc<Source>, bindings: &Bindings, settings: &ProgramSettings) -> Result<Program> {
        let mut clock = Clock { stages: vec![("import", source.import)] };
        let lowered = source.lower(bindings, None, settings, &mut clock)?;
        Program::finish(source, lowered, None, settings, clock)
    }

    /// One program for all ranks, from what each of them traced, in order, each at its own sizes; or without `all` from
    /// what a few of them did, who must have traced the same.
    pub fn of_ranks(
        sources: &[(Arc<Source>, Bindings)],
        all: bool,
        settings: &ProgramSettings,
    ) -> Result<Program> {
        let Some((first, _)) = sources.first() else {
            return Err(CompileError::lowering("there is no rank to make a program of"));
        };
        let mut clock =
            Clock { stages: vec![("import", sources.iter().map(|(source, _)| source.import).sum())] };
        let mut payloads: Vec<Payload> = sources.iter().map(|(source, _)| source.payload.clone()).collect();
        if all {
            ranks::share_exchanges(&mut payloads);
        }
        if sources.iter().all(|(source, sizes)| Arc::ptr_eq(source, first) && *sizes == sources[0].1) {
            payloads.truncate(1);
        }
        for (payload, (_, sizes)) in payloads.iter_mut().zip(sources).filter(|(p, _)| p.is_symbolic()) {
            payload.bind(sizes)?;
        }
        let lower = |payload: &Payload| lower_for(payload, settings.check_bounds, None);
        let lowered = clock.time("lower", || payloads.iter().map(lower).collect::<Result<Vec<_>>>())?;
        let merged = clock.time("ranks", || ranks::merge(lowered, all))?;
        Ok(Program { of_all_ranks: true, ..Program::finish(first, merged, None, settings, clock)? })
    }

    /// Whether all ranks were traced, and not one of them.
    pub fn is_of_all_ranks(&self) -> bool {
        self.of_all_ranks
    }

    /// One program for every size up to `upper` that `samples` stand for. Sizes that the samples do not have are
    /// judged by `runtime`.
    pub fn bucketed(
        source: &Arc<Source>,
        upper: &Bindings,
        samples: &[Bindings],
        settings: &ProgramSettings,
    ) -> Result<Program> {
        let mut clock = Clock { stages: vec![("import", source.import)] };
        let mut names: Vec<&String> = upper.keys().collect();
        names.sort();
        let largest = upper.values().copied().max();
        let mut lowered = vec![source.lower(upper, largest, settings, &mut clock)?];
        let mut used = vec![upper];
        for (i, sample) in samples.iter().enumerate() {
            // The first is asked for; what the user's program refuses, or is at no other size, is no sample of it.
            match source.lower(sample, largest, settings, &mut Clock::default()) {
                Ok(one) if i == 0 || bucket::is_sample(&lowered[0], &one) => {
                    lowered.push(one);
                    used.push(sample);
                }
                Err(e) if i == 0 => return Err(e),
                _ => {}
            }
        }
        let symbols: Vec<Vec<i64>> = names
            .iter()
            .map(|name| used.iter().map(|b| b.get(*name).copied().unwrap_or(0)).collect())
            .collect();
        let (padded, mut bucket) = clock.time("bucket", || bucket::rewrite(&lowered, &symbols))?;
        bucket.largest = largest;
        Program::finish(source, padded, Some(bucket), settings, clock)
    }

    /// What a call at these sizes passes besides its tensors; an error where the program is not right for them.
    pub fn runtime(&self, bindings: &Bindings, settings: &ProgramSettings) -> Result<bucket::Runtime> {
        let Some(bucket) = &self.bucket else {
            return Err(CompileError::new(Stage::Run, "the program is for one set of sizes"));
        };
        bucket.runtime(&self.source.lower(bindings, bucket.largest, settings, &mut Clock::default())?)
    }

    fn finish(
        source: &Arc<Source>,
        lowered: Lowered,
        bucket: Option<Bucket>,
        settings: &ProgramSettings,
        mut clock: Clock,
    ) -> Result<Program> {
        let payload = &source.payload;
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
            source: source.clone(),
            before,
            after,
            disabled: settings.disabled_passes.clone(),
            interface: Interface {
                inputs: lowered.inputs,
                outputs: lowered.outputs,
                checks: lowered.checks,
                uses_seed: lowered.uses_seed,
            },
            stages: clock.stages,
            passes,
            bucket,
            of_all_ranks: false,
        };
        if let Some(dir) = &settings.dump_dir {
            program.dump(dir, &source.json, &dumps.into_inner())?;
        }
        Ok(program)
    }

    /// The FX payload, as it was handed over.
    pub fn payload(&self) -> &[u8] {
        &self.source.json
    }

    /// The IR after the passes: what is emitted.
    pub fn graph(&self) -> &Graph {
        &self.after
    }

    /// How many devices the program runs on at once.
    pub fn devices(&self) -> usize {
        devices(&self.after)
    }

    /// StableHLO for plugins.
    pub fn bytecode(&self) -> Result<Vec<u8>> {
        emit_bytecode(&self.after, &EmitOptions::default())
    }

    /// The program as libtpu gets it for a topology, or for any.
    pub fn for_tpu(&self, topology: &str, given: &CompileSettings) -> Result<tpu::Prepared> {
        let disabled_passes = given.disabled_passes.iter().chain(&self.disabled).cloned().collect();
        tpu::prepare(&self.after, topology, &CompileSettings { disabled_passes, ..given.clone() })
    }

    /// By what a form that a search found for the program is found again.
    pub fn products(&self) -> String {
        tpu::products(&self.after)
    }

    /// StableHLO for people.
    pub fn text(&self, locations: bool) -> Result<String> {
        emit_text(&self.after, &EmitOptions::default(), locations)
    }

    /// Our IR before and after the passes.
    pub fn graph_text(&self, after: bool) -> String {
        print_graph(if after { &self.after } else { &self.before })
    }

    /// Our IR behind the passes for TPUs.
    pub fn graph_text_for_tpu(&self, topology: &str) -> Result<String> {
        Ok(print_graph(&self.for_tpu(topology, &CompileSettings::default())?.graph))
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
