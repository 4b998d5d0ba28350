"""A device that pretends to be a GPU, on a machine without one: what would wait, crash or take memory there shows here.

record.py: what is counted: waits of the host, copies, kernels, bytes, allocations.
tensor.py: tensors whose device is `gpu`, while their contents lie on the CPU, or nowhere.
autocast.py: the lists of operations by which CUDA's autocast chooses types.
fused.py: operations that CUDA runs in one kernel.
host.py: what else a program asks of a GPU: pinned memory, streams, events, free memory; modules and threads.
device.py: turns the device on.
scenes.py: the parts of the product that are counted, at a stated size.
__main__.py: prints the counts as a table.

It knows no time, no NCCL, no cuDNN. Once turned on it stays for the process, which should do nothing else.
"""
