"""An acoustic model on frozen features: what a pretrained encoder is worth (Schneider et al. 2019, section 4.2).

    python -m w2v_jax.train --config=configs/acoustic_frozen.py --workdir=runs/frozen --config.init.run=runs/base \\
        --config.data.root=FOLDER

The encoder of the run stays as it is; a weighted sum of its layers, whose weights are learned, feeds the acoustic model
of `acoustic_logmel.py`, which is the baseline. An empty `init.run` gives the features of a random encoder. The encoder
section is that of wav2vec 2.0 Base; that of another run must be copied here, and the error names what differs.

Variants: `:features` reads what `python -m w2v_jax.extract` has written, from any run (vq-wav2vec, BERT from audio),
so that the encoder runs once instead of every epoch; `:cpc` reads a run of `cpc.py`, `:wav2vec` one of
`wav2vec_large.py`. `:demo` (after the demo of w2v2_base), `:cpc_demo` (after that of cpc), `:wav2vec_demo` (after that
of wav2vec_large) and `:features_demo` take minutes on two CPU cores; `:tiny` is for tests. The
encoder is fine-tuned together with the acoustic model by `--config.encoder.frozen=false --config.optim.rules="()"`.
"""

from ml_collections import ConfigDict

CONV = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2
LOGMEL_DEMO = ((256, 9, 3),) + ((256, 5, 1),) * 5
WSJ = ((200, 13, 1), (200, 3, 1), (200, 3, 1), (250, 5, 1), (250, 5, 1), (300, 5, 1), (350, 5, 1), (400, 7, 1))
WSJ += ((450, 7, 1), (500, 7, 1), (500, 7, 1), (500, 7, 1), (600, 9, 1), (600, 9, 1), (750, 9, 1), (1000, 1, 1))


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict(dict(method="ctc", seed=1))
    config.init = dict(run="", step="")  # a pretraining, and its checkpoint: a number, "best", or empty for the newest
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
        labels="letters",  # or "symbols": phonemes or words between spaces
        alphabet="",  # an alphabet.json; empty: made from the training transcripts
        casing="keep",  # or "lower", "upper"
        remove="",  # characters to take out of the transcripts
        min_count=1,  # rarer letters are taken out
        tokens_per_second=25.0,  # the most that a row may have
        vocab_size=0,  # codes only
        batch_hours=640 / 3600,  # audio per update: 64 utterances of some 8 s, as in the papers, and more
        unit_seconds=40.0,  # the smallest piece of a batch
        device_seconds=160.0,  # audio that one device holds at once; raise it where memory allows
        bucket_seconds=(4.0, 8.0, 12.0, 16.0, 20.0, 36.0),  # the static lengths; longer recordings are left out
        curriculum=(),  # updates after each of which one more of the longest bucket_seconds is used; empty: all are
        min_seconds=0.1,
        normalize=False,  # the features are, below
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
        kind="wav2vec2",  # this and the next ones as in the pretraining
        conv_layers=CONV,
        conv_norm="group",
        conv_bias=False,
        conv_grad_scale=0.0,
        padding_aware=True,
        width=768,
        layers=12,
        heads=12,
        mlp=3072,
        pre_norm=False,
        pos_kernel=128,
        pos_layers=1,
        pos_groups=16,
        relative_buckets=0,  # 320 with a distance of 800: the gated bias of attention of WavLM
        relative_distance=0,
        dropout=0.0,
        attention_dropout=0.0,
        mlp_dropout=0.0,
        input_dropout=0.0,
        layer_drop=0.0,
        attention="auto",
        positional="auto",
        stack="auto",  # "scan", "unroll" or the better one
        convolution="auto",  # "xla", "products", "patches" or the best one
        remat_frontend="none",  # "products", "full" or the better one, "auto"
        remat_layers="none",  # or "products", "full"
        frozen=True,  # no gradient, no dropout, no mask inside
        frozen_steps=0,
    )
    config.acoustic = dict(
        kind="conv",  # or "transformer", "linear"
        input="weighted",  # of all layers; or "context", "local"
        standardise=True,  # zero mean and unit variance of each band over the utterance
        conv_layers=WSJ,  # (channels before gating, kernel, stride)
        residual=False,  # a layer norm after each, added to its input; the papers have neither
        stride=1,  # transformer only, like the others up to pos_groups
        width=288,
        layers=10,
        heads=6,
        mlp=1152,
        pos_kernel=64,
        pos_groups=16,
        attention="auto",  # "xla", "blocks", "kernel" (TPU), "cudnn" or the best one
        positional="auto",  # "grouped", "split" or the better one
        stack="auto",  # "scan", "unroll" or the better one
        dropout=0.25,
        head_dropout=0.0,
        clean_steps=0,  # first updates without dropout and masks, which keep a small model on the plateau
        members=1,  # acoustic models that learn side by side; the output is their mean probability
        consistency=0.0,  # weight of the agreement of members, or of one with itself under other dropout and masks
        outputs=0,  # tokens and the blank; 0: as many as the alphabet has
    )
    config.masking = dict(time_prob=0.1, time_length=10, time_spans=0, channel_prob=0.1, channel_length=8)
    config.optim = dict(
        schedule="tri_stage",  # or polynomial, cosine
        peak=1e-3,
        start=1e-5,
        end=5e-5,
        warmup=0,  # not of tri_stage
        power=1.0,
        stages=(0.1, 0.4, 0.5),  # shares of warm-up, hold and decay
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=1.0,  # 0: never clip
        average=0.0,  # decay of a running mean of the weights, which is evaluated and used instead of them; 0: none
        rules=(
            ("^encoder/", 0.0, 0.0),
        ),  # (regex on the parameter's path, learning-rate scale, weight decay), first match
    )
    config.sharding = dict(
        data=0,  # 0: all remaining devices
        fsdp=1,  # devices that share one copy of the state; 0: the fewest whose memory it fits
        tensor=1,  # devices that share heads and feed-forward width
        slices=0,  # groups of devices with a slow network between them; 0: found (TPU slices)
    )
    config.train = dict(
        steps=80_000,
        dtype="bfloat16",
        log_every=100,
        eval_every=1_000,
        checkpoint_every=1_000,
        keep_latest=2,
        keep_best=1,
        best="token_error",  # the metric of the held-out data by which the best checkpoint is kept
        patience=20_000,  # updates without a better one after which the run ends; 0: never
        log_rows=False,
        watchdog="warn",  # "stop" ends a dead run, "off"
        on_config_change="refuse",  # "accept" goes on in a workdir made with another config
        compile_cache="",  # folder; empty: JAX_COMPILATION_CACHE_DIR, else WORKDIR/compile_cache
    )
    config.lock()  # a variant changes keys and adds none
    if variant:
        variants = {"features": features, "cpc": cpc, "wav2vec": wav2vec, "demo": demo, "tiny": tiny}
        variants |= {"features_demo": features_demo, "cpc_demo": cpc_demo, "wav2vec_demo": wav2vec_demo}
        if variant not in variants:
            raise ValueError(f"there is no variant {variant!r}; there are {', '.join(variants)}")
        variants[variant](config)
    return config


def features(config: ConfigDict) -> None:
    """Any features that extraction has written; their hop and width are theirs."""
    config.data.update(name="features", normalize=False, speeds=(1.0, 1.0))
    config.encoder = dict(kind="features", hop=160, padding_aware=True, frozen=True, frozen_steps=0)
    halve(config)
    config.optim.update(rules=())


def cpc(config: ConfigDict) -> None:
    """The encoder of `cpc.py`."""
    causal(
        config,
        conv_layers=tuple((512, k, s) for k, s in ((10, 5), (8, 4), (4, 2), (4, 2), (4, 2))),
        conv_norm="frame",
        conv_bias=True,
        log_compression=False,
        context="gru",
        context_kernels=(),
        context_skip=False,
        width=256,
    )


def wav2vec(config: ConfigDict) -> None:
    """The encoder of `wav2vec_large.py`."""
    causal(
        config,
        conv_layers=tuple((512, k, s) for k, s in ((10, 5), (8, 4), (4, 2), (4, 2), (4, 2), (1, 1), (1, 1))),
        conv_norm="utterance",
        conv_bias=False,
        log_compression=True,
        context="conv",
        context_kernels=tuple(range(2, 14)),
        context_skip=True,
        width=512,
    )


def causal(config: ConfigDict, **encoder) -> None:
    """A causal encoder, whose frames are 10 ms apart. The acoustic model's own are 20 ms apart, in the demos 30 ms."""
    config.encoder = encoder | dict(
        kind="causal",
        activation="relu",
        padding_aware=True,
        context_zero_pad=False,
        layers=1,
        convolution="auto",  # "xla", "products", "patches" or the best one
        remat_frontend="none",  # "products", "full" or the better one, "auto"
        frozen=True,
        frozen_steps=0,  # without `frozen`: first updates that leave the encoder as it is
    )
    halve(config)


def halve(config: ConfigDict) -> None:
    """An acoustic model on the context network's output, with half as many frames."""
    config.acoustic.update(input="context", stride=2)
    config.acoustic.conv_layers = tuple((c, k, 2 if c == 400 else s) for c, k, s in config.acoustic.conv_layers)


def cpc_demo(config: ConfigDict) -> None:
    """The demo of `cpc.py`, and the acoustic model of the log-mel demo."""
    demo(config)
    cpc(config)
    config.init.update(run="runs/cpc")
    config.encoder.update(conv_layers=narrowed(config.encoder.conv_layers, (32, 32, 64, 64, 64)), width=96)
    config.acoustic.update(conv_layers=LOGMEL_DEMO)


def wav2vec_demo(config: ConfigDict) -> None:
    """The demo of `wav2vec_large.py`, and the acoustic model of the log-mel demo."""
    demo(config)
    wav2vec(config)
    config.init.update(run="runs/wav2vec")
    layers = narrowed(config.encoder.conv_layers, (32, 32, 64, 64, 64, 64, 64))
    config.encoder.update(conv_layers=layers, context_kernels=(2, 3, 4, 5, 6, 7), width=32)
    config.acoustic.update(conv_layers=LOGMEL_DEMO)


def narrowed(layers: tuple, widths: tuple) -> tuple:
    """Convolutions (channels, kernel, stride) with other channels."""
    return tuple((c, k, s) for c, (_, k, s) in zip(widths, layers))


def features_demo(config: ConfigDict) -> None:
    """The features of the five commands of docs/features.md, and the acoustic model of the log-mel demo."""
    demo(config)
    features(config)
    config.data.update(root=("features/train",), eval_root=("features/dev",), hours=0.0)
    config.acoustic.update(conv_layers=LOGMEL_DEMO)


def demo(config: ConfigDict) -> None:
    """Half an hour of a self-made language with its letters, on the demo of w2v2_base (20 ms frames)."""
    tiny(config)
    config.data.update(root=("data/synthetic/train",), eval_root=("data/synthetic/dev",), hours=0.5, eval_hours=0.05)
    config.data.update(batch_hours=8 * 12 / 3600, unit_seconds=12.0, device_seconds=96.0)
    config.data.update(bucket_seconds=(3.0, 6.0, 12.0), normalize=True)
    config.encoder.update(conv_layers=narrowed(CONV, (32, 32, 64, 64, 64, 96, 96)), width=128, layers=4)
    config.encoder.update(mlp=512, pos_kernel=32, pos_groups=16, pre_norm=True)
    config.acoustic.update(conv_layers=((256, 5, 1),) * 6, residual=True)
    config.acoustic.update(width=192, layers=3, heads=4, mlp=368, dropout=0.1, clean_steps=100)
    config.train.update(steps=400, log_every=10, eval_every=50, checkpoint_every=50, patience=200)


def tiny(config: ConfigDict) -> None:
    """Seconds, without downloads: every part of a real run at the smallest size."""
    config.data.update(name="synthetic", root=("data/synthetic-tiny",), hours=0.02, eval_share=0.2)
    config.data.update(batch_hours=8 * 4 / 3600, unit_seconds=4.0, device_seconds=32.0, bucket_seconds=(4.0, 8.0))
    config.encoder.update(conv_layers=tuple((32, k, s) for _, k, s in CONV), width=32, layers=2, heads=4, mlp=64)
    config.encoder.update(pos_kernel=16, pos_groups=4)
    config.acoustic.update(conv_layers=((32, 5, 1), (32, 5, 1)), width=32, layers=1, heads=4, mlp=64, dropout=0.0)
    config.acoustic.update(pos_kernel=16, pos_groups=4)
    config.train.update(steps=20, dtype="float32", log_every=1, eval_every=10, checkpoint_every=10)
