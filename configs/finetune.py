"""Fine-tunes wav2vec 2.0 Base by CTC with few labels (Baevski et al. 2020, section 4.3 and appendix B).

    python -m w2v_jax.train --config=configs/finetune.py:10h --workdir=runs/10h --config.init.run=runs/base \\
        --config.data.root=FOLDER

One variant for each amount of labelled speech, with the numbers of fairseq's published configs; a batch is that of
their GPUs together (2 for up to 100 h, 8 for 960 h). The feature encoder is never trained, and the first
`encoder.frozen_steps` updates train the last layer alone. Hours on one's own hardware have not been measured. Expected
word error rates without language model of Base after 960 h of LibriSpeech, test-clean/other (tables 9 and 10 of the
paper): 10m 46.9/50.9, 1h 24.5/29.7, 10h 11.1/17.6, 100h 6.1/13.3, 960h 3.4/8.5.

Variants: `:10m`, `:1h`, `:10h`, `:100h`, `:960h` (none: 10h); `:demo` fine-tunes the demo of w2v2_base in minutes on
two CPU cores; `:tiny` is for tests.
"""

from ml_collections import ConfigDict

CONV = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2

AMOUNTS = {  # learning rate, updates, first ones of the last layer alone, time and channel masks, LayerDrop, batch in s
    "10m": (5e-5, 13_000, 10_000, 0.65, 0.25, 0.1, 600),
    "1h": (5e-5, 13_000, 10_000, 0.65, 0.25, 0.1, 1600),
    "10h": (5e-5, 20_000, 10_000, 0.65, 0.5, 0.05, 1600),
    "100h": (3e-5, 80_000, 0, 0.65, 0.5, 0.1, 1600),
    "960h": (1e-4, 320_000, 0, 0.5, 0.1, 0.1, 1600),
}


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
        batch_hours=1600 / 3600,  # audio per update: 8 x 3.2 M samples
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
        mlp_dropout=0.1,
        input_dropout=0.0,
        layer_drop=0.05,
        attention="auto",
        positional="auto",
        stack="auto",  # "scan", "unroll" or the better one
        convolution="auto",  # "xla", "products", "patches" or the best one
        remat_frontend="none",  # "products", "full" or the better one, "auto"
        remat_layers="none",  # or "products", "full"
        frozen=False,  # True: no gradient, no dropout, no mask inside
        frozen_steps=10_000,  # first updates that leave the encoder as it is
    )
    config.acoustic = dict(
        kind="linear",
        input="context",  # or "weighted": of all layers, "local"
        standardise=False,
        head_dropout=0.0,
        clean_steps=0,  # first updates without dropout and masks, which keep a small model on the plateau
        members=1,  # acoustic models that learn side by side; the output is their mean probability
        consistency=0.0,  # weight of the agreement of members, or of one with itself under other dropout and masks
        outputs=0,  # tokens and the blank; 0: as many as the alphabet has
    )
    config.masking = dict(time_prob=0.65, time_length=10, time_spans=2, channel_prob=0.5, channel_length=64)
    config.optim = dict(
        schedule="tri_stage",  # or polynomial, cosine
        peak=5e-5,
        start=5e-7,
        end=2.5e-6,
        warmup=0,  # not of tri_stage
        power=1.0,
        stages=(0.1, 0.4, 0.5),  # shares of warm-up, hold and decay
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=0.0,  # 0: never clip
        average=0.0,  # decay of a running mean of the weights, which is evaluated and used instead of them; 0: none
        rules=(("^encoder/frontend/", 0.0, 0.0),),  # (regex, learning-rate scale, weight decay), first match
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
    if variant in AMOUNTS:
        amount(config, *AMOUNTS[variant])
    elif variant:
        small = {"demo": demo, "tiny": tiny}.get(variant)
        if small is None:
            raise ValueError(f"there is no variant {variant!r}; there are {', '.join(AMOUNTS)}, demo and tiny")
        small(config)
    return config


def amount(config: ConfigDict, peak, steps, frozen_steps, time_prob, channel_prob, layer_drop, seconds) -> None:
    """The published numbers for an amount of labelled speech; a batch cannot hold more than there is."""
    config.optim.update(peak=peak, start=0.01 * peak, end=0.05 * peak)
    config.train.update(steps=steps)
    config.encoder.update(frozen_steps=frozen_steps, layer_drop=layer_drop)
    config.masking.update(time_prob=time_prob, channel_prob=channel_prob)
    config.data.update(batch_hours=seconds / 3600)


def demo(config: ConfigDict) -> None:
    """The demo of w2v2_base (run it first, in runs/demo) with letters of its self-made language."""
    tiny(config)
    config.init.update(run="runs/demo")
    config.data.update(root=("data/synthetic/train",), eval_root=("data/synthetic/dev",), hours=0.5, eval_hours=0.05)
    config.data.update(batch_hours=2 * 12 / 3600, unit_seconds=12.0, device_seconds=24.0)
    config.data.update(bucket_seconds=(3.0, 6.0, 12.0), normalize=True)
    widths = (32, 32, 64, 64, 64, 96, 96)
    config.encoder.update(conv_layers=tuple((c, k, s) for c, (_, k, s) in zip(widths, CONV)), width=128, layers=4)
    config.encoder.update(mlp=512, pos_kernel=32, pos_groups=16, pre_norm=True, frozen_steps=50)
    config.acoustic.update(standardise=True)  # without it, hundreds of updates go into undoing what an utterance shares
    config.optim.update(peak=1e-3, start=1e-5, end=5e-5)
    config.train.update(steps=1200, log_every=10, eval_every=100, checkpoint_every=100, patience=400)


def tiny(config: ConfigDict) -> None:
    """Seconds, without downloads: every part of a real run at the smallest size."""
    config.data.update(name="synthetic", root=("data/synthetic-tiny",), hours=0.02, eval_share=0.2)
    config.data.update(batch_hours=8 * 4 / 3600, unit_seconds=4.0, device_seconds=32.0, bucket_seconds=(4.0, 8.0))
    config.encoder.update(conv_layers=tuple((32, k, s) for _, k, s in CONV), width=32, layers=2, heads=4, mlp=64)
    config.encoder.update(pos_kernel=16, pos_groups=4, frozen_steps=0, mlp_dropout=0.0, layer_drop=0.0)
    config.masking.update(channel_length=8, channel_prob=0.1, time_prob=0.2)
    config.optim.update(peak=3e-3, start=1e-4, end=1e-4)
    config.train.update(steps=20, dtype="float32", log_every=1, eval_every=10, checkpoint_every=10)
