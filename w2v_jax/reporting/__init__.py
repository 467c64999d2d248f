"""The parts of `python -m w2v_jax.report`: what runs left behind, as one page for people."""
