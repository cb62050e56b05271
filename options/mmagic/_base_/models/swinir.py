# SwinIR; the decoder is the config's
_base_ = './edsr.py'

model = dict(
    generator=dict(
        encoder=dict(
            _delete_=True,
            type='SwinIR',
            img_size=48,
            embed_dim=180,
            depths=[6, 6, 6, 6, 6, 6],
            num_heads=[6, 6, 6, 6, 6, 6],
            window_size=8,
            mlp_ratio=2,
            conv_before_upsample=True,
            padding='window',
            img_range=2,
            rgb_mean=[0.5, 0.5, 0.5],
        ),
    ),
)
