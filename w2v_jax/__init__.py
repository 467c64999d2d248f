"""Self-supervised speech pretraining in JAX and Flax: wav2vec 2.0 and its family.

Start reading at `api.py` (the shared types), then `methods/wav2vec2.py` (a paper in one file),
`step.py` (one update) and `train.py` (the loop). Importing the package initialises no device.
"""

__version__ = "0.1.0"
