"""lossmith: the place to go when the loss is the question."""
