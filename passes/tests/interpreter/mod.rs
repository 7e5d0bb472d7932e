//! A reference interpreter for small graphs: slow, plain, and written without a look at the passes.

use std::collections::HashMap;
use torchtpu_ir::{
    BinaryOp, DType, Direction, Graph, Literal, NodeId, Op, ReduceKind, ReplicaGroups, Scalar, TensorType,
    UnaryOp, Value,
};

pub type Tensor = Vec<Scalar>;

/// Every index of a shape, in row-major order.
fn indices(shape: &[i64]) -> Vec<Vec<i64>> {
    let mut all = vec![vec![]];
    for &n in shape {
        all = all.iter().flat_map(|i: &Vec<i64>| (0..n).map(|k| [i.as_slice(), &[k]].concat())).collect();
    }
    all
}

fn flat(shape: &[i64], index: &[i64]) -> usize {
    shape.iter().zip(index).fold(0, |at, (n, i)| at * n + i) as usize
}

fn short(dtype: DType) -> bool {
    dtype != DType::F64
}

fn float_unary(op: UnaryOp, x: f32) -> f32 {
    match op {
        UnaryOp::Negate => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Floor => x.floor(),
        UnaryOp::Exponential => x.exp(),
        UnaryOp::Logistic => 1.0 / (1.0 + (-x).exp()),
        UnaryOp::Sign if x == 0.0 || x.is_nan() => x,
        UnaryOp::Sign => x.signum(),
        other => panic!("{other:?} of a float"),
    }
}

fn float_binary(op: BinaryOp, x: f32, y: f32) -> f32 {
    let nan = x.is_nan() || y.is_nan();
    match op {
        BinaryOp::Add => x + y,
        BinaryOp::Subtract => x - y,
        BinaryOp::Multiply => x * y,
        BinaryOp::Divide => x / y,
        BinaryOp::Maximum | BinaryOp::Minimum if nan => f32::NAN,
        BinaryOp::Maximum if x == y => f32::from_bits(x.to_bits() & y.to_bits()),
        BinaryOp::Minimum if x == y => f32::from_bits(x.to_bits() | y.to_bits()),
        BinaryOp::Maximum => {
            if x > y {
                x
            } else {
                y
            }
        }
        BinaryOp::Minimum => {
            if x < y {
                x
            } else {
                y
            }
        }
        other => panic!("{other:?} of floats"),
    }
}

fn int_binary(op: BinaryOp, d: DType, a: Scalar, b: Scalar) -> Scalar {
    let (x, y) = (a.as_i64(d), b.as_i64(d));
    let shift = (0..d.bits() as i64).contains(&y);
    Scalar::from_i64(
        d,
        match op {
            BinaryOp::Add => x.wrapping_add(y),
            BinaryOp::Subtract => x.wrapping_sub(y),
            BinaryOp::Multiply => x.wrapping_mul(y),
            BinaryOp::Divide if y == 0 => -1,
            BinaryOp::Divide => x.wrapping_div(y),
            BinaryOp::Maximum => x.max(y),
            BinaryOp::Minimum => x.min(y),
            BinaryOp::And => x & y,
            BinaryOp::Or => x | y,
            BinaryOp::Xor => x ^ y,
            BinaryOp::ShiftLeft if shift => x << y,
            BinaryOp::ShiftLeft => 0,
            // Of an unsigned type too, the top bit is repeated.
            BinaryOp::ShiftRightArithmetic => {
                let up = 64 - d.bits();
                (x << up >> up) >> if shift { y } else { d.bits() as i64 - 1 }
            }
            other => panic!("{other:?} of integers"),
        },
    )
}

fn unary(op: UnaryOp, d: DType, a: Scalar) -> Scalar {
    match op {
        UnaryOp::Not if d == DType::Bool => Scalar(1 - a.0),
        UnaryOp::Not => Scalar::from_i64(d, !a.as_i64(d)),
        UnaryOp::Negate if d.is_int() => Scalar::from_i64(d, a.as_i64(d).wrapping_neg()),
        UnaryOp::Abs if d.is_int() => Scalar::from_i64(d, a.as_i64(d).wrapping_abs()),
        UnaryOp::IsFinite => Scalar(a.as_f64(d).is_finite() as u128),
        _ => Scalar::from_f64(d, float_unary(op, a.as_f64(d) as f32) as f64),
    }
}

fn binary(op: BinaryOp, d: DType, a: Scalar, b: Scalar) -> Scalar {
    match op {
        BinaryOp::Add | BinaryOp::Maximum | BinaryOp::Or if d == DType::Bool => Scalar(a.0 | b.0),
        BinaryOp::Multiply | BinaryOp::Minimum | BinaryOp::And if d == DType::Bool => Scalar(a.0 & b.0),
        BinaryOp::Xor if d == DType::Bool => Scalar(a.0 ^ b.0),
        _ if d.is_int() => int_binary(op, d, a, b),
        _ => Scalar::from_f64(d, float_binary(op, a.as_f64(d) as f32, b.as_f64(d) as f32) as f64),
    }
}

fn compare(direction: Direction, d: DType, a: Scalar, b: Scalar) -> bool {
    let (x, y) = (a.as_f64(d), b.as_f64(d));
    match direction {
        Direction::Eq => x == y,
        Direction::Ne => x != y,
        Direction::Ge => x >= y,
        Direction::Gt => x > y,
        Direction::Le => x <= y,
        Direction::Lt => x < y,
    }
}

fn convert(from: DType, to: DType, a: Scalar) -> Scalar {
    if to == DType::Bool {
        Scalar((a.as_f64(from) != 0.0) as u128)
    } else if from.is_float() || to.is_float() {
        Scalar::from_f64(to, a.as_f64(from))
    } else {
        Scalar::from_i64(to, a.as_i64(from))
    }
}

/// The graph's outputs for inputs in the order of its parameters.
pub fn run(graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    run_devices(graph, &[inputs.to_vec()]).swap_remove(0)
}

/// The same on several devices at once, by device.
pub fn run_devices(graph: &Graph, inputs: &[Vec<Tensor>]) -> Vec<Vec<Tensor>> {
    // By device.
    let mut values: HashMap<Value, Vec<Tensor>> = HashMap::new();
    for (i, &node) in graph.parameters().iter().enumerate() {
        values.insert(Value { node, result: 0 }, inputs.iter().map(|given| given[i].clone()).collect());
    }
    for id in graph.topological() {
        if values.contains_key(&Value { node: id, result: 0 }) {
            continue;
        }
        let operands = graph.operands(id);
        let types: Vec<&TensorType> = operands.iter().map(|v| graph.ty(*v)).collect();
        let results: Vec<Vec<Tensor>> = match graph.op(id) {
            op if op.devices().is_some() => {
                let args: Vec<&Tensor> =
                    operands.first().map(|v| values[v].iter().collect()).unwrap_or_default();
                vec![collective(graph, id, &types, &args, inputs.len())]
            }
            Op::OptimizationBarrier(_) => operands.iter().map(|v| values[v].clone()).collect(),
            Op::While(op) => {
                let states: Vec<Vec<Tensor>> = (0..inputs.len())
                    .map(|device| {
                        let mut state: Vec<Tensor> =
                            operands.iter().map(|v| values[v][device].clone()).collect();
                        while run(&op.cond, &state)[0][0].0 != 0 {
                            state = run(&op.body, &state);
                        }
                        state
                    })
                    .collect();
                (0..operands.len()).map(|k| states.iter().map(|state| state[k].clone()).collect()).collect()
            }
            _ => {
                let of_device = |device: usize| {
                    let args: Vec<&Tensor> = operands.iter().map(|v| &values[v][device]).collect();
                    node(graph, id, &types, &args)
                };
                vec![(0..inputs.len()).map(of_device).collect()]
            }
        };
        for (result, tensors) in results.into_iter().enumerate() {
            values.insert(Value { node: id, result: result as u32 }, tensors);
        }
    }
    (0..inputs.len())
        .map(|device| graph.outputs.iter().map(|v| values[v][device].clone()).collect())
        .collect()
}

/// What every device gets, of what all of them give.
fn collective(
    graph: &Graph,
    id: NodeId,
    types: &[&TensorType],
    args: &[&Tensor],
    devices: usize,
) -> Vec<Tensor> {
    let ty = &graph.node(id).types[0];
    let group_of = |groups: &ReplicaGroups, device: usize| {
        groups.groups().into_iter().find(|g| g.contains(&(device as i64))).expect("a group of every device")
    };
    let sum = |group: &[i64]| {
        let d = ty.dtype;
        let add =
            |a: &Tensor, b: &Tensor| a.iter().zip(b).map(|(&x, &y)| binary(BinaryOp::Add, d, x, y)).collect();
        group[1..].iter().fold(args[group[0] as usize].clone(), |so_far, &k| add(&so_far, args[k as usize]))
    };
    let each = |device: usize| -> Tensor {
        match graph.op(id) {
            Op::ReplicaId(_) => vec![Scalar::from_i64(ty.dtype, device as i64)],
            Op::AllReduce(op) => sum(&group_of(&op.groups, device)),
            Op::AllGather(op) => {
                let (group, d) = (group_of(&op.groups, device), op.dimension as usize);
                let size = types[0].shape[d];
                let of = |i: &[i64]| {
                    let mut index = i.to_vec();
                    index[d] %= size;
                    args[group[(i[d] / size) as usize] as usize][flat(&types[0].shape, &index)]
                };
                indices(&ty.shape).iter().map(|i| of(i)).collect()
            }
            Op::ReduceScatter(op) => {
                let (group, d) = (group_of(&op.groups, device), op.dimension as usize);
                let place = group.iter().position(|&k| k == device as i64).expect("in its group") as i64;
                let whole = sum(&group);
                let of = |i: &[i64]| {
                    let mut index = i.to_vec();
                    index[d] += place * ty.shape[d];
                    whole[flat(&types[0].shape, &index)]
                };
                indices(&ty.shape).iter().map(|i| of(i)).collect()
            }
            Op::AllToAll(op) => {
                let (group, split, concat) =
                    (group_of(&op.groups, device), op.split as usize, op.concat as usize);
                let place = group.iter().position(|&k| k == device as i64).expect("in its group") as i64;
                let (count, given) = (group.len() as i64, &types[0].shape);
                let of = |i: &[i64]| {
                    let (mut index, part) = (i.to_vec(), ty.shape[concat] / count);
                    let from = index[concat] / part;
                    index[concat] %= part;
                    index[split] += place * (given[split] / count);
                    args[group[from as usize] as usize][flat(given, &index)]
                };
                indices(&ty.shape).iter().map(|i| of(i)).collect()
            }
            Op::CollectivePermute(op) => {
                let from = op.targets.iter().position(|&t| t == device as i64);
                from.map_or_else(
                    || vec![Scalar::zero(); ty.elements() as usize],
                    |k| args[op.sources[k] as usize].clone(),
                )
            }
            other => panic!("{} is not interpreted", other.name()),
        }
    };
    (0..devices).map(each).collect()
}

fn node(graph: &Graph, id: NodeId, types: &[&TensorType], args: &[&Tensor]) -> Tensor {
    let ty = &graph.node(id).types[0];
    let each = |f: &dyn Fn(&[i64]) -> Scalar| indices(&ty.shape).iter().map(|i| f(i)).collect::<Tensor>();
    // One operand's element at an index.
    let at = |k: usize, index: &[i64]| args[k][flat(&types[k].shape, index)];
    let pointwise = |f: &dyn Fn(usize) -> Scalar| (0..ty.elements() as usize).map(f).collect::<Tensor>();
    let move_from = |f: &dyn Fn(usize, i64) -> i64, rank: usize| {
        each(&|i| {
            let source: Vec<i64> = (0..rank).map(|d| f(d, *i.get(d).unwrap_or(&0))).collect();
            at(0, &source)
        })
    };
    match graph.op(id) {
        Op::Constant(c) => match &c.value {
            Literal::Splat(s) => vec![*s; ty.elements() as usize],
            Literal::Dense(bytes) => bytes.chunks(ty.dtype.size()).map(Scalar::from_bytes).collect(),
        },
        // What nobody has set is not to be read.
        Op::Allocate(_) => each(&|_| Scalar::from_f64(ty.dtype, f64::NAN)),
        Op::Iota(op) => each(&|i| Scalar::from_i64(ty.dtype, i[op.dimension as usize])),
        Op::Unary(op) => pointwise(&|i| unary(*op, types[0].dtype, args[0][i])),
        Op::Binary(op) => pointwise(&|i| binary(*op, ty.dtype, args[0][i], args[1][i])),
        Op::Compare(op) => {
            pointwise(&|i| Scalar(compare(op.direction, types[0].dtype, args[0][i], args[1][i]) as u128))
        }
        Op::Select(_) => pointwise(&|i| if args[0][i].0 != 0 { args[1][i] } else { args[2][i] }),
        Op::Clamp(_) => pointwise(&|i| {
            let raised = binary(BinaryOp::Maximum, ty.dtype, args[0][i], args[1][i]);
            binary(BinaryOp::Minimum, ty.dtype, raised, args[2][i])
        }),
        Op::Convert(_) => pointwise(&|i| convert(types[0].dtype, ty.dtype, args[0][i])),
        Op::Reshape(_) => args[0].clone(),
        Op::If(op) => {
            let branch = if args[0][0].0 != 0 { &op.on_true } else { &op.on_false };
            let inputs: Vec<Tensor> = args[1..].iter().map(|&arg| arg.clone()).collect();
            run(branch, &inputs).swap_remove(0)
        }
        Op::Transpose(t) => each(&|i| {
            let mut source = vec![0; i.len()];
            for (k, &d) in t.permutation.iter().enumerate() {
                source[d as usize] = i[k];
            }
            at(0, &source)
        }),
        Op::BroadcastInDim(b) => each(&|i| {
            let dims = b.dimensions.iter().zip(&types[0].shape);
            at(0, &dims.map(|(&d, &n)| if n == 1 { 0 } else { i[d as usize] }).collect::<Vec<_>>())
        }),
        Op::Slice(s) => move_from(&|d, i| s.start[d] + i * s.strides[d], ty.rank()),
        Op::Reverse(r) => move_from(
            &|d, i| if r.dimensions.contains(&(d as i64)) { ty.shape[d] - 1 - i } else { i },
            ty.rank(),
        ),
        Op::Concatenate(c) => each(&|i| {
            let (d, mut index) = (c.dimension as usize, i.to_vec());
            let mut part = 0;
            while index[d] >= types[part].shape[d] {
                index[d] -= types[part].shape[d];
                part += 1;
            }
            at(part, &index)
        }),
        Op::Pad(p) => each(&|i| {
            let mut source = Vec::new();
            for (d, &k) in i.iter().enumerate() {
                let (k, step) = (k - p.low[d], p.interior[d] + 1);
                if k < 0 || k % step != 0 || k / step >= types[0].shape[d] {
                    return args[1][0];
                }
                source.push(k / step);
            }
            at(0, &source)
        }),
        Op::Reduce(r) => {
            let op = match r.kind {
                ReduceKind::Add => BinaryOp::Add,
                ReduceKind::Max => BinaryOp::Maximum,
                ReduceKind::Min => BinaryOp::Minimum,
                ReduceKind::And => BinaryOp::And,
                other => panic!("reduce {other:?}"),
            };
            let mut out: Vec<Option<Scalar>> =
                vec![args.get(1).map(|start| start[0]); ty.elements() as usize];
            for i in indices(&types[0].shape) {
                let kept = (0..i.len()).filter(|d| !r.dimensions.contains(&(*d as i64)));
                let k = flat(&ty.shape, &kept.map(|d| i[d]).collect::<Vec<_>>());
                let v = at(0, &i);
                out[k] = Some(out[k].map_or(v, |sum| binary(op, ty.dtype, sum, v)));
            }
            let identity = if r.kind == ReduceKind::Add { Scalar(0) } else { Scalar::lowest(ty.dtype) };
            out.into_iter().map(|v| v.unwrap_or(identity)).collect()
        }
        // Batch, features, rows and columns in order, and no groups.
        Op::Convolution(c) => each(&|i| {
            let weight = &types[1].shape;
            let mut sum = 0f32;
            for k in indices(&weight[1..]) {
                let spatial: Option<Vec<i64>> = (0..2)
                    .map(|d| {
                        let at = i[d + 2] * c.strides[d] + k[d + 1] * c.rhs_dilation[d] - c.pad_low[d];
                        (0..types[0].shape[d + 2]).contains(&at).then_some(at)
                    })
                    .collect();
                let Some(spatial) = spatial else { continue };
                let of = |n: usize, index: Vec<i64>| at(n, &index).as_f64(ty.dtype) as f32;
                sum += of(0, [&[i[0], k[0]], &spatial[..]].concat()) * of(1, [&[i[1]], &k[..]].concat());
            }
            Scalar::from_f64(ty.dtype, f64::from(sum))
        }),
        Op::ReduceWindow(w) => each(&|i| {
            let inside = indices(&w.window).into_iter().filter_map(|k| {
                let source: Option<Vec<i64>> = (0..i.len())
                    .map(|d| {
                        let at = i[d] * w.strides[d] + k[d] * w.window_dilation[d] - w.pad_low[d];
                        (0..types[0].shape[d]).contains(&at).then_some(at)
                    })
                    .collect();
                Some(at(0, &source?))
            });
            let combiner = w.kind.combiner();
            let identity = if w.kind == ReduceKind::Add { Scalar(0) } else { Scalar::lowest(ty.dtype) };
            inside.reduce(|a, b| binary(combiner, ty.dtype, a, b)).unwrap_or(identity)
        }),
        Op::DotGeneral(g) => {
            let free = |rank: usize, used: [&Vec<i64>; 2]| -> Vec<usize> {
                (0..rank).filter(|d| !used.iter().any(|l| l.contains(&(*d as i64)))).collect()
            };
            let lhs_free = free(types[0].rank(), [&g.lhs_batch, &g.lhs_contracting]);
            let rhs_free = free(types[1].rank(), [&g.rhs_batch, &g.rhs_contracting]);
            let depth: Vec<i64> = g.lhs_contracting.iter().map(|&d| types[0].shape[d as usize]).collect();
            each(&|i| {
                let (mut l, mut r) = (vec![0; types[0].rank()], vec![0; types[1].rank()]);
                let batch = g.lhs_batch.len();
                for k in 0..batch {
                    l[g.lhs_batch[k] as usize] = i[k];
                    r[g.rhs_batch[k] as usize] = i[k];
                }
                for (k, &d) in lhs_free.iter().enumerate() {
                    l[d] = i[batch + k];
                }
                for (k, &d) in rhs_free.iter().enumerate() {
                    r[d] = i[batch + lhs_free.len() + k];
                }
                let mut sum = 0f32;
                for c in indices(&depth) {
                    for (k, &v) in c.iter().enumerate() {
                        l[g.lhs_contracting[k] as usize] = v;
                        r[g.rhs_contracting[k] as usize] = v;
                    }
                    assert!(short(ty.dtype));
                    let operand = types[0].dtype;
                    sum += at(0, &l).as_f64(operand) as f32 * at(1, &r).as_f64(operand) as f32;
                }
                Scalar::from_f64(ty.dtype, sum as f64)
            })
        }
        // StableHLO spec, section "gather".
        Op::Gather(g) => {
            let vector = g.index_vector_dim as usize;
            each(&|i| {
                let (mut batch, mut offset) = (Vec::new(), Vec::new());
                for (d, &k) in i.iter().enumerate() {
                    if g.offset_dims.contains(&(d as i64)) { offset.push(k) } else { batch.push(k) }
                }
                let mut source = vec![0; types[0].rank()];
                for (component, &d) in g.start_index_map.iter().enumerate() {
                    let mut index = batch.clone();
                    if vector < types[1].rank() {
                        index.insert(vector, component as i64);
                    }
                    let last = types[0].shape[d as usize] - g.slice_sizes[d as usize];
                    source[d as usize] = at(1, &index).as_i64(types[1].dtype).clamp(0, last);
                }
                for (&d, &of) in g.operand_batching_dims.iter().zip(&g.start_indices_batching_dims) {
                    source[d as usize] = batch[of as usize - usize::from(of as usize > vector)];
                }
                let left = |d: &usize| {
                    let d = *d as i64;
                    !g.collapsed_slice_dims.contains(&d) && !g.operand_batching_dims.contains(&d)
                };
                for (d, k) in (0..source.len()).filter(left).zip(offset) {
                    source[d] += k;
                }
                at(0, &source)
            })
        }
        Op::DynamicSlice(s) => {
            let starts = starts(&s.sizes, &types[0].shape, &types[1..], &args[1..]);
            move_from(&|d, i| starts[d] + i, ty.rank())
        }
        Op::DynamicUpdateSlice(_) => {
            let update = &types[1].shape;
            let starts = starts(update, &ty.shape, &types[2..], &args[2..]);
            each(&|i| {
                let inside: Vec<i64> = i.iter().zip(&starts).map(|(k, start)| k - start).collect();
                let hit = inside.iter().zip(update).all(|(k, n)| (0..*n).contains(k));
                if hit { at(1, &inside) } else { at(0, i) }
            })
        }
        other => panic!("{} is not interpreted", other.name()),
    }
}

/// Where a dynamic slice of some sizes starts: moved to lie inside.
fn starts(sizes: &[i64], shape: &[i64], types: &[&TensorType], args: &[&Tensor]) -> Vec<i64> {
    let wanted = types.iter().zip(args).map(|(ty, arg)| arg[0].as_i64(ty.dtype));
    wanted.zip(shape.iter().zip(sizes)).map(|(start, (n, size))| start.clamp(0, n - size)).collect()
}
