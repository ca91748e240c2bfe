"""CLIP models: finding and loading weights, checking that they fit, preprocessing, and embeddings of texts."""
