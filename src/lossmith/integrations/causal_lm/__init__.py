"""Causal language models that write answers: loading, encoding, training with any loss, generation, likelihoods."""
