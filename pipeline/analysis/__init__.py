"""Why a detector's numbers are what they are: the paper's analyses, each a figure and a table.

error_types      the paper's five error types (App. A.1), errors.json; error_decisions has their edges
error_figures    its Fig. 2
tide             what each type of error costs in AP
weight_norms     norms of the classifier over categories by frequency (Fig. A.2)
attention        class activation on images of tail categories (Fig. 3)
run_differences  the images in which two runs differ most (Fig. A.1)
"""
