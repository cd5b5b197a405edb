"""Annotations, images, boxes and the augmented views that carry them."""
