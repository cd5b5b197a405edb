"""Class-agnostic boxes per image from OLN (Kim et al. 2022) or another source, and their Parquet files.

`oln`, `class_agnostic`, the heads, `training` and `detected` import a detector; nothing else here does.
"""
