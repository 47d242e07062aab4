"""Checkpoint tensor names of each model family, and which part of the split needs which slice of them."""
