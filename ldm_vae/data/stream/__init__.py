"""The stream of training: the order of samples, read by workers, as batches.

order.py     The order of training: which sample stands at each position, from the seed and the index alone
mixture.py   Whose turn it is, where samples come from several sources: positions of the mixture <-> positions
             of a source
steps.py     Which samples a rank reads at which step, and what is drawn for them
fetch.py     The bytes of samples: from local shards one at a time, from remote ones a window of a lane at a
             time
worker.py    What one worker does: positions -> decoded samples, its share of every step
signals.py   What a DataLoader worker does about signals
reader.py    Order -> decoded batches
batch.py     What a training step receives
"""
