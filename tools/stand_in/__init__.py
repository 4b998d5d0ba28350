"""A device that pretends to be a GPU, on a machine without one: what would wait, crash or take memory there shows here.

record.py     What is counted: waits of the host, copies, kernels, bytes, allocations
tensor.py     Tensors whose device is `gpu`, while their contents lie on the CPU, or nowhere
autocast.py   The lists of operations by which CUDA's autocast chooses types
fused.py      Operations that CUDA runs in one kernel
host.py       What else a program asks of a GPU: pinned memory, streams, events, free memory; modules, threads
device.py     Turns the device on
scenes.py     What is counted: a training step of a recipe
__main__.py   `python -m tools.stand_in step RECIPE`, `table RECIPE ...`, `run MODULE`: prints the counts

It knows no time, no NCCL, no cuDNN. Once turned on it stays for the process, which should do nothing else.
"""
