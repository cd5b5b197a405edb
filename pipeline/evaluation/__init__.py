"""What a trained detector is worth: predictions, and the numbers of metrics.json with their intervals.

predictions      detections as columns; predictions_file reads, checks and writes the COCO results format
protocols        which boxes of which images count: LVIS, LVIS-Fixed, COCO, COCO-LT
matching         detections to objects, all cells at once; judgement makes true and false positives of them
scores, metrics  precision and recall, and AP and AR of all groups
official         the same by pycocotools and lvis-api themselves
bootstrap        resamples of the images; intervals and paired differences follow from them
proposal_recall  recall of class-agnostic boxes
paper_tables     the numbers of the paper, to set ours beside them
"""
