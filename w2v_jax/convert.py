"""Converts checkpoints of transformers and fairseq to runs of this package, and runs to models of transformers.

    python -m w2v_jax.convert --from DOWNLOADED/wav2vec2-base --to runs/imported
    python -m w2v_jax.convert --from wav2vec_large.pt --to runs/imported
    python -m w2v_jax.convert --from runs/10h --to for-transformers
    python -m w2v_jax.convert --from runs/10h --to for-transformers --push ME/my-model

--from decides the direction. It is a folder (or weights) of Hugging Face's transformers, a .pt file of fairseq
(wav2vec, vq-wav2vec, wav2vec 2.0, HuBERT) or unilm (WavLM), or a run. An imported model becomes the folder of a run,
which extract, probe, evaluate, transcribe and training (init.run) accept. A run becomes a folder for transformers, with
a model card. Every tensor is accounted for: one that is missing, unexpected or of another shape is an error, and
nothing is written.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
from collections.abc import Sequence

from w2v_jax import __version__
from w2v_jax.core import config as configs
from w2v_jax.core.cli import STEP, STEP_HELP, UserError, command_parser, expand_home, run_command, step_argument
from w2v_jax.core.config import Config, changed
from w2v_jax.core.files import file_digest, whole_folder, write_whole
from w2v_jax.core.storage import fetched_path, output_folder
from w2v_jax.core.stores import place_argument
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet
from w2v_jax.interop import fairseq, hub, huggingface, huggingface_config, huggingface_tokenizer
from w2v_jax.interop.tensor_mapping import Imported, write_run
from w2v_jax.training.console import read_metrics
from w2v_jax.training.workdir import read_config, read_weights, run_folder

THEIR_SUFFIXES = (".json", ".safetensors", ".bin")
"""The files of a model of transformers. Any other file is read as one of fairseq: .pt, .pth, .ckpt."""
PREDICT_UNITS = ("hubert", "wavlm")
"""Methods for whose heads transformers has no place."""
SPECIAL = re.compile(r"<.+>|\[.+\]|madeupword\d+")
"""Tokens that stand for no sound."""


def main(argv: Sequence[str]) -> int:
    """The command: exit code 0, or UserError."""
    args = _arguments(argv)
    with output_folder(args.to, last=["config.json"]) as args.to:
        return convert(args)


def convert(args: argparse.Namespace) -> int:
    """Writes the model into a new folder args.to. Raises UserError."""
    source, target, dictionary = run_folder(args.source), args.to, args.dictionary and fetched_path(args.dictionary)
    if not source.exists():
        raise UserError(f"--from {source} does not exist")
    source = _model_folder(source) if source.is_dir() else source
    is_run, is_fairseq = _is_run(source), source.is_file() and source.suffix not in THEIR_SUFFIXES
    if dictionary and not is_fairseq:
        raise UserError(f"--dictionary is for .pt files of fairseq; --from {source} is something else")
    if args.push:
        if not is_run:
            raise UserError(f"--push is for runs of this package, which become models; --from {source} is none")
        hub.check_push(args.push)
    if is_run:
        export_run(source, target, step=args.step, encoder_only=args.encoder_only)
        if args.push:
            address = hub.push_folder(target, args.push, message=f"Converted by w2v_jax {__version__}")
            print(f"sent: {address}; its README.md lacks licence, data and intended use")
        return 0
    if args.step is not None:
        raise UserError(f"--step is for runs of this package; --from {source} is none: its config.json has no method")
    if is_fairseq:
        if args.encoder_only:
            raise UserError("--encoder-only is for runs and models of transformers; --from is a file of fairseq")
        imported, files = fairseq.read_fairseq(source, dictionary), [source, *([dictionary] if dictionary else [])]
    else:
        imported = huggingface.read_huggingface(source, encoder_only=args.encoder_only)
        folder = source if source.is_dir() else source.parent
        files = sorted(f for f in folder.iterdir() if f.suffix in THEIR_SUFFIXES and f.is_file())
    write_run(target, imported, {"files": {f.name: file_digest(f) for f in files}})
    print_import(imported, source, target, all_tensors=args.tensors)
    return 0


def _is_run(folder: pathlib.Path) -> bool:
    """Whether config.json is that of a run. A folder named checkpoints is no sign: other packages make one, too."""
    file = folder / "config.json"
    return (
        file.is_file() and "method" in (content := huggingface_config.read_json(file)) and "model_type" not in content
    )


def _model_folder(folder: pathlib.Path) -> pathlib.Path:
    """The folder itself or, of the cache of Hugging Face (models--ORG--NAME), its snapshot, which is printed.

    Raises UserError, with what could have been meant, where there is no config.json or more than one snapshot.
    """
    if (folder / "config.json").exists():
        return folder
    snapshots = folder if folder.name == "snapshots" else folder / "snapshots"
    found = sorted(file.parent for file in snapshots.glob("*/config.json"))
    head = snapshots.parent / "refs" / "main"
    current = [f for f in found if head.is_file() and f.name == head.read_text(encoding="utf-8").strip()]
    if len(current or found) == 1:
        print(f"{folder} is a folder of a cache; its snapshot is used: {(current or found)[0]}")
        return (current or found)[0]
    inside = [
        file.parent for pattern in ("*", "*/snapshots/*") for file in sorted(folder.glob(f"{pattern}/config.json"))
    ]
    inside = found or inside or sorted(f for f in folder.iterdir() if f.suffix in (".pt", ".pth", ".ckpt"))
    meant = f"; give one of these: {', '.join(map(str, inside[:5]))}" if inside else ""
    raise UserError(f"--from {folder} has no config.json, so it is neither a model of transformers nor a run{meant}")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("convert", __doc__)
    add = parser.add_argument
    source = "run, .pt file, or folder or weights of a model"
    add("--from", dest="source", required=True, type=expand_home, metavar="PATH", help=source)
    add("--to", required=True, type=place_argument, metavar="FOLDER", help="folder to create; it must not exist")
    add("--step", type=step_argument, metavar=STEP, help=f"of a run: {STEP_HELP}")
    add("--encoder-only", action="store_true", help="leave out the quantizer and the heads (not for fairseq)")
    add("--dictionary", type=expand_home, metavar="FILE", help="the dict.ltr.txt of a fine-tuned model of fairseq")
    push = "of a run: send the written folder to this repository of the Hub, a new private one if there is none"
    add("--push", metavar="REPO", help=push)
    add("--tensors", action="store_true", help="print both names of every tensor")
    return parser.parse_args(argv)


def print_import(imported: Imported, source: pathlib.Path, target: pathlib.Path, *, all_tensors: bool) -> None:
    """Prints what was imported and a command that uses it."""
    config, alphabet, e = imported.config, imported.alphabet, imported.config.encoder
    print(f"{source}: {_sizes([shape for _, _, shape, _ in imported.table])}, all of them imported")
    if "mlp" in e:
        blocks = "pre" if e.pre_norm else "post"
        stack = f", {e.pos_layers} positional convolutions" if huggingface_config.is_stack(config) else ""
        bias = ", gated bias of the distance" if huggingface_config.is_relative(config) else ""
        print(f"  encoder   {e.layers} layers of {e.width}, {e.conv_norm} norm, {blocks}-norm blocks{stack}{bias}")
    else:
        print(f"  encoder   {len(e.conv_layers)} convolutions, {len(e.context_kernels)} of context, {e.activation}")
    heads = ", encoder only" if _lacks_heads(config) else ""
    normalised = "" if config.data.normalize else "not "
    print(f"  method    {config.method}{heads}; audio {normalised}normalised per utterance")
    if alphabet is not None:
        print("\n".join(alphabet_lines(alphabet)))
    for note in imported.notes:
        print(f"  note      {note}")
    for row in imported.table if all_tensors else ():
        print("  {:<70} {:<52} {} {}".format(*row))
    arguments = "--root FOLDER --out OUT" if alphabet is None else "FILES"
    command = f"w2v_jax.{'extract' if alphabet is None else 'transcribe'} --run {target} {arguments}"
    print(f"done: {target} is a run of this package; try python -m {command}")


def alphabet_lines(alphabet: Alphabet) -> list[str]:
    """What the tokens are, for people, with a text as the model may write it: three tokens, and the three longest."""
    letters, delimiter = alphabet.kind == "letters", alphabet.boundary or alphabet.delimiter
    space = [alphabet.tokens.index(delimiter, 1)] if delimiter in alphabet.tokens[1:] else []
    how = "joined" if letters else "with spaces between them"
    if letters or space:
        how += f", {delimiter!r} {'is the space' if letters else 'is left out'}" if space else ", no token is the space"
    plain = [i for i, t in enumerate(alphabet.tokens) if i and t != delimiter and not SPECIAL.fullmatch(t)]
    longest = sorted(plain[3:], key=lambda i: -len(alphabet.tokens[i]))[:3]
    return [
        f"  alphabet  {len(alphabet)} {alphabet.kind}, {how}: {' '.join(alphabet.tokens[:12])} ...",
        f"  example   {alphabet.decode([*plain[:3], *space, *longest])!r}",
    ]


def _lacks_heads(config: Config) -> bool:
    """Whether the config is that of an encoder without the heads of pretraining."""
    if config.method in PREDICT_UNITS:
        return not config.loss.classes
    return config.method == "wav2vec2" and not config.quantizer.groups


def _sizes(shapes: Sequence[tuple[int, ...]]) -> str:
    return f"{len(shapes)} tensors, {sum(map(math.prod, shapes)) / 1e6:.1f} M parameters"


def export_run(source: pathlib.Path, target: pathlib.Path, *, step: int | str | None, encoder_only: bool) -> None:
    """Writes a run as a model of transformers, and prints what was written. Raises UserError."""
    config = read_config(source)
    alphabet = Alphabet.load(source / ALPHABET_FILE) if (source / ALPHABET_FILE).exists() else None
    if alphabet is not None:
        config = configs.with_outputs(config, len(alphabet))
    head = "ctc" if config.method == "ctc" else "pretraining"
    head = "encoder" if encoder_only or config.method in PREDICT_UNITS or _lacks_heads(config) else head
    huggingface_config.check_export(config, head)
    weights = read_weights(source, config, step)
    tensors = huggingface.tensors_of(config, weights.params, head)
    files = {"config.json": huggingface_config.transformers_config(config, head)}
    files["preprocessor_config.json"] = huggingface_config.their_preprocessor(config)
    if head == "ctc" and alphabet is not None:
        files |= huggingface_tokenizer.their_tokenizer(alphabet)
    safetensors = huggingface.import_safetensors()
    with whole_folder(target) as partial:
        safetensors.numpy.save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        for name, content in files.items():
            write_whole(partial / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        if head == "ctc" and alphabet is not None:
            alphabet.save(partial / ALPHABET_FILE, {}, {})  # vocab.json cannot say how texts were cleaned
        write_whole(partial / "README.md", model_card(source, config, head, step=weights.step, name=target.name))
    why = f" ({weights.chosen})" if weights.chosen else ""
    print(f"{source} at step {weights.step:,}{why}: {_sizes([x.shape for x in tensors.values()])}")
    if head == "ctc" and alphabet is not None:
        print("\n".join(alphabet_lines(alphabet)))
    for caveat in caveats(config):
        print(f"  note      {caveat}")
    name = huggingface_config.their_class(config, head)
    print(f"done: {target} loads with transformers.{name}.from_pretrained({str(target)!r})")


def caveats(config: Config) -> list[str]:
    """How transformers computes differently although the parameters are the same, and what it has no place for."""
    if config.method in PREDICT_UNITS and not _lacks_heads(config):
        heads = "the projection and the vectors of the classes are left out: transformers has no place for them"
        return [heads, *caveats(changed(config, {"loss.classes": ()}))]
    if huggingface_config.is_stack(config):
        return [
            "in transformers, padding reaches the last frames of a recording through the stack of positional "
            "convolutions, so features in a padded batch differ; in w2v_jax padding never changes a feature"
        ]
    if config.encoder.conv_norm == "layer":
        return []
    return [
        "in transformers, padding changes the group norm: transcribe recordings one by one, or in batches of equal "
        "length; in w2v_jax padding never changes a feature"
    ]


def model_card(source: pathlib.Path, config: Config, head: str, *, step: int, name: str) -> str:
    """README.md of the model: what the run records about itself, and a reminder of what the authors must add."""
    family = huggingface_config.family_of(config)
    family = {"wav2vec2": "wav2vec 2.0", "hubert": "HuBERT", "wavlm": "WavLM"}.get(family, family)
    their_class = huggingface_config.their_class(config, head)
    lines = ["---", "library_name: transformers", "tags: [speech, wav2vec2, w2v_jax]", "license: other", "---", ""]
    lines += [f"# {name}", "", *_origin(source, config, family)]
    lines += ["License, data and intended use: to be filled in by its authors.", "", "| | |", "| --- | --- |"]
    flat = configs.flatten(config)
    shown = ("method", "encoder.layers", "encoder.width", "data.name", "data.normalize", "data.batch_hours")
    shown += ("optim.peak", "seed")
    lines += [f"| `{key}` | {flat[key]} |" for key in shown if key in flat]
    lines += [f"| updates | {step} |"]
    lines += [f"| held-out `{key}` | {value:.4g} |" for key, value in _last_scores(source, step).items()]
    data_file = source / "data.json"
    data = json.loads(data_file.read_text(encoding="utf-8")) if data_file.exists() else {}
    lines += [f"| data: {key} | {value} |" for key, value in data.items() if isinstance(value, (int, float))]
    lines += ["", "```python", f"from transformers import AutoFeatureExtractor, {their_class}", ""]
    lines += [f'model = {their_class}.from_pretrained("{name}")']
    lines += [f'extractor = AutoFeatureExtractor.from_pretrained("{name}")  # 16 kHz audio', "```", ""]
    lines += [line[0].upper() + line[1:] + "." for line in caveats(config)]
    return "\n".join(lines) + "\n"


def _origin(source: pathlib.Path, config: Config, family: str) -> list[str]:
    """Where the weights come from: other files, a training, or a training that started from another run."""
    if (source / "imported.json").exists():
        files = json.loads((source / "imported.json").read_text(encoding="utf-8")).get("files", {})
        listed = [f"- `{name}`, SHA-256 `{digest}`" for name, digest in files.items()]
        return [f"A {family} model, converted by w2v_jax {__version__} and not trained further, from:", "", *listed, ""]
    start = pathlib.Path(config.init.run).name
    return [
        f"A {family} model trained with w2v_jax {__version__}{f', starting from the run `{start}`' if start else ''}."
    ]


def _last_scores(source: pathlib.Path, step: int) -> dict[str, float]:
    """The metrics of the evaluation at the step, as the run logged them."""
    rows = [row for row in read_metrics(source / "metrics.jsonl") if (row["split"], row["step"]) == ("eval", step)]
    return {name: value for name, value in rows[-1].items() if isinstance(value, float)} if rows else {}


if __name__ == "__main__":
    run_command(main)
