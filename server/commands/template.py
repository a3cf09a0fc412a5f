"""What `wardround-server new` writes: a run.toml to begin with, with every setting, its default and its choices.

It stands for two or more hospitals with CT and one kind of lesion, under differential privacy: a small network, plain
SGD with a large step and few local steps are what noise of fixed size leaves most of. What has a default is commented
out. docs/run.md tells more of each key.
"""

import json
import re

from common.losses import LOSS_CHOICE
from common.models import NETWORK_CHOICE
from common.strategies import STRATEGY_CHOICE
from common.tasks import TASK_CHOICE

_TEXT = """\
# A run: all that defines it, and nothing else does. Hospitals approve its SHA-256, so change it before you propose it
# with `wardround-server run`. Lines that are commented out show the default, or an example where there is none.
# Lengths are in mm or voxels, in the order of the array's axes: (y, x) or (z, y, x).

format = 2                   # of this file: what it may say; leave it as it is
name = "lesions"             # small letters, digits and hyphens
# seed = 0                   # initial weights follow from it; the noise of privacy never does
# deterministic = false      # bit-equal results on the same machine, at some cost in speed

[model]
# architecture = NETWORK      # what there is: wardround-sim list networks; each has keys of its own, see docs/run.md
# dims = 2                   # 2: slices and pictures; 3: volumes
channels = [8, 8, 8]         # width of each level, two levels at least
residual-units = 0           # of a level, 0 to 4
# norm = "instance"          # instance or group
# dropout = 0.0

[data]                       # what every hospital must be able to deliver
modality = "CT"              # CT, MR, CR, DX, MG, US or photo
# channels = 1               # 1, or 3 for colour
classes = ["lesion"]         # in label order; 0 is the background
# validation-fraction = 0.15 # of the patients
# test-fraction = 0.15
# folds = 5                  # cross-validation, 2 to 20 folds; test-fraction is not used then
# fold = 0                   # which of them is the test split
# split = "independent"      # independent or proportional; with [privacy] always independent

[task]                       # what is learned of the classes: wardround-sim list tasks
# kind = TASK
# multi-label = false        # true: classes may overlap, as a lesion in its organ

[task.loss]                  # what it trains with: wardround-sim list losses; each has keys of its own
# kind = LOSS
# dice = 1.0
# cross-entropy = 1.0
# class-weights = [0.2, 1.0] # of the background and each class, where classes are rare

[preprocessing]
spacing-mm = [3.0, 3.0]      # resample to this; for images that know their spacing (DICOM, NIfTI)
# rows = 256                 # for pictures, in place of spacing-mm: resize to so many rows
intensity = "window"         # window, percentile, min-max, zscore or zscore-foreground
window = [-100, 250]         # with window: from [low, high] (for CT in HU) to [0, 1]; or a name, such as "liver"
# steps = []                 # such as [{ kind = "gaussian", sigma = 0.8 }]: wardround-sim list steps

[training]                   # one hospital's work in one round
local-steps = 4
# local-seconds = 60.0       # without [privacy]: a site ends its round by then, and local-steps is the most it makes
# batch-size = 4             # crops in a step; with [privacy] its sampling-rate takes its place
patch-size = [64, 64]        # crop in voxels; multiples of 2 to the power of the network's levels less one
# foreground-fraction = 0.5  # share of crops around a foreground voxel
# foreground-classes = "all" # all: any such voxel; balanced: a class first, then a voxel of it
# sampling = "uniform"       # without [privacy] also balanced: a class first, then a patient who has it
optimizer = "sgd"            # sgd or adamw
learning-rate = 2.0
# schedule = "cosine"        # cosine, poly or constant
# cycles = 1                 # how often the schedule runs down
# warmup-steps = 0           # first steps of the run, in which the rate rises
# weight-decay = 0.00001
momentum = 0.0               # of sgd
# nesterov = false           # of sgd with a momentum
# l1 = 0.0                   # without [privacy]: weight of the sum of the weights' absolute values
# gradient-clipping = 1.0    # without [privacy]: the most that a step's gradient may be long
# trainable = "all"          # all or norm-and-head

[training.augmentation]
# preset = "guide"           # guide, nnunet or photograph: what the keys below are where they are not said
# flips = true
# rotation-degrees = 15.0
# tilt-degrees = 0.0         # of volumes: about the axes in the image plane
# scaling = 0.1
# zoom = [0.7, 1.4]          # in place of scaling
# shift = 0.0
# shear = 0.0
# elastic = 0.0              # up to 0.4
# fill = "zero"              # what lies outside the image: zero, or what is nearest
# intensity = 0.1
# noise = 0.0
# blur = [0.5, 1.0]          # in voxels
# brightness = 0.0
# contrast = 0.0
# low-resolution = 1.0
# gamma = [0.7, 1.5]
# inverted-gamma = [0.7, 1.5]
# saturation = 0.0           # of colour, as hue
# hue = 0.0
# mixup = 0.0                # of classification, without [privacy]

[training.augmentation.probability]  # of a crop to be changed
# rotation = 1.0
# scaling = 1.0
# shift = 1.0
# shear = 1.0
# elastic = 1.0
# intensity = 1.0
# noise = 1.0
# blur = 1.0
# brightness = 1.0
# contrast = 1.0
# low-resolution = 1.0
# gamma = 1.0
# inverted-gamma = 1.0
# saturation = 1.0
# hue = 1.0

[strategy]                   # how updates become a model: wardround-sim list strategies
# kind = STRATEGY

[federation]
rounds = 18
# quorum = 2                 # fewest hospitals whose update must enter a round
# sites-per-round = 20       # ask so many hospitals to train in a round, drawn anew for each; without it all
# weighting = "equal"        # equal or patients; with [privacy] always equal
# round-timeout-s = 3600.0   # who has not answered by then is left out of the round
# join-timeout-s = 600.0     # how long to wait for the quorum to connect
# evaluate-every = 6         # rounds between scores; with [privacy] each makes all of them noisier
# max-update-norm = 1000.0
# update-precision = "float32"  # bfloat16 or int8: updates in half or a quarter of the bytes
# averaging = 0.0            # decay of the average of the rounds' models
# keep = "last"              # which round's model is kept: last, or best by its validation scores
# patience = 5               # stop after so many evaluations in a row without a better score
# cross-site = false         # true: hospitals also train a model alone, to see what they gain; twice their training
# statistics = false         # true: ask hospitals for statistics of labels and intensities; not with [privacy]

[privacy]                    # for a patient; without this table there is none, and most hospitals refuse the run
target-epsilon = 8.0         # over the whole run, per hospital
# delta = 0.001              # 1 / (10 N) without it, N the hospital's declared cohort
# clipping-norm = 1.0        # L2 bound on one patient's gradient
# sampling-rate = 0.25       # probability that a patient takes part in a step
crops-per-patient = 2

# [privacy.adaptive-clipping]  # the clipping norm follows a quantile of the patients' norms
# quantile = 0.5
# learning-rate = 0.2
# count-noise = 5.0

# [initial]                  # weights to start from; give them with `run --initial FOLDER`
# sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
# public = "which images made these weights, and why no patient of a hospital is among them"
"""
_DEFAULTS = {"NETWORK": NETWORK_CHOICE, "LOSS": LOSS_CHOICE, "TASK": TASK_CHOICE, "STRATEGY": STRATEGY_CHOICE}
TEMPLATE = re.sub("|".join(_DEFAULTS), lambda found: json.dumps(_DEFAULTS[found[0]].first), _TEXT)


__all__ = ["TEMPLATE"]
