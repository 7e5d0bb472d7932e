//! One program for all ranks, from what each of them traced.
//!
//! A trace is one rank's: where its shard of a vocabulary begins, and which part of a tensor it keeps, are numbers in it.
//! `merge` walks the graphs of all ranks from their results at once. What is the same stays as it is; a constant, or where
//! a slice begins, becomes a table that is read at the number of the device; anything else is an error that names the
//! line. Ranks may read different parts of what they all cut (`x.chunk(n)[rank]`), so nodes are matched by how they are
//! used and not by their position.
//!
//! ```text
//! rank 0                                    rank 1
//! %1 = slice %0 {start=[0], limit=[2], ..}  %1 = slice %0 {start=[2], limit=[4], ..}
//!
//! all ranks
//! %1 = constant {value=dense"..0, 2.."} : s64[2]
//! %2 = replica_id {devices=2} : u32[]
//! %3 = dynamic_slice %1, %2 {sizes=[1]} : s64[1]
//! %4 = reshape %3 : s64[]
//! %5 = dynamic_slice %0, %4 {sizes=[2]}
//! ```

use std::collections::HashMap;
use torchtpu_import::{Arg, Payload};
use torchtpu_ir::graph::Values;
use torchtpu_ir::op::Slice;
use torchtpu_ir::verify::verify;
use torchtpu_ir::{Builder, CompileError, DType, Graph, Literal, LocId, NodeId, Op, TensorType, Value};
use torchtpu_lowering::Lowered;

type Result<T> = std::result::Result<T, CompileError>;

/// One node of each rank.
type Nodes = Vec<NodeId>;

/// Tells every rank what the others send and get: how large the parts are, or from and to whom. A rank's own do not make
/// a collective.
pub fn share_exchanges(ranks: &mut [Payload]) {
    const SHARED: [(&str, &[usize]); 3] = [
        ("all_to_all_single.default", &[1, 2]),
        ("_c10d_functional.broadcast.default", &[1]),
        ("batch_p2p_ops.default", &[1]),
    ];
    let exchange = |payload: &Payload, node: usize| {
        let target = payload.targets.get(payload.nodes.get(node)?.target)?;
        SHARED.iter().find(|(name, _)| target.name.ends_with(name))
    };
    let count = ranks.first().map_or(0, |payload| payload.nodes.len());
    for node in 0..count {
        let Some(&(name, args)) = exchange(&ranks[0], node) else { continue };
        if !ranks.iter().all(|payload| exchange(payload, node).is_some_and(|(other, _)| *other == name)) {
            continue;
        }
        for &arg in args {
            let all: Vec<Arg> =
                ranks.iter().filter_map(|payload| payload.nodes[node].args.get(arg).cloned()).collect();
            for payload in ranks.iter_mut() {
                if let Some(own) = payload.nodes[node].args.get_mut(arg) {
                    *own = Arg::List(all.clone());
                }
            }
        }
    }
}

/// With all ranks their numbers become tables; with a few of them, nothing may differ.
pub fn merge(ranks: Vec<Lowered>, all: bool) -> Result<Lowered> {
    same_interface(&ranks)?;
    let graphs: Vec<&Graph> = ranks.iter().map(|rank| &rank.graph).collect();
    let Some(first) = graphs.first() else {
        return Err(CompileError::lowering("there is no rank to make a program of"));
    };
    let mut graph = Graph::new(first.name.clone());
    graph.locations.clone_from(&first.locations);
    graph.aliases.clone_from(&first.aliases);
    let mut merger = Merger { ranks: graphs, all, b: Builder::new(&mut graph), made: HashMap::new() };
    for i in 0..merger.ranks[0].parameters().len() {
        let nodes: Nodes = merger.ranks.iter().map(|g| g.parameters()[i]).collect();
        merger.merge(&nodes)?;
    }
    let mut outputs = Vec::new();
    for i in 0..merger.ranks[0].outputs.len() {
        let values: Vec<Value> = merger.ranks.iter().map(|g| g.outputs[i]).collect();
        outputs.push(merger.value(&values)?);
    }
    graph.outputs = outputs;
    verify(&graph)?;
    let Some(first) = ranks.into_iter().next() else {
        return Err(CompileError::lowering("there is no rank to make a program of"));
    };
    Ok(Lowered { graph, ..first })
}

/// Ranks take and give tensors of the same types, and write the same of them.
fn same_interface(ranks: &[Lowered]) -> Result<()> {
    let Some((first, others)) = ranks.split_first() else { return Ok(()) };
    for (rank, other) in others.iter().enumerate().map(|(i, other)| (i + 1, other)) {
        let differs = |what: String| {
            Err(CompileError::lowering(what)
                .help("one program runs on all ranks: their tensors have the same shapes, so that shards are of one size"))
        };
        for (a, b) in first.inputs.iter().zip(&other.inputs) {
            if a.tensor.ty != b.tensor.ty || a.tensor.order != b.tensor.order {
                let (a_ty, b_ty) = (&a.tensor.ty, &b.tensor.ty);
                return differs(format!("input `{}` is {b_ty} on rank {rank} and {a_ty} on rank 0", a.name));
            }
        }
        for (i, (a, b)) in first.outputs.iter().zip(&other.outputs).enumerate() {
            if a.tensor.ty != b.tensor.ty || a.tensor.order != b.tensor.order || a.returned != b.returned {
                let (a_ty, b_ty) = (&a.tensor.ty, &b.tensor.ty);
                return differs(format!("result {i} is {b_ty} on rank {rank} and {a_ty} on rank 0"));
            }
        }
        let counts = |l: &Lowered| (l.inputs.len(), l.outputs.len(), l.checks.len(), l.uses_seed);
        if counts(first) != counts(other) || first.graph.aliases != other.graph.aliases {
            return differs(format!("rank {rank} takes or gives other tensors than rank 0"));
        }
    }
    Ok(())
}

struct Merger<'a, 'g> {
    ranks: Vec<&'a Graph>,
    /// Whether there are no others, of which a table would have to have entries.
    all: bool,
    b: Builder<'g>,
    /// What stands for the results of these nodes.
    made: HashMap<Nodes, Values>,
}

impl Merger<'_, '_> {
    fn value(&mut self, values: &[Value]) -> Result<Value> {
        let nodes: Nodes = values.iter().map(|v| v.node).collect();
        self.merge(&nodes)?;
        let result = values[0].result;
        if values.iter().any(|v| v.result != result) {
            return Err(self.differ(&nodes));
        }
        Ok(self.made[&nodes][result as usize])
    }

    /// Makes these nodes, operands first. A stack of our own: a graph may be deeper than the thread's.
    fn merge(&mut self, nodes: &Nodes) -> Result<()> {
        let mut work = vec![(nodes.clone(), false)];
        while let Some((nodes, ready)) = work.pop() {
            if self.made.contains_key(&nodes) {
                continue;
            }
            let operands = self.operands(&nodes)?;
            if !ready {
                work.push((nodes, true));
                let before = operands.iter().map(|of| of.iter().map(|v| v.node).collect::<Nodes>());
                work.extend(before.map(|nodes| (nodes, false)));
                continue;
            }
            let operands = operands.iter().map(|of| self.value(of)).collect::<Result<Values>>()?;
            let made = self.make(&nodes, &operands)?;
            self.made.insert(nodes, made);
        }
        Ok(())
    }

    /// By operand, those of each rank. Fails where the ranks do not do the same.
    fn operands(&self, nodes: &Nodes) -> Result<Vec<Vec<Value>>> {
        let node = |rank: usize| self.ranks[rank].node(nodes[rank]);
        let lists: Vec<Values> = nodes.iter().zip(&self.ranks).map(|(&id, g)| g.operands(id)).collect();
        let same = (1..nodes.len()).all(|rank| {
            node(rank).op.name() == node(0).op.name()
                && node(rank).types == node(0).types
                && lists[rank].len() == lists[0].len()
        });
        if !same {
            return Err(self.differ(nodes));
        }
        Ok((0..lists[0].len()).map(|i| lists.iter().map(|list| list[i]).collect()).collect())
    }

    fn make(&mut self, nodes: &Nodes, operands: &[Value]) -> Result<Values> {
        let ops: Vec<&Op> = nodes.iter().zip(&self.ranks).map(|(&id, g)| g.op(id)).collect();
        let node = self.ranks[0].node(nodes[0]);
        let loc: LocId = node.loc;
        self.b.loc = loc;
        if ops.iter().all(|op| *op == ops[0]) {
            let id = self.b.graph.add(ops[0].clone(), operands, node.types.clone(), loc);
            return Ok(self.b.graph.results(id));
        }
        let made = match ops[0] {
            _ if !self.all => Ok(None),
            Op::Constant(_) => self.constant(&ops, &node.types[0]),
            Op::Slice(slice) => self.slice(&ops, slice, operands[0]),
            _ => Ok(None),
        };
        let place = |e: CompileError| e.at(node.op.name(), self.ranks[0].location(loc));
        match made.map_err(place)? {
            Some(value) => Ok(Values::from_slice(&[value])),
            None => Err(self.differ(nodes)),
        }
    }

    /// A table of the values; one number for each rank where the tensors repeat one.
    fn constant(&mut self, ops: &[&Op], ty: &TensorType) -> Result<Option<Value>> {
        let literals = ops.iter().filter_map(|op| match op {
            Op::Constant(constant) => Some(&constant.value),
            _ => None,
        });
        let numbers = literals.clone().all(|literal| matches!(literal, Literal::Splat(_)));
        let repeats = if numbers { 1 } else { ty.elements() as usize };
        let bytes = literals.flat_map(|literal| match literal {
            Literal::Splat(number) => number.bytes(ty.dtype).repeat(repeats),
            Literal::Dense(bytes) => bytes.to_vec(),
        });
        let entry: &[i64] = if numbers { &[] } else { &ty.shape };
        let shape = [&[ops.len() as i64], entry].concat();
        let table = self.b.dense(TensorType::new(ty.dtype, shape), bytes.collect())?;
        let value = self.b.of_device(table)?;
        if numbers { self.b.broadcast_in_dim(value, &ty.shape, &[]) } else { Ok(value) }.map(Some)
    }

    /// Of one size, from a beginning that is read off a table.
    fn slice(&mut self, ops: &[&Op], slice: &Slice, operand: Value) -> Result<Option<Value>> {
        let rank = slice.start.len();
        let mut begins: Vec<Vec<i64>> = vec![Vec::new(); rank];
        for op in ops {
            let Op::Slice(other) = op else { return Ok(None) };
            if other.strides != slice.strides {
                return Ok(None);
            }
            begins.iter_mut().zip(&other.start).for_each(|(list, &start)| list.push(start));
        }
        let starts = begins.iter().map(|list| {
            if list.iter().all(|start| *start == list[0]) {
                return Ok(self.b.full_int(&TensorType::scalar(DType::I64), list[0]));
            }
            let table = self.b.ints(list)?;
            self.b.of_device(table)
        });
        let starts = starts.collect::<Result<Vec<Value>>>()?;
        let shape = self.b.shape(operand).to_vec();
        // From the first element to the last, wherever they are; a step is taken inside of that.
        let sizes: Vec<i64> = (0..rank)
            .map(|d| {
                let count = (slice.limit[d] - slice.start[d] + slice.strides[d] - 1) / slice.strides[d];
                ((count - 1) * slice.strides[d] + 1).clamp(0, shape[d])
            })
            .collect();
        let part = self.b.dynamic_slice(operand, &starts, &sizes)?;
        if slice.strides.iter().all(|step| *step == 1) {
            return Ok(Some(part));
        }
        self.b.slice(part, &vec![0; rank], &sizes, &slice.strides).map(Some)
    }

    fn differ(&self, nodes: &Nodes) -> CompileError {
        let describe = |rank: usize| {
            let node = self.ranks[rank].node(nodes[rank]);
            format!("{} : {}", node.op.name(), node.types[0])
        };
        let node = self.ranks[0].node(nodes[0]);
        let other = (1..nodes.len())
            .find(|&rank| describe(rank) != describe(0) || self.ranks[rank].op(nodes[rank]) != &node.op)
            .unwrap_or(0);
        CompileError::lowering(format!(
            "rank {other} does something else here than rank 0: `{}` and `{}`",
            describe(other),
            describe(0)
        ))
        .at(node.op.name(), self.ranks[0].location(node.loc))
        .help(if !self.all {
            "a few ranks stand for all only where their programs are equal: trace as every rank"
        } else {
            "one program runs on all ranks: numbers, and where a slice begins, may depend on the rank; shapes, operations and their settings may not"
        })
    }
}
