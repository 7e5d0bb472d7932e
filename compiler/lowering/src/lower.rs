//! A payload to a verified graph: parameters, nodes in order, outputs, aliases.

use crate::cx::{Check, Cx, Functions, Lowering, Settings, size, tensor_type};
use crate::families::pointwise;
use crate::table::{self, Result, Rule};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use torchtpu_import::{Arg, Meta, Payload};
use torchtpu_ir::graph::Alias;
use torchtpu_ir::op::{Custom, ParamRole};
use torchtpu_ir::stablehlo::mlir_type;
use torchtpu_ir::{
    Builder, CompileError, Frame, Graph, LocId, Location, Precision, Region, ReplicaGroups, StableHlo, Stage,
    TensorType, Value, verify::verify,
};

/// Type and memory order of a tensor at the program's border. `order` lists dimensions from the outermost to the
/// innermost in memory; the program's own parameter or result has the dimensions in that order, dense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    pub ty: TensorType,
    pub order: Vec<i64>,
}

impl TensorSpec {
    fn of(meta: &Meta) -> Result<TensorSpec> {
        let ty = tensor_type(meta)?;
        let strides = meta.stride.iter().map(size).collect::<Result<Vec<_>>>()?;
        let order = memory_order(&ty.shape, &strides).unwrap_or_else(|| (0..ty.rank() as i64).collect());
        Ok(TensorSpec { ty, order })
    }

    /// The type in memory order.
    pub fn memory_type(&self) -> TensorType {
        self.ty.with_shape(self.order.iter().map(|&d| self.ty.shape[d as usize]).collect::<Vec<_>>())
    }

    /// Strides in elements of the dense tensor in this order.
    pub fn strides(&self) -> Vec<i64> {
        let mut strides = vec![1; self.ty.rank()];
        let mut step = 1;
        for &d in self.order.iter().rev() {
            strides[d as usize] = step;
            step *= self.ty.shape[d as usize].max(1);
        }
        strides
    }
}

/// The order of dimensions in memory, if the strides are those of a dense tensor in some order.
fn memory_order(shape: &[i64], strides: &[i64]) -> Option<Vec<i64>> {
    if shape.len() != strides.len() || shape.contains(&0) {
        return None;
    }
    let mut order: Vec<usize> = (0..shape.len()).collect();
    // Dimensions of size 1 have no memory order of their own: they stay beside their neighbour.
    let mut key = vec![0; shape.len()];
    let mut outer = i64::MAX;
    for d in 0..shape.len() {
        if shape[d] != 1 {
            outer = strides[d];
        }
        key[d] = outer;
    }
    order.sort_by_key(|&d| std::cmp::Reverse(key[d]));
    let mut step = 1;
    for &d in order.iter().rev() {
        if shape[d] != 1 && strides[d] != step {
            return None;
        }
        step *= shape[d];
    }
    Some(order.into_iter().map(|d| d as i64).collect())
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputSpec {
    pub name: String,
    pub tensor: TensorSpec,
    /// The same tensor call after call.
    pub is_static: bool,
    /// The output that is written over this input.
    pub mutated_by: Option<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutputSpec {
    pub tensor: TensorSpec,
    /// Returned to the caller; else it is there to be written over an input.
    pub returned: bool,
}

/// A graph with what its caller has to know.
pub struct Lowered {
    pub graph: Graph,
    /// Tensor inputs, then constants that are passed at run time.
    pub inputs: Vec<InputSpec>,
    pub outputs: Vec<OutputSpec>,
    /// Predicates that the program returns after its outputs.
    pub checks: Vec<Check>,
    pub uses_seed: bool,
}

/// A node or input that has no lowering as it stands.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The FX node's name.
    pub node: String,
    /// The user's operator: that of a higher-order one's graph, where the graph is to blame.
    pub error: CompileError,
}

/// What failed so far, so that one attempt finds all of it.
#[derive(Default)]
pub(crate) struct Survey {
    failures: Vec<Failure>,
    /// How many of the failures are not just those of an earlier one's results.
    own: Vec<usize>,
    /// Values without a type: nothing can be said of what reads them but that it fails too.
    untyped: HashSet<usize>,
}

impl Survey {
    fn add(&mut self, node: &str, error: CompileError, follows: bool) {
        if !follows {
            self.own.push(self.failures.len());
        }
        self.failures.push(Failure { node: node.to_string(), error });
    }

    /// The first error, which names the others.
    fn into_error(mut self) -> Option<CompileError> {
        const SHOWN: usize = 8;
        let mut others: Vec<String> = Vec::new();
        for Failure { error, .. } in self.own.iter().skip(1).filter_map(|&i| self.failures.get(i)) {
            let line = error.location.user_line().map_or_else(String::new, |line| format!(" ({line})"));
            let text = format!("`{}`{line}", error.op.as_deref().unwrap_or("?"));
            if !others.contains(&text) {
                others.push(text);
            }
        }
        let first = *self.own.first()?;
        let mut error = self.failures.swap_remove(first).error;
        if others.len() > SHOWN {
            let more = others.split_off(SHOWN).len();
            others.push(format!("{more} more"));
        }
        if !others.is_empty() {
            error.message = format!("{}\n  also:  {}", error.message, others.join(", "));
        }
        Some(error)
    }
}

/// Lowers a payload whose symbols are bound. With `check_bounds` the program also returns the predicates of
/// `Cx::check`. The error names every operator that is not supported.
pub fn lower(payload: &Payload, check_bounds: bool) -> Result<Lowered> {
    lower_for(payload, check_bounds, None)
}

/// As `lower`, for a graph that is to be like those of other sizes, up to `largest`, operation by operation.
pub fn lower_for(payload: &Payload, check_bounds: bool, largest: Option<i64>) -> Result<Lowered> {
    let (lowered, survey) = attempt(payload, check_bounds, largest);
    survey.into_error().map_or(lowered, Err)
}

/// All nodes and inputs that cannot be lowered, in order.
pub fn survey(payload: &Payload) -> Vec<Failure> {
    attempt(payload, false, None).1.failures
}

/// Lowers what can be lowered. The result means nothing where there are failures.
fn attempt(payload: &Payload, check_bounds: bool, largest: Option<i64>) -> (Result<Lowered>, Survey) {
    let mut survey = Survey::default();
    let lowered = attempt_with(payload, check_bounds, largest, &mut survey);
    (lowered, survey)
}

fn attempt_with(
    payload: &Payload,
    check_bounds: bool,
    largest: Option<i64>,
    survey: &mut Survey,
) -> Result<Lowered> {
    let precision = match payload.matmul_precision.as_str() {
        "high" => Precision::High,
        "medium" => Precision::Default,
        _ => Precision::Highest,
    };
    let mut graph = Graph::new(payload.name.clone());
    let mut inputs = Vec::new();
    let mut values = Vec::with_capacity(payload.inputs.len() + payload.constants.len() + payload.nodes.len());
    let mut b = Builder::new(&mut graph);
    let mut border = |b: &mut Builder<'_>, name: &str, meta: &Meta, is_static: bool| -> Result<Value> {
        let tensor = TensorSpec::of(meta)?;
        let v = b.parameter(ParamRole::Input, inputs.len() as i64, tensor.memory_type());
        let mut inverse = vec![0; tensor.order.len()];
        tensor.order.iter().enumerate().for_each(|(i, &d)| inverse[d as usize] = i as i64);
        inputs.push(InputSpec { name: name.to_string(), tensor, is_static, mutated_by: None });
        b.transpose(v, &inverse)
    };
    for input in &payload.inputs {
        let location = Location { name: input.name.clone(), frames: Vec::new() };
        b.loc = b.graph.add_location(location.clone());
        let value = input.val.as_ref().map(|meta| border(&mut b, &input.name, meta, input.is_static));
        values.push(match value {
            Some(Ok(value)) => Lowering::One(value),
            Some(Err(e)) => {
                survey.untyped.insert(values.len());
                survey.add(&input.name, e.at("placeholder", &location), false);
                Lowering::Many(Vec::new())
            }
            None => Lowering::Many(Vec::new()),
        });
    }
    for constant in &payload.constants {
        let location = Location { name: constant.name.clone(), frames: Vec::new() };
        b.loc = b.graph.add_location(location.clone());
        let value = match &constant.hex {
            Some(hex) => decode_hex(hex).and_then(|bytes| b.dense(tensor_type(&constant.val)?, bytes)),
            None => border(&mut b, &constant.name, &constant.val, true),
        };
        values.push(match value {
            Ok(value) => Lowering::One(value),
            Err(e) => {
                survey.untyped.insert(values.len());
                survey.add(&constant.name, e.at("get_attr", &location), false);
                Lowering::Many(Vec::new())
            }
        });
    }
    let Some(first) = payload.nodes.first() else {
        return finish(graph, Ends { inputs, values, ..Ends::default() }, payload);
    };
    let mut cx = Cx {
        b,
        settings: Settings {
            precision,
            float8_overflow_is_nan: payload.float8_overflow_is_nan,
            groups: groups(payload).into(),
            check_bounds,
            in_region: false,
            stablehlo: payload.stablehlo.clone().into(),
            largest,
        },
        payload,
        node: first,
        target: &payload.targets[first.target],
        values,
        out: Vec::new(),
        rng_state: None,
        rng_before: Vec::new(),
        checks: Vec::new(),
        survey: Some(std::mem::take(survey)),
        functions: Functions::default(),
    };
    let mut mutations = Vec::new();
    nodes(&mut cx, &mut mutations)?;
    let uses_seed = cx.rng_state.is_some();
    *survey = cx.survey.take().unwrap_or_default();
    let (values, checks) = (cx.values, cx.checks);
    finish(graph, Ends { inputs, mutations, values, checks, uses_seed }, payload)
}

/// Lowers every node of the payload in order.
fn nodes(cx: &mut Cx<'_>, mutations: &mut Vec<Mutation>) -> Result<()> {
    let frame = |(file, line, function): &(String, u32, String)| Frame {
        file: file.as_str().into(),
        line: *line,
        function: function.as_str().into(),
    };
    let stacks: Vec<Vec<Frame>> =
        cx.payload.stacks.iter().map(|stack| stack.iter().map(frame).collect()).collect();
    for node in &cx.payload.nodes {
        cx.node = node;
        cx.target = &cx.payload.targets[node.target];
        let frames = node.stack.map(|s| stacks[s].clone()).unwrap_or_default();
        cx.b.loc = cx.b.graph.add_location(Location { name: node.name.clone(), frames });
        let lowering = lower_node(cx, mutations)
            .map_err(|e| e.at(&cx.target.name, cx.b.graph.location(cx.b.loc)))
            .or_else(|e| stand_in(cx, e))?;
        cx.values.push(lowering);
    }
    Ok(())
}

/// Notes a failure and gives the node's results, as PyTorch describes them, to those who read them.
fn stand_in(cx: &mut Cx<'_>, error: CompileError) -> Result<Lowering> {
    fn reads(arg: &Arg, untyped: &HashSet<usize>) -> bool {
        match arg {
            Arg::Value(i) => untyped.contains(i),
            Arg::List(list) => list.iter().any(|arg| reads(arg, untyped)),
            _ => false,
        }
    }
    let Some(survey) = &mut cx.survey else { return Err(error) };
    let follows = cx.node.args.iter().any(|arg| reads(arg, &survey.untyped));
    survey.add(&cx.node.name, error, follows);
    let types: Option<Vec<Option<TensorType>>> =
        cx.node.vals.iter().map(|v| v.as_ref().map(tensor_type).transpose().ok()).collect();
    let Some(types) = types else {
        survey.untyped.insert(cx.values.len());
        return Ok(Lowering::Many(Vec::new()));
    };
    let mut values: Vec<Option<Value>> =
        types.iter().map(|ty| ty.as_ref().map(|ty| cx.b.full(ty, 0.0))).collect();
    Ok(match values.as_mut_slice() {
        [Some(value)] if !matches!(table::find(cx.target()), Some(Rule::Many(_))) => Lowering::One(*value),
        _ => Lowering::Many(values),
    })
}

/// Lowers a nested payload in the graph of `cx`, its inputs given; the values of its outputs, None where they are None.
pub(crate) fn inline(cx: &mut Cx<'_>, payload: &Payload, inputs: &[Value]) -> Result<Vec<Option<Value>>> {
    let mut given = inputs.iter();
    let mut values = Vec::new();
    for input in &payload.inputs {
        let value = match &input.val {
            Some(_) => given.next().copied().map(Lowering::One),
            None => Some(Lowering::Many(Vec::new())),
        };
        values.push(value.ok_or_else(|| CompileError::lowering("a nested graph takes more operands"))?);
    }
    for constant in &payload.constants {
        let Some(hex) = &constant.hex else {
            return Err(
                CompileError::lowering("a nested graph owns a large tensor").help("pass it as an operand")
            );
        };
        values.push(Lowering::One(cx.b.dense(tensor_type(&constant.val)?, decode_hex(hex)?)?));
    }
    let outer = cx.b.loc;
    let mut inner = Cx {
        b: Builder { graph: cx.b.graph, loc: outer },
        settings: cx.settings.clone(),
        payload,
        node: cx.node,
        target: cx.target,
        values,
        out: Vec::new(),
        rng_state: cx.rng_state,
        rng_before: Vec::new(),
        checks: Vec::new(),
        survey: None,
        functions: cx.functions.clone(),
    };
    let mut mutations = Vec::new();
    nodes(&mut inner, &mut mutations)?;
    if !mutations.is_empty() {
        return Err(CompileError::lowering("a nested graph writes over its operands"));
    }
    let result = |output: &Arg| match output {
        Arg::Value(i) => match inner.values.get(*i) {
            Some(Lowering::One(v)) => Ok(Some(*v)),
            _ => Err(CompileError::lowering("a nested graph returns what is no tensor")),
        },
        Arg::None => Ok(None),
        _ => Err(CompileError::lowering("a nested graph returns what is no tensor")),
    };
    let results = payload.outputs.iter().map(result).collect();
    let (rng_state, checks) = (inner.rng_state, inner.checks);
    cx.rng_state = rng_state;
    cx.checks.extend(checks);
    cx.b.loc = outer;
    results
}

/// Lowers a nested payload to a graph of its own, with parameters of the given types. `wrap` makes the graph's outputs
/// of its parameters, with `inline` for the payload.
pub(crate) fn region(
    cx: &Cx<'_>,
    name: &str,
    types: &[TensorType],
    wrap: impl FnOnce(&mut Cx<'_>, &[Value]) -> Result<Vec<Value>>,
) -> Result<Region> {
    let mut graph = Graph::new(name);
    let location = cx.b.graph.location(cx.b.loc).clone();
    let mut b = Builder::new(&mut graph);
    b.loc = b.graph.add_location(location);
    let parameters: Vec<Value> =
        types.iter().enumerate().map(|(i, ty)| b.parameter(ParamRole::Input, i as i64, ty.clone())).collect();
    let mut inner = Cx {
        b,
        // What a region finds out of bounds cannot leave it.
        settings: Settings { check_bounds: false, in_region: true, ..cx.settings.clone() },
        payload: cx.payload,
        node: cx.node,
        target: cx.target,
        values: Vec::new(),
        out: Vec::new(),
        rng_state: None,
        rng_before: Vec::new(),
        checks: Vec::new(),
        survey: None,
        functions: cx.functions.clone(),
    };
    let outputs = wrap(&mut inner, &parameters)?;
    graph.outputs = outputs;
    Ok(Region::new(graph))
}

/// What is known once every node is lowered.
#[derive(Default)]
struct Ends {
    inputs: Vec<InputSpec>,
    mutations: Vec<Mutation>,
    values: Vec<Lowering>,
    checks: Vec<(Value, Check)>,
    uses_seed: bool,
}

/// The process groups, as replica groups.
fn groups(payload: &Payload) -> BTreeMap<String, ReplicaGroups> {
    payload.groups.iter().map(|(name, groups)| (name.clone(), ReplicaGroups::of(groups.clone()))).collect()
}

fn decode_hex(hex: &str) -> Result<Vec<u8>> {
    let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    let bytes: Option<Vec<u8>> =
        hex.as_bytes().chunks(2).map(|p| Some(digit(p[0])? << 4 | digit(*p.get(1)?)?)).collect();
    bytes.ok_or_else(|| CompileError::new(Stage::Import, "corrupt FX payload: a constant is not hexadecimal"))
}

/// `(input index, new value)` of a mutated input.
type Mutation = (usize, Value);

fn lower_node(cx: &mut Cx<'_>, mutations: &mut Vec<Mutation>) -> Result<Lowering> {
    match cx.target() {
        "getitem" => return getitem(cx),
        "aten.copy_.default" => return copy_into_input(cx, mutations),
        _ => {}
    }
    if let Some(text) = cx.node.stablehlo {
        return custom(cx, text);
    }
    let Some(rule) = table::find(cx.target()) else {
        return Err(unsupported(cx.target()));
    };
    cx.out = cx.node.vals.iter().map(|v| v.as_ref().map(tensor_type).transpose()).collect::<Result<_>>()?;
    let results: Vec<Value> = match rule {
        Rule::Unary(op) => vec![pointwise::unary(cx, op)?],
        Rule::UnaryOpmath(op) => vec![pointwise::unary_opmath(cx, op)?],
        Rule::Binary(op) => vec![pointwise::binary(cx, op)?],
        Rule::Compare(direction) => vec![pointwise::compare(cx, direction)?],
        Rule::One(f) => vec![f(cx)?],
        Rule::Many(f) => {
            let many = f(cx)?;
            check_results(cx, &many)?;
            let typed = cx.out.iter().zip(many).map(|(out, v)| out.is_some().then_some(v)).collect();
            return Ok(Lowering::Many(typed));
        }
    };
    check_results(cx, &results)?;
    Ok(Lowering::One(results[0]))
}

/// A lowering that disagrees with PyTorch's own shape or dtype is a bug of ours and must not run.
fn check_results(cx: &Cx<'_>, results: &[Value]) -> Result<()> {
    if results.len() != cx.out.len() {
        return Err(CompileError::lowering(format!(
            "internal error: {} results where PyTorch has {}",
            results.len(),
            cx.out.len()
        )));
    }
    for (v, expected) in results.iter().zip(&cx.out) {
        if let Some(expected) = expected
            && cx.b.ty(*v) != expected
        {
            return Err(CompileError::lowering(format!(
                "internal error: the lowering gives {} where PyTorch has {expected}",
                cx.b.ty(*v)
            ))
            .help("please report this with the dumped payload.json"));
        }
    }
    Ok(())
}

/// A custom operator whose lowering is a StableHLO function of the user's.
fn custom(cx: &mut Cx<'_>, text: usize) -> Result<Lowering> {
    let texts = cx.settings.stablehlo.clone();
    let text = texts.get(text).ok_or_else(|| {
        CompileError::new(Stage::Import, "corrupt FX payload: a StableHLO function is missing")
    })?;
    let function = StableHlo::parse(text).map_err(|e| {
        CompileError::lowering(format!("the StableHLO of `{}`: {e}", cx.target.name))
            .help("torchtpu_dynamo.register_lowering says which form is read")
    })?;
    cx.out = cx.node.vals.iter().map(|v| v.as_ref().map(tensor_type).transpose()).collect::<Result<_>>()?;
    let mut operands = Vec::new();
    for arg in &cx.node.args {
        match arg {
            Arg::Value(i) => operands.push(cx.value(*i)?),
            Arg::List(list) => {
                for arg in list {
                    if let Arg::Value(i) = arg {
                        operands.push(cx.value(*i)?);
                    }
                }
            }
            _ => {}
        }
    }
    let list = |types: &[&TensorType]| types.iter().map(|ty| mlir_type(ty)).collect::<Vec<_>>().join(", ");
    let given: Vec<&TensorType> = operands.iter().map(|v| cx.b.ty(*v)).collect();
    let wanted: Vec<&TensorType> = cx.out.iter().flatten().collect();
    let (takes, gives): (Vec<_>, Vec<_>) =
        (function.operands().iter().collect(), function.results().iter().collect());
    if given != takes || wanted != gives {
        return Err(CompileError::lowering(format!(
            "the StableHLO of `{}` is of type ({}) -> ({}); the operator's call is of type ({}) -> ({})",
            cx.target.name,
            list(&takes),
            list(&gives),
            list(&given),
            list(&wanted)
        ))
        .help("register a callable that makes the text of the operands' types, where shapes vary"));
    }
    let node = cx.b.op(Custom { function }, &operands)?;
    let mut results = cx.b.graph.results(node).into_iter();
    if let [Some(_)] = cx.out.as_slice()
        && !cx.node.is_tuple
    {
        let one = results.next().ok_or_else(|| CompileError::lowering("internal error: no result"))?;
        return Ok(Lowering::One(one));
    }
    Ok(Lowering::Many(cx.out.iter().map(|out| out.as_ref().and_then(|_| results.next())).collect()))
}

fn unsupported(target: &str) -> CompileError {
    let error = CompileError::lowering(format!("`{target}` has no lowering"));
    if !target.starts_with("aten.") && target.contains('.') {
        return error.help(
            "give it one with torchtpu_dynamo.register_lowering, or run it on the host with options={\"fallback\": \"eager\"}",
        );
    }
    let similar = table::similar(target);
    error.help(if similar.is_empty() {
        format!(
            "{} ATen overloads are supported (docs/ops.md); rewrite this line with them, or run it on the host with options={{\"fallback\": \"eager\"}}",
            table::rows().count()
        )
    } else {
        format!("supported overloads of it: {}", similar.join(", "))
    })
}

fn getitem(cx: &mut Cx<'_>) -> Result<Lowering> {
    let index = cx.int("index")?;
    let Arg::Value(source) = cx.arg("self") else {
        return Err(CompileError::lowering("getitem of what is not a tuple"));
    };
    match cx.values.get(*source) {
        Some(Lowering::Many(list)) => {
            let i = if index < 0 { index + list.len() as i64 } else { index };
            let value = usize::try_from(i).ok().and_then(|i| list.get(i).copied()).flatten();
            value
                .map(Lowering::One)
                .ok_or_else(|| CompileError::lowering(format!("the tuple has no tensor {index}")))
        }
        _ => Err(CompileError::lowering("getitem of what is not a tuple")),
    }
}

/// The epilogue of a mutated input (`keep_inference_input_mutations`): remembered, and emitted as an aliased output.
fn copy_into_input(cx: &mut Cx<'_>, mutations: &mut Vec<Mutation>) -> Result<Lowering> {
    let Arg::Value(target) = cx.arg("self") else {
        return Err(CompileError::lowering("copy_ into what is not a tensor"));
    };
    if cx.payload.inputs.get(*target).is_none_or(|i| i.val.is_none()) {
        return Err(CompileError::lowering("copy_ into a tensor that is no input of the graph"));
    }
    let index = cx.payload.inputs[..*target].iter().filter(|i| i.val.is_some()).count();
    let ty = cx.b.ty(cx.value(*target)?).clone();
    let src = cx.tensor("src")?;
    let src = cx.convert(src, ty.dtype)?;
    let src = cx.b.broadcast_to(src, &ty.shape)?;
    mutations.retain(|(i, _)| *i != index);
    mutations.push((index, src));
    Ok(Lowering::One(src))
}

fn finish(mut graph: Graph, ends: Ends, payload: &Payload) -> Result<Lowered> {
    let Ends { mut inputs, mutations, values, checks, uses_seed } = ends;
    let mut outputs = Vec::new();
    let mut b = Builder { graph: &mut graph, loc: LocId::UNKNOWN };
    let metas: Vec<Option<&Meta>> = payload.outputs.iter().map(|o| output_meta(payload, o)).collect();
    let mut results = Vec::new();
    for (output, meta) in payload.outputs.iter().zip(metas) {
        let value = match output {
            Arg::Value(i) => match values.get(*i) {
                Some(Lowering::One(v)) => Some(*v),
                _ => None,
            },
            _ => None,
        };
        let (Some(value), Some(meta)) = (value, meta) else {
            return Err(CompileError::new(Stage::Import, "corrupt FX payload: an output is no tensor"));
        };
        let tensor = TensorSpec::of(meta)?;
        b.loc = b.graph.node(value.node).loc;
        results.push(b.transpose(value, &tensor.order)?);
        outputs.push(OutputSpec { tensor, returned: true });
    }
    for (input, value) in mutations {
        let tensor = inputs[input].tensor.clone();
        b.loc = b.graph.node(value.node).loc;
        inputs[input].mutated_by = Some(results.len());
        results.push(b.transpose(value, &tensor.order)?);
        outputs.push(OutputSpec { tensor, returned: false });
    }
    let (predicates, checks): (Vec<Value>, Vec<Check>) = checks.into_iter().unzip();
    results.extend(predicates);
    graph.outputs = results;
    graph.aliases = inputs
        .iter()
        .enumerate()
        .filter_map(|(parameter, i)| Some(Alias { output: i.mutated_by?, parameter }))
        .collect();
    verify(&graph)?;
    Ok(Lowered { graph, inputs, outputs, checks, uses_seed })
}

fn output_meta<'a>(payload: &'a Payload, output: &Arg) -> Option<&'a Meta> {
    let Arg::Value(i) = output else { return None };
    let (inputs, constants) = (payload.inputs.len(), payload.constants.len());
    if *i < inputs {
        payload.inputs[*i].val.as_ref()
    } else if *i < inputs + constants {
        Some(&payload.constants[*i - inputs].val)
    } else {
        payload.nodes.get(*i - inputs - constants)?.vals.first()?.as_ref()
    }
}
