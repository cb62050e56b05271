# cumulative training: a branch is added in each stage; milestones count from the start of their stage
# to start from an earlier stage's checkpoint: train_cfg.start_stage=2 and load_from
train_cfg = dict(
    type='CumulativeTrainLoop',
    start_stage=1,
    val_interval=50_000,
    stages=[
        dict(branches=1, iters=1_000_000, lr=1e-4, milestones=[200_000, 400_000, 600_000, 800_000], scales=[[[1, 4]]]),
        dict(
            branches=2,
            iters=1_000_000,
            lr=1e-4,
            milestones=[200_000, 400_000, 600_000, 800_000],
            scales=[[[1, 4]], [[1, 4], [1, 4]]],  # batches alternate between the alternatives
        ),
        dict(
            branches=3,
            iters=1_500_000,
            lr=1e-4,
            milestones=[300_000, 600_000, 900_000, 1_200_000],
            scales=[[[1, 4]], [[1, 4], [1, 4]], [[1, 4], [1, 4], [1, 2]]],
        ),
    ],
)
