"""What a trained detector is worth: predictions, official metrics, the paper's error types, figures.

predictions    the COCO results format, checked once, as columns
metrics        the numbers of metrics.json, from the official LVIS or COCO evaluator
error_types    the paper's five error types (App. A.1), errors.json
figures        the paper's Fig. 2 and the comparison of runs
"""
