"""A paper in each file: pure functions of tensors, its arXiv number on the first line."""
