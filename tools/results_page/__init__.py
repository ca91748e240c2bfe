"""Generator of docs/results.md from a template, the tables of examples/results and the figures of the embedded models."""
