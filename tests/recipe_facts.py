"""Facts of recordings and machines, for the tests of recipes."""

from w2v_jax.profiling.recipes.look import DataFacts, MachineFacts
from w2v_jax.profiling.recipes.rules import Facts
from w2v_jax.profiling.recipes.speed import Timing

DATA = DataFacts(
    hours=2.0,
    train_minutes=9.0,
    dev_minutes=1.0,
    test_minutes=0.0,
    recordings=2000,
    labelled=200,
    untranscribed=0,
    without_audio=0,
    unreadable=0,
    speakers=6,
    dev_speakers=1,
    by_speaker=True,
    letters=30,
    tokens_per_second=14.0,
    lengths=(2.9, 4.4, 8.8),
    longer=0,
    crop=3.0,
    rates=((16_000, 2000),),
    shared_speakers=(),
)
PROCESSOR = MachineFacts("cpu", "cpu", 1, 16e9, 2, 1e12, slow_bfloat16=False, loader="tfdata", load=0.5)
ACCELERATOR = PROCESSOR._replace(platform="gpu", kind="NVIDIA H200", memory=141e9, cores=16)
SMALL = {
    "logmel": Timing(0.2, 5.0, 1_000_000),
    "cpc": Timing(0.1, 5.0, 200_000),
    "cpc_ctc": Timing(0.3, 8.0, 1_200_000),
}
LARGE = {"base": Timing(2.5, 60.0, 95_000_000), "hubert": Timing(1.3, 60.0, 95_000_000)}
LARGE |= {"finetune": Timing(0.05, 60.0, 95_000_000)}


def facts(budget=1800.0, machine=PROCESSOR, init=None, start=4.0, timings=None, **data):
    """Facts of ten labelled minutes and two hours of audio on two cores for half an hour, but for what is given."""
    usual = {"given": Timing(2.0, 20.0, 95_000_000)} if init else SMALL | (LARGE if machine.platform != "cpu" else {})
    return Facts(DATA._replace(**data), machine, budget, start=start, timings=timings or usual, init=init)
