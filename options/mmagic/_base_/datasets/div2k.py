# training on DIV2K with batches of 32, validation on its 100 validation images
train_dataloader = dict(
    num_workers=8,
    batch_size=32,  # per GPU
    persistent_workers=False,
    pin_memory=True,
    # the loop orders the images: no sampler
    dataset=dict(
        type='RandomScaleDataset',
        dataroot_gt='datasets/DIV2K/DIV2K_train_HR',
        # (for lmdb, many times as fast) dataroot_gt='datasets/DIV2K/DIV2K_train_HR.lmdb', io_backend=dict(type='lmdb'),
        lq_size=48,  # LR patch, pixels
        num_queries=2304,  # HR pixels sampled per patch
        downsampling='pil',  # 'pil' | 'matlab'
    ),
)

# up to x4: the published LR images; above: LR images made by PIL, as in the papers
val_dataloader = [
    dict(
        num_workers=4,
        batch_size=1,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='ScaledPairDataset',
            name=f'DIV2Kx{scale}',
            dataroot_gt='datasets/DIV2K/DIV2K_valid_HR',
            dataroot_lq=f'datasets/DIV2K/DIV2K_valid_LR_bicubic/X{scale}' if scale <= 4 else None,
            filename_tmpl=f'{{}}x{scale}',
            scale=scale,
            protocol='div2k',
        ),
    )
    for scale in [2, 4, 6, 18]
]
val_evaluator = [
    dict(type='Evaluator', metrics=[dict(type='PSNRFloat', prefix=f'DIV2Kx{scale}')]) for scale in [2, 4, 6, 18]
]
val_cfg = dict(type='MultiValLoop')

# the rate is that of each stage
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor', type='OptimWrapper', optimizer=dict(type='Adam', betas=(0.9, 0.999))
)
