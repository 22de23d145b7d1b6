"""The encoder: the decoder's blocks, reading in both directions, for embeddings, classifiers and masked tokens (BERT,
Devlin et al. 2019). With `causal` it is a decoder whose last token stands for the text (as in Qwen3-Embedding).

Shape suffixes: B batch, T time, N documents, C hidden_size, V vocabulary.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import GristmillError
from .attention import Attend, DocumentAttention, causal_attention
from .config import ModelConfig
from .decoder import Decoder
from .embedding import embed_tokens
from .feed_forward import ACTIVATIONS
from .init import init_weights
from .norms import build_norm
from .schemes import InitScheme
from .stack import Stack
from .undrawn import undrawn

Pooling = Literal["mean", "cls", "last"]


class EncoderConfig(ModelConfig):
    """The shape of an `Encoder`: that of a decoder without its head, and what stands on the hidden states."""

    causal: bool = Field(default=False, description="Tokens see those before them only; pool the last one then.")
    token_types: int = Field(default=0, ge=0, description="Rows of the table that tells sentence A from B; 0: none.")
    pooling: Pooling = Field(
        default="mean", description="A text's vector: the mean over its tokens, its first token, or its last."
    )
    normalize: bool = Field(default=False, description="Scale vectors of texts to length 1.")
    pooler: bool = Field(default=False, description="BERT's pooler, tanh(dense(first token)), under the classifier.")
    masked_lm: bool = Field(default=False, description="A head that predicts masked tokens: dense, norm, tied table.")
    num_labels: int = Field(default=0, ge=0, description="Classes that the classifier tells apart; 0: no classifier.")

    @model_validator(mode="after")
    def _has_no_decoder_head(self) -> Self:
        for name in ("tie_embeddings", "logit_scale", "logit_softcap"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for decoders: an encoder has no such head")
        if self.rope_scaling is not None and self.rope_scaling.kind == "dynamic":
            raise ValueError(
                "rope_scaling dynamic is not for encoders: a text's vector would change with its neighbours"
            )
        return self

    def parameters_by_part(self, active: bool = False) -> dict[str, int]:
        """Parameters of the built `Encoder` by part: those of a decoder without its head, `token_types`, and of what
        stands on the hidden states `masked_lm`, `pooler` and `classifier`."""
        hidden = self.hidden_size
        dense = hidden * hidden + hidden
        norm = hidden * (2 if self.norm_bias else 1)
        more = {
            "token_types": self.token_types * hidden,
            "masked_lm": dense + norm + self.vocab_size if self.masked_lm else 0,
            "pooler": dense if self.pooler else 0,
            "classifier": self.num_labels * (hidden + 1),
        }
        return super().parameters_by_part(active) | {part: number for part, number in more.items() if number}

    @property
    def makes_logits(self) -> bool:
        """Whether masked tokens are predicted."""
        return self.masked_lm


class Encoder(Stack):
    """Texts to vectors, classes or masked tokens.

    Wherever a `mask_BT` is taken, 0 is padding, on whichever side, and any other number is that of the text the token
    belongs to: a row of zeros and ones holds one text, a row with 1 ... n holds n of them packed, numbered from 1.
    Tokens see those of their own text alone, and positions count from 0 in each. No mask: every row is one text.
    Parameters have the names they have in a `Decoder`.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        self.config = config
        hidden = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, hidden)
        if config.token_types:
            self.token_type_embedding = nn.Embedding(config.token_types, hidden)
        self.pooler = nn.Linear(hidden, hidden) if config.pooler else None
        self.masked_lm = MaskedTokenHead(config) if config.masked_lm else None
        self.classifier = nn.Linear(hidden, config.num_labels) if config.num_labels else None

    def forward(self, input_ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """`embed`."""
        return self.embed(input_ids_BT, mask_BT)

    def hidden_states(
        self,
        input_ids_BT: Tensor,
        mask_BT: Tensor | None = None,
        token_types_BT: Tensor | None = None,
        attend: Attend | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """The last block's output, normed where the config has a final norm: `[B, T, C]`.

        `token_types_BT` are 0 unless given. `attend` and `positions_BT` (each token's place in its own text) take the
        place of what `mask_BT` stands for; with both, there is no mask to be checked, which waits for the device.
        What comes out at padding means nothing.
        """
        if positions_BT is None:
            positions_BT = text_positions(input_ids_BT, mask_BT)
        if attend is None:
            attend = causal_attention if mask_BT is None else TextAttention(mask_BT, positions_BT)
        x_BTC = embed_tokens(self.embedding, input_ids_BT, self.config.embedding_scale)
        if self.config.token_types:
            types_BT = torch.zeros_like(input_ids_BT) if token_types_BT is None else token_types_BT
            x_BTC = x_BTC + self.token_type_embedding(types_BT)
        elif token_types_BT is not None:
            raise GristmillError("token_types were given, but the encoder has no table for them (token_types is 0)")
        return self.run(x_BTC, positions_BT, attend)

    def embed(
        self, input_ids_BT: Tensor, mask_BT: Tensor | None = None, token_types_BT: Tensor | None = None
    ) -> Tensor:
        """One vector a text, `[N, C]`: texts row by row, in a row by their number (N is B without packing).

        GristmillError names the first row (text) that has no token.
        """
        hidden_BTC = self.hidden_states(input_ids_BT, mask_BT, token_types_BT)
        vectors_NC = pool(hidden_BTC, mask_BT, self.config.pooling)
        return F.normalize(vectors_NC, dim=-1) if self.config.normalize else vectors_NC

    def classify(
        self, input_ids_BT: Tensor, mask_BT: Tensor | None = None, token_types_BT: Tensor | None = None
    ) -> Tensor:
        """Logits of each text's classes, `[N, num_labels]`, from its pooled vector or, where there is one, BERT's
        pooler."""
        if self.classifier is None:
            raise GristmillError("this encoder has no classifier: num_labels is 0")
        hidden_BTC = self.hidden_states(input_ids_BT, mask_BT, token_types_BT)
        if self.pooler is not None:
            return self.classifier(self.pooler_output(hidden_BTC, mask_BT))
        return self.classifier(pool(hidden_BTC, mask_BT, self.config.pooling))

    def pooler_output(self, hidden_BTC: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """BERT's pooler on each text's first token, `[N, C]`."""
        if self.pooler is None:
            raise GristmillError("this encoder has no pooler: its config says pooler: false")
        return torch.tanh(self.pooler(pool(hidden_BTC, mask_BT, "cls")))

    def masked_lm_logits(
        self, input_ids_BT: Tensor, mask_BT: Tensor | None = None, token_types_BT: Tensor | None = None
    ) -> Tensor:
        """Logits `[B, T, V]` of the token at each place itself, which is how a masked one is guessed."""
        if self.masked_lm is None:
            raise GristmillError("this encoder has no masked-LM head: its config says masked_lm: false")
        return self.masked_lm(self.hidden_states(input_ids_BT, mask_BT, token_types_BT), self.embedding.weight)

    def init_weights(self, seed: int, scheme: InitScheme = "gpt2") -> Encoder:
        """Draw all weights, see model/init.py: a seed gives the same weights on every device."""
        init_weights(self, scheme, seed)
        return self

    @classmethod
    def from_decoder(cls, decoder: Decoder, pooling: Pooling = "last", normalize: bool = False) -> Encoder:
        """The same weights without the head, as an encoder that reads as the decoder does. They are shared, not
        copied."""
        headless = {"tie_embeddings": True, "head_bias": False, "logit_scale": 1.0, "logit_softcap": None}
        settings = decoder.config.model_dump() | headless
        with undrawn():
            encoder = cls(EncoderConfig(**settings, pooling=pooling, normalize=normalize))
        state = {name: tensor for name, tensor in decoder.state_dict().items() if not name.startswith("head.")}
        encoder.load_state_dict(state, assign=True)
        return encoder.train(decoder.training)


class MaskedTokenHead(nn.Module):
    """BERT's head for masked tokens: dense, activation, norm, then the embedding table with a bias a token."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = build_norm(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, table_VC: Tensor) -> Tensor:
        return F.linear(self.norm(self.activation(self.dense(hidden))), table_VC, self.bias)


class TextAttention(DocumentAttention):
    """`DocumentAttention` with the places that an encoder's positions are: hidden tokens count nowhere, also in the
    middle of a text."""

    def __init__(self, mask_BT: Tensor, positions_BT: Tensor):
        super().__init__(mask_BT)
        self.positions_BT = positions_BT

    def places(self) -> Tensor:
        return self.positions_BT


def text_positions(input_ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Each token's place in its own text, `[B, T]` (`[1, T]` without a mask); padding stands at 0."""
    if mask_BT is None:
        return torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)[None]
    if mask_BT.shape != input_ids_BT.shape:
        raise GristmillError(f"the mask has shape {list(mask_BT.shape)}, the ids {list(input_ids_BT.shape)}")
    if mask_BT.is_floating_point() or bool((mask_BT < 0).any()):
        raise GristmillError("the mask must hold whole numbers from 0: 0 for padding, else the number of the text")
    # Sorted by text and else in order, a token's place is how far it stands from its text's first.
    texts_BT, order_BT = mask_BT.long().sort(dim=1, stable=True)
    first_BT = torch.searchsorted(texts_BT, texts_BT)
    places_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device) - first_BT
    return torch.zeros_like(order_BT).scatter(1, order_BT, places_BT) * (mask_BT != 0)


def pool(hidden_BTC: Tensor, mask_BT: Tensor | None, pooling: Pooling) -> Tensor:
    """One vector a text, `[N, C]`. GristmillError names a row, or a text of a row, of which no token is visible."""
    if mask_BT is None:
        mask_BT = torch.ones(hidden_BTC.shape[:2], dtype=torch.long, device=hidden_BTC.device)
    text_BT, counts_N = _number_texts(mask_BT.long())
    visible = mask_BT.flatten() != 0
    text_M = text_BT.flatten()[visible]
    hidden_MC = hidden_BTC.flatten(0, 1)[visible]
    if pooling == "mean":
        sums = hidden_MC.new_zeros(len(counts_N), hidden_MC.shape[1], dtype=torch.float32)
        sums = sums.index_add(0, text_M, hidden_MC.float())
        return (sums / counts_N[:, None]).to(hidden_BTC.dtype)
    places = torch.arange(len(text_M), device=text_M.device)
    reduce = "amin" if pooling == "cls" else "amax"
    chosen_N = places.new_zeros(len(counts_N)).scatter_reduce(0, text_M, places, reduce, include_self=False)
    return hidden_MC[chosen_N]


def _number_texts(mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The texts of all rows numbered through from 0, `[B, T]` (of no meaning at padding), and their lengths `[N]`."""
    texts_B = mask_BT.amax(dim=1)
    if bool((empty := texts_B <= 0).any()):
        raise GristmillError(f"row {int(empty.nonzero()[0])} has no token that the mask leaves visible")
    first_B = texts_B.cumsum(0) - texts_B
    text_BT = first_B[:, None] + mask_BT - 1
    counts_N = torch.bincount(text_BT[mask_BT != 0], minlength=int(texts_B.sum()))
    if bool((empty := counts_N == 0).any()):
        number = int(empty.nonzero()[0])
        row = int((first_B <= number).sum()) - 1
        raise GristmillError(f"row {row} has no token of text {number - int(first_B[row]) + 1}")
    return text_BT, counts_N
