"""Images and boxes: reading, ordering, transforming and batching them."""
