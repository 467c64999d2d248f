"""Features, codes or text of a recording with an exported model: needs jax, numpy and soundfile alone.

python docs/infer.py MODEL RECORDING     (MODEL: the --out of python -m w2v_jax.export)
"""

import json
import pathlib
import sys

import jax
import jax.export
import numpy as np
import soundfile

folder, recording = pathlib.Path(sys.argv[1]), sys.argv[2]
about = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
weights = jax.device_put(dict(np.load(folder / "weights.npz")))
wave, rate = soundfile.read(recording, dtype="float32", always_2d=True)
if rate != about["sample_rate"]:
    sys.exit(f"{recording} has {rate} Hz: resample it to {about['sample_rate']} Hz first")
batch = np.zeros((1, -(-len(wave) // rate) * rate), np.float32)  # whole seconds: each length is compiled once
batch[0, : len(wave)] = wave.mean(axis=1)
found = jax.jit(program.call)(weights, batch, np.array([len(wave)], np.int32))
output = np.asarray(found[about["what"]][0])[..., : int(found["num_frames"][0]), :]
if about["what"] == "logits":  # the best path: no repetitions, no blanks
    ids, alphabet = output.argmax(axis=-1), about["alphabet"]
    tokens = [alphabet["tokens"][i] for i, before in zip(ids, [0, *ids]) if i not in (0, before)]
    delimiter = alphabet.get("delimiter", "")  # "" stands for "|" in letters, and for none in phonemes or words
    if alphabet["kind"] == "letters":
        print(" ".join("".join(" " if token == (delimiter or "|") else token for token in tokens).split()))
    else:
        print(" ".join(token for token in tokens if token != delimiter))
else:
    print(about["what"], output.shape, output, sep="\n")
