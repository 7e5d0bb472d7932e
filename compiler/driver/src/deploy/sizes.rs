//! Programs of an artifact that are for a range of sizes: what a call's sizes are, and how its tensors are padded to
//! the program's and cut back. That the padding does not reach the numbers is proven in `bucket`.

use super::{Role, refuse};
use crate::bucket::{Border, Runtime};
use crate::host::Array;
use crate::options::ProgramSettings;
use crate::program::{Program, Source};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use torchtpu_import::{Bindings, Number, evaluate};
use torchtpu_ir::{CompileError, Stage};

type Result<T> = std::result::Result<T, CompileError>;

/// How many sets of sizes are remembered.
const REMEMBERED: usize = 1024;

/// A size as an artifact's label says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Extent {
    Number(i64),
    /// Of symbols, as PyTorch prints it.
    Expression(String),
}

impl Extent {
    pub(super) fn at(&self, bindings: &Bindings) -> Result<i64> {
        match self {
            Extent::Number(n) => Ok(*n),
            Extent::Expression(text) => match evaluate(text, bindings).map_err(refuse)? {
                Number::Int(n) => Ok(n),
                _ => Err(refuse(format!("`{text}` is no size"))),
            },
        }
    }
}

/// What makes a program one for a range of sizes.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Sizes {
    /// The section that holds what the program is made of.
    pub(super) payload: String,
    symbols: Vec<Symbol>,
    /// The shapes of the caller's inputs.
    inputs: Vec<Vec<Extent>>,
    /// Sizes at which the compiler saw what depends on which of them.
    samples: Vec<BTreeMap<String, i64>>,
    settings: ProgramSettings,
}

/// A size that the caller decides, by the dimension of the input that tells it.
#[derive(Clone, Debug, Deserialize)]
struct Symbol {
    name: String,
    input: usize,
    dim: usize,
    min: i64,
    max: i64,
}

impl Symbol {
    fn of_call(&self, inputs: &[Array]) -> Option<i64> {
        inputs.get(self.input)?.shape().get(self.dim).copied()
    }
}

impl Sizes {
    /// Whether the program is for inputs of these sizes.
    pub(super) fn serve(&self, inputs: &[Array]) -> bool {
        self.symbols.iter().all(|s| s.of_call(inputs).is_some_and(|size| (s.min..=s.max).contains(&size)))
    }

    /// The symbols' values in a call. `name` is of an input.
    fn of_call(&self, inputs: &[Array], name: impl Fn(usize) -> String) -> Result<Bindings> {
        let fail = |message: String| Err(CompileError::new(Stage::Run, message));
        let mut bindings = Bindings::default();
        for symbol in &self.symbols {
            let Some(size) = symbol.of_call(inputs) else {
                return fail(format!("input `{}` has no dimension {}", name(symbol.input), symbol.dim));
            };
            if !(symbol.min..=symbol.max).contains(&size) {
                return fail(format!(
                    "input `{}` has size {size} in dimension {}, and was exported for {} to {}",
                    name(symbol.input),
                    symbol.dim,
                    symbol.min,
                    symbol.max
                ));
            }
            bindings.insert(symbol.name.clone(), size);
        }
        for (at, (array, extents)) in inputs.iter().zip(&self.inputs).enumerate() {
            let shape = extents.iter().map(|extent| extent.at(&bindings)).collect::<Result<Vec<_>>>()?;
            if array.shape() != shape {
                return fail(format!("input `{}` has shape {:?}, not {shape:?}", name(at), array.shape()));
            }
        }
        Ok(bindings)
    }
}

/// A program for a range of sizes.
pub(super) struct Ranged {
    sizes: Sizes,
    pub(super) program: Program,
    known: Mutex<BTreeMap<Vec<i64>, Arc<Runtime>>>,
}

impl Ranged {
    /// Compiles the payload for the largest sizes.
    pub(super) fn new(sizes: &Sizes, payload: &[u8]) -> Result<Ranged> {
        let source = Arc::new(Source::parse(payload.to_vec())?);
        let upper: Bindings = sizes.symbols.iter().map(|s| (s.name.clone(), s.max)).collect();
        let samples: Vec<Bindings> = sizes.samples.iter().map(|s| s.clone().into_iter().collect()).collect();
        let mut sizes = sizes.clone();
        // A file does not decide where something is written.
        sizes.settings.dump_dir = None;
        let program = Program::bucketed(&source, &upper, &samples, &sizes.settings)?;
        Ok(Ranged { sizes, program, known: Mutex::default() })
    }

    /// Inputs that the caller does not know of.
    pub(super) fn fillings(&self) -> usize {
        self.program
            .bucket
            .as_ref()
            .map_or(0, |bucket| self.program.interface.inputs.len() - bucket.inputs.len())
    }

    /// What a call with these inputs does besides calling.
    pub(super) fn fit(&self, inputs: &[Array], roles: &[Role]) -> Result<Fit<'_>> {
        let name = |input: usize| {
            let at = roles.iter().position(|role| matches!(role, Role::Input(i) if *i == input));
            at.map_or_else(|| input.to_string(), |at| self.program.interface.inputs[at].name.clone())
        };
        let bindings = self.sizes.of_call(inputs, name)?;
        let key: Vec<i64> = self.sizes.symbols.iter().map(|s| bindings[&s.name]).collect();
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lock().get(&key).cloned();
        let runtime = match found {
            Some(runtime) => runtime,
            None => {
                let runtime = Arc::new(self.program.runtime(&bindings, &self.sizes.settings)?);
                let mut known = lock();
                if known.len() >= REMEMBERED {
                    known.clear();
                }
                known.insert(key, runtime.clone());
                runtime
            }
        };
        let fillings = runtime.fillings.iter();
        let fillings =
            fillings.map(|f| Array::new(f.dtype, f.shape.clone(), &f.bytes)).collect::<Result<_>>()?;
        let (inputs, outputs) = match &self.program.bucket {
            Some(bucket) => (&bucket.inputs[..], &bucket.outputs[..]),
            None => (&[][..], &[][..]),
        };
        Ok(Fit { bindings, runtime, fillings, inputs, outputs })
    }
}

/// A program at one set of sizes.
pub(super) struct Fit<'a> {
    pub(super) bindings: Bindings,
    runtime: Arc<Runtime>,
    /// Passed after the inputs.
    pub(super) fillings: Vec<Array>,
    inputs: &'a [Border],
    outputs: &'a [Border],
}

impl Fit<'_> {
    fn padding<'a>(&self, borders: &'a [Border], at: usize) -> Option<&'a Border> {
        borders.get(at).filter(|border| !border.is_exact())
    }

    pub(super) fn is_padded(&self, input: usize) -> bool {
        self.padding(self.inputs, input).is_some()
    }

    /// An input of the program's size: zero outside of the caller's elements.
    pub(super) fn pad(&self, input: usize, array: &Array) -> Result<Array> {
        let Some(border) = self.padding(self.inputs, input) else { return super::whole(array) };
        let place = Place::of(border, &self.runtime.limits);
        let mut bytes = vec![0; elements(&place.whole) * array.dtype.size()];
        place.copy(array, |own, padded, size| {
            bytes[padded..padded + size].copy_from_slice(&array.bytes()[own..own + size])
        });
        Array::new(array.dtype, place.whole, &bytes)
    }

    /// The valid elements of an input that the program wrote.
    pub(super) fn cut_input(&self, input: usize, array: &Array) -> Result<Array> {
        self.cut(self.padding(self.inputs, input), array)
    }

    /// The valid elements of a result.
    pub(super) fn cut_output(&self, output: usize, array: &Array) -> Result<Array> {
        self.cut(self.padding(self.outputs, output), array)
    }

    fn cut(&self, border: Option<&Border>, array: &Array) -> Result<Array> {
        let Some(border) = border else { return super::whole(array) };
        let place = Place::of(border, &self.runtime.limits);
        let mut bytes = vec![0; elements(&place.valid) * array.dtype.size()];
        place.copy(array, |own, padded, size| {
            bytes[own..own + size].copy_from_slice(&array.bytes()[padded..padded + size])
        });
        Array::new(array.dtype, place.valid, &bytes)
    }
}

/// Where a tensor's elements lie in a padded one; both row by row.
struct Place {
    valid: Vec<i64>,
    whole: Vec<i64>,
    /// Valid extent of each part of each dimension, and its strides in the one and in the other.
    parts: Vec<(i64, i64, i64)>,
}

impl Place {
    fn of(border: &Border, limits: &[i64]) -> Place {
        let rank = border.order.len();
        let valid_part =
            |&(extent, limit): &(i64, Option<usize>)| limit.map_or(extent, |limit| limits[limit]);
        let (mut valid, mut whole) = (vec![0; rank], vec![0; rank]);
        // `dims` are in memory order, the arrays are row by row.
        let mut by_dim: Vec<&[(i64, Option<usize>)]> = vec![&[]; rank];
        for (&dim, parts) in border.order.iter().zip(&border.dims) {
            let dim = dim as usize;
            valid[dim] = parts.iter().map(valid_part).product();
            whole[dim] = parts.iter().map(|(extent, _)| extent).product();
            by_dim[dim] = parts;
        }
        let mut parts = Vec::new();
        let (mut own, mut padded) = (1, 1);
        for part in by_dim.iter().rev().flat_map(|parts| parts.iter().rev()) {
            parts.push((valid_part(part), own, padded));
            own *= valid_part(part);
            padded *= part.0;
        }
        parts.reverse();
        Place { valid, whole, parts }
    }

    /// Tells the offsets of every innermost run in both, and its length; in bytes of the dtype of `like`.
    fn copy(&self, like: &Array, mut run: impl FnMut(usize, usize, usize)) {
        let size = like.dtype.size();
        let (inner, outer) = match self.parts.split_last() {
            Some((inner, outer)) => (inner.0 as usize, outer),
            None => (1, &[][..]),
        };
        if elements(&self.valid) == 0 {
            return;
        }
        let mut index = vec![0; outer.len()];
        loop {
            let at = |stride: fn(&(i64, i64, i64)) -> i64| {
                index.iter().zip(outer).map(|(i, part)| i * stride(part)).sum::<i64>() as usize * size
            };
            run(at(|part| part.1), at(|part| part.2), inner * size);
            let Some(next) = (0..outer.len()).rev().find(|&d| index[d] + 1 < outer[d].0) else { return };
            index[next] += 1;
            index[next + 1..].fill(0);
        }
    }
}

fn elements(shape: &[i64]) -> usize {
    shape.iter().product::<i64>().max(0) as usize
}
