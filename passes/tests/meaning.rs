//! The pipeline keeps every bit of every output: random small graphs, interpreted before and after.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod interpreter;
mod random;

use proptest::prelude::*;
use torchtpu_ir::verify::verify;
use torchtpu_ir::{Builder, DType, Direction, Graph, Op, ParamRole, ReduceKind, Scalar, TensorType};
use torchtpu_passes::{OneHotSums, PassOptions, pipeline, run, run_list};

fn same(dtype: DType, a: Scalar, b: Scalar) -> bool {
    a == b || (dtype.is_float() && a.as_f64(dtype).is_nan() && b.as_f64(dtype).is_nan())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pipeline_keeps_outputs(numbers in prop::collection::vec(any::<u32>(), 20..200)) {
        let (graph, inputs) = random::graph(&numbers);
        verify(&graph).unwrap();
        let expected = interpreter::run(&graph, &inputs);
        let text = torchtpu_ir::text::print_graph(&graph);
        let check = |after: &Graph, what: &str| {
            let found = interpreter::run(after, &inputs);
            for (k, (want, have)) in expected.iter().zip(&found).enumerate() {
                let dtype = graph.ty(graph.outputs[k]).dtype;
                assert!(
                    want.len() == have.len() && want.iter().zip(have).all(|(a, b)| same(dtype, *a, *b)),
                    "{what}: output {k} was {want:?}, is {have:?}\n{text}\n{}",
                    torchtpu_ir::text::print_graph(after),
                );
            }
        };
        for pass in pipeline() {
            let mut after = graph.clone();
            run_list(&mut after, &[*pass], &PassOptions { verify: true, ..PassOptions::default() }).unwrap();
            check(&after, pass.name());
        }
        let mut after = graph.clone();
        run(&mut after, &PassOptions { verify: true, ..PassOptions::default() }).unwrap();
        check(&after, "pipeline");
        prop_assert!(after.node_ids().all(|id| !matches!(after.op(id), Op::Concatenate(_)) || after.operands(id).len() > 1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Of numbers that are the same for all classes and of what is made of others, for classes that there are and are not.
    #[test]
    fn sums_of_one_class_keep_their_bits(
        (rows, classes) in (1..4i64, 2..6i64),
        first in any::<bool>(),
        narrow in any::<bool>(),
        numbered in prop_oneof![Just(DType::I32), Just(DType::I8), Just(DType::F32)],
        steps in prop::collection::vec(0..5usize, 0..4),
        targets in prop::collection::vec(-2..7i64, 4),
        values in prop::collection::vec(
            prop_oneof![Just(0.0), Just(-0.0), Just(f64::INFINITY), Just(f64::NAN), -3.0..3.0f64], 40),
    ) {
        let mut graph = Graph::new("one_hot");
        let mut b = Builder::new(&mut graph);
        let (shape, dim) = if first { ([classes, rows], 0) } else { ([rows, classes], 1) };
        let other = [1 - dim as i64];
        let input = if narrow { DType::BF16 } else { DType::F32 };
        let x = b.parameter(ParamRole::Input, 0, TensorType::new(input, shape));
        let row = b.parameter(ParamRole::Input, 1, TensorType::new(DType::F32, [rows]));
        let target = b.parameter(ParamRole::Input, 2, TensorType::new(numbered, [rows]));
        let counted = b.compare_const(Direction::Ne, target, 2.0).unwrap();
        let counted = b.broadcast_in_dim(counted, &shape, &other).unwrap();
        let target = b.broadcast_in_dim(target, &shape, &other).unwrap();
        let numbers = b.iota(TensorType::new(numbered, shape), dim).unwrap();
        let hit = b.compare(Direction::Eq, numbers, target).unwrap();
        let hit = b.and(hit, counted).unwrap();
        let row = b.broadcast_in_dim(row, &shape, &other).unwrap();
        // Without a step, a number that is the same for every class.
        let mut chosen = if steps.is_empty() { row } else { b.convert(x, DType::F32).unwrap() };
        for step in &steps {
            chosen = match step {
                0 => b.sub(chosen, row),
                1 => b.add(row, chosen),
                2 => b.mul(chosen, row),
                3 => b.neg(chosen),
                _ => b.add(chosen, chosen),
            }
            .unwrap();
        }
        let zeros = b.full_like(chosen, 0.0);
        let alone = b.select(hit, chosen, zeros).unwrap();
        let sum = b.reduce(ReduceKind::Add, alone, &[dim as i64]).unwrap();
        graph.outputs = vec![sum];
        let count = (rows * classes) as usize;
        let halves = if numbered.is_float() { 2.0 } else { 1.0 };
        let inputs = [
            values[..count].iter().map(|&v| Scalar::from_f64(input, v)).collect::<Vec<_>>(),
            values[count..][..rows as usize].iter().map(|&v| Scalar::from_f64(DType::F32, v)).collect(),
            targets[..rows as usize].iter().map(|&v| Scalar::from_f64(numbered, v as f64 / halves)).collect(),
        ];
        let mut after = graph.clone();
        let reports = run_list(&mut after, &[&OneHotSums], &PassOptions { verify: true, ..PassOptions::default() });
        // The sum of a value and itself is computed for every class, and so is what half a number may ask for.
        prop_assert_eq!(reports.unwrap()[0].rewrites == 1, steps.last() != Some(&4) && !numbered.is_float());
        let (want, have) = (interpreter::run(&graph, &inputs), interpreter::run(&after, &inputs));
        let equal = want[0].iter().zip(&have[0]).all(|(a, b)| same(DType::F32, *a, *b));
        prop_assert!(equal, "{want:?} {have:?}\n{}", torchtpu_ir::text::print_graph(&after));
    }
}
