//! Random small graphs with inputs for them, out of a list of random numbers.

use torchtpu_ir::op::{DotGeneral, Gather, Iota, Precision};
use torchtpu_ir::{
    BinaryOp, Builder, DType, Direction, Graph, ParamRole, ReduceKind, Scalar, TensorType, UnaryOp, Value,
};

/// Numbers drawn by proptest, handed out one by one.
struct Draw<'a> {
    numbers: &'a [u32],
    at: usize,
}

impl Draw<'_> {
    fn below(&mut self, n: usize) -> usize {
        let v = self.numbers.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        v as usize % n.max(1)
    }
    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
    fn done(&self) -> bool {
        self.at >= self.numbers.len()
    }
}

const DTYPES: [DType; 6] = [DType::F32, DType::BF16, DType::I32, DType::I8, DType::U8, DType::Bool];

/// What breaks careless identities.
fn special(draw: &mut Draw<'_>, dtype: DType) -> Scalar {
    if dtype.is_float() {
        let v = [0.0, -0.0, 1.0, -1.0, 2.5, 0.1, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-40, 3e38];
        return Scalar::from_f64(dtype, draw.of(&v));
    }
    if dtype == DType::Bool {
        return Scalar(draw.below(2) as u128);
    }
    Scalar::from_i64(dtype, draw.of(&[0, 1, -1, 2, 7, 100, i32::MIN as i64, i32::MAX as i64, -128]))
}

fn permutation(draw: &mut Draw<'_>, rank: usize) -> Vec<i64> {
    let mut left: Vec<i64> = (0..rank as i64).collect();
    (0..rank).map(|_| left.remove(draw.below(left.len()))).collect()
}

/// Some dimensions, in increasing order.
fn some_dims(draw: &mut Draw<'_>, rank: usize) -> Vec<i64> {
    (0..rank as i64).filter(|_| draw.below(2) == 1).collect()
}

const MAX: i64 = 64;

/// One more value over `values`, or none if the draw does not fit.
fn step(b: &mut Builder<'_>, values: &[Value], draw: &mut Draw<'_>) -> Option<Value> {
    let kind = draw.below(22);
    // The newest values are drawn most often: chains are where rewrites are.
    let back = draw.below(values.len()).min(draw.below(values.len()));
    let a = values[values.len() - 1 - back];
    let ty = b.ty(a).clone();
    let (dtype, rank) = (ty.dtype, ty.rank());
    let same: Vec<Value> = values.iter().copied().filter(|v| *b.ty(*v) == ty).collect();
    let other = draw.of(&same);
    let fits = |shape: &[i64]| shape.len() <= 4 && shape.iter().product::<i64>() <= MAX;
    let ops: &[BinaryOp] = if dtype.is_float() {
        use BinaryOp::*;
        &[Add, Subtract, Multiply, Divide, Maximum, Minimum]
    } else if dtype == DType::Bool {
        use BinaryOp::*;
        &[And, Or, Xor, Add, Multiply, Maximum]
    } else {
        use BinaryOp::*;
        &[Add, Subtract, Multiply, Divide, Maximum, Minimum, And, Or, Xor, ShiftLeft, ShiftRightArithmetic]
    };
    let result = match kind {
        0 => {
            let ops: &[UnaryOp] = match dtype {
                DType::Bool => &[UnaryOp::Not],
                d if d.is_float() => {
                    &[UnaryOp::Negate, UnaryOp::Abs, UnaryOp::Floor, UnaryOp::Exponential, UnaryOp::Sign]
                }
                _ => &[UnaryOp::Negate, UnaryOp::Not, UnaryOp::Abs],
            };
            b.unary(draw.of(ops), a)
        }
        1 => b.binary(draw.of(ops), a, other),
        2 | 3 => {
            let op = draw.of(ops);
            let c = special(draw, dtype);
            let c = b.splat(ty, c);
            if draw.below(2) == 0 { b.binary(op, a, c) } else { b.binary(op, c, a) }
        }
        4 => {
            use Direction::*;
            b.compare(draw.of(&[Eq, Ne, Ge, Gt, Le, Lt]), a, other)
        }
        5 => {
            let c = special(draw, dtype);
            let c = b.splat(ty, c);
            b.compare(draw.of(&[Direction::Lt, Direction::Ge]), c, a)
        }
        6 | 7 => {
            let pred = TensorType { dtype: DType::Bool, shape: ty.shape.clone() };
            let preds: Vec<Value> = values.iter().copied().filter(|v| *b.ty(*v) == pred).collect();
            let p = match preds.is_empty() {
                true => b.splat(pred, Scalar(draw.below(2) as u128)),
                false => draw.of(&preds),
            };
            b.select(p, a, other)
        }
        8 | 9 => b.convert(a, draw.of(&DTYPES)),
        10 => {
            // Another order of the sizes, with a 1 more or the ones gone.
            let p = permutation(draw, rank);
            let mut shape: Vec<i64> = p.iter().map(|&d| ty.shape[d as usize]).collect();
            match draw.below(3) {
                0 => shape.insert(draw.below(rank + 1), 1),
                1 => shape.retain(|n| *n != 1),
                _ => shape = vec![ty.elements()],
            }
            if !fits(&shape) {
                return None;
            }
            b.reshape(a, &shape)
        }
        11 => b.transpose(a, &permutation(draw, rank)),
        12 | 13 => {
            // Dimensions keep their order (or not), one more is added, ones may grow.
            let mut p = permutation(draw, rank + 1);
            if draw.below(2) == 0 {
                p.sort_unstable();
            }
            let added = draw.of(&[1, 1, 2, 3]);
            let mut shape = vec![added; rank + 1];
            for (&d, &n) in p.iter().zip(&ty.shape) {
                shape[d as usize] = if n == 1 { draw.of(&[1, 2]) } else { n };
            }
            if !fits(&shape) {
                return None;
            }
            b.broadcast_in_dim(a, &shape, &p[..rank])
        }
        14 => {
            let (mut start, mut limit, mut strides) = (vec![], vec![], vec![]);
            for &n in &ty.shape {
                let from = draw.below(n as usize + 1) as i64;
                start.push(from);
                limit.push(from + draw.below((n - from) as usize + 1) as i64);
                strides.push(draw.of(&[1, 1, 2, 3]));
            }
            b.slice(a, &start, &limit, &strides)
        }
        15 => {
            let d = draw.below(rank);
            let parts: &[Value] = if draw.below(3) == 0 { &[a] } else { &[a, other] };
            let mut shape = ty.shape.clone();
            *shape.get_mut(d)? *= 2;
            if !fits(&shape) {
                return None;
            }
            b.op(torchtpu_ir::op::Concatenate { dimension: d as i64 }, parts)
                .map(|node| Value { node, result: 0 })
        }
        16 => {
            let kind = draw.of(&[ReduceKind::Add, ReduceKind::Max]);
            let dims = some_dims(draw, rank);
            b.op(torchtpu_ir::op::Reduce { dimensions: dims, kind }, &[a])
                .map(|node| Value { node, result: 0 })
        }
        17 => {
            // Against another value by any pair of equal sizes, with transposes in front.
            let same: Vec<Value> = values.iter().copied().filter(|v| b.dtype(*v) == dtype).collect();
            if !dtype.is_float() || rank == 0 {
                return None;
            }
            let other = draw.of(&same);
            let (p, q) = (permutation(draw, rank), permutation(draw, b.rank(other)));
            let (l, r) = (b.transpose(a, &p).unwrap(), b.transpose(other, &q).unwrap());
            let (ls, rs) = (b.shape(l).to_vec(), b.shape(r).to_vec());
            let mut dims: [Vec<i64>; 4] = Default::default();
            for (i, size) in ls.iter().enumerate() {
                let free: Vec<usize> = (0..rs.len())
                    .filter(|j| {
                        rs[*j] == *size && !dims[1].contains(&(*j as i64)) && !dims[3].contains(&(*j as i64))
                    })
                    .collect();
                let role = draw.below(3);
                if !free.is_empty() && role > 0 {
                    dims[role * 2 - 2].push(i as i64);
                    dims[role * 2 - 1].push(draw.of(&free) as i64);
                }
            }
            let [lhs_batch, rhs_batch, lhs_contracting, rhs_contracting] = dims;
            let free = ls.len() + rs.len() - lhs_batch.len() - 2 * lhs_contracting.len();
            if free > 4 || b.ty(l).elements() * b.ty(r).elements() > MAX * 4 {
                return None;
            }
            let precision = Precision::Default;
            b.dot_general(
                l,
                r,
                DotGeneral { lhs_batch, rhs_batch, lhs_contracting, rhs_contracting, precision },
            )
        }
        18 => {
            let dims = some_dims(draw, rank);
            b.reverse(a, &dims)
        }
        19 | 20 => {
            // Slices of some sizes, from places that are known or not, and not always inside.
            let collapsed_slice_dims = some_dims(draw, rank);
            let start_index_map = some_dims(draw, rank);
            let size = |d: usize, draw: &mut Draw<'_>| draw.below(ty.shape[d] as usize) as i64 + 1;
            let slice_sizes: Vec<i64> = (0..rank)
                .map(|d| if collapsed_slice_dims.contains(&(d as i64)) { 1 } else { size(d, draw) })
                .collect();
            if ty.elements() == 0 {
                return None;
            }
            let mut indices = draw.of::<&[i64]>(&[&[], &[3], &[2, 2]]).to_vec();
            let rank_of_result = indices.len() + rank - collapsed_slice_dims.len();
            let index_vector_dim = draw.below(indices.len() + 1);
            if start_index_map.len() != 1 || draw.below(2) == 0 {
                indices.insert(index_vector_dim, start_index_map.len() as i64);
            }
            let mut offset_dims = permutation(draw, rank_of_result);
            offset_dims.truncate(rank - collapsed_slice_dims.len());
            offset_dims.sort_unstable();
            let index_vector_dim = match rank_of_result - offset_dims.len() {
                batch if batch == indices.len() => batch as i64,
                _ => index_vector_dim as i64,
            };
            let indices = TensorType::new(draw.of(&[DType::I32, DType::I8, DType::U8]), indices);
            let known: Vec<Value> = values.iter().copied().filter(|v| *b.ty(*v) == indices).collect();
            let places = match known.is_empty() || draw.below(2) == 0 {
                true => {
                    let bytes = (0..indices.elements()).flat_map(|_| {
                        Scalar::from_i64(indices.dtype, draw.of(&[0, 1, 2, 3, -1, 100])).bytes(indices.dtype)
                    });
                    let bytes = bytes.collect();
                    b.dense(indices, bytes).unwrap()
                }
                false => draw.of(&known),
            };
            let none = Vec::new();
            let gather = Gather {
                offset_dims,
                collapsed_slice_dims,
                operand_batching_dims: none.clone(),
                start_indices_batching_dims: none,
                start_index_map,
                index_vector_dim,
                slice_sizes,
                sorted: false,
            };
            b.gather(a, places, gather)
        }
        _ => {
            if rank == 0 {
                let c = special(draw, dtype);
                return Some(b.splat(ty, c));
            }
            if draw.below(2) == 0 && dtype == DType::I32 {
                let node = b.typed(Iota { dimension: draw.below(rank) as i64 }, &[], [ty].into()).unwrap();
                return Some(Value { node, result: 0 });
            }
            let c = special(draw, dtype);
            let value = b.splat(TensorType::scalar(dtype), c);
            let low: Vec<i64> = (0..rank).map(|_| draw.of(&[0, 0, 1])).collect();
            let none = vec![0; rank];
            b.op(torchtpu_ir::op::Pad { low, high: none.clone(), interior: none }, &[a, value])
                .map(|node| Value { node, result: 0 })
        }
    };
    let value = result.unwrap_or_else(|e| panic!("kind {kind}: {e}"));
    fits(b.shape(value)).then_some(value)
}

/// A graph that verifies, and values for its parameters.
pub fn graph(numbers: &[u32]) -> (Graph, Vec<Vec<Scalar>>) {
    let mut draw = Draw { numbers, at: 0 };
    let mut graph = Graph::new("random");
    let mut b = Builder::new(&mut graph);
    let (mut values, mut inputs) = (Vec::new(), Vec::new());
    for index in 0..1 + draw.below(3) {
        let shape = draw.of::<&[i64]>(&[&[2, 3], &[4], &[1, 3], &[], &[2, 1, 3]]);
        let ty = TensorType::new(draw.of(&DTYPES), shape);
        inputs.push((0..ty.elements()).map(|_| special(&mut draw, ty.dtype)).collect());
        values.push(b.parameter(ParamRole::Input, index as i64, ty.clone()));
        if draw.below(2) == 0 {
            let table = (0..ty.elements()).flat_map(|_| special(&mut draw, ty.dtype).bytes(ty.dtype));
            values.push(b.dense(ty.clone(), table.collect()).unwrap());
        }
    }
    while !draw.done() && values.len() < 40 {
        values.extend(step(&mut b, &values, &mut draw));
    }
    let mut outputs = vec![values[values.len() - 1]];
    outputs.extend((0..2).map(|_| values[draw.below(values.len())]));
    graph.outputs = outputs;
    (graph, inputs)
}
