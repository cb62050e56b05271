# A small CLIT trained in three stages on the photographs shipped with scikit-image, on the CPU, in a few minutes:
# the quickstart of BasicSR (options/quickstart_clit_edsr.yml), with the same weights at the end
# python scripts/prepare_quickstart.py
# basicsr mmtrain options/mmagic/clit-edsr-norm_c32b4_1xb8-1600_quickstart.py
_base_ = ['./_base_/models/edsr.py', './_base_/default_runtime.py']

experiment_name = 'clit-edsr-norm_c32b4_1xb8-1600_quickstart'
work_dir = f'./work_dirs/{experiment_name}'

model = dict(
    generator=dict(
        type='CLITNet',
        encoder=dict(num_feat=32, num_block=4),
        num_branches=3,
        dim=32,
        num_heads=4,
        grid_size=3,
        hidden_dims=[64, 64, 64],
        residual_weight=1,
    ),
    test_cfg=dict(tile=None),
)

train_dataloader = dict(
    num_workers=1,
    batch_size=8,
    dataset=dict(
        type='RandomScaleDataset',
        dataroot_gt='datasets/quickstart/train',
        lq_size=32,
        num_queries=512,
        downsampling='pil',
        cache_bytes=100000000,
    ),
)
# what is trained stays as it is; each new branch adds nothing at first
later = dict(lr=2e-4, eta_min=1e-6, freeze=True, init='zero', pixel_opt=dict(type='MSELoss'), lq_size=24)
train_cfg = dict(
    type='CumulativeTrainLoop',
    val_interval=400,
    stages=[
        dict(branches=1, iters=1200, lr=1e-3, milestones=[700, 1000], scales=[[[1, 4]]]),
        dict(branches=2, iters=200, scales=[[[1, 4], [1, 4]]], **later),
        dict(branches=3, iters=200, scales=[[[1, 4], [1, 4], [1, 2]]], **later),
    ],
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', betas=(0.9, 0.999)))

# one held-out picture, at scales within and beyond the training range
val_dataloader = [
    dict(
        num_workers=0,
        batch_size=1,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='ScaledPairDataset',
            name=f'x{scale}',
            dataroot_gt='datasets/quickstart/val',
            downsampling='pil',
            scale=scale,
            protocol='benchmark',
        ),
    )
    for scale in [2, 3, 3.4, 4, 8]
]
val_evaluator = [
    dict(type='Evaluator', metrics=[dict(type='PSNRFloat', prefix=f'x{scale}')]) for scale in [2, 3, 3.4, 4, 8]
]
val_cfg = dict(type='MultiValLoop')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
test_cfg = dict(type='MultiTestLoop')

default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=400),
)
custom_hooks = [dict(type='BasicVisualizationHook', interval=1)]
