//! Collectives of `torch.distributed._functional_collectives`, over the replicas of the program.

use crate::cx::Cx;
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_import::Arg;
use torchtpu_ir::infer::reduces_between_devices;
use torchtpu_ir::op::{CollectivePermute, Gather};
use torchtpu_ir::{BinaryOp, CompileError, DType, ReduceKind, ReplicaGroups, Scalar, TensorType, UnaryOp, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("_c10d_functional.all_gather_into_tensor.default", One(all_gather)),
    row("_c10d_functional.all_gather_into_tensor_coalesced.default", Many(all_gather_coalesced)),
    row("_c10d_functional.all_reduce.default", One(all_reduce)),
    row("_c10d_functional.all_reduce_coalesced.default", Many(all_reduce_coalesced)),
    row("_c10d_functional.all_to_all_single.default", One(all_to_all)),
    row("_c10d_functional.batch_p2p_ops.default", Many(batch_p2p_ops)),
    row("_c10d_functional.broadcast.default", One(broadcast)),
    row("_c10d_functional.reduce_scatter_tensor.default", One(reduce_scatter)),
    row("_c10d_functional.reduce_scatter_tensor_coalesced.default", Many(reduce_scatter_coalesced)),
    row("_c10d_functional.wait_tensor.default", One(wait_tensor)),
    row("_c10d_functional.wait_tensors.default", Many(wait_tensors)),
    row("_c10d_functional._wrap_tensor_autograd.default", One(|cx| cx.tensor("input"))),
    row("_c10d_functional_autograd.all_gather_into_tensor.default", One(all_gather)),
    row("_c10d_functional_autograd.all_to_all_single.default", One(all_to_all)),
    row("_c10d_functional_autograd.reduce_scatter_tensor.default", One(reduce_scatter)),
];

/// The process group of the call, and those that the other ranks join in its place.
fn groups(cx: &Cx<'_>) -> Result<ReplicaGroups> {
    let name = cx.opt_string("group_name")?.unwrap_or_default();
    let groups = cx.settings.groups.get(name).cloned().ok_or_else(|| {
        CompileError::lowering(format!("process group `{name}` is not one of several that are alike"))
            .help("one program runs on all ranks, so that each joins a group of this size: use the groups of a DeviceMesh")
    })?;
    groups.check().map_err(CompileError::lowering)?;
    Ok(groups)
}

struct Reduction {
    kind: ReduceKind,
    groups: ReplicaGroups,
    mean: bool,
}

impl Reduction {
    fn of(cx: &Cx<'_>) -> Result<Self> {
        let (kind, mean) = match cx.opt_string("reduce_op")?.unwrap_or_default() {
            "sum" => (ReduceKind::Add, false),
            "avg" => (ReduceKind::Add, true),
            "product" => (ReduceKind::Mul, false),
            "max" => (ReduceKind::Max, false),
            "min" => (ReduceKind::Min, false),
            "band" => (ReduceKind::And, false),
            "bor" => (ReduceKind::Or, false),
            "bxor" => (ReduceKind::Xor, false),
            other => {
                return Err(CompileError::lowering(format!("reduce_op `{other}` is not supported"))
                    .help("sum, avg, product, max, min, band, bor and bxor are"));
            }
        };
        Ok(Reduction { kind, groups: groups(cx)?, mean })
    }

    /// A mean is the sum, divided.
    fn finish(&self, cx: &mut Cx<'_>, sum: Value) -> Result<Value> {
        let size = self.groups.size() as f64;
        if self.mean { cx.b.binary_const(BinaryOp::Divide, sum, size) } else { Ok(sum) }
    }

    fn all_reduce(&self, cx: &mut Cx<'_>, v: Value) -> Result<Value> {
        let shape = cx.b.shape(v).to_vec();
        if !reduces_between_devices(self.kind, cx.b.dtype(v)) {
            let one = cx.b.reshape(v, &[&[1], shape.as_slice()].concat())?;
            let all = cx.b.all_gather(one, 0, self.groups.clone())?;
            return cx.b.reduce(self.kind, all, &[0]);
        }
        let sum = cx.b.all_reduce(v, self.groups.clone(), self.kind)?;
        self.finish(cx, sum)
    }

    fn reduce_scatter(&self, cx: &mut Cx<'_>, v: Value) -> Result<Value> {
        let (mut shape, size) = (cx.b.shape(v).to_vec(), self.groups.size());
        if cx.b.ty(v).elements() == 0 && shape.first().is_some_and(|rows| rows % size == 0) {
            return nothing(cx, v, |rows| rows / size);
        }
        if !reduces_between_devices(self.kind, cx.b.dtype(v)) && shape.first().is_some_and(|rows| rows % size == 0) {
            shape[0] /= size;
            let parts = cx.b.all_to_all(v, 0, 0, self.groups.clone())?;
            let parts = cx.b.reshape(parts, &[&[size], shape.as_slice()].concat())?;
            return cx.b.reduce(self.kind, parts, &[0]);
        }
        let sum = cx.b.reduce_scatter(v, 0, self.groups.clone(), self.kind)?;
        self.finish(cx, sum)
    }
}

/// `all_reduce(input, reduce_op, group_name)`.
fn all_reduce(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("input")?;
    Reduction::of(cx)?.all_reduce(cx, v)
}

/// `all_reduce_coalesced(inputs, reduce_op, group_name)`.
fn all_reduce_coalesced(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (list, reduction) = (cx.tensors("inputs")?, Reduction::of(cx)?);
    list.into_iter().map(|v| reduction.all_reduce(cx, v)).collect()
}

/// `reduce_scatter_tensor(input, reduce_op, group_size, group_name)`, along the first dimension.
fn reduce_scatter(cx: &mut Cx<'_>) -> Result<Value> {
    let v = cx.tensor("input")?;
    Reduction::of(cx)?.reduce_scatter(cx, v)
}

/// `reduce_scatter_tensor_coalesced(inputs, reduce_op, group_size, group_name)`.
fn reduce_scatter_coalesced(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (list, reduction) = (cx.tensors("inputs")?, Reduction::of(cx)?);
    list.into_iter().map(|v| reduction.reduce_scatter(cx, v)).collect()
}

/// Along the first dimension, which a number gets.
fn gathered(cx: &mut Cx<'_>, v: Value, groups: &ReplicaGroups) -> Result<Value> {
    let v = if cx.b.rank(v) == 0 { cx.b.reshape(v, &[1])? } else { v };
    if cx.b.ty(v).elements() == 0 {
        return nothing(cx, v, |rows| rows * groups.size());
    }
    cx.b.all_gather(v, 0, groups.clone())
}

/// StableHLO has no gathering of no rows, and no sum of none that is scattered.
fn nothing(cx: &mut Cx<'_>, v: Value, rows: impl Fn(i64) -> i64) -> Result<Value> {
    let mut ty = cx.b.ty(v).clone();
    ty.shape[0] = rows(ty.shape[0]);
    Ok(cx.b.splat(ty, Scalar::zero()))
}

/// `all_gather_into_tensor(input, group_size, group_name)`.
fn all_gather(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, groups) = (cx.tensor("input")?, groups(cx)?);
    gathered(cx, v, &groups)
}

/// `all_gather_into_tensor_coalesced(inputs, group_size, group_name)`.
fn all_gather_coalesced(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (list, groups) = (cx.tensors("inputs")?, groups(cx)?);
    list.into_iter().map(|v| gathered(cx, v, &groups)).collect()
}

/// `all_to_all_single(input, output_split_sizes, input_split_sizes, group_name)`, along the first dimension.
fn all_to_all(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, groups) = (cx.tensor("input")?, groups(cx)?);
    let (gets, sends) = (splits(cx, "output_split_sizes")?, splits(cx, "input_split_sizes")?);
    if gets.iter().chain(&sends).flatten().all(|size| Some(size) == sends[0].first()) {
        return cx.b.all_to_all(v, 0, 0, groups);
    }
    if sends.len() as i64 != groups.devices() {
        return Err(CompileError::lowering(format!(
            "all_to_all_single sends parts of sizes {:?} and gets {:?}: what the other ranks send is not known",
            sends[0], gets[0]
        ))
        .help("parts of one size are supported; others, and permutations, are where all ranks are traced: torchtpu_dynamo.lower_spmd"));
    }
    let rows = cx.b.shape(v).first().copied().unwrap_or(0);
    let exchange = Exchange::of(&groups, rows, sends, &gets)?;
    match exchange.permutation(rows) {
        Some(permute) => cx.b.collective_permute(v, permute),
        None => exchange.padded(cx, v, groups),
    }
}

/// Sizes of parts: of this rank, or by rank where all were traced.
fn splits(cx: &Cx<'_>, name: &str) -> Result<Vec<Vec<i64>>> {
    let Arg::List(list) = cx.arg(name) else { return Ok(vec![cx.ints(name)?]) };
    let of_rank = |arg: &Arg| match arg {
        Arg::List(sizes) => sizes.iter().map(|size| if let Arg::Int(n) = size { Some(*n) } else { None }).collect(),
        _ => None,
    };
    let all: Option<Vec<Vec<i64>>> = list.iter().map(of_rank).collect();
    match all {
        Some(all) if all.iter().all(|sizes| !sizes.is_empty()) && !all.is_empty() => Ok(all),
        _ => cx.ints(name).map(|sizes| vec![sizes]),
    }
}

/// Parts of any sizes, of all ranks.
struct Exchange {
    /// By rank: its group, and how many rows it sends to each member.
    ranks: Vec<(Vec<i64>, Vec<i64>)>,
    /// By rank: how many rows it gets from each member.
    gets: Vec<Vec<i64>>,
}

impl Exchange {
    fn of(groups: &ReplicaGroups, rows: i64, sends: Vec<Vec<i64>>, gets: &[Vec<i64>]) -> Result<Self> {
        if let Some(sizes) = sends.iter().find(|sizes| sizes.iter().sum::<i64>() != rows) {
            return Err(CompileError::lowering(format!("all_to_all_single of {rows} rows sends parts of sizes {sizes:?}")));
        }
        let mut of_rank = vec![Vec::new(); sends.len()];
        let mut expected = vec![Vec::new(); sends.len()];
        for group in groups.groups() {
            for (place, &rank) in group.iter().enumerate() {
                let from = |member: &i64| sends.get(*member as usize)?.get(place).copied();
                expected[rank as usize] = group.iter().filter_map(from).collect();
                of_rank[rank as usize].clone_from(&group);
            }
        }
        if expected != gets {
            return Err(CompileError::lowering(format!(
                "all_to_all_single gets parts of sizes {gets:?} by rank, and {expected:?} are sent"
            )));
        }
        Ok(Exchange { ranks: of_rank.into_iter().zip(sends).collect(), gets: expected })
    }

    /// Where every rank sends all of its rows to one, and gets as many from one.
    fn permutation(&self, rows: i64) -> Option<CollectivePermute> {
        let target = |(group, sends): &(Vec<i64>, Vec<i64>)| {
            let whole = |(member, &size): (&i64, &i64)| (size == rows).then_some(*member);
            let mut targets = group.iter().zip(sends).filter(|(_, size)| **size != 0);
            targets.next().and_then(whole).filter(|_| targets.next().is_none())
        };
        let targets: Vec<i64> = self.ranks.iter().map(target).collect::<Option<_>>()?;
        let alone = |gets: &Vec<i64>| gets.iter().filter(|size| **size != 0).count() == 1;
        let devices = targets.len() as i64;
        let permute = CollectivePermute { sources: (0..devices).collect(), targets, devices };
        self.gets.iter().all(alone).then_some(permute)
    }

    /// Every part is sent with as many rows as the largest has, and what is too much is not read.
    fn padded(&self, cx: &mut Cx<'_>, v: Value, groups: ReplicaGroups) -> Result<Value> {
        let most = self.ranks.iter().flat_map(|(_, sends)| sends).copied().max().unwrap_or(0);
        let send = |(_, sends): &(Vec<i64>, Vec<i64>)| -> Vec<i64> {
            let begins = sends.iter().scan(0, |end, size| Some(std::mem::replace(end, *end + size)));
            // Of a short part the last rows are any that exist.
            let rows = |(begin, size): (i64, &i64)| (0..most).map(|i| if i < *size { begin + i } else { 0 }).collect::<Vec<_>>();
            begins.zip(sends).flat_map(rows).collect()
        };
        let get = |gets: &Vec<i64>| -> Vec<i64> {
            gets.iter().enumerate().flat_map(|(i, size)| (0..*size).map(move |row| i as i64 * most + row)).collect()
        };
        let parts = rows_of_device(cx, v, &self.ranks.iter().map(send).collect::<Vec<_>>())?;
        let parts = cx.b.all_to_all(parts, 0, 0, groups)?;
        rows_of_device(cx, parts, &self.gets.iter().map(get).collect::<Vec<_>>())
    }
}

/// The rows that the device's entry lists.
fn rows_of_device(cx: &mut Cx<'_>, v: Value, rows: &[Vec<i64>]) -> Result<Value> {
    let count = rows.first().map_or(0, Vec::len);
    if rows.iter().any(|list| list.len() != count) {
        return Err(CompileError::lowering("all_to_all_single gives ranks results of different sizes")
            .help("one program runs on all ranks, and its shapes are theirs"));
    }
    let bytes = rows.iter().flatten().flat_map(|row| row.to_le_bytes()).collect();
    let table = cx.b.dense(TensorType::new(DType::I64, [rows.len() as i64, count as i64]), bytes)?;
    let rows = cx.b.of_device(table)?;
    let mut slice_sizes = cx.b.shape(v).to_vec();
    slice_sizes[0] = 1;
    let gather = Gather {
        offset_dims: (1..slice_sizes.len() as i64).collect(),
        collapsed_slice_dims: vec![0],
        operand_batching_dims: Vec::new(),
        start_indices_batching_dims: Vec::new(),
        start_index_map: vec![0],
        index_vector_dim: 1,
        slice_sizes,
        sorted: false,
    };
    cx.b.gather(v, rows, gather)
}

/// `broadcast(input, src, group_name)`, `src` counted in the group: the sum of one rank's bits and the others' zeros, since
/// a float's sum would lose the sign of a zero. libtpu has not implemented StableHLO's `collective_broadcast`.
fn broadcast(cx: &mut Cx<'_>) -> Result<Value> {
    let (v, groups) = (cx.tensor("input")?, groups(cx)?);
    let sources = sources(cx, usize::try_from(groups.devices()).unwrap_or_default())?;
    let mut is_source = vec![0u8; sources.len()];
    for group in groups.groups() {
        let says = |rank: i64| usize::try_from(rank).ok().and_then(|rank| sources.get(rank)).copied();
        let source = group.first().and_then(|&rank| says(rank)).unwrap_or(-1);
        if let Some(&other) = group.iter().find(|&&rank| says(rank) != Some(source)) {
            return Err(CompileError::lowering(format!(
                "ranks {group:?} broadcast from different ranks of their group: rank {} from {source}, rank {other} from {}",
                group[0],
                says(other).unwrap_or(-1)
            )));
        }
        let rank = usize::try_from(source).ok().and_then(|i| group.get(i));
        let rank = rank.and_then(|&rank| is_source.get_mut(usize::try_from(rank).ok()?));
        *rank.ok_or_else(|| {
            CompileError::lowering(format!("broadcast from rank {source} of a group of {}", groups.size()))
        })? = 1;
    }
    let table = cx.b.dense(TensorType::new(DType::Bool, [is_source.len() as i64]), is_source)?;
    let is_source = cx.b.of_device(table)?;
    let shape = cx.b.shape(v).to_vec();
    let is_source = cx.b.broadcast_in_dim(is_source, &shape, &[])?;
    if !cx.b.dtype(v).is_complex() {
        return of_source(cx, v, is_source, &groups);
    }
    let (re, im) = (cx.b.unary(UnaryOp::Real, v)?, cx.b.unary(UnaryOp::Imag, v)?);
    let (re, im) = (of_source(cx, re, is_source, &groups)?, of_source(cx, im, is_source, &groups)?);
    cx.b.binary(BinaryOp::Complex, re, im)
}

/// By rank, from which rank of its group it gets a broadcast. Where all ranks were traced, each has said so itself.
fn sources(cx: &Cx<'_>, devices: usize) -> Result<Vec<i64>> {
    let Arg::List(all) = cx.arg("src") else { return Ok(vec![cx.int("src")?; devices]) };
    let number = |arg: &Arg| if let Arg::Int(n) = arg { Some(*n) } else { None };
    let all: Option<Vec<i64>> = all.iter().map(number).collect();
    all.filter(|all| all.len() == devices)
        .ok_or_else(|| CompileError::lowering("from which rank a broadcast comes is no number on every rank"))
}

fn of_source(cx: &mut Cx<'_>, v: Value, is_source: Value, groups: &ReplicaGroups) -> Result<Value> {
    let ty = cx.b.ty(v).clone();
    let bits = match ty.dtype.size() {
        _ if !ty.dtype.is_float() => ty.dtype,
        1 => DType::U8,
        2 => DType::U16,
        4 => DType::U32,
        _ => DType::U64,
    };
    let v = if bits == ty.dtype { v } else { cx.b.bitcast(v, ty.with_dtype(bits))? };
    let nothing = cx.b.splat(ty.with_dtype(bits), Scalar::zero());
    let v = cx.b.select(is_source, v, nothing)?;
    let kind = if bits == DType::Bool { ReduceKind::Or } else { ReduceKind::Add };
    let v = cx.b.all_reduce(v, groups.clone(), kind)?;
    if bits == ty.dtype { Ok(v) } else { cx.b.bitcast(v, ty) }
}

/// `batch_p2p_ops(op_list, peer_list, tag_list, tensors, group_name)`, peers counted in the group: a send of every rank, and
/// the receipts that it meets, are one permutation. What is sent has no result.
fn batch_p2p_ops(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    let (tensors, groups, peers) = (cx.tensors("tensors")?, groups(cx)?, splits(cx, "peer_list")?);
    let kinds: &[Arg] = if let Arg::List(kinds) = cx.arg("op_list") { kinds } else { &[] };
    let sends: Vec<bool> = kinds.iter().map(|kind| matches!(kind, Arg::Str(name) if name == "isend")).collect();
    if peers.len() as i64 != groups.devices() || peers.iter().any(|list| list.len() != sends.len()) {
        return Err(CompileError::lowering("to whom the other ranks send, and from whom they get, is not known")
            .help("it is where all ranks are traced: torchtpu_dynamo.lower_spmd and aot_compile_spmd"));
    }
    // By rank, the peers as ranks of the world.
    let mut worldwide = vec![Vec::new(); peers.len()];
    for group in groups.groups() {
        for &rank in &group {
            let of_world = |peer: &i64| usize::try_from(*peer).ok().and_then(|at| group.get(at).copied());
            worldwide[rank as usize] = peers[rank as usize].iter().map(|peer| of_world(peer).unwrap_or(-1)).collect();
        }
    }
    let from_each = |list: usize, rank: i64| usize::try_from(rank).ok().and_then(|rank| worldwide.get(rank)?.get(list).copied());
    let meets = |send: usize, receipt: usize| {
        (0..peers.len() as i64).all(|rank| from_each(receipt, rank).and_then(|source| from_each(send, source)) == Some(rank))
    };
    let mut open: Vec<usize> = (0..sends.len()).filter(|&i| sends[i]).collect();
    let mut results = Vec::with_capacity(sends.len());
    for (i, &value) in tensors.iter().enumerate() {
        if sends[i] {
            let nothing = TensorType::new(cx.b.dtype(value), [0]);
            results.push(cx.b.splat(nothing, Scalar::zero()));
            continue;
        }
        let same = |send: &usize| cx.b.ty(tensors[*send]) == cx.b.ty(value) && meets(*send, i);
        let at = open.iter().position(same).ok_or_else(|| {
            CompileError::lowering(format!("what rank 0 gets from rank {} is not sent by every rank in the same place", worldwide[0][i]))
                .help("one program runs on all ranks: each sends and gets in the same order, as in a ring")
        })?;
        let send = open.remove(at);
        let targets = worldwide.iter().map(|list| list[send]).collect();
        let devices = peers.len() as i64;
        let permute = CollectivePermute { sources: (0..devices).collect(), targets, devices };
        results.push(cx.b.collective_permute(tensors[send], permute)?);
    }
    Ok(results)
}

/// `wait_tensor(tensor)`: when a transfer is over is for XLA to see to.
fn wait_tensor(cx: &mut Cx<'_>) -> Result<Value> {
    cx.tensor("tensor")
}

/// `wait_tensors(tensors)`.
fn wait_tensors(cx: &mut Cx<'_>) -> Result<Vec<Value>> {
    cx.tensors("tensors")
}
