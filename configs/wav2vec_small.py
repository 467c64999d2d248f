"""wav2vec, the smaller model (Schneider et al. 2019, arXiv 1904.05862): 15 M parameters, 80 h of speech, 40k updates.

    python -m w2v_jax.train --config=configs/wav2vec_small.py --workdir=runs/w2v --config.data.root=LibriSpeech/train

The paper trains 40k updates on its sets of 80 h; one GPU holds 10 crops of 9.4 s, and the large model's batch of 16
such GPUs is kept by accumulation. The loss starts near 11 ln 2 = 7.62 nats, falls to 3.35 within some hundred updates,
which a model reaches that tells no frame from another, and must fall below that. No figure for this model alone is at
hand; the large one's is in `wav2vec_large.py`.

Variants: `:demo` learns on a self-made corpus in minutes on two CPU cores; `:tiny` is for tests.
"""

from ml_collections import ConfigDict

CONV = tuple((512, k, s) for k, s in ((10, 5), (8, 4), (4, 2), (4, 2), (4, 2)))


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict(dict(method="wav2vec", seed=1))
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
        eval_hours=0.5,  # at most so much audio is scored per evaluation
        train_hours=0.0,  # above 0: train on so much of root only, chosen by a hash of the ids
        split="train",  # of tfds, parquet and common_voice
        hours=0.0,  # self-made corpora only: how much to make
        language="en",  # speak only
        loader="tfdata",  # or "threads", which needs no TensorFlow
        workers=0,  # decoding threads; 0: one per core
        batch_hours=16 * 93.75 / 3600,  # audio per update: 16 GPUs x 1.5 M samples
        unit_seconds=93.75,  # rows among which loss.cross_negatives are drawn: one GPU's 1.5 M samples
        device_seconds=93.75,  # audio that one device holds at once; raise it where memory allows
        bucket_seconds=(4.0, 6.5, 9.375),  # the static lengths; longer recordings are cropped to 150,000 samples
        curriculum=(),  # updates after each of which one more of the longest bucket_seconds is used; empty: all are
        min_seconds=2.0,
        normalize=False,  # zero mean and unit variance per utterance
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
        conv_norm="utterance",
        conv_bias=False,
        activation="relu",
        log_compression=False,
        padding_aware=True,  # False: padding enters the norms, as in fairseq
        context="conv",  # or "gru", "lstm"
        context_kernels=(3,) * 9,  # conv only: 19 frames of context
        context_skip=False,
        context_zero_pad=False,  # False: the first frame is repeated before the start
        width=512,  # gru, lstm only
        layers=1,  # gru, lstm only
        convolution="auto",  # "xla", "products", "patches" or the best one
        remat_frontend="auto",  # "none", "products", "full" or the better one
    )
    config.loss = dict(
        kind="bce",  # or "infonce"
        balanced=False,  # bce: True weights the distractors like the one positive
        steps=12,
        offset=0,  # first predicted frame after the present one; 0: the first without a common sample (3)
        negatives=10,
        cross_negatives=0,
    )
    config.optim = dict(
        schedule="cosine",  # or polynomial, tri_stage
        peak=5e-3,
        start=1e-7,
        end=1e-6,
        warmup=500,
        power=1.0,  # polynomial only
        stages=(0.03, 0.9, 0.07),  # tri_stage only: shares of warm-up, hold and decay
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
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
        fsdp=1,  # devices that share one copy of the state; 0: the fewest whose memory it fits
        tensor=1,  # devices that share heads and feed-forward width
        slices=0,  # groups of devices with a slow network between them; 0: found (TPU slices)
    )
    config.train = dict(
        steps=40_000,
        dtype="bfloat16",
        log_every=100,
        eval_every=1_000,
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
    if variant:
        small = {"demo": demo, "tiny": tiny}.get(variant)
        if small is None:
            raise ValueError(f"there is no variant {variant!r}; there are demo and tiny")
        small(config)
    return config


def demo(config: ConfigDict) -> None:
    """Half an hour of a self-made language, a model of 0.2 M parameters, minutes on two CPU cores.

    Departs from the paper in the weight of the distractors: with ten that count as much as the positive, a small batch
    does not leave the plateau at which all frames get the same logit within its few hundred updates.
    """
    tiny(config)
    config.data.update(hours=0.5, root=("data/synthetic",), batch_hours=2 * 12 / 3600, unit_seconds=12.0)
    config.data.update(bucket_seconds=(3.0,), device_seconds=24.0, eval_share=0.05, eval_hours=0.03, normalize=True)
    widths = (32, 32, 64, 64, 64)
    config.encoder.update(conv_layers=tuple((c, k, s) for c, (_, k, s) in zip(widths, CONV)))
    config.encoder.update(context_kernels=(3,) * 5)
    config.loss.update(balanced=True, steps=12, negatives=10)
    config.optim.update(peak=1e-3, warmup=50, end=1e-5)
    config.train.update(steps=600, log_every=10, eval_every=100, checkpoint_every=100)


def tiny(config: ConfigDict) -> None:
    """Seconds, without downloads: every part of a real run at the smallest size."""
    config.data.update(name="synthetic", root=("data/synthetic-tiny",), hours=0.02, min_seconds=0.5, eval_share=0.2)
    config.data.update(batch_hours=8 * 2 / 3600, unit_seconds=2.0, device_seconds=16.0, bucket_seconds=(2.0,))
    config.encoder.update(conv_layers=tuple((32, k, s) for _, k, s in CONV), context_kernels=(2, 3))
    config.encoder.update(width=32, remat_frontend="none")
    config.loss.update(steps=4, negatives=5)
    config.optim.update(peak=5e-3, warmup=5)
    config.train.update(steps=20, dtype="float32", log_every=1, eval_every=10, checkpoint_every=10)
