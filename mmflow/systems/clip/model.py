"""CLIP: a picture tower and a text tower that put what belongs together close together (arXiv:2103.00020).

Any vision encoder may be the picture tower; the paper's is `ViT` with a norm before the blocks. SigLIP
(arXiv:2303.15343) differs by its loss, by pooling, and by a text tower that looks both ways.

Letters: B batch, T tokens, V vocabulary, D width of a tower, E width of the common space.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmflow.nn.contrastive import Similarity
from mmflow.nn.transformer import Block
from mmflow.systems.vit.model import ViT

POOLS = ("end", "last")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the pictures of OpenAI


class TextOutput(NamedTuple):
    """What the text tower returns.

    Attributes:
        last: (B, T, D), all tokens after the last norm.
        pooled: (B, D).
        layers: "0": input of the first block; "k": output of block k, before the last norm; (B, T, D) each.
    """

    last: Tensor
    pooled: Tensor
    layers: dict[str, Tensor]


class TextTransformer(nn.Module):
    """The text tower.

    Args:
        vocab_size: tokens V.
        context: most tokens of a text.
        dim: width D.
        depth: blocks.
        num_heads: attention heads per block.
        ffn_dim: hidden width of the feed-forward layers; None for 4 D.
        causal: whether a token sees only those before it, and so never the padding behind the end.
        pool: which token stands for the text: the first "end" of text, or the "last" one of a text that is always
            padded to `context`.
        end_id: the token that ends a text.
        activation: of the feed-forward layers. OpenAI's weights have quick_gelu, most of open_clip's gelu, SigLIP's
            gelu_tanh.
        eps: added to the variance in the norms.
    """

    def __init__(
        self,
        vocab_size: int = 49_408,
        context: int = 77,
        dim: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        ffn_dim: int | None = None,
        causal: bool = True,
        pool: Literal["end", "last"] = "end",
        end_id: int = 49_407,
        activation: str = "quick_gelu",
        eps: float = 1e-5,
    ) -> None:
        self.arguments: dict[str, Any] = {name: v for name, v in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown; take one of {', '.join(POOLS)}")
        if not 0 <= end_id < vocab_size:
            raise ValueError(f"end_id={end_id} is no token of a vocabulary of {vocab_size}")
        self.vocab_size, self.context, self.dim = vocab_size, context, dim
        self.causal, self.pool, self.end_id = causal, pool, end_id
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Parameter(torch.empty(context, dim))
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, ffn_dim or 4 * dim, pre_norm=True, activation=activation, eps=eps)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        init_blocks(self.blocks, dim)

    def forward(self, tokens: Tensor) -> TextOutput:
        """Encode texts (B, T), T at most `context`; behind the end there may be anything."""
        if tokens.shape[1] > self.context:
            raise ValueError(f"texts of {tokens.shape[1]} tokens are longer than context={self.context}; truncate them")
        if self.pool == "last" and tokens.shape[1] < self.context:
            raise ValueError(f"texts of {tokens.shape[1]} tokens must be padded to context={self.context}")
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        layers = {"0": x}
        for number, block in enumerate(self.blocks, 1):
            x = block(x, causal=self.causal)
            layers[str(number)] = x
        last = self.norm(x)
        if self.pool == "last":
            return TextOutput(last, last[:, -1], layers)
        ends = (tokens == self.end_id).int().argmax(1)  # the first of them
        return TextOutput(last, last[torch.arange(len(tokens), device=last.device), ends], layers)

    @property
    def macs(self) -> int:
        """Multiplications and additions, as pairs, to encode a text of `context` tokens."""
        hidden = self.arguments["ffn_dim"] or 4 * self.dim
        block = self.context * (4 * self.dim**2 + 2 * self.dim * hidden) + 2 * self.context**2 * self.dim
        return len(self.blocks) * block


def init_blocks(blocks: nn.ModuleList, dim: int) -> None:
    """Smaller for what is added to the residual stream, the more so the deeper the stack, as OpenAI's code does it for
    texts."""
    residual = dim**-0.5 * (2 * len(blocks)) ** -0.5
    for block in blocks:
        assert isinstance(block, Block)
        weights = {
            block.attention.qkv: dim**-0.5,
            block.attention.out: residual,
            block.ffn.expand: (2 * dim) ** -0.5,
            block.ffn.contract: residual,
        }
        for layer, std in weights.items():
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)


def init_vision(vision: ViT) -> None:
    """Draw a picture tower as the text tower is drawn, and its tokens and positions by its width."""
    init_blocks(vision.blocks, vision.dim)
    for table in (vision.class_token, vision.positions):
        if table is not None and table.requires_grad:
            nn.init.normal_(table, std=vision.dim**-0.5)


class CLIP(nn.Module):
    """Two towers and the space in which they meet.

    Args:
        vision: the picture tower, a `mmflow.nn.encoders.VisionEncoder`.
        text: the text tower.
        embed_dim: width E. None leaves pictures as wide as they are, and gives texts a linear layer with bias, as in
            SigLIP.
        similarity: temperature and loss.
    """

    def __init__(
        self,
        vision: nn.Module,
        text: TextTransformer,
        embed_dim: int | None = 512,
        similarity: Similarity | None = None,
    ) -> None:
        super().__init__()
        self.vision = cast(Any, vision)  # a VisionEncoder, which the command line cannot check
        self.text, self.embed_dim = text, embed_dim or cast(Any, vision).dim
        self.image_projection = (
            nn.Identity() if embed_dim is None else nn.Linear(cast(Any, vision).dim, embed_dim, bias=False)
        )
        self.text_projection = nn.Linear(text.dim, self.embed_dim, bias=embed_dim is None)
        self.similarity = similarity or Similarity()
        for projection in (self.image_projection, self.text_projection):
            if isinstance(projection, nn.Linear):
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)

    @classmethod
    def vit_b32(
        cls,
        activation: str = "quick_gelu",
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        similarity: Similarity | None = None,
    ) -> "CLIP":
        """151,277,313 parameters.

        Args:
            activation: of both towers: quick_gelu in OpenAI's weights, gelu in most of others.
            vision, text: arguments of ViT and of TextTransformer that are to be different, such as `drop_path` or
                `vocab_size`.
            similarity: temperature and loss.
        """
        return cls._published(ViT.b32, 512, activation, vision, text, similarity)

    @classmethod
    def vit_b16(
        cls,
        activation: str = "quick_gelu",
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        similarity: Similarity | None = None,
    ) -> "CLIP":
        """149,620,737 parameters; arguments of `vit_b32`."""
        return cls._published(ViT.b16, 512, activation, vision, text, similarity)

    @classmethod
    def vit_l14(
        cls,
        activation: str = "quick_gelu",
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        similarity: Similarity | None = None,
    ) -> "CLIP":
        """427,616,513 parameters; arguments of `vit_b32`."""
        return cls._published(ViT.l16, 768, activation, {"patch_size": 14} | (vision or {}), text, similarity)

    @classmethod
    def vit_l14_336(
        cls,
        activation: str = "quick_gelu",
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        similarity: Similarity | None = None,
    ) -> "CLIP":
        """427,944,193 parameters; arguments of `vit_b32`."""
        return cls.vit_l14(activation, {"image_size": 336} | (vision or {}), text, similarity)

    @classmethod
    def siglip_b16(cls, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> "CLIP":
        """203,155,970 parameters, of which 92,884,224 are for pictures; arguments of `vit_b32`."""
        both: dict[str, Any] = {"dim": 768, "num_heads": 12, "activation": "gelu_tanh", "eps": 1e-6}
        texts = both | {"vocab_size": 32_000, "context": 64, "causal": False, "pool": "last", "end_id": 1}
        tower = ViT(**both | {"pool": "attention"} | (vision or {}))
        return cls(tower, TextTransformer(**texts | (text or {})), None, Similarity("sigmoid"))

    @classmethod
    def _published(
        cls,
        size: Callable[..., ViT],
        embed_dim: int,
        activation: str,
        vision: dict[str, Any] | None,
        text: dict[str, Any] | None,
        similarity: Similarity | None,
    ) -> "CLIP":
        """OpenAI's, with texts as wide as the common space."""
        pictures: dict[str, Any] = {"norm_before": True, "patch_bias": False, "eps": 1e-5, "mean": MEAN, "std": STD}
        tower = size(**pictures | {"activation": activation} | (vision or {}))
        init_vision(tower)
        texts: dict[str, Any] = {"dim": embed_dim, "num_heads": embed_dim // 64, "activation": activation}
        return cls(tower, TextTransformer(**texts | (text or {})), embed_dim, similarity)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, E) of length 1."""
        return F.normalize(self.image_features(images).float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, E) of length 1."""
        return F.normalize(self.text_features(tokens).float(), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        """(B, E) of any length."""
        return self.image_projection(self.vision(images).pooled)

    def text_features(self, tokens: Tensor) -> Tensor:
        """(B, E) of any length."""
        return self.text_projection(self.text(tokens).pooled)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Logits (I, T) of each picture with each text."""
        return self.similarity(self.encode_image(images), self.encode_text(tokens))
