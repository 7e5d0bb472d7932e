//! One argument of an FX node.
//!
//! JSON: `null`, booleans, numbers, strings and lists stand for themselves; objects of one key for the rest:
//! `{"v": 3}` a value, `{"sym": "s0*2"}` a symbolic number, `{"dtype": "float32"}`, `{"float": "inf"}` a float that
//! JSON cannot write, `{"graph": 0}` a graph that the operator runs, `{"complex": [re, im]}`, `{"device": "cpu"}`, `{"layout": ..}`, `{"memory_format": ..}`.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::fmt;

#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Complex(f64, f64),
    Str(String),
    List(Vec<Arg>),
    /// Index over inputs, then constants, then nodes.
    Value(usize),
    /// Index into `Payload::graphs`.
    Graph(usize),
    /// A symbolic number, gone after binding.
    Sym(String),
    /// PyTorch's dtype name, known to the IR or not.
    Dtype(String),
    /// Device, layout or memory format: kind and text.
    Other(String, String),
}

impl Serialize for Arg {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let object = |s: S, key: &str, value: &str| {
            let mut map = s.serialize_map(Some(1))?;
            map.serialize_entry(key, value)?;
            map.end()
        };
        match self {
            Arg::None => s.serialize_none(),
            Arg::Bool(v) => s.serialize_bool(*v),
            Arg::Int(v) => s.serialize_i64(*v),
            Arg::Float(v) if v.is_finite() => s.serialize_f64(*v),
            Arg::Float(v) => object(
                s,
                "float",
                if v.is_nan() {
                    "nan"
                } else if *v > 0.0 {
                    "inf"
                } else {
                    "-inf"
                },
            ),
            Arg::Complex(re, im) => {
                let mut map = s.serialize_map(Some(1))?;
                map.serialize_entry("complex", &[re, im])?;
                map.end()
            }
            Arg::Str(v) => s.serialize_str(v),
            Arg::List(v) => v.serialize(s),
            Arg::Value(v) => {
                let mut map = s.serialize_map(Some(1))?;
                map.serialize_entry("v", v)?;
                map.end()
            }
            Arg::Graph(v) => {
                let mut map = s.serialize_map(Some(1))?;
                map.serialize_entry("graph", v)?;
                map.end()
            }
            Arg::Sym(v) => object(s, "sym", v),
            Arg::Dtype(v) => object(s, "dtype", v),
            Arg::Other(kind, v) => object(s, kind, v),
        }
    }
}

struct ArgVisitor;

impl<'de> Visitor<'de> for ArgVisitor {
    type Value = Arg;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an argument")
    }
    fn visit_unit<E>(self) -> Result<Arg, E> {
        Ok(Arg::None)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Arg, E> {
        Ok(Arg::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Arg, E> {
        Ok(Arg::Int(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Arg, E> {
        Ok(i64::try_from(v).map_or(Arg::Float(v as f64), Arg::Int))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Arg, E> {
        Ok(Arg::Float(v))
    }
    fn visit_str<E>(self, v: &str) -> Result<Arg, E> {
        Ok(Arg::Str(v.to_string()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Arg, A::Error> {
        let mut list = Vec::with_capacity(seq.size_hint().unwrap_or(4));
        while let Some(v) = seq.next_element()? {
            list.push(v);
        }
        Ok(Arg::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Arg, A::Error> {
        let key: String =
            map.next_key()?.ok_or_else(|| A::Error::custom("an empty object is no argument"))?;
        let arg = match key.as_str() {
            "v" => Arg::Value(map.next_value()?),
            "graph" => Arg::Graph(map.next_value()?),
            "sym" => Arg::Sym(map.next_value()?),
            "dtype" => Arg::Dtype(map.next_value()?),
            "complex" => {
                let [re, im]: [f64; 2] = map.next_value()?;
                Arg::Complex(re, im)
            }
            "float" => match map.next_value::<String>()?.as_str() {
                "inf" => Arg::Float(f64::INFINITY),
                "-inf" => Arg::Float(f64::NEG_INFINITY),
                _ => Arg::Float(f64::NAN),
            },
            _ => Arg::Other(key, map.next_value()?),
        };
        match map.next_key::<String>()? {
            None => Ok(arg),
            Some(extra) => Err(A::Error::custom(format!("unexpected key `{extra}` in an argument"))),
        }
    }
}

impl<'de> Deserialize<'de> for Arg {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Arg, D::Error> {
        d.deserialize_any(ArgVisitor)
    }
}
