"""XLS-R and larger (Babu et al. 2021, arXiv 2111.09296; Omnilingual ASR, 2511.09690): wav2vec 2.0, 1 to 7 billion.

    python -m w2v_jax.train --config=configs/xlsr.py:1b --workdir=runs/xlsr --config.data.root=FRENCH,SWAHILI

wav2vec 2.0 on many languages: 436,000 hours in 128 of them for XLS-R (1B, 2B); 3B and 7B are Omnilingual ASR's. The
shapes are the published ones, to the last parameter. XLS-R's 1,000,000 updates are in the names of its checkpoints.
The authors' code has no batch, learning rate or warm-up for pretraining: those of w2v2_large.py stand here, and have
not been tried at these sizes. Every recording is as likely as any other, of whatever language. Hours and metrics are
open; `plan` estimates hours, and docs/performance.md has meshes on which each size fits.

sharding.fsdp=0 takes the fewest devices that hold a copy of the state. Layers keep the results of their products only:
that costs 3 % more arithmetic and leaves a third of what the backward pass would hold, attention's scores above all.

Variants: `:1b` (none: 1b), `:2b`, `:3b`, `:7b`; `:demo` learns on a self-made corpus in minutes on two CPU cores;
`:tiny` is for tests.
"""

from ml_collections import ConfigDict

CONV = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2

SHAPES = {  # width, layers, feed-forward width; all have 16 heads
    "1b": (1280, 48, 5120),
    "2b": (1920, 48, 7680),
    "3b": (2048, 60, 8192),
    "7b": (2048, 128, 8192),
}


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict(dict(method="wav2vec2", seed=1))
    config.init = dict(
        run="",  # another run of this method to start from, or what `convert` made
        step="",  # its checkpoint: a number, "best", or empty for the newest
        fresh=(),  # regular expressions on the paths of parameters that start anew all the same
    )
    config.data = dict(
        name="folder",  # a file of w2v_jax/data/sources, such as folder, jsonl, parquet, tfds (docs/data.md)
        root=(),  # one or more folders, manifests or dataset names
        corpora="",  # a TOML file of several corpora to mix, in place of name and root (docs/mixing.md)
        corpora_exponents=(1.0, 1.0),  # of the hours of corpora and of languages; 1: heard as they are, 0: all alike
        eval_root=(),  # held-out data; empty: eval_share of root's rows
        eval_share=0.01,
        eval_speakers=False,  # True: eval_share is of the speakers, and none of those is trained on
        eval_hours=1.0,  # at most so much audio is scored per evaluation
        train_hours=0.0,  # above 0: train on so much of root only, chosen by a hash of the ids
        split="train",  # of tfds, parquet and common_voice
        hours=0.0,  # self-made corpora only: how much to make
        language="en",  # speak only
        loader="tfdata",  # or "threads", which needs no TensorFlow
        workers=0,  # decoding threads; 0: one per core
        batch_hours=128 * 75.0 / 3600,  # audio per update: 128 GPUs x 1.2 M samples
        unit_seconds=75.0,  # rows that share code statistics: one GPU's 1.2 M samples
        device_seconds=75.0,  # audio that one device holds at once; raise it where memory allows
        bucket_seconds=(5.0, 10.0, 15.0, 20.0),  # the static lengths; longer recordings are cropped
        curriculum=(),  # updates after each of which one more of the longest bucket_seconds is used; empty: all are
        min_seconds=2.0,
        normalize=True,  # zero mean and unit variance per utterance
        speeds=(1.0, 1.0),  # a training recording is played at a speed between these, drawn anew each epoch
        mix_prob=0.0,  # the share of recordings that other rows or noise are mixed into
        mix_decibels=(-5.0, 5.0),  # by how much the recording is louder than the other rows
        mix_part=(0.0, 0.5),  # the share of the recording that is covered
        mix_voices=(1, 1),  # how many other rows are added together: one is a speaker, several are babble
        noise_root=(),  # folders of noise, for some of the mixed recordings in place of other rows
        noise_name="folder",  # how noise_root is read, as name says of root
        noise_prob=0.0,  # with a noise_root, the share of the mixed recordings that get noise
        noise_decibels=(-5.0, 20.0),
        rooms_root=(),  # folders of impulse responses of rooms
        rooms_name="folder",
        rooms_prob=0.0,  # the share of recordings that are heard in one of the rooms
        telephone_prob=0.0,  # the share that is heard through a telephone, 300 to 3400 Hz
        gain_decibels=(0.0, 0.0),  # by how much recordings are made louder
    )
    config.encoder = dict(
        conv_layers=CONV,  # (channels, kernel, stride)
        conv_norm="layer",
        conv_bias=True,
        conv_grad_scale=1.0,
        padding_aware=True,  # False: padding enters the feature penalty, as in fairseq
        width=1280,
        layers=48,
        heads=16,
        mlp=5120,
        pre_norm=True,
        pos_kernel=128,
        pos_layers=1,  # 5 with a kernel of 19: data2vec's positions
        pos_groups=16,
        relative_buckets=0,  # 320 with a distance of 800: the gated bias of attention of WavLM
        relative_distance=0,
        dropout=0.0,
        attention_dropout=0.0,
        mlp_dropout=0.0,
        input_dropout=0.0,
        layer_drop=0.0,
        attention="auto",  # "xla", "blocks", "kernel" (TPU), "cudnn" (no attention_dropout) or the best one
        positional="auto",  # "grouped", "split" or the better one
        stack="auto",  # "scan", "unroll" or the better one
        convolution="auto",  # "xla", "products", "patches" or the best one
        remat_frontend="auto",  # "none", "products", "full" or the better one
        remat_layers="products",  # or "none", "full"
    )
    config.quantizer = dict(groups=2, codes=320, dim=1024, temperature=(2.0, 0.1, 0.999995), input_dropout=0.0)
    config.masking = dict(prob=0.65, length=10, min_spans=2)  # prob / length = 0.065 of frames start a span
    config.loss = dict(
        proj=1024,
        negatives=100,
        cross_negatives=0,
        codebook_negatives=0,
        temperature=0.1,
        diversity_weight=0.1,
        penalty_weight=0.0,
    )
    config.optim = dict(
        schedule="polynomial",  # or cosine, tri_stage
        peak=3e-4,
        start=0.0,
        end=0.0,
        warmup=48_000,
        power=1.0,
        stages=(0.03, 0.9, 0.07),  # tri_stage only: shares of warm-up, hold and decay
        betas=(0.9, 0.98),
        eps=1e-6,
        weight_decay=0.01,
        clip_norm=0.0,  # 0: never clip
        average=0.0,  # decay of a running mean of the weights, which is evaluated and used instead of them; 0: none
        rules=(),  # (regex on the parameter's path, learning-rate scale, weight decay), first match
    )
    config.probe = dict(
        every=0,  # updates between linear probes of the context features, drawn into the curves; 0: never
        root=(),  # recordings with labels, read as data.name says
        test_root=(),  # those to score; empty: a fifth of root
        label="letter",  # or transcript (of the recording as a whole), speaker
        hours=0.2,  # at most so much of each
    )
    config.sharding = dict(
        data=0,  # 0: all remaining devices
        fsdp=0,  # devices that share one copy of the state; 0: the fewest whose memory it fits
        tensor=1,  # devices that share heads and feed-forward width
        slices=0,  # groups of devices with a slow network between them; 0: found (TPU slices)
    )
    config.train = dict(
        steps=1_000_000,
        dtype="bfloat16",
        log_every=100,
        eval_every=5_000,
        checkpoint_every=1_000,
        keep_latest=2,
        keep_best=1,
        best="loss",  # the metric of the held-out data by which the best checkpoint is kept
        patience=0,  # updates without a better one after which the run ends; 0: never
        log_rows=False,
        watchdog="warn",  # "stop" ends a dead run, "off"
        on_config_change="refuse",  # "accept" goes on in a workdir made with another config
        compile_cache="",  # folder; empty: JAX_COMPILATION_CACHE_DIR, else WORKDIR/compile_cache
    )
    config.lock()  # a variant changes keys and adds none
    if variant in SHAPES:
        width, layers, mlp = SHAPES[variant]
        config.encoder.update(width=width, layers=layers, mlp=mlp)
    elif variant:
        small = {"demo": demo, "tiny": tiny}.get(variant)
        if small is None:
            raise ValueError(f"there is no variant {variant!r}; there are {', '.join(SHAPES)}, demo and tiny")
        small(config)
    return config


def demo(config: ConfigDict) -> None:
    """Half an hour of a self-made language, 0.9 M parameters, minutes on two CPU cores. A higher learning rate."""
    tiny(config)
    config.data.update(hours=0.5, root=("data/synthetic",), batch_hours=2 * 12 / 3600, unit_seconds=12.0)
    config.data.update(bucket_seconds=(3.0,), device_seconds=24.0, eval_share=0.05, eval_hours=0.03, normalize=True)
    widths = (32, 32, 64, 64, 64, 96, 96)
    config.encoder.update(conv_layers=tuple((c, k, s) for c, (_, k, s) in zip(widths, CONV)), width=128, layers=4)
    config.encoder.update(mlp=512, pos_kernel=32, pos_groups=16, layer_drop=0.0)
    config.encoder.update(dropout=0.0, attention_dropout=0.0, input_dropout=0.0)
    config.quantizer.update(codes=64, dim=64, temperature=(2.0, 0.5, 0.997), input_dropout=0.0)
    config.loss.update(proj=64, negatives=50, penalty_weight=0.0)
    config.optim.update(peak=1e-3, warmup=100)
    config.train.update(steps=1000, log_every=10, eval_every=100, checkpoint_every=100)


def tiny(config: ConfigDict) -> None:
    """Seconds, without downloads: every part of a real run at the smallest size."""
    config.data.update(name="synthetic", root=("data/synthetic-tiny",), hours=0.02, min_seconds=0.5, eval_share=0.2)
    config.data.update(batch_hours=8 * 2 / 3600, unit_seconds=2.0, device_seconds=16.0, bucket_seconds=(2.0,))
    config.encoder.update(conv_layers=tuple((32, k, s) for _, k, s in CONV), width=32, layers=2, heads=4, mlp=64)
    config.encoder.update(pos_kernel=16, pos_groups=4, remat_frontend="none", remat_layers="none")
    config.quantizer.update(codes=16, dim=16)
    config.loss.update(proj=16, negatives=10)
    config.sharding.update(fsdp=1)
    config.optim.update(peak=1e-3, warmup=5)
    config.train.update(steps=20, dtype="float32", log_every=1, eval_every=10, checkpoint_every=10)
