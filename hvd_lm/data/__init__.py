"""From text to micro-batches: corpus (files), tokenizer (text to ids), streams (ids to micro-batches)."""
