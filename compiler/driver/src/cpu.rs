//! What XLA's CPU plugin needs said differently, so that its numbers are eager's.
//!
//! Matrix products run in XNNPACK, which is up to twice as fast as the plugin's own. But where the second operand
//! is a parameter of the program, the plugin packs it at the first execution and from then on knows it by its
//! address: a weight that the user updates in place would be multiplied as it was before the update. `prepare`
//! keeps the speed and takes away the chance: no operand is ever a parameter. Updates of a part of a tensor by another
//! part of it are in `updates`.

mod updates;

use torchtpu_emit::EmitOptions;
use torchtpu_ir::{Builder, CompileError, DType, Graph, NodeId, Op, TensorType, Value};
use torchtpu_pjrt::OptionValue;

/// The name by which the plugin calls its platform.
pub const PLATFORM: &str = "cpu";

/// XLA options of every compilation on this plugin, unless the user sets them.
///
/// oneDNN is not among them, though it is as fast: its batched products hang in the plugin's thread pool.
pub fn options() -> Vec<(&'static str, OptionValue)> {
    vec![
        // Reductions by maximum and minimum keep NaN.
        ("xla_cpu_enable_fast_min_max", OptionValue::Bool(false)),
        // The short floats are rounded after every operation.
        ("xla_allow_excess_precision", OptionValue::Bool(false)),
    ]
}

/// A program as the plugin should see it.
pub struct Prepared {
    pub graph: Graph,
    pub options: EmitOptions,
}

/// The graph in a form in which the plugin's numbers are right. None where it is in one already.
pub fn prepare(graph: &Graph) -> Result<Option<Prepared>, CompileError> {
    let separate = updates::separate(graph)?;
    match products(separate.as_ref().unwrap_or(graph))? {
        Some(prepared) => Ok(Some(prepared)),
        None => Ok(separate.map(|graph| Prepared { graph, options: inlined() })),
    }
}

/// How a graph is emitted that needs nothing else.
pub fn inlined() -> EmitOptions {
    EmitOptions { inline: true, ..EmitOptions::default() }
}

/// The graph with its floating parameters declared otherwise than they are used, at no cost: a reshape or a
/// transpose is all that differs, and the memory is the same. None where it has no product.
///
/// ```text
/// %0 = parameter ... : f32[4,8]        %0 = parameter ... : f32[32]
/// %1 = dot_general %x, %0              %1 = reshape %0 : f32[4,8]
///                                      %2 = dot_general %x, %1
/// ```
///
/// An output that overwrites a parameter takes the parameter's shape.
fn products(graph: &Graph) -> Result<Option<Prepared>, CompileError> {
    if !graph.node_ids().any(|id| matches!(graph.op(id), Op::DotGeneral(_))) {
        return Ok(None);
    }
    let mut graph = graph.clone();
    let mut options = inlined();
    let mut b = Builder::new(&mut graph);
    for (position, id) in b.graph.parameters().to_vec().into_iter().enumerate() {
        let parameter = Value { node: id, result: 0 };
        let ty = b.ty(parameter).clone();
        if !ty.dtype.is_float() {
            continue;
        }
        let products = products_to_turn(b.graph, position);
        let node = b.graph.node_mut(id);
        b.loc = node.loc;
        if products.is_empty() {
            node.types[0] = TensorType::new(ty.dtype, other_rank(&ty));
            let shaped = b.reshape(parameter, &ty.shape)?;
            b.graph.replace_uses(parameter, shaped);
            b.graph.set_operand(shaped.node, 0, parameter);
        } else {
            node.types[0] = TensorType::new(ty.dtype, [ty.shape[1], ty.shape[0]]);
            options.layouts.push((position, vec![0, 1]));
            for product in products {
                if let Op::DotGeneral(dot) = &mut b.graph.node_mut(product).op {
                    dot.rhs_contracting = vec![0];
                }
            }
        }
    }
    for alias in b.graph.aliases.clone() {
        let output = b.graph.outputs[alias.output];
        let parameter = Value { node: b.graph.parameters()[alias.parameter], result: 0 };
        b.loc = b.graph.node(output.node).loc;
        let shape = b.shape(parameter).to_vec();
        b.graph.outputs[alias.output] = b.reshape(output, &shape)?;
    }
    Ok(Some(Prepared { graph, options }))
}

/// Rows of the first operand from which a copy of the second costs less than it gains.
const MANY_ROWS: i64 = 128;

/// Where rows lie this many elements apart, or a multiple, the plugin's own product evicts what it is about to read.
const CONFLICT: i64 = 1024;

/// The uses of a parameter, if all are products over its last dimension, as of a linear layer's weight. The plugin
/// gives only products over the first one to XNNPACK. Declared transposed, with its columns in a row, the weight is
/// brought into that form by a copy, which the plugin does far faster than a transpose; it pays where the plugin's
/// own product is at its worst.
fn products_to_turn(graph: &Graph, position: usize) -> Vec<NodeId> {
    let id = graph.parameters()[position];
    let value = Value { node: id, result: 0 };
    let fits = |&(user, operand, _): &(NodeId, u32, u32)| {
        let Op::DotGeneral(dot) = graph.op(user) else { return false };
        let lhs = graph.ty(graph.operands(user)[0]);
        let rows: i64 = lhs.shape.iter().product::<i64>() / lhs.shape.last().copied().unwrap_or(1).max(1);
        operand == 1
            && graph.operands(user)[0] != value
            && dot.rhs_contracting == [1]
            && dot.lhs_contracting == [lhs.rank() as i64 - 1]
            && dot.rhs_batch.is_empty()
            && rows >= MANY_ROWS
    };
    let ty = graph.ty(value);
    let users: Vec<_> = graph.users(id).collect();
    let turns = ty.dtype == DType::F32
        && ty.rank() == 2
        && ty.shape.iter().all(|size| size % CONFLICT == 0)
        && !graph.outputs.contains(&value)
        && graph.aliases.iter().all(|alias| alias.parameter != position)
        && users.iter().all(fits);
    if turns { users.into_iter().map(|(user, ..)| user).collect() } else { Vec::new() }
}

/// One dimension, or two where the tensor has one already.
fn other_rank(ty: &TensorType) -> Vec<i64> {
    let elements = ty.shape.iter().product();
    if ty.rank() == 1 { vec![1, elements] } else { vec![elements] }
}
