//! What the graph says of its edges, whichever way it is asked, and however they came to be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use torchtpu_ir::graph::Values;
use torchtpu_ir::op::{Concatenate, Constant};
use torchtpu_ir::{DType, Graph, Literal, LocId, NodeId, Op, Operands, Scalar, TensorType, Value};

fn value(node: NodeId) -> Value {
    Value { node, result: 0 }
}

/// Each node reads nodes before it; some wait for one. A first constant has many users.
fn graph(nodes: &[(Vec<prop::sample::Index>, Option<prop::sample::Index>)]) -> Graph {
    let ty = || [TensorType::new(DType::F32, [1])];
    let mut g = Graph::new("g");
    let splat = Constant { value: Literal::Splat(Scalar::zero()) };
    let mut made = vec![g.add(splat.into(), &[], ty(), LocId::UNKNOWN)];
    for (reads, waits) in nodes {
        let operands: Values = reads.iter().map(|i| value(made[i.index(made.len())])).collect();
        let op: Op = Concatenate { dimension: 0 }.into();
        let id = g.add(op, &operands, ty(), LocId::UNKNOWN);
        if let Some(before) = waits {
            g.add_control(made[before.index(made.len())], id);
        }
        made.push(id);
    }
    g.outputs.push(value(made[made.len() - 1]));
    g
}

fn holds(g: &Graph) {
    let all = Operands::of(g);
    for id in g.node_ids() {
        assert_eq!(all.get(id), &g.operands(id)[..]);
        assert_eq!(all.waits(id), g.control_predecessors(id).collect::<Vec<_>>());
    }
    let order = g.topological();
    assert_eq!(order.len(), g.len());
    let mut place = vec![usize::MAX; g.bound()];
    order.iter().enumerate().for_each(|(i, id)| place[id.index()] = i);
    for (before, after, _) in g.edges() {
        assert!(place[before.index()] < place[after.index()]);
    }
}

proptest! {
    #[test]
    fn edges_are_told_alike(
        nodes in prop::collection::vec(
            (prop::collection::vec(any::<prop::sample::Index>(), 0..4), any::<Option<prop::sample::Index>>()),
            1..40,
        ),
        moves in prop::collection::vec(any::<[prop::sample::Index; 3]>(), 0..10),
        kept in 0..40usize,
    ) {
        let mut g = graph(&nodes);
        holds(&g);
        let ids: Vec<NodeId> = g.node_ids().collect();
        for [user, operand, to] in moves {
            let user = user.index(ids.len());
            let n = g.operands(ids[user]).len();
            if n > 0 {
                let (at, to) = (operand.index(n), value(ids[to.index(user)]));
                g.set_operand(ids[user], at as u32, to);
                prop_assert_eq!(g.operands(ids[user])[at], to);
            }
        }
        holds(&g);
        // The last ones are read by none that stays; few go one by one, many by a rebuild.
        let kept = kept.min(ids.len() - 1).max(1);
        g.outputs = vec![value(ids[kept - 1])];
        let left: Vec<Values> = ids[..kept].iter().map(|&id| g.operands(id)).collect();
        g.remove_all(&ids[kept..]);
        holds(&g);
        prop_assert_eq!(g.len(), kept);
        for (&id, operands) in ids[..kept].iter().zip(&left) {
            prop_assert_eq!(&g.operands(id), operands);
        }
    }
}
