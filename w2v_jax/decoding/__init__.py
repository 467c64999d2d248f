"""From log-probabilities to text: best path, beam search, language models, error rates. Imports no jax."""
