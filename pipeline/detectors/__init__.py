"""The only importer of MMDetection: operators, models built from settings, checkpoints, inference.

`import pipeline.detectors` makes a plain MMDetection config run without compiled mmcv operators.
"""

from pipeline.detectors import operators as operators
