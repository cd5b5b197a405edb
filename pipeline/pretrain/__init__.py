"""2DRCL: holistic and local contrast, dual reconstruction, and the detector's own loss in one step.

contrast        InfoNCE against a queue: eq. 1 (images) and eq. 2 (proposals)
key_queue       the two dictionaries of keys
momentum        the momentum encoder's update
projection      projectors and predictors, batch statistics over all processes
reconstruction  generator, masks, AR (eq. 5), SR (eq. 6)
objective       eq. 3, 7 and 8: how the terms add up
model           the whole step
views           what one draw brings: two views, paired boxes, masks, targets
training        from settings and files to a running Trainer
"""
