//! Resizing of images and other grids.
//!
//! Resizing is separable: along each dimension an output element is a weighted sum of few input elements. Nearest
//! modes pick elements (copies for whole factors); the others are a product with a small constant matrix, which a
//! TPU does far better than gathering, and whose transpose is the backward.

use crate::cx::Cx;
use crate::families::linear::dot_with;
use crate::families::pool::{inverse_ranges, range_sums, take};
use crate::table::{Result, Row, Rule::*, row};
use torchtpu_ir::{BinaryOp, DType, Ints, Precision, Scalar, TensorType, Value};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("aten.upsample_nearest1d.default", One(nearest)),
    row("aten.upsample_nearest2d.default", One(nearest)),
    row("aten.upsample_nearest3d.default", One(nearest)),
    row("aten._upsample_nearest_exact1d.default", One(nearest)),
    row("aten._upsample_nearest_exact2d.default", One(nearest)),
    row("aten._upsample_nearest_exact3d.default", One(nearest)),
    row("aten.upsample_nearest1d_backward.default", One(nearest_backward)),
    row("aten.upsample_nearest2d_backward.default", One(nearest_backward)),
    row("aten.upsample_nearest3d_backward.default", One(nearest_backward)),
    row("aten._upsample_nearest_exact1d_backward.default", One(nearest_backward)),
    row("aten._upsample_nearest_exact2d_backward.default", One(nearest_backward)),
    row("aten._upsample_nearest_exact3d_backward.default", One(nearest_backward)),
    row("aten.upsample_linear1d.default", One(weighted)),
    row("aten.upsample_bilinear2d.default", One(weighted)),
    row("aten.upsample_trilinear3d.default", One(weighted)),
    row("aten.upsample_bicubic2d.default", One(weighted)),
    row("aten._upsample_bilinear2d_aa.default", One(weighted)),
    row("aten._upsample_bicubic2d_aa.default", One(weighted)),
    row("aten.upsample_linear1d_backward.default", One(weighted_backward)),
    row("aten.upsample_bilinear2d_backward.default", One(weighted_backward)),
    row("aten.upsample_trilinear3d_backward.default", One(weighted_backward)),
    row("aten.upsample_bicubic2d_backward.default", One(weighted_backward)),
    row("aten._upsample_bilinear2d_aa_backward.default", One(weighted_backward)),
    row("aten._upsample_bicubic2d_aa_backward.default", One(weighted_backward)),
];

/// Resizing along one dimension.
struct Axis {
    dim: usize,
    input: i64,
    output: i64,
    /// The factor that the user gave, if any.
    scale: Option<f64>,
}

/// The spatial axes, from the shapes of both sides.
fn axes(cx: &Cx<'_>, input: &[i64], output: &[i64]) -> Result<Vec<Axis>> {
    let names: &[&str] = match input.len() {
        3 => &["scales"],
        4 => &["scales_h", "scales_w"],
        _ => &["scales_d", "scales_h", "scales_w"],
    };
    let sizes = input.iter().zip(output).skip(2);
    sizes
        .zip(names)
        .enumerate()
        .map(|(d, ((&input, &output), name))| {
            let scale = cx.opt_float(name)?.filter(|&s| s > 0.0);
            Ok(Axis { dim: d + 2, input, output, scale })
        })
        .collect()
}

impl Axis {
    /// Input elements per output element.
    fn step(&self, align_corners: bool) -> f64 {
        match (align_corners, self.scale) {
            (true, _) if self.output > 1 => (self.input - 1) as f64 / (self.output - 1) as f64,
            (true, _) => 0.0,
            (false, Some(scale)) => 1.0 / scale,
            (false, None) => self.input as f64 / self.output as f64,
        }
    }

    /// The input element of each output element: `floor(o * step)`, or of `o + 0.5` in the exact modes. In f32, as
    /// PyTorch computes it: the rounding decides which element is picked.
    fn nearest(&self, exact: bool) -> Vec<(i64, i64)> {
        let step = match self.scale {
            Some(scale) => (1.0 / scale) as f32,
            None => self.input as f32 / self.output as f32,
        };
        let at = |o: i64| ((o as f32 + if exact { 0.5 } else { 0.0 }) * step).floor() as i64;
        (0..self.output).map(|o| at(o).clamp(0, self.input - 1)).map(|i| (i, i + 1)).collect()
    }

    /// The row-major `[output, input]` matrix of this resizing.
    fn matrix(&self, filter: Filter, align_corners: bool, antialias: bool) -> Vec<f64> {
        let step = self.step(align_corners);
        let mut matrix = vec![0.0; (self.input * self.output) as usize];
        for o in 0..self.output {
            let taps = if antialias {
                self.antialiased(filter, step, o)
            } else {
                plain(filter, step, align_corners, o)
            };
            for (i, weight) in taps {
                let i = i.clamp(0, self.input - 1);
                matrix[(o * self.input + i) as usize] += weight;
            }
        }
        matrix
    }

    /// A filter as wide as the step, over the elements within the input, of sum 1.
    fn antialiased(&self, filter: Filter, step: f64, o: i64) -> Vec<(i64, f64)> {
        let stretch = step.max(1.0);
        let support = filter.support() * stretch;
        let center = step * (o as f64 + 0.5);
        let start = ((center - support + 0.5) as i64).max(0);
        let end = ((center + support + 0.5) as i64).min(self.input);
        let weight = |i: i64| filter.weight((i as f64 - center + 0.5) / stretch, -0.5);
        let total: f64 = (start..end).map(weight).sum();
        (start..end).map(|i| (i, weight(i) / total)).collect()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Filter {
    Linear,
    Cubic,
}

impl Filter {
    /// Half of the filter's width.
    fn support(self) -> f64 {
        if self == Filter::Linear { 1.0 } else { 2.0 }
    }

    /// The weight of an element at distance `x`; `a` is the cubic's free parameter.
    fn weight(self, x: f64, a: f64) -> f64 {
        let x = x.abs();
        match self {
            Filter::Linear => (1.0 - x).max(0.0),
            Filter::Cubic if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            Filter::Cubic if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
            Filter::Cubic => 0.0,
        }
    }
}

/// The input elements of output `o` with their weights; those outside of the input stand for its border.
fn plain(filter: Filter, step: f64, align_corners: bool, o: i64) -> Vec<(i64, f64)> {
    let mut x = if align_corners { step * o as f64 } else { step * (o as f64 + 0.5) - 0.5 };
    if filter == Filter::Linear {
        x = x.max(0.0);
    }
    let (start, reach) = (x.floor() as i64, filter.support() as i64);
    (start - reach + 1..=start + reach).map(|i| (i, filter.weight(x - i as f64, -0.75))).collect()
}

fn is_exact(cx: &Cx<'_>) -> bool {
    cx.target().contains("exact")
}

/// `upsample_nearestNd(self, output_size, scales..)` and `_upsample_nearest_exactNd`
fn nearest(cx: &mut Cx<'_>) -> Result<Value> {
    let (out, mut v) = (cx.out(0)?, cx.tensor("self")?);
    for axis in axes(cx, cx.b.shape(v), &out.shape)? {
        let indices: Ints = axis.nearest(is_exact(cx)).into_iter().map(|r| r.0).collect();
        v = take(cx, v, axis.dim, &indices)?;
    }
    Ok(v)
}

/// `upsample_nearestNd_backward(grad_output, output_size, input_size, scales..)`: each input element gets the sum of
/// the neighbouring outputs that are copies of it.
fn nearest_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let mut v = cx.operand("grad_output", out.dtype.opmath())?;
    for axis in axes(cx, &out.shape, cx.b.shape(v))? {
        let ranges = inverse_ranges(&axis.nearest(is_exact(cx)), axis.input);
        v = range_sums(cx, v, axis.dim, &ranges)?;
    }
    cx.convert(v, out.dtype)
}

/// The matrix of an axis as the target has it; none where the axis stays as it is.
fn matrix(cx: &Cx<'_>, axis: &Axis) -> Result<Option<Vec<f64>>> {
    let filter = if cx.target().contains("cubic") { Filter::Cubic } else { Filter::Linear };
    let (align, antialias) = (cx.bool("align_corners")?, cx.target().contains("_aa"));
    let same = axis.input == axis.output && axis.step(align) == 1.0;
    Ok((!same).then(|| axis.matrix(filter, align, antialias)))
}

/// Multiplies an axis by a matrix, or by its transpose.
fn product(cx: &mut Cx<'_>, v: Value, axis: &Axis, matrix: Vec<f64>, backward: bool) -> Result<Value> {
    let dtype = cx.b.dtype(v);
    let bytes = matrix.into_iter().flat_map(|w| Scalar::from_f64(dtype, w).bytes(dtype)).collect();
    let matrix = cx.b.dense(TensorType::new(dtype, [axis.output, axis.input]), bytes)?;
    let contracted = if backward { 0 } else { 1 };
    let dim = axis.dim as i64;
    let v = dot_with(cx, v, matrix, 0, &[dim], &[contracted], Precision::Highest)?;
    // The new dimension comes last.
    let last = cx.b.rank(v) as i64 - 1;
    let order: Ints = (0..dim).chain([last]).chain(dim..last).collect();
    cx.b.transpose(v, &order)
}

/// Multiplies each axis by its matrix, or by its transpose.
fn resize(cx: &mut Cx<'_>, mut v: Value, axes: &[Axis], backward: bool) -> Result<Value> {
    for axis in axes {
        if let Some(matrix) = matrix(cx, axis)? {
            v = product(cx, v, axis, matrix, backward)?;
        }
    }
    Ok(v)
}

/// Images of u8, as PyTorch resizes them: the last axis first, each rounded to u8, by weights that are 16-bit integers
/// over a power of two. Their two bytes are multiplied apart: in f32, or in bf16 with sums in f32, that is exact.
fn resize_bytes(cx: &mut Cx<'_>, mut v: Value, axes: &[Axis]) -> Result<Value> {
    for axis in axes.iter().rev() {
        let Some(matrix) = matrix(cx, axis)? else { continue };
        let (weights, bits) = fixed_point(&matrix);
        let high = weights.iter().map(|&w| (w >> 8) as f64).collect();
        let low = weights.iter().map(|&w| (w & 255) as f64).collect();
        let (high, low) = (product(cx, v, axis, high, false)?, product(cx, v, axis, low, false)?);
        let (high, low) = (cx.b.convert(high, DType::I32)?, cx.b.convert(low, DType::I32)?);
        let high = cx.b.binary_const(BinaryOp::Multiply, high, 256.0)?;
        let sum = cx.b.add(high, low)?;
        let sum = cx.b.binary_const(BinaryOp::Add, sum, (1 << bits >> 1) as f64)?;
        let sum = cx.b.binary_const(BinaryOp::ShiftRightArithmetic, sum, bits as f64)?;
        let sum = cx.b.binary_const(BinaryOp::Maximum, sum, 0.0)?;
        let sum = cx.b.binary_const(BinaryOp::Minimum, sum, 255.0)?;
        v = cx.b.convert(sum, DType::F32)?;
    }
    Ok(v)
}

/// Weights times the greatest power of two with which they fit into 16 bits, and which one that is.
fn fixed_point(weights: &[f64]) -> (Vec<i32>, u32) {
    let greatest = weights.iter().copied().fold(0.0, f64::max);
    let fits = |bits: u32| ((greatest * (1 << bits) as f64 + 0.5) as i32) < 1 << 15;
    let bits = (0..22).find(|bits| !fits(bits + 1)).unwrap_or(22);
    let scale = (1 << bits) as f64;
    (weights.iter().map(|w| (w * scale).round() as i32).collect(), bits)
}

/// `upsample_{linear,bilinear,trilinear,bicubic}Nd(self, output_size, align_corners, scales..)`
fn weighted(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let wide = if out.dtype.is_float() { out.dtype.opmath() } else { DType::F32 };
    let v = cx.operand("self", wide)?;
    let axes = axes(cx, cx.b.shape(v), &out.shape)?;
    let v = if out.dtype.is_float() { resize(cx, v, &axes, false)? } else { resize_bytes(cx, v, &axes)? };
    cx.convert(v, out.dtype)
}

/// `upsample_*_backward(grad_output, output_size, input_size, align_corners, scales..)`
fn weighted_backward(cx: &mut Cx<'_>) -> Result<Value> {
    let out = cx.out(0)?;
    let v = cx.operand("grad_output", out.dtype.opmath())?;
    let axes = axes(cx, &out.shape, cx.b.shape(v))?;
    let v = resize(cx, v, &axes, true)?;
    cx.convert(v, out.dtype)
}
