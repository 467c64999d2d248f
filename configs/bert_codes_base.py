"""BERT Base over vq-wav2vec codes (Baevski, Schneider, Auli 2020, arXiv 1910.05453): 98 M parameters, 250k updates.

    python -m w2v_jax.train --config=configs/bert_codes_base.py --workdir=runs/bert --config.data.root=runs/vq/codes

The root is a folder of codes that `python -m w2v_jax.extract` wrote, with its vocabulary.json. The paper takes 128 GPUs
for LibriSpeech 960 h (345 M codes, 13.5k types); the effective batch of 393k codes (1.09 h) is kept on any number of
devices by accumulation. Expected: no loss is published. The metric `unigram_loss` is what a model reaches that only
counts; the loss must fall below it. Acoustic models on its features reach a WER of 2.34 on WSJ nov92 (9.39 without a
language model).

`--config.encoder.positions=conv` is the pretraining of Discrete BERT (arXiv 1911.03912).

Variants: `:demo` learns on the codes of docs/features.md in minutes on two CPU cores; `:tiny` is for tests.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict(dict(method="bert_codes", seed=1))
    config.init = dict(
        run="",  # another run of this method to start from, or what `convert` made
        step="",  # its checkpoint: a number, "best", or empty for the newest
        fresh=(),  # regular expressions on the paths of parameters that start anew all the same
    )
    config.data = dict(
        name="codes",  # folders that w2v_jax.extract wrote
        root=(),  # one or more folders
        corpora="",  # a TOML file of several corpora to mix, in place of name and root (docs/mixing.md)
        corpora_exponents=(1.0, 1.0),  # of the hours of corpora and of languages; 1: heard as they are, 0: all alike
        eval_root=(),  # held-out data; empty: eval_share of root's rows
        eval_share=0.01,
        eval_speakers=False,  # True: eval_share is of the speakers, and none of those is trained on
        eval_hours=0.5,  # at most so much audio is scored per evaluation
        train_hours=0.0,  # above 0: train on so much of root only, chosen by a hash of the ids
        hours=0.0,  # above 0: codes of a self-made corpus are made where root is missing
        loader="tfdata",  # or "threads", which needs no TensorFlow
        workers=0,  # reading threads; 0: one per core
        vocab_size=13_500 + 3,  # ids: the types of vocabulary.json and three special ones
        batch_hours=64 * 61.44 / 3600,  # audio per update: 393,216 codes of 10 ms
        unit_seconds=61.44,  # the smallest piece of a batch
        device_seconds=61.44,  # audio that one device holds at once; raise it where memory allows
        bucket_seconds=(6.144, 10.24, 12.288, 15.36, 20.48, 30.72),  # the static lengths; longer rows are cropped
        curriculum=(),  # updates after each of which one more of the longest bucket_seconds is used; empty: all are
        min_seconds=0.5,
        normalize=False,  # waves only
    )
    config.encoder = dict(
        hop=160,  # samples that a code spans: those of vq-wav2vec
        width=768,
        layers=12,
        heads=12,
        mlp=3072,
        pre_norm=False,
        positions="learned",  # or "conv"
        max_frames=3072,  # learned positions only
        pos_kernel=128,  # conv positions only
        pos_groups=16,  # conv positions only
        positional="auto",  # conv positions only: "grouped", "split" or the better one
        dropout=0.1,
        attention_dropout=0.1,
        mlp_dropout=0.0,
        layer_drop=0.0,
        attention="auto",  # "xla", "blocks", "kernel" (TPU), "cudnn" (no attention_dropout) or the best one
        stack="auto",  # "scan", "unroll" or the better one
        remat_layers="none",  # or "products", "full"
    )
    config.masking = dict(prob=0.5, length=10, min_spans=1)  # 0.05 of frames start a span: 40 % are masked
    config.optim = dict(
        schedule="polynomial",  # or cosine, tri_stage
        peak=1e-5,  # the paper's; fairseq's later command for ZeroSpeech 2021 takes 5e-4 at 524k codes
        start=0.0,
        end=0.0,
        warmup=10_000,
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
        label="transcript",  # of the recording as a whole, or speaker
        hours=0.2,  # at most so much of each
    )
    config.sharding = dict(
        data=0,  # 0: all remaining devices
        fsdp=1,  # devices that share one copy of the state; 0: the fewest whose memory it fits
        tensor=1,  # devices that share heads and feed-forward width
        slices=0,  # groups of devices with a slow network between them; 0: found (TPU slices)
    )
    config.train = dict(
        steps=250_000,
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
    if variant:
        small = {"demo": demo, "tiny": tiny}.get(variant)
        if small is None:
            raise ValueError(f"there is no variant {variant!r}; there are demo and tiny")
        small(config)
    return config


def demo(config: ConfigDict) -> None:
    """The codes of docs/features.md, 1 M parameters, minutes on two CPU cores.

    Departs from the paper where a few hundred updates are not enough for it: convolutional positions, because learned
    ones need thousands of updates to tell which frames are neighbours; a higher learning rate, and no dropout. Pre-norm
    blocks stay at the unigram entropy much longer.
    """
    tiny(config)
    config.data.update(root=("runs/vq/codes/train",), hours=0.0, vocab_size=1024 + 3)
    config.data.update(batch_hours=2 * 12 / 3600, unit_seconds=12.0, device_seconds=24.0, bucket_seconds=(3.0,))
    config.data.update(eval_share=0.05, eval_hours=0.03)
    config.encoder.update(width=128, layers=4, heads=4, mlp=512, positions="conv", pos_kernel=32, pos_groups=16)
    config.encoder.update(dropout=0.0, attention_dropout=0.0)
    config.optim.update(peak=2e-3, warmup=50)
    config.train.update(steps=500, log_every=10, eval_every=100, checkpoint_every=100)


def tiny(config: ConfigDict) -> None:
    """Seconds, without downloads: every part of a real run at the smallest size."""
    config.data.update(root=("data/codes-tiny",), hours=0.02, min_seconds=0.5, eval_share=0.2, vocab_size=256)
    config.data.update(batch_hours=8 * 2 / 3600, unit_seconds=2.0, device_seconds=16.0, bucket_seconds=(2.0,))
    config.encoder.update(width=32, layers=2, heads=4, mlp=64, max_frames=256, pos_kernel=16, pos_groups=4)
    config.optim.update(peak=5e-3, warmup=5)
    config.train.update(steps=20, dtype="float32", log_every=1, eval_every=10, checkpoint_every=10)
