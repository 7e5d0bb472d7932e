"""What is emitted for the model, committed beside this file: a change of the model shows in the review of its programs."""

from model import block


def test_block(hlo_snapshot):
    module, args = block()
    hlo_snapshot.check(module, *args)


def test_block_trains(hlo_snapshot):
    module, args = block()
    hlo_snapshot.check(module.train(), *args, train=True)


def test_block_on_a_tpu(hlo_snapshot):
    module, args = block()
    hlo_snapshot.check(module, *args, topology="v5e:1x1", band=0.02)
