//! MLIR types, attributes and locations, each made once.

use crate::ops::{Attr, precision};
use melior::Context;
use melior::ir::attribute::{
    ArrayAttribute, BoolAttribute, DenseElementsAttribute, DenseI64ArrayAttribute, IntegerAttribute,
};
use melior::ir::r#type::{IntegerType, RankedTensorType};
use melior::ir::{Attribute, Identifier, Location, Type};
use rustc_hash::FxHashMap;
use torchtpu_ir::{DType, Frame, Graph, Literal, LocId, Precision, ReplicaGroups, TensorType};

pub struct Cache<'c, 'g> {
    pub context: &'c Context,
    graph: &'g Graph,
    elements: FxHashMap<DType, Type<'c>>,
    types: FxHashMap<TensorType, Type<'c>>,
    identifiers: FxHashMap<&'static str, Identifier<'c>>,
    parsed: FxHashMap<String, Attribute<'c>>,
    groups: FxHashMap<ReplicaGroups, Attribute<'c>>,
    frames: FxHashMap<&'g Frame, Location<'c>>,
    locations: Vec<Option<Location<'c>>>,
    i64: Type<'c>,
}

impl<'c, 'g> Cache<'c, 'g> {
    pub fn new(context: &'c Context, graph: &'g Graph) -> Self {
        Cache {
            context,
            graph,
            elements: FxHashMap::default(),
            types: FxHashMap::default(),
            identifiers: FxHashMap::default(),
            parsed: FxHashMap::default(),
            groups: FxHashMap::default(),
            frames: FxHashMap::default(),
            locations: vec![None; graph.locations.len()],
            i64: IntegerType::new(context, 64).into(),
        }
    }

    pub fn identifier(&mut self, name: &'static str) -> Identifier<'c> {
        *self.identifiers.entry(name).or_insert_with(|| Identifier::new(self.context, name))
    }

    fn element(&mut self, dtype: DType) -> Type<'c> {
        let context = self.context;
        // MLIR knows every name of the table; a name that it did not would fail at the reader as `none`.
        *self
            .elements
            .entry(dtype)
            .or_insert_with(|| Type::parse(context, dtype.mlir_name()).unwrap_or_else(|| Type::none(context)))
    }

    pub fn tensor(&mut self, ty: &TensorType) -> Type<'c> {
        if let Some(found) = self.types.get(ty) {
            return *found;
        }
        let shape: Vec<u64> = ty.shape.iter().map(|&d| d as u64).collect();
        let made = RankedTensorType::new(&shape, self.element(ty.dtype), None).into();
        self.types.insert(ty.clone(), made);
        made
    }

    pub fn scalar(&mut self, dtype: DType) -> Type<'c> {
        self.tensor(&TensorType::scalar(dtype))
    }

    /// `value` for an operation whose first result is `result`.
    pub fn attribute(&mut self, value: &Attr<'_>, result: &TensorType) -> Result<Attribute<'c>, String> {
        Ok(match value {
            Attr::Int(v) => IntegerAttribute::new(self.i64, *v).into(),
            Attr::Bool(v) => BoolAttribute::new(self.context, *v).into(),
            Attr::Ints(v) => DenseI64ArrayAttribute::new(self.context, v).into(),
            Attr::Pairs(low, high) => {
                let ty = self.tensor(&TensorType::new(DType::I64, [low.len() as i64, 2]));
                let values: Vec<i64> = low.iter().zip(*high).flat_map(|(&l, &h)| [l, h]).collect();
                DenseElementsAttribute::i64_values(ty, &values).into()
            }
            Attr::Dialect(text) => self.parse(text)?,
            Attr::Groups(groups) => self.replica_groups(groups),
            Attr::Precision(p) => self.precision(*p)?,
            Attr::Elements(literal) => self.elements(literal, result)?,
        })
    }

    /// A number for each device of the world: each set of groups once, however many collectives have it.
    fn replica_groups(&mut self, groups: &ReplicaGroups) -> Attribute<'c> {
        if let Some(found) = self.groups.get(groups) {
            return *found;
        }
        let lists = groups.groups();
        let ty = self.tensor(&TensorType::new(DType::I64, [lists.len() as i64, groups.size()]));
        let replicas: Vec<i64> = lists.into_iter().flatten().collect();
        let made: Attribute<'c> = DenseElementsAttribute::i64_values(ty, &replicas).into();
        self.groups.insert(groups.clone(), made);
        made
    }

    fn precision(&mut self, p: Precision) -> Result<Attribute<'c>, String> {
        let one = self.parse(&format!("#stablehlo<precision {}>", precision(p)))?;
        Ok(ArrayAttribute::new(self.context, &[one, one]).into())
    }

    /// Attributes of StableHLO, which MLIR keeps as text. Parsing costs over a microsecond: each text once.
    fn parse(&mut self, text: &str) -> Result<Attribute<'c>, String> {
        if let Some(found) = self.parsed.get(text) {
            return Ok(*found);
        }
        let made = Attribute::parse(self.context, text)
            .ok_or_else(|| format!("MLIR does not take the attribute {text}"))?;
        self.parsed.insert(text.to_string(), made);
        Ok(made)
    }

    /// MLIR packs booleans in bits, and everything else as the literal does.
    fn elements(&mut self, literal: &Literal, ty: &TensorType) -> Result<Attribute<'c>, String> {
        let mlir = self.tensor(ty);
        if ty.elements() == 0 {
            return Ok(DenseElementsAttribute::raw_buffer(mlir, &[]).into());
        }
        Ok(match literal {
            Literal::Splat(s) if ty.dtype == DType::Bool => {
                DenseElementsAttribute::bool_splat(mlir, s.0 != 0).into()
            }
            Literal::Splat(s) => DenseElementsAttribute::raw_buffer(mlir, &s.bytes(ty.dtype)).into(),
            Literal::Dense(bytes) if bytes.len() as i64 != ty.bytes() => {
                return Err(format!("constant of {} bytes for {ty}", bytes.len()));
            }
            Literal::Dense(bytes) if ty.dtype == DType::Bool => {
                let values: Vec<i32> = bytes.iter().map(|&b| (b != 0) as i32).collect();
                DenseElementsAttribute::bool_values(mlir, &values).into()
            }
            Literal::Dense(bytes) => DenseElementsAttribute::raw_buffer(mlir, bytes).into(),
        })
    }

    /// The FX node's name around the user's frames, each called from the next.
    pub fn location(&mut self, loc: LocId) -> Location<'c> {
        if loc == LocId::UNKNOWN {
            return Location::unknown(self.context);
        }
        if let Some(Some(found)) = self.locations.get(loc.0 as usize) {
            return *found;
        }
        let graph = self.graph;
        let source = graph.location(loc);
        let mut frames: Option<Location<'c>> = None;
        for frame in source.frames.iter().rev() {
            let callee = self.frame(frame);
            frames = Some(match frames {
                Some(caller) => Location::call_site(callee, caller),
                None => callee,
            });
        }
        let frames = frames.unwrap_or_else(|| Location::unknown(self.context));
        let made = match source.name.as_str() {
            "" => frames,
            name => Location::name(self.context, name, frames),
        };
        if let Some(slot) = self.locations.get_mut(loc.0 as usize) {
            *slot = Some(made);
        }
        made
    }

    fn frame(&mut self, frame: &'g Frame) -> Location<'c> {
        let context = self.context;
        *self.frames.entry(frame).or_insert_with(|| {
            let line = Location::new(context, &frame.file, frame.line as usize, 0);
            if frame.function.is_empty() { line } else { Location::name(context, &frame.function, line) }
        })
    }
}
