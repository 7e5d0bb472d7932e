"""Training on several processes, each held against one process in eager:

torchrun --nproc-per-node 4 -m examples.distributed.fully_sharded"""
