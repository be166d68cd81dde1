"""The sizes of rill, and the paths of the recipe's files."""

from dataclasses import dataclass
from pathlib import Path

BUILD = Path("build/rill")
MODEL = Path(__file__).parent.parent / "penstock" / "model" / "rill.gguf"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama with RMSNorm, rotary positions, SwiGLU, tied embeddings, no biases."""

    vocabulary: int = 2048
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 512
    context: int = 1024
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def num_parameters(self) -> int:
        """The number of parameters. The output layer shares the embedding, which counts once."""
        attention = self.width * self.head_width * 2 * (self.heads + self.kv_heads)
        feed_forward = 3 * self.width * self.feed_forward
        norms = 2 * self.width
        per_layer = attention + feed_forward + norms
        return self.vocabulary * self.width + self.layers * per_layer + self.width
