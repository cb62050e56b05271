# RDN; the decoder is the config's
_base_ = './edsr.py'

model = dict(
    generator=dict(
        encoder=dict(
            _delete_=True,
            type='RDN',
            num_feat=64,
            num_block=16,
            num_layer=8,
            num_grow_ch=64,
            img_range=2,
            rgb_mean=[0.5, 0.5, 0.5],
        ),
    ),
)
