"""The stream of training: which sample comes when, read and decoded by workers, as batches.

order.py           The order of training: which sample stands at each position
mixture.py         A mixture of several sources: which source gives the sample at a position
steps.py           Which samples a rank reads at which step, and the random numbers of each
fetch.py           Reads the bytes of samples from local and remote shards
worker.py          What one worker of a DataLoader does: reads and decodes its share of every step
shared_memory.py   How decoded images get from the workers to the trainer
signals.py         How a DataLoader worker handles signals
awaited.py         An item that takes its time, waited for with a limit
ranges.py          Warns of pictures of floats that seem to lie in [0, 1]
budget.py          Stops a run that meets too many broken samples
reader.py          Puts the shares of the workers together as batches
batch.py           What a training step receives
"""
