//! The passes that hide communication keep what devices compute together: random programs of tensor parallelism, of sharded
//! gradients and of expert parallelism, interpreted on all devices before and after.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod interpreter;

use proptest::prelude::*;
use torchtpu_ir::op::{DotGeneral, Iota, Precision};
use torchtpu_ir::text::print_graph;
use torchtpu_ir::verify::verify;
use torchtpu_ir::{
    BinaryOp, Builder, DType, Direction, Graph, Op, ParamRole, ReduceKind, ReplicaGroups, Scalar, TensorType,
    UnaryOp, Value,
};
use torchtpu_passes::overlap::{EarlySums, Exchange, MergeGathers, Ring, ScatterSums};
use torchtpu_passes::{Canonicalize, Cse, Dce, Pass, PassOptions, run_list};

const fn ring(gradients: bool, balance: f64) -> Ring {
    Ring { gradients, least: 0, most: 8, balance, joined: f64::INFINITY }
}

/// Those of activations, and of gradients.
static WIDE: [Ring; 2] = [ring(false, 1e9), ring(true, 1e9)];
static NARROW: [Ring; 2] = [ring(false, 0.0), ring(true, 0.0)];
static SUMS: ScatterSums = ScatterSums { least: 0, most: 8 };
static EXCHANGE: Exchange = Exchange { least: 0, most: 8, intensity: 0.0 };

#[derive(Clone, Debug)]
struct Layer {
    /// Devices, as a mesh; a group is along one of its dimensions, or listed in another order.
    mesh: (i64, i64),
    along: bool,
    listed: bool,
    /// Rows of one device.
    rows: i64,
    width: i64,
    features: i64,
    dtype: DType,
    attention: bool,
    /// Sums instead of parts of the rows.
    sums: bool,
    /// Something else needs what was gathered, or computed of it.
    shared: bool,
    /// Gradients of weights, scattered over devices.
    gradient: bool,
}

fn layer() -> impl Strategy<Value = Layer> {
    let sizes = (1..3i64, 2..5i64, 1..4i64, 1..4i64, 1..4i64);
    let dtype = prop_oneof![Just(DType::F32), Just(DType::BF16)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (sizes, dtype, flags).prop_map(|((outer, ranks, rows, width, features), dtype, flags)| {
        let (along, listed, attention, sums, shared, gradient) = flags;
        let mesh = if along { (ranks, outer) } else { (outer, ranks) };
        Layer { mesh, along, listed, rows, width, features, dtype, attention, sums, shared, gradient }
    })
}

fn groups_of(mesh: (i64, i64), along: bool, listed: bool) -> ReplicaGroups {
    let groups = ReplicaGroups::mesh(&[mesh.0, mesh.1], &[if along { 0 } else { 1 }]);
    if !listed {
        return groups;
    }
    let mut lists = groups.groups();
    lists.iter_mut().for_each(|group| group.rotate_left(1));
    ReplicaGroups::Listed(lists)
}

impl Layer {
    fn groups(&self) -> ReplicaGroups {
        groups_of(self.mesh, self.along, self.listed)
    }

    fn devices(&self) -> usize {
        (self.mesh.0 * self.mesh.1) as usize
    }

    fn graph(&self) -> Graph {
        let mut graph = Graph::new("layer");
        let mut b = Builder::new(&mut graph);
        let (groups, ranks) = (self.groups(), self.groups().size());
        let all = self.rows * ranks;
        let shape = if self.sums { [1, all, self.width] } else { [1, self.rows, self.width] };
        let x = b.parameter(ParamRole::Input, 0, TensorType::new(self.dtype, shape));
        let weight = |b: &mut Builder<'_>, index: i64, out: i64, inner: i64| {
            b.parameter(ParamRole::Input, index, TensorType::new(self.dtype, [out, inner]))
        };
        let up = weight(&mut b, 1, self.features, self.width);
        let down = weight(&mut b, 2, self.width, self.features);
        let dot = |b: &mut Builder<'_>, l: Value, r: Value, over: [i64; 2]| {
            let (lhs_contracting, rhs_contracting) = (vec![over[0]], vec![over[1]]);
            let precision = Precision::Default;
            let op = DotGeneral {
                lhs_batch: vec![],
                rhs_batch: vec![],
                lhs_contracting,
                rhs_contracting,
                precision,
            };
            b.dot_general(l, r, op).unwrap()
        };
        let norm = |b: &mut Builder<'_>, v: Value| {
            let shape = b.shape(v).to_vec();
            let squares = b.mul(v, v).unwrap();
            let sum = b.reduce(ReduceKind::Add, squares, &[2]).unwrap();
            let sum = b.binary_const(BinaryOp::Add, sum, 1.0).unwrap();
            let sum = b.broadcast_in_dim(sum, &shape, &[0, 1]).unwrap();
            b.div(v, sum).unwrap()
        };
        let gathered = |b: &mut Builder<'_>, v: Value| {
            let v = if self.sums { v } else { b.all_gather(v, 1, groups.clone()).unwrap() };
            b.reshape(v, &[all, self.width]).unwrap()
        };
        let scattered = |b: &mut Builder<'_>, v: Value| {
            let v = b.reshape(v, &[1, all, self.width]).unwrap();
            if self.sums {
                b.all_reduce(v, groups.clone(), ReduceKind::Add).unwrap()
            } else {
                b.reduce_scatter(v, 1, groups.clone(), ReduceKind::Add).unwrap()
            }
        };

        let h = norm(&mut b, x);
        let h = gathered(&mut b, h);
        let mut y = dot(&mut b, h, up, [1, 1]);
        let (before, hidden) = (h, y);
        if self.attention {
            let keys = dot(&mut b, h, up, [1, 1]);
            let scores = dot(&mut b, y, keys, [1, 1]);
            let ty = TensorType::new(DType::I32, [all, all]);
            let mut position = |dimension| {
                let node = b.typed(Iota { dimension }, &[], [ty.clone()].into()).unwrap();
                Value { node, result: 0 }
            };
            let (i, j) = (position(0), position(1));
            let seen = b.compare(Direction::Ge, i, j).unwrap();
            let zero = b.full_like(scores, 0.0);
            let scores = b.select(seen, scores, zero).unwrap();
            y = dot(&mut b, scores, keys, [1, 0]);
        } else {
            y = b.unary(UnaryOp::Abs, y).unwrap();
        }
        let y = dot(&mut b, y, down, [1, 1]);
        let y = scattered(&mut b, y);
        let x = b.add(x, y).unwrap();
        // And a second one behind it.
        let h = norm(&mut b, x);
        let h = gathered(&mut b, h);
        let y = dot(&mut b, h, up, [1, 1]);
        let y = dot(&mut b, y, down, [1, 1]);
        let y = scattered(&mut b, y);
        let mut outputs = vec![b.add(x, y).unwrap()];
        if self.shared {
            outputs.extend([h, hidden]);
        }
        if self.gradient {
            // Of a weight whose rows the devices share out.
            let out = self.features * ranks;
            let wide = b.parameter(ParamRole::Input, 3, TensorType::new(self.dtype, [all, out]));
            for input in [before, h] {
                let of_weight = dot(&mut b, wide, input, [0, 0]);
                outputs.push(b.reduce_scatter(of_weight, 0, groups.clone(), ReduceKind::Add).unwrap());
            }
        }
        graph.outputs = outputs;
        graph
    }

    fn inputs(&self, graph: &Graph) -> Vec<Vec<Vec<Scalar>>> {
        // Rows that all devices hold are the same on all of them.
        inputs_of(graph, self.devices(), |p| self.sums && p == 0)
    }
}

/// By device and parameter; some parameters are whole on all devices.
fn inputs_of(graph: &Graph, devices: usize, whole: impl Fn(usize) -> bool) -> Vec<Vec<Vec<Scalar>>> {
    let of_device = |device: usize| {
        let parameters = graph.parameters().iter().enumerate();
        let of_parameter = |(p, &id)| {
            let ty = graph.ty(Value { node: id, result: 0 });
            let shift = if whole(p) { 0 } else { p as i64 + 7 * device as i64 };
            let value =
                |i: i64| Scalar::from_f64(ty.dtype, (((i + shift) * 37 + 11) % 41 - 20) as f64 / 64.0);
            (0..ty.elements()).map(value).collect()
        };
        parameters.map(of_parameter).collect()
    };
    (0..devices).map(of_device).collect()
}

/// Experts on several devices, forward, and some of the backward where something else needs what is between.
#[derive(Clone, Debug)]
struct Experts {
    /// As a `Layer` has them, and experts of one device.
    mesh: (i64, i64),
    along: bool,
    listed: bool,
    local: i64,
    /// Rows for an expert from one device.
    capacity: i64,
    width: i64,
    features: i64,
    dtype: DType,
    /// The exchanges move rows from one dimension to another: `[experts, rows, width]`, and back.
    turned: bool,
    /// Something else needs what came and what is sent back.
    shared: bool,
    /// A gradient of a weight needs the rows between two products.
    gradient: bool,
    /// A number that is made of all rows is multiplied into each.
    normed: bool,
}

fn experts() -> impl Strategy<Value = Experts> {
    let sizes =
        (1..3i64, prop_oneof![Just(2i64), Just(3), Just(4), Just(8)], 1..4i64, 1..3i64, 1..4i64, 1..4i64);
    let dtype = prop_oneof![Just(DType::F32), Just(DType::BF16)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0..4u8, 0..4u8);
    (sizes, dtype, flags).prop_map(|((outer, ranks, local, capacity, width, features), dtype, flags)| {
        let (along, listed, turned, shared, gradient, normed) = flags;
        let mesh = if along { (ranks, outer) } else { (outer, ranks) };
        let (gradient, normed) = (gradient == 0, normed == 0);
        Experts {
            mesh,
            along,
            listed,
            local,
            capacity,
            width,
            features,
            dtype,
            turned,
            shared,
            gradient,
            normed,
        }
    })
}

impl Experts {
    fn graph(&self) -> Graph {
        let mut graph = Graph::new("experts");
        let mut b = Builder::new(&mut graph);
        let groups = groups_of(self.mesh, self.along, self.listed);
        let (ranks, local, rows) = (groups.size(), self.local, self.capacity);
        let [width, features] = [self.width, self.features];
        let x = b.parameter(ParamRole::Input, 0, TensorType::new(self.dtype, [ranks * local, rows, width]));
        let up = b.parameter(ParamRole::Input, 1, TensorType::new(self.dtype, [local, width, features]));
        let down = b.parameter(ParamRole::Input, 2, TensorType::new(self.dtype, [local, features, width]));
        let dot = |b: &mut Builder<'_>, l: Value, r: Value, over: [i64; 2]| {
            let precision = Precision::Default;
            let (lhs_contracting, rhs_contracting) = (vec![over[0]], vec![over[1]]);
            let op = DotGeneral {
                lhs_batch: vec![0],
                rhs_batch: vec![0],
                lhs_contracting,
                rhs_contracting,
                precision,
            };
            b.dot_general(l, r, op).unwrap()
        };
        let sent = b.mul(x, x).unwrap();
        let arrived = if self.turned {
            b.all_to_all(sent, 0, 1, groups.clone()).unwrap()
        } else {
            let y = b.all_to_all(sent, 0, 0, groups.clone()).unwrap();
            let y = b.reshape(y, &[ranks, local, rows, width]).unwrap();
            let y = b.transpose(y, &[1, 0, 2, 3]).unwrap();
            b.reshape(y, &[local, ranks * rows, width]).unwrap()
        };
        let hidden = dot(&mut b, arrived, up, [2, 1]);
        let mut h = b.unary(UnaryOp::Abs, hidden).unwrap();
        if self.normed {
            let shape = b.shape(h).to_vec();
            let sum = b.reduce(ReduceKind::Add, h, &[0, 1, 2]).unwrap();
            let sum = b.broadcast_in_dim(sum, &shape, &[]).unwrap();
            h = b.mul(h, sum).unwrap();
        }
        let y = dot(&mut b, h, down, [2, 1]);
        let back = if self.turned {
            b.all_to_all(y, 1, 0, groups.clone()).unwrap()
        } else {
            let y = b.reshape(y, &[local, ranks, rows, width]).unwrap();
            let y = b.transpose(y, &[1, 0, 2, 3]).unwrap();
            let y = b.reshape(y, &[ranks * local, rows, width]).unwrap();
            b.all_to_all(y, 0, 0, groups.clone()).unwrap()
        };
        let mut outputs = vec![b.add(back, x).unwrap()];
        if self.shared {
            outputs.extend([arrived, b.graph.operands(back.node)[0], sent]);
        }
        if self.gradient {
            outputs.push(dot(&mut b, h, arrived, [1, 1]));
        }
        graph.outputs = outputs;
        graph
    }
}

fn changed(graph: &Graph, passes: &[&'static dyn Pass]) -> (Graph, usize) {
    let mut after = graph.clone();
    let options = PassOptions { verify: true, ..PassOptions::default() };
    let reports = run_list(&mut after, passes, &options).unwrap();
    let ours = reports.iter().filter(|report| {
        ["ring", "ring_gradients", "scatter_sums", "merge_gathers", "exchange", "early_sums"]
            .contains(&report.name)
    });
    (after, ours.map(|report| report.rewrites).sum())
}

fn count(graph: &Graph, is: impl Fn(&Op) -> bool) -> usize {
    graph.node_ids().filter(|&id| is(graph.op(id))).count()
}

/// Whether two graphs give the same on all devices, but for the order of sums.
fn alike(graph: &Graph, after: &Graph, inputs: &[Vec<Vec<Scalar>>]) -> Result<(), TestCaseError> {
    let expected = interpreter::run_devices(graph, inputs);
    let found = interpreter::run_devices(after, inputs);
    for (device, (expected, found)) in expected.iter().zip(&found).enumerate() {
        for (k, (a, b)) in expected.iter().zip(found).enumerate() {
            let dtype = graph.ty(graph.outputs[k]).dtype;
            prop_assert_eq!(a.len(), b.len());
            // Sums in another order, of addends that are rounded to as many bits, and may be as large as arguments are.
            let (least, allowed) = if dtype == DType::BF16 { (0.3, 1.0 / 32.0) } else { (1e-3, 1e-5) };
            let scale = a.iter().map(|x| x.as_f64(dtype).abs()).fold(least, f64::max);
            for (x, y) in a.iter().zip(b) {
                let (x, y) = (x.as_f64(dtype), y.as_f64(dtype));
                prop_assert!(
                    (x - y).abs() <= allowed * scale,
                    "device {device}, output {k}: {x} {y}\n{}",
                    print_graph(after)
                );
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rings_keep_numbers(layer in layer(), narrow in any::<bool>()) {
        let graph = layer.graph();
        verify(&graph).unwrap();
        let inputs = layer.inputs(&graph);
        let [ring, gradients]: &'static [Ring; 2] = if narrow { &NARROW } else { &WIDE };
        let list: [&'static dyn Pass; 8] =
            [&SUMS, &Canonicalize, &Dce, ring, gradients, &Canonicalize, &Cse, &Dce];
        let (after, rewrites) = changed(&graph, &list);
        prop_assert!(rewrites > 0, "{}", print_graph(&graph));
        prop_assert_eq!(count(&after, |op| matches!(op, Op::ReduceScatter(_) | Op::AllReduce(_))), 0, "{}", print_graph(&after));
        alike(&graph, &after, &inputs)?;
    }

    #[test]
    fn exchanges_keep_numbers(experts in experts()) {
        let graph = experts.graph();
        verify(&graph).unwrap();
        let inputs = inputs_of(&graph, (experts.mesh.0 * experts.mesh.1) as usize, |_| false);
        let list: [&'static dyn Pass; 6] = [&Canonicalize, &Dce, &EXCHANGE, &Canonicalize, &Cse, &Dce];
        let (after, rewrites) = changed(&graph, &list);
        // What the rows between are needed for besides keeps them whole.
        prop_assert_eq!(rewrites, usize::from(!experts.gradient && !experts.normed), "{}", print_graph(&graph));
        let left = count(&after, |op| matches!(op, Op::AllToAll(_)));
        prop_assert_eq!(left, 2 - 2 * rewrites, "{}", print_graph(&after));
        alike(&graph, &after, &inputs)?;
    }

    /// Gradients of several layers, scattered or summed up, and of their biases, and of products side by side whose operand's
    /// gradient is a sum too, by weights that are gathered, as in two dimensions of parallelism; transfers of no time, and of
    /// more than the program has.
    #[test]
    fn early_sums_keep_bits(
        layers in prop::collection::vec((1..4i64, any::<bool>(), any::<bool>()), 2..6),
        beside in 0..4i64,
        rows in 1..4i64,
        ranks in 2..4i64,
        links in prop_oneof![Just(0.0), Just(3.0), Just(1e9)],
    ) {
        let early: &'static EarlySums = Box::leak(Box::new(EarlySums { least: 9, balance: links, vector: 32.0 }));
        let mut graph = Graph::new("backward");
        let mut b = Builder::new(&mut graph);
        let groups = ReplicaGroups::mesh(&[ranks], &[0]);
        let dot = |b: &mut Builder<'_>, l: Value, r: Value, over: i64| {
            let op = DotGeneral {
                lhs_batch: vec![],
                rhs_batch: vec![],
                lhs_contracting: vec![over],
                rhs_contracting: vec![if over == 0 { 0 } else { 1 }],
                precision: Precision::Default,
            };
            b.dot_general(l, r, op).unwrap()
        };
        let given = |b: &mut Builder<'_>, index: i64, shape: [i64; 2]| {
            b.parameter(ParamRole::Input, index, TensorType::new(DType::F32, shape))
        };
        let mut out = 2 * ranks;
        let mut gradient = given(&mut b, 0, [rows, out]);
        let mut outputs = Vec::new();
        for (i, &(width, scattered, bias)) in layers.iter().enumerate() {
            let inner = width * ranks;
            let input = given(&mut b, 2 * i as i64 + 1, [rows, inner]);
            let weight = given(&mut b, 2 * i as i64 + 2, [inner, out]);
            let of_weight = dot(&mut b, gradient, input, 0);
            outputs.push(if scattered {
                b.reduce_scatter(of_weight, 0, groups.clone(), ReduceKind::Add).unwrap()
            } else {
                b.all_reduce(of_weight, groups.clone(), ReduceKind::Add).unwrap()
            });
            if bias {
                let of_bias = b.reduce(ReduceKind::Add, gradient, &[0, 1]).unwrap();
                outputs.push(b.all_reduce(of_bias, groups.clone(), ReduceKind::Add).unwrap());
            }
            gradient = dot(&mut b, gradient, weight, 1);
            out = inner;
        }
        let mut sum = gradient;
        for i in 0..beside {
            let place = (1 + 2 * layers.len()) as i64 + 2 * i;
            let input = given(&mut b, place, [rows, 2 * ranks]);
            let part = b.binary_const(BinaryOp::Multiply, gradient, (i + 2) as f64).unwrap();
            let of_weight = dot(&mut b, part, input, 0);
            outputs.push(b.reduce_scatter(of_weight, 0, groups.clone(), ReduceKind::Add).unwrap());
            let shard = given(&mut b, place + 1, [out / ranks, out]);
            let weight = b.all_gather(shard, 0, groups.clone()).unwrap();
            let of_input = dot(&mut b, part, weight, 1);
            let of_input = b.all_reduce(of_input, groups.clone(), ReduceKind::Add).unwrap();
            sum = b.add(sum, of_input).unwrap();
        }
        outputs.push(sum);
        graph.outputs = outputs;
        verify(&graph).unwrap();
        let (after, rewrites) = changed(&graph, &[early]);
        // Weights that are gathered beside them can be more than the links have time for.
        prop_assert!(rewrites > 0 || beside > 0, "{}", print_graph(&graph));
        prop_assert_eq!(changed(&after, &[early]).1, 0, "{}", print_graph(&after));
        let inputs = inputs_of(&graph, ranks as usize, |_| false);
        prop_assert_eq!(interpreter::run_devices(&graph, &inputs), interpreter::run_devices(&after, &inputs));
    }

    /// Shards of 1 to 24 elements, of which a gathering gives 400 bytes together.
    #[test]
    fn merged_gathers_keep_bits(
        shards in prop::collection::vec((1..5i64, 1..7i64, any::<bool>(), any::<bool>()), 1..8),
        ranks in 2..5i64,
        along in any::<bool>(),
    ) {
        static GATHERS: MergeGathers = MergeGathers { shard: 90, most: 400 };
        let mut graph = Graph::new("shards");
        let mut b = Builder::new(&mut graph);
        let groups = ReplicaGroups::mesh(&[2, ranks], &[i64::from(along)]);
        let mut outputs = Vec::new();
        for (i, &(rows, columns, wide, matrix)) in shards.iter().enumerate() {
            let dtype = if wide { DType::F32 } else { DType::BF16 };
            let shape = if matrix { vec![rows, columns] } else { vec![rows * columns] };
            let shard = b.parameter(ParamRole::Input, i as i64, TensorType::new(dtype, shape));
            outputs.push(b.all_gather(shard, 0, groups.clone()).unwrap());
        }
        graph.outputs = outputs;
        let (after, rewrites) = changed(&graph, &[&GATHERS]);
        let left = count(&after, |op| matches!(op, Op::AllGather(_)));
        let most = if groups.size() == 2 { 0 } else { shards.len() };
        prop_assert!(rewrites <= most && left <= shards.len() && (rewrites == 0) == (left == shards.len()), "{}", print_graph(&after));
        let of_device = |device: i64| -> Vec<Vec<Scalar>> {
            let of_shard = |&id| {
                let ty = graph.ty(Value { node: id, result: 0 });
                (0..ty.elements()).map(|i| Scalar::from_f64(ty.dtype, ((device * 31 + i * 7) % 61) as f64)).collect()
            };
            graph.parameters().iter().map(of_shard).collect()
        };
        let inputs: Vec<_> = (0..2 * ranks).map(of_device).collect();
        prop_assert_eq!(interpreter::run_devices(&graph, &inputs), interpreter::run_devices(&after, &inputs));
    }
}
