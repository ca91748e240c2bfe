"""Images: where they are listed, how they are decoded and batched, and what is known of them."""
