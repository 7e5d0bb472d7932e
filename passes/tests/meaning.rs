//! The pipeline keeps every bit of every output: random small graphs, interpreted before and after.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod interpreter;
mod random;

use proptest::prelude::*;
use torchtpu_ir::verify::verify;
use torchtpu_ir::{DType, Graph, Op, Scalar};
use torchtpu_passes::{PassOptions, pipeline, run, run_list};

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
