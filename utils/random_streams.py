"""Numbers of the random streams, so that no two draws share one.

Every generator is seeded with (seed, epoch, sample_index) and one of these. A new kind of draw gets the next number; a
number that changed its meaning would change the runs.
"""

SAMPLE = 1  # frames, box, flip and policy of a clip
MASK = 2  # of pre-training; in a seed of four numbers also torch's own draws in a step (dropout)
MIXING = 3  # erasing, mixup and CutMix
DECODER = 4  # PyAV or DALI
DEVICE_AUGMENT = 5  # blur and solarization
FEW_SHOT = 6  # the videos of each class that are kept, for a whole run
PERTURBATION = 7  # noise, shuffled and dropped frames of a test
DECODER_MASK = 8  # the patches that VideoMAE v2's decoder predicts
BALANCE = 9  # which videos of each class are drawn in an epoch, and their order
