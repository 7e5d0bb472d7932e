//! Result types from operation and operand types (StableHLO spec, section "Type inference").
//!
//! `infer` answers `None` for operations whose result type is an attribute in disguise (parameter, constant, iota,
//! convert, reshape, broadcast ...); `check` holds a stated type of those against the operands.

use crate::graph::Types;
use crate::op::{BinaryOp, Call, Domain, DotGeneral, FftKind, If, Op, ReduceKind, UnaryOp, While};
use crate::region::Region;
use crate::types::{DType, TensorType};
use smallvec::smallvec;

type Result<T> = std::result::Result<T, String>;

fn one(t: TensorType) -> Result<Option<Types>> {
    Ok(Some(smallvec![t]))
}

fn need(ok: bool, message: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(message()) }
}

fn arity(op: &Op) -> Option<usize> {
    Some(match op {
        Op::Parameter(_) | Op::Constant(_) | Op::Iota(_) | Op::ReplicaId(_) | Op::Allocate(_) => 0,
        Op::Binary(_) | Op::Compare(_) | Op::Pad(_) | Op::DotGeneral(_) | Op::Convolution(_) => 2,
        Op::Gather(_) | Op::TriangularSolve(_) => 2,
        Op::Select(_) | Op::Clamp(_) | Op::Scatter(_) => 3,
        Op::Concatenate(_) | Op::Sort(_) | Op::Reduce(_) => return None,
        Op::DynamicSlice(_) | Op::DynamicUpdateSlice(_) => return None,
        Op::OptimizationBarrier(_) | Op::If(_) | Op::While(_) | Op::Call(_) | Op::Custom(_) => return None,
        _ => 1,
    })
}

fn in_domain(domain: Domain, d: DType) -> bool {
    match domain {
        Domain::Any => true,
        Domain::Float => d.is_float(),
        Domain::FloatComplex => d.is_float() || d.is_complex(),
        Domain::Number => d != DType::Bool,
        Domain::Bits => d.is_int() || d == DType::Bool,
        Domain::Int => d.is_int(),
        Domain::Complex => d.is_complex(),
    }
}

fn window(
    size: i64,
    window: i64,
    stride: i64,
    low: i64,
    high: i64,
    base_dilation: i64,
    window_dilation: i64,
) -> i64 {
    // Attributes are the user's numbers: whatever they are, the answer is a size and not an overflow.
    let spread = if size == 0 { 0 } else { (size - 1).saturating_mul(base_dilation).saturating_add(1) };
    let dilated = spread.saturating_add(low).saturating_add(high);
    let reach = (window - 1).saturating_mul(window_dilation).saturating_add(1);
    if dilated < reach { 0 } else { (dilated.saturating_sub(reach) / stride).saturating_add(1) }
}

fn axes_ok(dims: &[i64], rank: usize) -> bool {
    dims.iter().enumerate().all(|(i, &d)| d >= 0 && (d as usize) < rank && !dims[..i].contains(&d))
}

fn starts_ok(op: &Op, starts: &[&TensorType]) -> Result<()> {
    let bad = starts.iter().find(|t| !t.dtype.is_int() || t.rank() != 0);
    need(bad.is_none(), || {
        format!("{} starts at {}", op.name(), bad.map_or(String::new(), |t| t.to_string()))
    })
}

fn without(shape: &[i64], dims: &[i64]) -> Vec<i64> {
    shape.iter().enumerate().filter(|(i, _)| !dims.contains(&(*i as i64))).map(|(_, &d)| d).collect()
}

/// XLA's collectives add, multiply, and take the least or the greatest; of booleans that is all and any.
pub fn reduces_between_devices(kind: ReduceKind, dtype: DType) -> bool {
    match kind {
        ReduceKind::Add | ReduceKind::Mul => true,
        ReduceKind::Max | ReduceKind::Min => !dtype.is_complex(),
        ReduceKind::And | ReduceKind::Or => dtype == DType::Bool,
        ReduceKind::Xor => false,
    }
}

fn combines(kind: ReduceKind, dtype: DType) -> Result<()> {
    need(reduces_between_devices(kind, dtype), || {
        format!("devices do not combine {dtype} by {}", kind.name())
    })
}

/// The shape with `parts` times as much in one dimension.
fn joined(mut shape: Vec<i64>, dimension: i64, parts: i64) -> Option<Vec<i64>> {
    let size = shape.get_mut(usize::try_from(dimension).ok()?)?;
    *size = size.saturating_mul(parts);
    Some(shape)
}

/// The shape of one of `parts` equal ones.
fn cut(mut shape: Vec<i64>, dimension: i64, parts: i64) -> Option<Vec<i64>> {
    let size = shape.get_mut(usize::try_from(dimension).ok()?)?;
    (*size % parts == 0).then(|| *size /= parts)?;
    Some(shape)
}

fn signature(types: &[&TensorType]) -> String {
    types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn takes(what: &str, region: &Region, operands: &[&TensorType]) -> Result<()> {
    let parameters = region.parameter_types();
    need(parameters == operands, || {
        format!("{what} takes ({}), not ({})", signature(&parameters), signature(operands))
    })
}

fn branches(op: &If, operands: &[&TensorType]) -> Result<Option<Types>> {
    let Some((pred, arguments)) = operands.split_first() else { return Err("if takes a predicate".into()) };
    need(**pred == TensorType::scalar(DType::Bool), || format!("if of {pred}"))?;
    takes("the first branch", &op.on_true, arguments)?;
    takes("the second branch", &op.on_false, arguments)?;
    let (left, right) = (op.on_true.output_types(), op.on_false.output_types());
    need(left == right, || format!("branches give ({}) and ({})", signature(&left), signature(&right)))?;
    Ok(Some(left.into_iter().cloned().collect()))
}

fn loop_state(op: &While, operands: &[&TensorType]) -> Result<Option<Types>> {
    takes("the condition", &op.cond, operands)?;
    takes("the body", &op.body, operands)?;
    let (cond, next) = (op.cond.output_types(), op.body.output_types());
    need(cond == [&TensorType::scalar(DType::Bool)], || format!("the condition gives {}", signature(&cond)))?;
    need(next == operands, || format!("the body makes ({}) of ({})", signature(&next), signature(operands)))?;
    Ok(Some(operands.iter().map(|t| (*t).clone()).collect()))
}

fn called(op: &Call, operands: &[&TensorType]) -> Result<Option<Types>> {
    takes("the function", &op.body, operands)?;
    Ok(Some(op.body.output_types().into_iter().cloned().collect()))
}

/// The result types, or `None` where they have to be stated.
pub fn infer(op: &Op, operands: &[&TensorType]) -> Result<Option<Types>> {
    if let Some(n) = arity(op) {
        need(operands.len() == n, || format!("{} takes {n} operands, not {}", op.name(), operands.len()))?;
    }
    let any =
        matches!(op, Op::Concatenate(_) | Op::Sort(_) | Op::DynamicSlice(_) | Op::DynamicUpdateSlice(_));
    need(!(any && operands.is_empty()), || format!("{} takes operands", op.name()))?;
    let a = operands.first().copied();
    match op {
        Op::If(op) => return branches(op, operands),
        Op::While(op) => return loop_state(op, operands),
        Op::Custom(op) => {
            let takes: Vec<&TensorType> = op.function.operands().iter().collect();
            need(takes == operands, || {
                format!("the function takes ({}), not ({})", signature(&takes), signature(operands))
            })?;
            return Ok(Some(op.function.results().into()));
        }
        Op::Call(op) => return called(op, operands),
        _ => {}
    }
    match (op, a) {
        (Op::Unary(u), Some(a)) => {
            need(in_domain(u.domain(), a.dtype), || format!("{} does not take {}", u.name(), a.dtype))?;
            one(match u {
                UnaryOp::IsFinite => a.with_dtype(DType::Bool),
                UnaryOp::Abs | UnaryOp::Real | UnaryOp::Imag => a.with_dtype(a.dtype.real()),
                _ => a.clone(),
            })
        }
        (Op::Binary(b), Some(a)) => {
            need(operands[1] == a, || format!("{} of {a} and {}", b.name(), operands[1]))?;
            need(in_domain(b.domain(), a.dtype), || format!("{} does not take {}", b.name(), a.dtype))?;
            one(if *b == BinaryOp::Complex { a.with_dtype(a.dtype.complex()) } else { a.clone() })
        }
        (Op::Compare(_), Some(a)) => {
            need(operands[1] == a, || format!("compare of {a} and {}", operands[1]))?;
            one(a.with_dtype(DType::Bool))
        }
        (Op::Select(_), Some(p)) => {
            let (t, f) = (operands[1], operands[2]);
            need(p.dtype == DType::Bool && p.shape == t.shape && t == f, || {
                format!("select of {p}, {t}, {f}")
            })?;
            one(t.clone())
        }
        (Op::Clamp(_), Some(lo)) => {
            need(lo == operands[1] && lo == operands[2], || {
                format!("clamp of {lo}, {}, {}", operands[1], operands[2])
            })?;
            one(lo.clone())
        }
        (Op::Transpose(t), Some(a)) => {
            need(t.permutation.len() == a.rank() && axes_ok(&t.permutation, a.rank()), || {
                format!("permutation {:?} of {a}", t.permutation)
            })?;
            one(a.with_shape(t.permutation.iter().map(|&d| a.shape[d as usize]).collect::<Vec<_>>()))
        }
        (Op::Reverse(r), Some(a)) => {
            need(axes_ok(&r.dimensions, a.rank()), || {
                format!("reverse of dimensions {:?} of {a}", r.dimensions)
            })?;
            one(a.clone())
        }
        (Op::Slice(s), Some(a)) => {
            let n = a.rank();
            need(s.start.len() == n && s.limit.len() == n && s.strides.len() == n, || {
                format!("slice of {a}: ranks")
            })?;
            let mut shape = Vec::with_capacity(n);
            for i in 0..n {
                let (lo, hi, step) = (s.start[i], s.limit[i], s.strides[i]);
                need(0 <= lo && lo <= hi && hi <= a.shape[i] && step > 0, || {
                    format!("slice {lo}:{hi}:{step} of dimension {i} of {a}")
                })?;
                shape.push((hi - lo) / step + ((hi - lo) % step != 0) as i64);
            }
            one(a.with_shape(shape))
        }
        (Op::DynamicSlice(s), Some(a)) => {
            need(s.sizes.len() == a.rank() && operands.len() == 1 + a.rank(), || {
                format!("dynamic_slice of {a}: ranks")
            })?;
            need(s.sizes.iter().zip(&a.shape).all(|(s, d)| 0 <= *s && s <= d), || {
                format!("dynamic_slice sizes {:?} of {a}", s.sizes)
            })?;
            starts_ok(op, &operands[1..])?;
            one(a.with_shape(s.sizes.clone()))
        }
        (Op::DynamicUpdateSlice(_), Some(a)) => {
            need(operands.len() == 2 + a.rank(), || format!("dynamic_update_slice of {a}: operand count"))?;
            starts_ok(op, &operands[2..])?;
            let u = operands[1];
            need(
                u.dtype == a.dtype
                    && u.rank() == a.rank()
                    && u.shape.iter().zip(&a.shape).all(|(u, d)| u <= d),
                || format!("dynamic_update_slice of {u} into {a}"),
            )?;
            one(a.clone())
        }
        (Op::Pad(p), Some(a)) => {
            let n = a.rank();
            need(p.low.len() == n && p.high.len() == n && p.interior.len() == n, || {
                format!("pad of {a}: ranks")
            })?;
            need(*operands[1] == TensorType::scalar(a.dtype), || {
                format!("pad value {} for {a}", operands[1])
            })?;
            let mut shape = Vec::with_capacity(n);
            for i in 0..n {
                let step = p.interior[i].saturating_add(1);
                let spread = (a.shape[i] - 1).saturating_mul(step).saturating_add(1);
                let inner = if a.shape[i] == 0 { 0 } else { spread };
                let d = inner.saturating_add(p.low[i]).saturating_add(p.high[i]);
                need(p.interior[i] >= 0 && d >= 0, || format!("pad makes dimension {i} of {a} {d}"))?;
                shape.push(d);
            }
            one(a.with_shape(shape))
        }
        (Op::Concatenate(c), Some(a)) => {
            let d = c.dimension as usize;
            need(c.dimension >= 0 && d < a.rank(), || format!("concatenate along {d} of {a}"))?;
            let mut shape = a.shape.clone();
            for b in &operands[1..] {
                let same = b.dtype == a.dtype
                    && b.rank() == a.rank()
                    && b.shape.iter().zip(&a.shape).enumerate().all(|(i, (x, y))| i == d || x == y);
                need(same, || format!("concatenate of {a} and {b} along {d}"))?;
                shape[d] = shape[d].saturating_add(b.shape[d]);
            }
            one(a.with_shape(shape))
        }
        (Op::Convolution(c), Some(a)) => {
            let (b, n) = (operands[1], a.rank());
            let lists = [&c.lhs_dims, &c.rhs_dims, &c.out_dims];
            need(n >= 2 && b.rank() == n && lists.iter().all(|l| l.len() == n && axes_ok(l, n)), || {
                format!("convolution dimensions of {a} and {b}")
            })?;
            let spatial = [&c.strides, &c.pad_low, &c.pad_high, &c.lhs_dilation, &c.rhs_dilation];
            need(spatial.iter().all(|l| l.len() == n - 2), || format!("convolution window of {a} and {b}"))?;
            let positive =
                [&c.strides, &c.lhs_dilation, &c.rhs_dilation].iter().all(|l| l.iter().all(|&v| v > 0));
            need(positive && c.feature_groups > 0 && c.batch_groups > 0, || {
                "convolution with a size below 1".into()
            })?;
            let (batch, feature) = (a.shape[c.lhs_dims[0] as usize], a.shape[c.lhs_dims[1] as usize]);
            let (out_feature, in_feature) =
                (b.shape[c.rhs_dims[0] as usize], b.shape[c.rhs_dims[1] as usize]);
            need(feature == in_feature.saturating_mul(c.feature_groups) && a.dtype == b.dtype, || {
                format!("convolution of {a} with {b} in {} groups", c.feature_groups)
            })?;
            need(
                batch % c.batch_groups == 0
                    && out_feature % c.feature_groups.saturating_mul(c.batch_groups) == 0,
                || format!("convolution of {a} with {b}: groups do not divide"),
            )?;
            let mut shape = vec![0; n];
            shape[c.out_dims[0] as usize] = batch / c.batch_groups;
            shape[c.out_dims[1] as usize] = out_feature;
            for i in 0..n - 2 {
                let (size, kernel) =
                    (a.shape[c.lhs_dims[i + 2] as usize], b.shape[c.rhs_dims[i + 2] as usize]);
                shape[c.out_dims[i + 2] as usize] = window(
                    size,
                    kernel,
                    c.strides[i],
                    c.pad_low[i],
                    c.pad_high[i],
                    c.lhs_dilation[i],
                    c.rhs_dilation[i],
                );
            }
            one(a.with_shape(shape))
        }
        (Op::Reduce(r), Some(a)) => {
            need(axes_ok(&r.dimensions, a.rank()), || format!("reduce over {:?} of {a}", r.dimensions))?;
            let start = operands.get(1).map_or(TensorType::scalar(a.dtype), |t| (*t).clone());
            need(matches!(operands.len(), 1 | 2) && start == TensorType::scalar(a.dtype), || {
                format!("reduce of {a} from {} operands, the second a {start}", operands.len())
            })?;
            one(a.with_shape(without(&a.shape, &r.dimensions)))
        }
        (Op::ArgReduce(r), Some(a)) => {
            need(axes_ok(&[r.dimension], a.rank()), || format!("arg_reduce over {} of {a}", r.dimension))?;
            let t = a.with_shape(without(&a.shape, &[r.dimension]));
            Ok(Some(smallvec![t.clone(), t.with_dtype(DType::I64)]))
        }
        (Op::ReduceWindow(w), Some(a)) => {
            let lists =
                [&w.window, &w.strides, &w.pad_low, &w.pad_high, &w.base_dilation, &w.window_dilation];
            need(lists.iter().all(|l| l.len() == a.rank()), || format!("reduce_window of {a}: ranks"))?;
            let positive = [&w.window, &w.strides, &w.base_dilation, &w.window_dilation];
            need(positive.iter().all(|l| l.iter().all(|&v| v > 0)), || {
                "reduce_window with a size below 1".into()
            })?;
            let shape: Vec<i64> = (0..a.rank())
                .map(|i| {
                    window(
                        a.shape[i],
                        w.window[i],
                        w.strides[i],
                        w.pad_low[i],
                        w.pad_high[i],
                        w.base_dilation[i],
                        w.window_dilation[i],
                    )
                })
                .collect();
            one(a.with_shape(shape))
        }
        (Op::Sort(s), Some(a)) => {
            need(axes_ok(&[s.dimension], a.rank()), || format!("sort along {} of {a}", s.dimension))?;
            need(operands.iter().all(|b| b.shape == a.shape), || {
                "sort of operands of different shapes".into()
            })?;
            Ok(Some(operands.iter().map(|t| (*t).clone()).collect()))
        }
        (Op::Gather(g), Some(a)) => {
            let indices = operands[1];
            let ivd = g.index_vector_dim;
            need(g.slice_sizes.len() == a.rank() && ivd >= 0 && ivd as usize <= indices.rank(), || {
                format!("gather from {a}")
            })?;
            need(g.slice_sizes.iter().zip(&a.shape).all(|(s, d)| 0 <= *s && s <= d), || {
                format!("gather of slices {:?} from {a}", g.slice_sizes)
            })?;
            let batch = without(&indices.shape, &[ivd]);
            let dropped: Vec<i64> =
                g.collapsed_slice_dims.iter().chain(&g.operand_batching_dims).copied().collect();
            let offsets = without(&g.slice_sizes, &dropped);
            need(
                axes_ok(&g.offset_dims, batch.len() + offsets.len()) && offsets.len() == g.offset_dims.len(),
                || format!("gather offset dimensions {:?} from {a}", g.offset_dims),
            )?;
            let (mut batch, mut offsets) = (batch.into_iter(), offsets.into_iter());
            let rank = batch.len() + offsets.len();
            let shape: Vec<i64> = (0..rank as i64)
                .filter_map(|i| if g.offset_dims.contains(&i) { offsets.next() } else { batch.next() })
                .collect();
            one(a.with_shape(shape))
        }
        (Op::Scatter(s), Some(a)) => {
            let (i, u) = (operands[1], operands[2]);
            need(
                u.dtype == a.dtype && (s.index_vector_dim as usize) <= i.rank() && s.index_vector_dim >= 0,
                || format!("scatter of {u} into {a} at {i}"),
            )?;
            let rank = without(&i.shape, &[s.index_vector_dim]).len() + s.update_window_dims.len();
            let window =
                s.update_window_dims.len() + s.inserted_window_dims.len() + s.input_batching_dims.len();
            need(u.rank() == rank && window == a.rank(), || format!("scatter of {u} into {a} at {i}"))?;
            one(a.clone())
        }
        (Op::Cholesky(_), Some(a)) => one(a.clone()),
        (Op::TriangularSolve(_), Some(_)) => one(operands[1].clone()),
        (Op::Fft(f), Some(a)) => {
            let n = f.length.len();
            need(n >= 1 && n <= a.rank() && n <= 3, || format!("fft of {n} dimensions of {a}"))?;
            let mut shape = a.shape.clone();
            let last = shape.len() - 1;
            let dtype = match f.kind {
                FftKind::Fft | FftKind::Ifft => a.dtype,
                FftKind::Rfft => {
                    shape[last] = f.length[n - 1] / 2 + 1;
                    a.dtype.complex()
                }
                FftKind::Irfft => {
                    shape[last] = f.length[n - 1];
                    a.dtype.real()
                }
            };
            one(TensorType::new(dtype, shape))
        }
        (Op::AllReduce(r), Some(a)) => {
            r.groups.check()?;
            combines(r.kind, a.dtype)?;
            one(a.clone())
        }
        (Op::AllGather(g), Some(a)) => {
            g.groups.check()?;
            let shape = joined(a.shape.clone(), g.dimension, g.groups.size());
            one(a.with_shape(shape.ok_or_else(|| format!("all_gather along {} of {a}", g.dimension))?))
        }
        (Op::ReduceScatter(r), Some(a)) => {
            r.groups.check()?;
            combines(r.kind, a.dtype)?;
            let shape = cut(a.shape.clone(), r.dimension, r.groups.size());
            one(a.with_shape(shape.ok_or_else(|| {
                format!("reduce_scatter along {} of {a} in groups of {}", r.dimension, r.groups.size())
            })?))
        }
        (Op::AllToAll(t), Some(a)) => {
            t.groups.check()?;
            let size = t.groups.size();
            let shape = cut(a.shape.clone(), t.split, size).and_then(|shape| joined(shape, t.concat, size));
            one(a.with_shape(shape.ok_or_else(|| {
                format!("all_to_all from {} to {} of {a} in groups of {size}", t.split, t.concat)
            })?))
        }
        (Op::CollectivePermute(p), Some(a)) => {
            let once = |ranks: &[i64]| {
                let seen: std::collections::HashSet<&i64> = ranks.iter().collect();
                seen.len() == ranks.len() && ranks.iter().all(|rank| (0..p.devices).contains(rank))
            };
            need(p.sources.len() == p.targets.len() && once(&p.sources) && once(&p.targets), || {
                format!("collective_permute from {:?} to {:?} of {} devices", p.sources, p.targets, p.devices)
            })?;
            one(a.clone())
        }
        (Op::ReplicaId(r), _) => {
            need(r.devices > 0, || format!("replica_id of {} devices", r.devices))?;
            one(TensorType::scalar(DType::U32))
        }
        (Op::OptimizationBarrier(_), _) => Ok(Some(operands.iter().map(|t| (*t).clone()).collect())),
        _ => Ok(None),
    }
}

/// The shape of a product: batch dimensions, then the free ones of either operand.
pub fn dot_shape(g: &DotGeneral, a: &TensorType, b: &TensorType) -> Result<Vec<i64>> {
    let lhs: Vec<i64> = g.lhs_batch.iter().chain(&g.lhs_contracting).copied().collect();
    let rhs: Vec<i64> = g.rhs_batch.iter().chain(&g.rhs_contracting).copied().collect();
    need(axes_ok(&lhs, a.rank()) && axes_ok(&rhs, b.rank()) && lhs.len() == rhs.len(), || {
        format!("dot_general dimensions {lhs:?} of {a} and {rhs:?} of {b}")
    })?;
    need(g.lhs_batch.len() == g.rhs_batch.len() && a.dtype == b.dtype, || {
        format!("dot_general of {a} and {b}")
    })?;
    need(lhs.iter().zip(&rhs).all(|(&i, &j)| a.shape[i as usize] == b.shape[j as usize]), || {
        format!("dot_general sizes differ: {lhs:?} of {a} and {rhs:?} of {b}")
    })?;
    let mut shape: Vec<i64> = g.lhs_batch.iter().map(|&d| a.shape[d as usize]).collect();
    shape.extend(without(&a.shape, &lhs));
    shape.extend(without(&b.shape, &rhs));
    Ok(shape)
}

/// A product may be wider than its operands: the sum is then never rounded to their type.
fn accumulates(operand: DType, result: DType) -> bool {
    let wider = |kind: fn(DType) -> bool| kind(operand) && kind(result) && result.size() > operand.size();
    operand == result || wider(DType::is_float) || wider(DType::is_signed) || wider(DType::is_unsigned)
}

/// Holds stated result types of operations that `infer` leaves open against their operands.
pub fn check(op: &Op, operands: &[&TensorType], types: &[TensorType]) -> Result<()> {
    let expected = if matches!(op, Op::RngBitGenerator(_)) { 2 } else { 1 };
    need(types.len() == expected, || format!("{} has {expected} results, not {}", op.name(), types.len()))?;
    let t = &types[0];
    match (op, operands.first().copied()) {
        (Op::Constant(c), _) => match &c.value {
            crate::Literal::Splat(_) => Ok(()),
            crate::Literal::Dense(bytes) => {
                need(bytes.len() as i64 == t.bytes(), || format!("constant of {} bytes for {t}", bytes.len()))
            }
        },
        (Op::Iota(i), _) => need(i.dimension >= 0 && (i.dimension as usize) < t.rank(), || {
            format!("iota along {} of {t}", i.dimension)
        }),
        (Op::Convert(_), Some(a)) => need(a.shape == t.shape, || format!("convert of {a} to {t}")),
        (Op::BitcastConvert(_), Some(a)) => {
            // Between sizes, the wider type's elements are the narrower one's last dimension.
            let (x, y) = (a.dtype.size(), t.dtype.size());
            let split = |wide: &TensorType, narrow: &TensorType| {
                let ratio = (wide.dtype.size() / narrow.dtype.size()) as i64;
                narrow.shape.split_last().is_some_and(|(n, rest)| *n == ratio && rest == wide.shape)
            };
            let fits = if x == y { a.shape == t.shape } else { split(a, t) || split(t, a) };
            need(fits, || format!("bitcast_convert of {a} to {t}"))
        }
        (Op::Reshape(_), Some(a)) => {
            need(a.dtype == t.dtype && a.elements() == t.elements(), || format!("reshape of {a} to {t}"))
        }
        (Op::BroadcastInDim(b), Some(a)) => {
            need(
                a.dtype == t.dtype && b.dimensions.len() == a.rank() && axes_ok(&b.dimensions, t.rank()),
                || format!("broadcast_in_dim of {a} to {t} along {:?}", b.dimensions),
            )?;
            let fits = b.dimensions.iter().zip(&a.shape).all(|(&d, &s)| s == 1 || s == t.shape[d as usize]);
            need(fits, || format!("broadcast_in_dim of {a} to {t} along {:?}", b.dimensions))
        }
        (Op::DotGeneral(g), Some(a)) => {
            let b = operands[1];
            need(t.shape == dot_shape(g, a, b)? && accumulates(a.dtype, t.dtype), || {
                format!("dot_general of {a} and {b} to {t}")
            })
        }
        (Op::RngBitGenerator(_), Some(a)) => {
            need(t == a && *a == TensorType::new(DType::U64, [2]), || {
                format!("rng state {a}, next state {t}")
            })?;
            need(types[1].dtype.is_unsigned(), || format!("random bits of type {}", types[1]))
        }
        _ => Ok(()),
    }
}
