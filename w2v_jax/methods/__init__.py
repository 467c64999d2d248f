"""One file is one paper. `config.method = "wav2vec2"` is `methods/wav2vec2.py`, which exports `make`."""
