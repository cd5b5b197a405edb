"""Class-agnostic boxes per image from OLN (Kim et al. 2022) or another source, and the Parquet files that hand
them on.

`oln`, `class_agnostic`, the heads, `training` and `detected` import a detector; nothing else here does.
"""
