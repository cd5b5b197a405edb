"""What 2DRCL is: an importable library without command line and without printing.

data        annotations, images, boxes, augmented views, the sample data set
proposals   OLN, the class-agnostic detector whose boxes feed local contrast and masking
stats       category frequencies, repeat factors (RFS, IRFS, eq. 4), the epoch sampler
pretrain    contrast (eq. 1-3), reconstruction (eq. 5-7), the objective (eq. 8)
finetune    one file per long-tailed loss, and fine-tuning with any of them
evaluation  predictions and the numbers that judge them, with intervals
analysis    error types, weight norms, attention, differences between runs
report      one page about all runs, and our rows beside the paper's
detectors   the only importer of mmdet: operators, models, checkpoints, inference
engine      torch only: loop, hooks, checkpoints, processes
"""

__version__ = "0.1.0"
