"""Images: listing, decoding and batching them, and annotations of their content."""
