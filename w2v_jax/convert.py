"""Carries checkpoints of transformers and fairseq into this package, and runs of this package to transformers.

    python -m w2v_jax.convert --from DOWNLOADED/wav2vec2-base --to runs/imported
    python -m w2v_jax.convert --from wav2vec_large.pt --to runs/imported
    python -m w2v_jax.convert --from runs/10h --to for-transformers

The direction follows from what --from is: a folder (or weights) of Hugging Face's transformers, a .pt file of fairseq
(wav2vec, vq-wav2vec, wav2vec 2.0), or a run. What comes in becomes the folder of a run, which extract, probe, evaluate,
transcribe and training (init.run) take. A run goes out as a folder for transformers, with a model card. Every tensor is
accounted for: what is missing, unexpected or of another shape is an error, and then nothing is written.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax import __version__, checkpoint, fairseq, huggingface, huggingface_config
from w2v_jax import config as configs
from w2v_jax.config import UserError, run_command
from w2v_jax.data.labels import FILE as ALPHABET
from w2v_jax.data.labels import Alphabet
from w2v_jax.foreign import Imported, file_digest, new_folder, write_run
from w2v_jax.report import write_whole
from w2v_jax.runs import read_config, step_argument


def main(argv: Sequence[str]) -> int:
    """The command: exit code 0, or UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--from", dest="source", required=True, metavar="PATH", help="a run, or a folder or weights of transformers")
    add("--to", required=True, metavar="FOLDER", help="is made; must not exist")
    add("--step", type=step_argument, metavar="N|best", help="of a run, which checkpoint (default: the newest)")
    add("--encoder-only", action="store_true", help="leave the quantizer and the heads behind (not of fairseq)")
    add("--dictionary", metavar="FILE", help="of a fine-tuned model of fairseq, its dict.ltr.txt")
    add("--tensors", action="store_true", help="print the place of every tensor")
    args = parser.parse_args(argv)
    source, target = (pathlib.Path(p).expanduser() for p in (args.source, args.to))
    if not source.exists():
        raise UserError(f"--from {source} does not exist")
    if args.dictionary and source.suffix != ".pt":
        raise UserError("--dictionary is for .pt files of fairseq; --from is none")
    if (source / "checkpoints").is_dir():
        return export(source, target, args)
    if args.step is not None:
        raise UserError(f"--step is for runs of this package; --from {source} has no checkpoints/ and is none")
    if source.suffix == ".pt":
        if args.encoder_only:
            raise UserError("--encoder-only is for runs and models of transformers; --from is a file of fairseq")
        dictionary = pathlib.Path(args.dictionary).expanduser() if args.dictionary else None
        imported, files = fairseq.read(source, dictionary), [source, *([dictionary] if dictionary else [])]
    else:
        imported = huggingface.read(source, encoder_only=args.encoder_only)
        folder = source if source.is_dir() else source.parent
        files = sorted(f for f in folder.iterdir() if f.suffix in (".json", ".safetensors", ".bin") and f.is_file())
    write_run(target, imported, {"files": {f.name: file_digest(f) for f in files}})
    tell(imported, source, target, args.tensors)
    return 0


def tell(imported: Imported, source: pathlib.Path, target: pathlib.Path, every: bool) -> None:
    """What was imported and what can be done with it."""
    config, weights = imported.config, sum(int(np.prod(shape)) for _, _, shape, _ in imported.table)
    e = config.encoder
    print(f"{source}: {len(imported.table)} tensors, {weights / 1e6:.1f} M parameters, all of them mapped")
    if "mlp" in e:
        blocks = "pre" if e.pre_norm else "post"
        stack = f", {e.pos_layers} positional convolutions" if huggingface_config.is_stack(config) else ""
        print(f"  encoder   {e.layers} layers of {e.width}, {e.conv_norm} norm, {blocks}-norm blocks{stack}")
    else:
        print(f"  encoder   {len(e.conv_layers)} convolutions, {len(e.context_kernels)} of context, {e.activation}")
    heads = ", the encoder alone" if config.method == "wav2vec2" and not config.quantizer.groups else ""
    print(
        f"  method    {config.method}{heads}; audio {'' if config.data.normalize else 'not '}normalised per utterance"
    )
    if imported.alphabet is not None:
        print(f"  alphabet  {len(imported.alphabet)} tokens: {' '.join(imported.alphabet.tokens[:12])} ...")
    for note in imported.notes:
        print(f"  note      {note}")
    for row in imported.table if every else ():
        print("  {:<70} {:<52} {} {}".format(*row))
    command = (
        "transcribe --run {} FILES" if imported.alphabet is not None else "extract --run {} --root FOLDER --out OUT"
    )
    print(f"done: {target} is a run of this package; try python -m w2v_jax.{command.format(target)}")


def export(source: pathlib.Path, target: pathlib.Path, args: argparse.Namespace) -> int:
    """Writes a run for transformers."""
    config = read_config(source)
    alphabet = Alphabet.load(source / ALPHABET) if (source / ALPHABET).exists() else None
    if alphabet is not None:
        config = configs.with_outputs(config, len(alphabet))
    bare = config.method == "wav2vec2" and not config.quantizer.groups
    head = "encoder" if args.encoder_only or bare else "ctc" if config.method == "ctc" else "pretraining"
    huggingface_config.check_export(config, head)
    weights = checkpoint.restore_params(source, step=args.step)
    tensors = huggingface.tensors_of(config, weights.params, head)
    files = {"config.json": huggingface_config.their_config(config, head)}
    files["preprocessor_config.json"] = huggingface_config.their_preprocessor(config)
    if head == "ctc" and alphabet is not None:
        files |= huggingface.their_tokenizer(alphabet)
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise UserError("safetensors is not installed: pip install 'w2v-jax[convert]'") from None
    with new_folder(target) as partial:
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        for name, content in files.items():
            write_whole(partial / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        if head == "ctc" and alphabet is not None:
            alphabet.save(partial / ALPHABET, {}, {})  # what vocab.json cannot say: how texts were cleaned
        write_whole(partial / "README.md", model_card(source, config, head, weights.step, target.name))
    print(f"{source} at step {weights.step}: {len(tensors)} tensors, {_count(tensors) / 1e6:.1f} M parameters")
    for line in consequences(config):
        print(f"  note      {line}")
    name = huggingface_config.their_class(config, head)
    print(f"done: {target} loads with transformers.{name}.from_pretrained({str(target)!r})")
    return 0


def consequences(config: Any) -> list[str]:
    """What differs in transformers although the parameters are the same."""
    if huggingface_config.is_stack(config):
        return [
            "the stack of positional convolutions of transformers lets padding into the last frames of a recording: "
            "there, features of a padded batch differ; here padding never enters a feature"
        ]
    if config.encoder.conv_norm == "layer":
        return []
    return [
        "the group norm of transformers sees padding: transcribe recordings one by one there, or in batches of equal "
        "length; here padding never enters a feature"
    ]


def model_card(source: pathlib.Path, config: Any, head: str, step: int, name: str) -> str:
    """README.md for the model: what the run says of itself, and places for what it cannot know."""
    family = "data2vec-audio" if huggingface_config.is_stack(config) else "wav2vec 2.0"
    lines = ["---", "library_name: transformers", "tags: [speech, wav2vec2, w2v_jax]", "license: other", "---", ""]
    lines += [f"# {name}", "", *_origin(source, config, family)]
    lines += ["License, data and intended use: to be filled in by its authors.", "", "| | |", "| --- | --- |"]
    flat = configs.flatten(config)
    shown = ("method", "encoder.layers", "encoder.width", "data.name", "data.normalize", "data.batch_hours")
    shown += ("optim.peak", "seed")
    lines += [f"| `{key}` | {flat[key]} |" for key in shown if key in flat]
    lines += [f"| updates | {step} |"]
    for key, value in _last_scores(source, step).items():
        lines.append(f"| held-out `{key}` | {value:.4g} |")
    data = source / "data.json"
    if data.exists():
        told = json.loads(data.read_text(encoding="utf-8"))
        lines += [f"| data: {key} | {value} |" for key, value in told.items() if isinstance(value, (int, float))]
    lines += [
        "",
        "```python",
        "from transformers import AutoFeatureExtractor, " + huggingface_config.their_class(config, head),
        "",
    ]
    lines += [f'model = {huggingface_config.their_class(config, head)}.from_pretrained("{name}")']
    lines += [f'extractor = AutoFeatureExtractor.from_pretrained("{name}")  # 16 kHz audio', "```", ""]
    lines += [line[0].upper() + line[1:] + "." for line in consequences(config)]
    return "\n".join(lines) + "\n"


def _origin(source: pathlib.Path, config: Any, family: str) -> list[str]:
    """Where the weights come from: other files, a training, or a training that went on from another run."""
    if (source / "imported.json").exists():
        files = json.loads((source / "imported.json").read_text(encoding="utf-8")).get("files", {})
        told = [f"- `{name}`, SHA-256 `{digest}`" for name, digest in files.items()]
        return [f"A {family} model, converted by w2v_jax {__version__} and not trained further, from:", "", *told, ""]
    begun = pathlib.Path(configs.flatten(config).get("init.run") or "").name
    return [f"A {family} model trained with w2v_jax {__version__}{f', from the run `{begun}` on' if begun else ''}."]


def _last_scores(source: pathlib.Path, step: int) -> dict[str, float]:
    """The evaluation at the step, as the run logged it."""
    file, found = source / "metrics.jsonl", {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        row = json.loads(line)
        if row["split"] == "eval" and row["step"] == step:
            found = {k: v for k, v in row.items() if isinstance(v, float)}
    return found


def _count(tensors: dict[str, np.ndarray]) -> int:
    return sum(x.size for x in tensors.values())


if __name__ == "__main__":
    run_command(main)
