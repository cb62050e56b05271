# the first stage alone: for decoders without branches
train_cfg = dict(
    type='CumulativeTrainLoop',
    val_interval=50_000,
    stages=[
        dict(branches=1, iters=1_000_000, lr=1e-4, milestones=[200_000, 400_000, 600_000, 800_000], scales=[[[1, 4]]]),
    ],
)
