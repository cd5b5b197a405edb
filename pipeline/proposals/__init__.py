"""Class-agnostic boxes per image from OLN (Kim et al. 2022), and the Parquet files that hand them on.

`settings` and `store` import no detector; `rpn_head`, `roi_head` and `oln` do.
"""
