//! The walk: one graph, one module, through melior.

use crate::attrs::Cache;
use crate::functions::{Functions, STAYS};
use crate::ops::{Body, spec};
use crate::{Argument, FREE, LAYOUT_MODE, Reuse, Signature, layout_text, module_name};
use melior::Context;
use melior::ir::attribute::{
    ArrayAttribute, BoolAttribute, DictionaryAttribute, FlatSymbolRefAttribute, IntegerAttribute,
    StringAttribute, TypeAttribute,
};
use melior::ir::operation::{OperationBuilder, OperationLike, OperationMutLike};
use melior::ir::r#type::{FunctionType, IntegerType};
use melior::ir::{
    Attribute, Block, BlockLike, Identifier, Location, Module, Region, RegionLike, Type, Value,
};
use smallvec::SmallVec;
use std::sync::{Arc, Mutex};
use torchtpu_ir::graph::Value as IrValue;
use torchtpu_ir::{CompileError, DType, Graph, LocId, NodeId, Op, Region as IrRegion, Stage, TensorType};

type Operands<'c> = SmallVec<[Value<'c, 'c>; 4]>;

pub fn bytecode(graph: &Graph, signature: &Signature, inline: bool) -> Result<Vec<u8>, CompileError> {
    let context = Context::new_with_threading(false);
    context.set_allow_unregistered_dialects(true);
    let unknown = Location::unknown(&context);
    let mut module = Module::new(unknown);
    let name = StringAttribute::new(&context, &module_name(graph)).into();
    module.as_operation_mut().set_attribute("sym_name", name);
    let functions = Functions::of(graph, inline);
    module.body().append_operation(function(&context, graph, "main", signature, &functions)?);
    for (name, body) in functions.iter() {
        module.body().append_operation(function(&context, body, name, &Signature::default(), &functions)?);
    }
    for text in functions.customs(true)? {
        let parsed = read(&context, &text)?;
        let mut next = parsed.body().first_operation();
        while let Some(function) = next {
            module.body().append_operation((*function).clone());
            next = function.next_in_block();
        }
    }
    Ok(module.as_operation().write_bytecode())
}

/// The functions of a custom operator.
fn read<'c>(context: &'c Context, text: &str) -> Result<Module<'c>, CompileError> {
    let said = Arc::new(Mutex::new(Vec::new()));
    let ear = said.clone();
    let handler = context.attach_diagnostic_handler(move |diagnostic| {
        if let Ok(mut said) = ear.lock() {
            said.push(diagnostic.to_string());
        }
        true
    });
    let parsed = Module::parse(context, text);
    context.detach_diagnostic_handler(handler);
    parsed.ok_or_else(|| {
        let said = said.lock().map(|s| s.join("; ")).unwrap_or_default();
        fail(format!("MLIR cannot read the StableHLO of a custom operator: {said}"))
    })
}

/// `main` is public; what it calls is private.
fn function<'c>(
    context: &'c Context,
    graph: &Graph,
    name: &str,
    signature: &Signature,
    functions: &Functions<'_>,
) -> Result<melior::ir::Operation<'c>, CompileError> {
    let visibility = if name == "main" { "public" } else { "private" };
    let mut emitter = Emitter::new(context, graph, functions);
    let (block, inputs) = emitter.block()?;
    emitter.body(&block, "func.return")?;
    let results: Vec<Type<'c>> = graph.outputs.iter().map(|v| emitter.cache.tensor(graph.ty(*v))).collect();

    let region = Region::new();
    region.append_block(block);
    let function = FunctionType::new(context, &inputs, &results);
    let mut attributes: Vec<(Identifier<'c>, Attribute<'c>)> = vec![
        (emitter.cache.identifier("sym_name"), StringAttribute::new(context, name).into()),
        (emitter.cache.identifier("sym_visibility"), StringAttribute::new(context, visibility).into()),
        (emitter.cache.identifier("function_type"), TypeAttribute::new(function.into()).into()),
    ];
    let mut say = |name: &'static str, each: &[Attribute<'c>]| {
        attributes.push((emitter.cache.identifier(name), ArrayAttribute::new(context, each).into()));
    };
    if signature.arguments.iter().any(|a| *a != Argument::default()) {
        let each: Vec<_> = signature.arguments.iter().map(|a| argument_attribute(context, a)).collect();
        say("arg_attrs", &each);
    }
    if signature.free.contains(&true) {
        let each: Vec<_> = signature.free.iter().map(|&free| result_attribute(context, free)).collect();
        say("res_attrs", &each);
    }
    OperationBuilder::new("func.func", Location::unknown(context))
        .add_attributes(&attributes)
        .add_regions([region])
        .build()
        .map_err(|e| fail(e.to_string()))
}

fn argument_attribute<'c>(context: &'c Context, argument: &Argument) -> Attribute<'c> {
    let layout = argument
        .layout
        .as_deref()
        .map(|layout| (LAYOUT_MODE, StringAttribute::new(context, &layout_text(layout)).into()));
    let reuse: Option<(&str, Attribute<'c>)> = match argument.reuse {
        Reuse::Keep => None,
        Reuse::Alias(output) => {
            let i32 = IntegerType::new(context, 32).into();
            Some(("tf.aliasing_output", IntegerAttribute::new(i32, output as i64).into()))
        }
        Reuse::Donate => Some(("jax.buffer_donor", BoolAttribute::new(context, true).into())),
    };
    let entries: Vec<_> = layout
        .into_iter()
        .chain(reuse)
        .map(|(name, value)| (Identifier::new(context, name), value))
        .collect();
    DictionaryAttribute::new(context, &entries).into()
}

fn result_attribute(context: &Context, free: bool) -> Attribute<'_> {
    let entry = (Identifier::new(context, LAYOUT_MODE), StringAttribute::new(context, FREE).into());
    DictionaryAttribute::new(context, if free { std::slice::from_ref(&entry) } else { &[] }).into()
}

fn fail(message: String) -> CompileError {
    CompileError::new(Stage::Emit, message)
}

struct Emitter<'c, 'g> {
    cache: Cache<'c, 'g>,
    graph: &'g Graph,
    functions: &'g Functions<'g>,
    values: Vec<Value<'c, 'c>>,
    /// For each node, where its results start in `values`.
    first: Vec<u32>,
}

impl<'c, 'g> Emitter<'c, 'g> {
    fn new(context: &'c Context, graph: &'g Graph, functions: &'g Functions<'g>) -> Self {
        Emitter {
            cache: Cache::new(context, graph),
            graph,
            functions,
            values: Vec::with_capacity(graph.len()),
            first: vec![u32::MAX; graph.bound()],
        }
    }

    /// A block that takes the graph's parameters, and their types.
    fn block(&mut self) -> Result<(Block<'c>, Vec<Type<'c>>), CompileError> {
        let graph = self.graph;
        let arguments: Vec<(Type<'c>, Location<'c>)> = graph
            .parameters()
            .iter()
            .map(|&p| {
                let node = graph.node(p);
                (self.result_type(&node.types, 0), self.cache.location(node.loc))
            })
            .collect();
        let block = Block::new(&arguments);
        for (i, &p) in graph.parameters().iter().enumerate() {
            let argument = block.argument(i).map_err(|e| fail(e.to_string()))?;
            self.define(p, [argument.into()]);
        }
        Ok((block, arguments.into_iter().map(|(ty, _)| ty).collect()))
    }

    /// Every node of the graph, and the return of its outputs. Parameters are defined already.
    fn body(&mut self, block: &Block<'c>, terminator: &str) -> Result<(), CompileError> {
        let graph = self.graph;
        for id in graph.topological() {
            if !matches!(graph.op(id), Op::Parameter(_)) {
                self.node(id, block)
                    .map_err(|m| fail(m).at(graph.op(id).name(), graph.location(graph.node(id).loc)))?;
            }
        }
        let outputs: Operands<'c> =
            graph.outputs.iter().map(|v| self.value(*v)).collect::<Result<_, _>>().map_err(fail)?;
        self.op(block, terminator, &outputs, &[], &[], Vec::new(), LocId::UNKNOWN).map_err(fail)?;
        Ok(())
    }

    /// The regions of control flow. A loop's blocks take its state; a branch takes nothing and reads the operands.
    fn regions(&self, op: &Op, operands: &[Value<'c, 'c>]) -> Result<Vec<Region<'c>>, String> {
        let emit = |graph: &IrRegion| -> Result<Region<'c>, CompileError> {
            let mut inner = Emitter::new(self.cache.context, graph, self.functions);
            let block = if let Op::If(_) = op {
                for (&p, value) in graph.parameters().iter().zip(operands.iter().skip(1)) {
                    inner.define(p, [*value]);
                }
                Block::new(&[])
            } else {
                inner.block()?.0
            };
            inner.body(&block, "stablehlo.return")?;
            let region = Region::new();
            region.append_block(block);
            Ok(region)
        };
        if let Op::Call(_) = op {
            return Ok(Vec::new());
        }
        op.regions().into_iter().map(emit).collect::<Result<_, _>>().map_err(|e| e.message)
    }

    fn result_type(&mut self, types: &[TensorType], i: usize) -> Type<'c> {
        match types.get(i) {
            Some(t) => self.cache.tensor(t),
            None => self.cache.scalar(DType::F32),
        }
    }

    fn define(&mut self, id: NodeId, values: impl IntoIterator<Item = Value<'c, 'c>>) {
        self.first[id.index()] = self.values.len() as u32;
        self.values.extend(values);
    }

    fn value(&self, v: IrValue) -> Result<Value<'c, 'c>, String> {
        let first = self.first[v.node.index()];
        let found = if first == u32::MAX { None } else { self.values.get((first + v.result) as usize) };
        found
            .copied()
            .ok_or_else(|| format!("value {} of node {} is used before it is made", v.result, v.node.index()))
    }

    fn node(&mut self, id: NodeId, block: &Block<'c>) -> Result<(), String> {
        let graph = self.graph;
        let node = graph.node(id);
        let sources = graph.operands(id);
        let types: SmallVec<[&TensorType; 4]> = sources.iter().map(|v| graph.ty(*v)).collect();
        let operands: Operands<'c> = sources.iter().map(|v| self.value(*v)).collect::<Result<_, _>>()?;
        let results = self.operation(block, &node.op, &operands, &types, &node.types, node.loc)?;
        self.define(id, results);
        Ok(())
    }

    /// Appends `op` with whatever it needs before it.
    fn operation(
        &mut self,
        block: &Block<'c>,
        op: &Op,
        operands: &[Value<'c, 'c>],
        operand_types: &[&TensorType],
        types: &[TensorType],
        loc: LocId,
    ) -> Result<Operands<'c>, String> {
        let spec = spec(op, operand_types, types)?;
        let mut operands: Operands<'c> = operands.into();
        for (extra, ty) in &spec.extra {
            let made = self.operation(block, extra, &[], &[], std::slice::from_ref(ty), loc)?;
            operands.extend(made);
        }
        let mut attributes: SmallVec<[(Identifier<'c>, Attribute<'c>); 8]> = SmallVec::new();
        if let Some(result) = types.first() {
            for (name, value) in &spec.attrs {
                attributes.push((self.cache.identifier(name), self.cache.attribute(value, result)?));
            }
        }
        let callee = match op {
            Op::Call(call) => self.functions.name(&call.body).map(str::to_string),
            Op::Custom(custom) => self.functions.custom_name(&custom.function),
            _ => None,
        };
        if matches!(op, Op::Call(_) | Op::Custom(_)) {
            let callee = callee.ok_or("a call of a function that does not exist")?;
            let callee = FlatSymbolRefAttribute::new(self.cache.context, &callee);
            attributes.push((self.cache.identifier("callee"), callee.into()));
        }
        if let Op::Call(call) = op
            && self.functions.stays(&call.body)
        {
            let (name, key, value) = STAYS;
            let entry = (self.cache.identifier(key), StringAttribute::new(self.cache.context, value).into());
            let all = DictionaryAttribute::new(self.cache.context, &[entry]).into();
            attributes.push((self.cache.identifier(name), all));
        }
        let types: SmallVec<[Type<'c>; 2]> = types.iter().map(|t| self.cache.tensor(t)).collect();
        let mut regions = self.regions(op, &operands)?;
        if let Some(body) = &spec.body {
            regions.push(self.region(body, loc)?);
        }
        if let Op::If(_) = op {
            operands.truncate(1);
        }
        self.op(block, spec.name, &operands, &attributes, &types, regions, loc)
    }

    fn region(&mut self, body: &Body, loc: LocId) -> Result<Region<'c>, String> {
        let location = self.cache.location(loc);
        let arguments: Vec<(Type<'c>, Location<'c>)> =
            body.args.iter().map(|&d| (self.cache.scalar(d), location)).collect();
        let block = Block::new(&arguments);
        let mut values: Operands<'c> = SmallVec::new();
        let mut types: Vec<TensorType> = body.args.iter().map(|&d| TensorType::scalar(d)).collect();
        for i in 0..arguments.len() {
            values.push(block.argument(i).map_err(|e| e.to_string())?.into());
        }
        for step in &body.steps {
            let result = TensorType::scalar(step.dtype);
            let operands: Operands<'c> = step.operands.iter().map(|&i| values[i]).collect();
            let sources: SmallVec<[&TensorType; 4]> = step.operands.iter().map(|&i| &types[i]).collect();
            let stated = std::slice::from_ref(&result);
            let made = self.operation(&block, &step.op, &operands, &sources, stated, loc)?;
            drop(sources);
            values.extend(made);
            types.push(result);
        }
        let results: Operands<'c> = body.results.iter().map(|&i| values[i]).collect();
        self.op(&block, "stablehlo.return", &results, &[], &[], Vec::new(), loc)?;
        let region = Region::new();
        region.append_block(block);
        Ok(region)
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one MLIR operation")]
    fn op(
        &mut self,
        block: &Block<'c>,
        name: &str,
        operands: &[Value<'c, 'c>],
        attributes: &[(Identifier<'c>, Attribute<'c>)],
        types: &[Type<'c>],
        regions: Vec<Region<'c>>,
        loc: LocId,
    ) -> Result<Operands<'c>, String> {
        let builder = OperationBuilder::new(name, self.cache.location(loc))
            .add_operands(operands)
            .add_attributes(attributes)
            .add_results(types)
            .add_regions_vec(regions);
        let made = block.append_operation(builder.build().map_err(|e| e.to_string())?);
        (0..types.len()).map(|i| made.result(i).map(Into::into).map_err(|e| e.to_string())).collect()
    }
}
