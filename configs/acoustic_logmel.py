"""The baseline: an acoustic model on 80-dim log-mel features, by CTC (Schneider et al. 2019, section 4.2).

    python -m w2v_jax.train --config=configs/acoustic_logmel.py --workdir=runs/logmel --config.data.root=FOLDER

The gated convolutions are those of wav2letter's lexicon-free WSJ recipe, which the wav2vec papers put on log-mel, on
wav2vec and on BERT features alike; 10.1 M parameters. `--config.acoustic.kind=transformer` takes a Transformer of
equal size instead. The papers train 1,000 epochs on 81 h (WSJ) with the criterion ASG and plain SGD; CTC and Adam are
used here, so that their error rates cannot be expected digit by digit. Hours on one GPU have not been measured.

Variants: `:ten_minutes` learns from ten labelled minutes of one's own (docs/ten_minutes.md), `:demo` a self-made
language, both in minutes on two CPU cores; `:tiny` is for tests.
"""

from ml_collections import ConfigDict

WSJ = ((200, 13, 1), (200, 3, 1), (200, 3, 1), (250, 5, 1), (250, 5, 1), (300, 5, 1), (350, 5, 1), (400, 7, 2))
WSJ += ((450, 7, 1), (500, 7, 1), (500, 7, 1), (500, 7, 1), (600, 9, 1), (600, 9, 1), (750, 9, 1), (1000, 1, 1))
SMALL = ((256, 9, 3),) + ((256, 5, 1),) * 5
"""Sees 0.7 s: with more context a small model learns its sentences by heart."""


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict(dict(method="ctc", seed=1))
    config.init = dict(run="", step="")  # log-mel features have nothing to start from
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
        kind="logmel",  # 25 ms windows every 10 ms, 80 bands
        conv_layers=((80, 512, 160),),  # its frames, as those of a convolution; fixed
        padding_aware=True,
        frozen=True,
        frozen_steps=0,
    )
    config.acoustic = dict(
        kind="conv",  # or "transformer", "linear"
        input="context",
        standardise=True,  # zero mean and unit variance of each band over the utterance
        conv_layers=WSJ,  # (channels before gating, kernel, stride)
        residual=False,  # a layer norm after each, added to its input; the papers have neither
        stride=2,  # transformer only, like the others up to pos_groups
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
        rules=(),  # (regex on the parameter's path, learning-rate scale, weight decay), first match
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
        small = {"ten_minutes": ten_minutes, "demo": demo, "tiny": tiny}.get(variant)
        if small is None:
            raise ValueError(f"there is no variant {variant!r}; there are ten_minutes, demo and tiny")
        small(config)
    return config


def ten_minutes(config: ConfigDict) -> None:
    """Ten labelled minutes in data.root, one of them held out. Two of the demo's models, 4,500 updates."""
    demo(config)
    config.data.update(name="folder", root=(), eval_root=(), hours=0.0, eval_share=0.1, eval_hours=1 / 60)
    config.data.update(train_hours=9 / 60, batch_hours=24 / 3600, device_seconds=24.0, speeds=(0.85, 1.15))
    config.acoustic.update(dropout=0.2, clean_steps=300, members=2, consistency=0.2)
    config.masking.update(time_prob=0.15)
    config.optim.update(stages=(0.03, 0.47, 0.5))
    config.train.update(steps=4500, eval_every=100, checkpoint_every=100, patience=2500)


def demo(config: ConfigDict) -> None:
    """Half an hour of a self-made language with its letters, 1.0 M parameters, minutes on two CPU cores."""
    tiny(config)
    config.data.update(root=("data/synthetic/train",), eval_root=("data/synthetic/dev",), hours=0.5, eval_hours=0.05)
    config.data.update(batch_hours=8 * 12 / 3600, unit_seconds=12.0, device_seconds=96.0)
    config.data.update(bucket_seconds=(3.0, 6.0, 12.0))
    config.acoustic.update(conv_layers=SMALL, residual=True)
    config.acoustic.update(width=192, layers=3, heads=4, mlp=368, dropout=0.1, clean_steps=100)
    config.train.update(steps=400, log_every=10, eval_every=50, checkpoint_every=50, patience=200)


def tiny(config: ConfigDict) -> None:
    """Seconds, without downloads: every part of a real run at the smallest size."""
    config.data.update(name="synthetic", root=("data/synthetic-tiny",), hours=0.02, eval_share=0.2)
    config.data.update(batch_hours=8 * 4 / 3600, unit_seconds=4.0, device_seconds=32.0, bucket_seconds=(4.0, 8.0))
    config.acoustic.update(conv_layers=((32, 5, 1), (32, 5, 2)), width=32, layers=1, heads=4, mlp=64, dropout=0.0)
    config.acoustic.update(pos_kernel=16, pos_groups=4)
    config.train.update(steps=20, dtype="float32", log_every=1, eval_every=10, checkpoint_every=10)
