//! Running what was compiled ahead, without Python: an artifact's programs, its weights, and a call.
//!
//! ```no_run
//! # use torchtpu_driver::{deploy::{Arguments, Model, Trust}, artifact::Artifact, pjrt::Client};
//! # fn example(client: Client, inputs: Vec<torchtpu_driver::Array>) -> Result<(), torchtpu_driver::CompileError> {
//! let model = Model::open("model.ttpu".as_ref(), client, Trust::Nobody)?;
//! let answer = model.call("inference", &Arguments { inputs, ..Default::default() }, 0)?;
//! # Ok(()) }
//! ```
//!
//! What an artifact says is believed as far as its digests go, which anybody can write: its IR is parsed and verified, its
//! interface is compared with the IR, and its native code is loaded from nobody but those whom the user trusts.

mod sizes;

use crate::cache::target;
use crate::executable::{Argument, Executable, Signature};
use crate::host::Array;
use crate::options::CompileSettings;
use crate::program::Interface;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sizes::{Extent, Fit, Ranged, Sizes};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{OnceLock, PoisonError, RwLock};
use torchtpu_artifact::{Artifact, SigningKey, Writer};
use torchtpu_import::Bindings;
use torchtpu_ir::text::parse_graph;
use torchtpu_ir::verify::verify;
use torchtpu_ir::{CompileError, DType, Graph, Stage};
use torchtpu_pjrt::Client;

type Result<T> = std::result::Result<T, CompileError>;

/// Devices of one process: a label that says more is no artifact's.
const MOST_RANKS: usize = 1 << 20;

/// Whose native code is loaded.
pub enum Trust {
    Nobody,
    /// Of whoever signed with this key.
    Key(SigningKey),
    Anybody,
}

/// What an artifact's label says, as far as running goes.
#[derive(Deserialize)]
struct Label {
    /// Of a program that all ranks have traced, how many there are.
    #[serde(default)]
    ranks: Option<usize>,
    programs: BTreeMap<String, ProgramLabel>,
    #[serde(default)]
    weights: Vec<WeightLabel>,
    #[serde(default)]
    builds: Vec<BuildLabel>,
}

#[derive(Deserialize)]
struct ProgramLabel {
    interface: Interface,
    inputs: Vec<Role>,
    outputs: Vec<Output>,
    /// Where sizes are the caller's.
    sizes: Option<Sizes>,
    /// Programs that are the same for smaller sizes, ascending.
    #[serde(default)]
    buckets: Vec<String>,
}

#[derive(Deserialize)]
struct WeightLabel {
    name: String,
    dtype: String,
    shape: Vec<i64>,
    /// Whether each rank has one of its own: rank 2's is held as `name@2`.
    #[serde(default)]
    by_rank: bool,
}

/// A compilation: of which program, with which options, and the section that holds what came of it.
#[derive(Deserialize)]
struct BuildLabel {
    program: String,
    executable: String,
    target: Target,
    #[serde(default)]
    options: CompileSettings,
    signature: Option<Signature>,
}

/// Where an executable runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// On this machine and others of its kind: what [`target`] says of a client.
    Host { platform: String, target: String },
    /// On devices of this kind, by the plugin of this version.
    Devices { platform: String, version: String, kind: String },
}

impl Target {
    fn platform(&self) -> &str {
        match self {
            Target::Host { platform, .. } | Target::Devices { platform, .. } => platform,
        }
    }

    fn fits(&self, client: &Client) -> bool {
        match self {
            Target::Host { target: wanted, .. } => *wanted == target(client),
            Target::Devices { platform, version, kind } => {
                platform == client.platform_name()
                    && version == client.platform_version()
                    && client.devices().first().is_some_and(|device| device.kind == *kind)
            }
        }
    }
}

/// What a program's input is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    /// The caller's, by position.
    Input(usize),
    Weight(String),
    /// What the forward keeps for the backward.
    Saved(usize),
    /// The derivative of the loss by a result.
    Cotangent(usize),
}

/// What a program's output is made of.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Output {
    /// A result of the executable.
    Tensor(usize),
    /// Size, stride and offset, in elements, in the memory of a result.
    View(usize, Vec<Extent>, Vec<Extent>, Extent),
    /// An input of the program, as it is, and a view of one.
    Input(usize),
    InputView(usize, Vec<Extent>, Vec<Extent>, Extent),
    /// A size of the call's, as an s64 scalar.
    Size(Extent),
}

/// What a call passes. A program takes the lists that it needs.
#[derive(Default)]
pub struct Arguments {
    pub inputs: Vec<Array>,
    pub saved: Vec<Array>,
    pub cotangents: Vec<Array>,
}

/// What a call gives.
pub struct Answer {
    pub outputs: Vec<Array>,
    /// The caller's inputs that the program changed, by position.
    pub written: Vec<(usize, Array)>,
}

/// What an artifact holds, as far as it goes without a plugin.
struct Contents {
    artifact: Artifact,
    ranks: Option<usize>,
    programs: BTreeMap<String, ProgramLabel>,
    /// By the name that they are held under.
    weights: BTreeMap<String, (DType, Vec<i64>)>,
    builds: Vec<BuildLabel>,
}

impl Contents {
    fn of(artifact: Artifact) -> Result<Contents> {
        let label = Label::deserialize(artifact.label());
        let label = label.map_err(|e| refuse(format!("the artifact's label cannot be read: {e}")))?;
        let mut weights = BTreeMap::new();
        for w in label.weights {
            let dtype = DType::from_torch_name(&w.dtype);
            let dtype = dtype.ok_or_else(|| refuse(format!("weight `{}` is of an unknown dtype", w.name)))?;
            match label.ranks.filter(|_| w.by_rank) {
                Some(ranks) => {
                    weights.extend((0..ranks).map(|rank| (of_rank(&w.name, rank), (dtype, w.shape.clone()))))
                }
                None => drop(weights.insert(w.name, (dtype, w.shape))),
            }
        }
        let Label { ranks, programs, builds, .. } = label;
        if ranks.is_some_and(|ranks| !(1..=MOST_RANKS).contains(&ranks)) {
            return Err(refuse(format!("the artifact is for {} ranks", ranks.unwrap_or_default())));
        }
        Ok(Contents { artifact, ranks, programs, weights, builds })
    }

    /// The weights that the artifact holds, each of the type that it should have.
    fn weights(&self) -> Result<BTreeMap<String, Array>> {
        let Some(bytes) = self.artifact.section("weights") else { return Ok(BTreeMap::new()) };
        let tensors =
            SafeTensors::deserialize(bytes).map_err(|e| refuse(format!("the artifact's weights: {e}")))?;
        let mut found = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let dtype = DTYPES.iter().find(|(_, theirs)| *theirs == view.dtype());
            let (dtype, _) = dtype.ok_or_else(|| refuse(format!("weight `{name}` is {:?}", view.dtype())))?;
            let shape = view.shape().iter().map(|&d| d as i64).collect();
            let array = Array::new(*dtype, shape, view.data())?;
            self.check_weight(name, &array)?;
            found.insert(name.to_owned(), array);
        }
        Ok(found)
    }

    fn check_weight(&self, name: &str, value: &Array) -> Result<()> {
        let Some((dtype, shape)) = self.weights.get(name) else {
            return Err(refuse(format!("the artifact has no weight `{name}`")));
        };
        if value.dtype != *dtype || value.shape() != shape {
            let is = format!("{}{:?}", value.dtype, value.shape());
            return Err(refuse(format!("weight `{name}` is {dtype}{shape:?}, not {is}")));
        }
        Ok(())
    }

    /// A program's IR, which is known to be valid and to have the interface that the label says.
    fn graph(&self, name: &str, label: &ProgramLabel) -> Result<Graph> {
        let section = self.artifact.section(&format!("{name}.ir"));
        let bytes = section.ok_or_else(|| refuse(format!("the artifact lacks the IR of `{name}`")))?;
        let text = std::str::from_utf8(bytes).map_err(|e| refuse(format!("the IR of `{name}`: {e}")))?;
        let graph = parse_graph(text).map_err(|e| refuse(format!("the IR of `{name}`: {e}")))?;
        verify(&graph)?;
        label.check(name, &graph, 0)?;
        Ok(graph)
    }

    /// A program for a range of sizes, made of its payload.
    fn ranged(&self, name: &str, label: &ProgramLabel) -> Result<Option<Ranged>> {
        let Some(sizes) = &label.sizes else { return Ok(None) };
        let section = self.artifact.section(&sizes.payload);
        let payload = section.ok_or_else(|| refuse(format!("the artifact lacks the payload of `{name}`")))?;
        let ranged = Ranged::new(sizes, payload)?;
        label.check(name, ranged.program.graph(), ranged.fillings())?;
        Ok(Some(ranged))
    }
}

/// Everything that is checked of an artifact before a plugin sees any of it.
pub fn check(artifact: Artifact) -> Result<()> {
    let contents = Contents::of(artifact)?;
    contents.weights()?;
    contents.programs.iter().try_for_each(|(name, label)| match contents.ranged(name, label)? {
        Some(_) => Ok(()),
        None => contents.graph(name, label).map(|_| ()),
    })
}

/// A program that can be called.
struct Ready {
    executable: Executable,
    /// Whether it was loaded or compiled, and why.
    origin: String,
    ranged: Option<Ranged>,
}

/// An artifact on a client.
pub struct Model {
    contents: Contents,
    client: Client,
    trust: Trust,
    made: BTreeMap<String, OnceLock<Result<Ready>>>,
    /// Written by programs that have state.
    weights: RwLock<BTreeMap<String, Array>>,
}

fn refuse(message: impl Into<String>) -> CompileError {
    CompileError::new(Stage::Load, message)
}

impl Model {
    /// Opens and checks a file. Programs are loaded, or compiled, when they are first called.
    pub fn open(path: &Path, client: Client, trust: Trust) -> Result<Model> {
        Model::of(Artifact::open(path).map_err(refuse)?, client, trust)
    }

    pub fn of(artifact: Artifact, client: Client, trust: Trust) -> Result<Model> {
        let contents = Contents::of(artifact)?;
        let weights = RwLock::new(contents.weights()?);
        let made = contents.programs.keys().map(|name| (name.clone(), OnceLock::new())).collect();
        Ok(Model { contents, client, trust, made, weights })
    }

    pub fn artifact(&self) -> &Artifact {
        &self.contents.artifact
    }

    /// Gives a weight, or a buffer, its value. Where each rank has its own, that of rank 2 is `name@2`.
    pub fn set_weight(&self, name: &str, value: Array) -> Result<()> {
        self.contents.check_weight(name, &value)?;
        let mut weights = self.weights.write().unwrap_or_else(PoisonError::into_inner);
        weights.insert(name.to_owned(), value);
        // Copies that an executable keeps on its device are of the old one.
        self.made
            .values()
            .filter_map(|made| made.get()?.as_ref().ok())
            .for_each(|ready| ready.executable.refresh());
        Ok(())
    }

    /// A weight's, or a buffer's, value now.
    pub fn weight(&self, name: &str) -> Option<(DType, Vec<i64>, Vec<u8>)> {
        let weights = self.weights.read().unwrap_or_else(PoisonError::into_inner);
        weights.get(name).map(|array| (array.dtype, array.shape().to_vec(), array.bytes().to_vec()))
    }

    /// Loads a program, or compiles it, and says which and why.
    pub fn prepare(&self, program: &str) -> Result<&str> {
        self.ready(program).map(|(_, ready)| &*ready.origin)
    }

    /// The programs that have been loaded or compiled, and which of both and why.
    pub fn origins(&self) -> Vec<(&str, &str)> {
        let ready = self.made.iter().filter_map(|(name, made)| Some((name, made.get()?.as_ref().ok()?)));
        ready.map(|(name, ready)| (name.as_str(), ready.origin.as_str())).collect()
    }

    fn ready(&self, name: &str) -> Result<(&ProgramLabel, &Ready)> {
        let (Some(label), Some(slot)) = (self.contents.programs.get(name), self.made.get(name)) else {
            let known: Vec<&str> = self.made.keys().map(|name| &**name).collect();
            return Err(refuse(format!("the artifact has no program `{name}`, but {}", known.join(", "))));
        };
        let made = slot.get_or_init(|| self.make(name, label));
        made.as_ref().map(|made| (label, made)).map_err(Clone::clone)
    }

    /// The smallest program that serves these inputs.
    fn bucket<'a>(&'a self, name: &'a str, inputs: &[Array]) -> &'a str {
        let programs = &self.contents.programs;
        let mut buckets = programs.get(name).into_iter().flat_map(|label| &label.buckets);
        let serves = |bucket: &&String| {
            let sizes = programs.get(*bucket).and_then(|label| label.sizes.as_ref());
            sizes.is_some_and(|sizes| sizes.serve(inputs))
        };
        buckets.find(serves).map_or(name, String::as_str)
    }

    fn make(&self, name: &str, label: &ProgramLabel) -> Result<Ready> {
        let zero_copy = self.client.platform_name() == crate::cpu::PLATFORM;
        let ranged = self.contents.ranged(name, label)?;
        let why = match self.load(name, label, zero_copy) {
            Ok(executable) => return Ok(Ready { executable, origin: "loaded".to_owned(), ranged }),
            Err(why) => why,
        };
        let parsed;
        let graph = match &ranged {
            Some(ranged) => ranged.program.graph(),
            None => {
                parsed = self.contents.graph(name, label)?;
                &parsed
            }
        };
        let settings = self.builds(name).next().map(|b| b.options.clone()).unwrap_or_default();
        let ranks = self.contents.ranks.unwrap_or(1);
        let there = self.client.num_devices();
        if ranks > there {
            let what =
                format!("the artifact is for {ranks} ranks, and the client has {there} of the devices");
            return Err(
                refuse(what).help("as many devices of the CPU are made where it is run by `run_spmd`")
            );
        }
        let zero_copy = zero_copy && ranks == 1;
        let devices = self.client.devices();
        let ids: Vec<i64> = devices.iter().take(ranks).map(|device| device.id.into()).collect();
        let executable =
            Executable::of(name, graph, &label.interface, &self.client, &settings, zero_copy, &ids)?;
        Ok(Ready { executable, origin: format!("compiled from the IR: {why}"), ranged })
    }

    /// What was compiled of a program for this client's platform.
    fn builds(&self, program: &str) -> impl Iterator<Item = &BuildLabel> {
        let platform = self.client.platform_name();
        let builds = self.contents.builds.iter();
        builds.filter(move |b| b.program == program && b.target.platform() == platform)
    }

    /// The executable that the artifact brings for this client; or why it is not used.
    fn load(
        &self,
        name: &str,
        label: &ProgramLabel,
        zero_copy: bool,
    ) -> std::result::Result<Executable, String> {
        if self.contents.ranks.is_some() {
            return Err("a program for several ranks is compiled where it is run".to_owned());
        }
        let platform = self.client.platform_name();
        let mut builds = self.builds(name).peekable();
        if builds.peek().is_none() {
            return Err(format!("the artifact holds no executable for {platform}"));
        }
        let Some(build) = builds.find(|b| b.target.fits(&self.client)) else {
            return Err(format!("the artifact's executables are for other {platform} devices or versions"));
        };
        match &self.trust {
            Trust::Anybody => {}
            Trust::Key(key) if self.contents.artifact.is_signed_with(key) => {}
            Trust::Key(_) => return Err("the artifact is not signed with the key that is trusted".to_owned()),
            Trust::Nobody => {
                return Err(
                    "its executable is native code, and its source is not said to be trusted".to_owned()
                );
            }
        }
        let signature = build.signature.clone().unwrap_or_else(|| Signature::plain(&label.interface));
        if signature.inputs.len() != label.interface.inputs.len() {
            return Err("the executable's inputs are not the program's".to_owned());
        }
        let bytes = self.contents.artifact.section(&build.executable).ok_or("the executable is not there")?;
        Executable::load(name, signature, bytes, &self.client, zero_copy)
    }

    /// Runs a program. Weights that it changes are changed for the next call.
    pub fn call(&self, name: &str, arguments: &Arguments, seed: u64) -> Result<Answer> {
        if let Some(ranks) = self.contents.ranks {
            let what = format!("the artifact is for {ranks} ranks, and takes what each of them does");
            return Err(CompileError::new(Stage::Run, what));
        }
        let (label, Ready { executable, ranged, .. }) = self.ready(self.bucket(name, &arguments.inputs))?;
        let fit = ranged.as_ref().map(|ranged| ranged.fit(&arguments.inputs, &label.inputs)).transpose()?;
        let fit = fit.as_ref();
        let mut copies = label.copies(fit, arguments)?;
        self.with_weights(label, |weight| {
            let mut weight = |name: &str| weight(name.to_owned());
            let mut args = label.passed(fit, arguments, &mut copies, &mut weight)?;
            let results = executable.run(&mut args, seed)?;
            label.answer(fit, arguments, &args, results)
        })
    }

    /// Runs a program as every rank at once, each on a device of its own. All draw the same random numbers.
    pub fn call_ranks(&self, name: &str, ranks: &[Arguments], seed: u64) -> Result<Vec<Answer>> {
        let (label, Ready { executable, .. }) = self.ready(name)?;
        let wanted = self.contents.ranks.unwrap_or(1);
        if ranks.len() != wanted {
            let what = format!("the artifact is for {wanted} ranks, not {}", ranks.len());
            return Err(CompileError::new(Stage::Run, what));
        }
        let copies = ranks.iter().map(|arguments| label.copies(None, arguments));
        let mut copies = copies.collect::<Result<Vec<_>>>()?;
        self.with_weights(label, |weight| {
            let mut passed = Vec::with_capacity(ranks.len());
            for (rank, (arguments, copies)) in ranks.iter().zip(&mut copies).enumerate() {
                let mut weight = |name: &str| weight(of_rank(name, rank)).or_else(|| weight(name.to_owned()));
                passed.push(label.passed(None, arguments, copies, &mut weight)?);
            }
            let results = executable.run_spmd(&mut passed, seed)?;
            let answers = ranks.iter().zip(&passed).zip(results);
            answers.map(|((arguments, args), results)| label.answer(None, arguments, args, results)).collect()
        })
    }

    /// Lends a program the weights, by the names that they are held under: what it writes to one who asks, the others to all.
    fn with_weights<R>(
        &self,
        label: &ProgramLabel,
        run: impl for<'a> FnOnce(&mut dyn FnMut(String) -> Option<Argument<'a>>) -> Result<R>,
    ) -> Result<R> {
        if !label.interface.inputs.iter().any(|spec| spec.mutated_by.is_some()) {
            let weights = self.weights.read().unwrap_or_else(PoisonError::into_inner);
            return run(&mut |name| weights.get(&name).map(Argument::Read));
        }
        let mut weights = self.weights.write().unwrap_or_else(PoisonError::into_inner);
        let (mut written, mut read) = (BTreeMap::new(), BTreeMap::new());
        for (name, array) in weights.iter_mut() {
            let known = |base: &str| label.writes(base);
            if known(name) || name.rsplit_once('@').is_some_and(|(base, _)| known(base)) {
                written.insert(name.as_str(), array);
            } else {
                read.insert(name.as_str(), &*array);
            }
        }
        run(&mut |name| {
            let read = read.get(&*name).map(|array| Argument::Read(array));
            read.or_else(|| written.remove(&*name).map(Argument::Write))
        })
    }
}

/// The name under which a rank's own value of a weight is held.
fn of_rank(name: &str, rank: usize) -> String {
    format!("{name}@{rank}")
}

impl Arguments {
    /// The caller's array for an input; None for a weight.
    fn given(&self, input: &Role) -> Result<Option<&Array>> {
        let (list, at, what) = match input {
            Role::Input(at) => (&self.inputs, at, "input"),
            Role::Saved(at) => (&self.saved, at, "saved tensor"),
            Role::Cotangent(at) => (&self.cotangents, at, "cotangent"),
            Role::Weight(_) => return Ok(None),
        };
        let absent = || CompileError::new(Stage::Run, format!("{what} {at} is missing"));
        list.get(*at).map(Some).ok_or_else(absent)
    }
}

impl ProgramLabel {
    /// Whether a graph is what this says of it; `fillings` are its last inputs, which the label does not know of.
    fn check(&self, name: &str, graph: &Graph, fillings: usize) -> Result<()> {
        self.interface.check(graph).map_err(|e| refuse(format!("the interface of `{name}`: {e}")))?;
        if self.inputs.len() + fillings != self.interface.inputs.len() {
            return Err(wrong());
        }
        Ok(())
    }

    fn writes(&self, weight: &str) -> bool {
        let mut inputs = self.inputs.iter().zip(&self.interface.inputs);
        inputs.any(|(role, spec)| {
            spec.mutated_by.is_some() && matches!(role, Role::Weight(name) if name == weight)
        })
    }

    /// What is the caller's and padded, or written: arguments are only read.
    fn copies(&self, fit: Option<&Fit<'_>>, arguments: &Arguments) -> Result<Vec<Option<Array>>> {
        let inputs = self.inputs.iter().zip(&self.interface.inputs).enumerate();
        let copies = inputs.map(|(at, (input, spec))| {
            let padded = fit.filter(|fit| fit.is_padded(at));
            let own =
                if spec.mutated_by.is_some() || padded.is_some() { arguments.given(input)? } else { None };
            own.map(|own| padded.map_or_else(|| whole(own), |fit| fit.pad(at, own))).transpose()
        });
        copies.collect()
    }

    /// What the executable takes.
    fn passed<'a>(
        &'a self,
        fit: Option<&'a Fit<'a>>,
        arguments: &'a Arguments,
        copies: &'a mut [Option<Array>],
        weight: &mut dyn FnMut(&str) -> Option<Argument<'a>>,
    ) -> Result<Vec<Argument<'a>>> {
        let mut args = Vec::with_capacity(copies.len());
        for ((input, copy), spec) in self.inputs.iter().zip(copies).zip(&self.interface.inputs) {
            let written = spec.mutated_by.is_some();
            args.push(match (copy, input) {
                (Some(copy), _) => {
                    if written {
                        Argument::Write(copy)
                    } else {
                        Argument::Read(copy)
                    }
                }
                (None, Role::Weight(name)) => weight(name).ok_or_else(|| {
                    CompileError::new(Stage::Run, format!("weight `{name}` has no value"))
                        .help("the artifact holds no weights: pass some, as a safetensors file")
                })?,
                (None, _) => Argument::Read(arguments.given(input)?.ok_or_else(wrong)?),
            });
        }
        args.extend(fit.into_iter().flat_map(|fit| &fit.fillings).map(Argument::Read));
        Ok(args)
    }

    /// What the caller gets of what the executable gave.
    fn answer(
        &self,
        fit: Option<&Fit<'_>>,
        arguments: &Arguments,
        args: &[Argument<'_>],
        mut results: Vec<Array>,
    ) -> Result<Answer> {
        let specs = self.interface.outputs.iter().enumerate().filter(|(_, spec)| spec.returned);
        let specs: Vec<_> = specs.map(|(at, spec)| (at, &spec.tensor.order)).collect();
        if let Some(fit) = fit {
            let cut = results.iter().zip(&specs).map(|(result, (at, _))| fit.cut_output(*at, result));
            results = cut.collect::<Result<_>>()?;
        }
        let result = |k: &usize| results.get(*k).zip(specs.get(*k)).ok_or_else(wrong);
        // As the caller passed it, or as the program wrote it.
        let arg = |at: usize| match (args.get(at).ok_or_else(wrong)?, fit) {
            (Argument::Read(array), _) => match self.inputs.get(at).map(|input| arguments.given(input)) {
                Some(Ok(Some(own))) => whole(own),
                _ => whole(array),
            },
            (Argument::Write(array), Some(fit)) => fit.cut_input(at, array),
            (Argument::Write(array), None) => whole(array),
        };
        let none = Bindings::default();
        let bindings = fit.map_or(&none, |fit| &fit.bindings);
        let view = |base: &Array, order: &[i64], size: &[Extent], stride: &[Extent], offset: &Extent| {
            let numbers =
                |extents: &[Extent]| extents.iter().map(|e| e.at(bindings)).collect::<Result<Vec<_>>>();
            base.view_in(order, &numbers(size)?, &numbers(stride)?, offset.at(bindings)?).ok_or_else(wrong)
        };
        let outputs = self.outputs.iter().map(|output| match output {
            Output::Tensor(k) => whole(result(k)?.0),
            Output::Input(i) => arg(*i),
            Output::View(k, size, stride, offset) => {
                let (base, (_, order)) = result(k)?;
                view(base, order, size, stride, offset)
            }
            Output::InputView(i, size, stride, offset) => {
                let order = &self.interface.inputs.get(*i).ok_or_else(wrong)?.tensor.order;
                view(&arg(*i)?, order, size, stride, offset)
            }
            Output::Size(extent) => Array::new(DType::I64, Vec::new(), &extent.at(bindings)?.to_le_bytes()),
        });
        let outputs = outputs.collect::<Result<_>>()?;
        let written = self.inputs.iter().zip(args).enumerate();
        let written = written.filter_map(|(at, (input, passed))| match (input, passed) {
            (Role::Input(own), Argument::Write(_)) => Some(arg(at).map(|array| (*own, array))),
            _ => None,
        });
        Ok(Answer { outputs, written: written.collect::<Result<_>>()? })
    }
}

fn wrong() -> CompileError {
    CompileError::new(Stage::Run, "the artifact's inputs and outputs are not those of its program")
}

fn whole(array: &Array) -> Result<Array> {
    Array::new(array.dtype, array.shape().to_vec(), array.bytes())
}

/// Appends weights to an artifact: names, types and elements row by row.
pub fn write_weights(
    writer: &mut Writer,
    weights: Vec<(String, DType, Vec<i64>, &[u8])>,
) -> std::result::Result<(), String> {
    let mut views = Vec::with_capacity(weights.len());
    for (name, dtype, shape, bytes) in weights {
        let found = DTYPES.iter().find(|(ours, _)| *ours == dtype);
        let (_, dtype) = found.ok_or_else(|| format!("weight `{name}`: safetensors has no {dtype}"))?;
        let shape = shape.iter().map(|&d| d.max(0) as usize).collect();
        let view = TensorView::new(*dtype, shape, bytes).map_err(|e| format!("weight `{name}`: {e}"))?;
        views.push((name, view));
    }
    // Beside the artifact, where there is room for it in any case.
    let fail = |e: std::io::Error| format!("cannot write the weights: {e}");
    let file = tempfile::NamedTempFile::new_in(writer.folder()).map_err(fail)?;
    safetensors::serialize_to_file(views, None, file.path())
        .map_err(|e| format!("cannot write the weights: {e}"))?;
    let mut written = std::fs::File::open(file.path()).map_err(fail)?;
    writer.section("weights", &mut written)
}

/// Ours, and those of a safetensors file.
const DTYPES: [(DType, Dtype); 17] = [
    (DType::Bool, Dtype::BOOL),
    (DType::I8, Dtype::I8),
    (DType::I16, Dtype::I16),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
    (DType::U8, Dtype::U8),
    (DType::U16, Dtype::U16),
    (DType::U32, Dtype::U32),
    (DType::U64, Dtype::U64),
    (DType::F8E4M3FN, Dtype::F8_E4M3),
    (DType::F8E5M2, Dtype::F8_E5M2),
    (DType::F8E8M0FNU, Dtype::F8_E8M0),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
    (DType::C64, Dtype::C64),
];
