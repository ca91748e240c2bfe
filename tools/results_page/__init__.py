"""Generator of docs/results.md, and of parts of other pages, from templates, tables of results and figures of the models."""
