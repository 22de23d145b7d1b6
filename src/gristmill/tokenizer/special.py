"""Special tokens: which ones a tokenizer trained here has, in the order of their ids.

They are never found in text: only a chat template or a caller's hand writes them. Ids are places in `Specials.tokens`:
the beginning, the end and the padding of a document at 0, 1 and 2, then what the chat template writes, then the rest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken

from ..errors import GristmillError
from .chat import ChatTemplate
from .config import TokenizerConfig
from .pretokenize import Pattern
from .templates import builtin_template

BOS, EOS, PAD, IM_START, IM_END = "<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
UNK, MASK = "<|unk|>", "<|mask|>"
START_HEADER, END_HEADER, EOT = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
FILL_IN_THE_MIDDLE = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")

# What each template of ours writes besides bos and eos: the marks of a turn, then those of a tool's call and result.
TEMPLATE_TOKENS = {
    "chatml": (IM_START, IM_END, "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    "llama3": (START_HEADER, END_HEADER, EOT),
    "zephyr": ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<tool_call>", "</tool_call>"),
}

# What ends a text or a turn in tokenizers made elsewhere: GPT-2 and ChatML (SmolLM, Qwen), and Llama 3.
FOREIGN_STOPS = ("<|endoftext|>", EOT)

_KINDS_WITH_UNK = ("unigram", "wordpiece", "sentencepiece")
_LITERAL = re.compile(r"<\|[^|<>\s]+\|>")
# The pre-tokenizers cut letters and digits from signs (`_` is one), so nothing of this form is ever learned from text.
_BRACKETED = re.compile(r"<(?=.*[^\W_]).+>|\[(?=.*[^\W_]).+\]", re.DOTALL)
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_RESERVED = re.compile(r"<\|reserved_\d+\|>")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Specials:
    """The special tokens of one tokenizer.

    `tokens`: all of them; a token's id is its place. `unk`: what an unknown character becomes, None for kind bpe, which
    knows every byte. `mask`: `<|mask|>` where it was asked for.
    """

    tokens: tuple[str, ...]
    bos: str = BOS
    eos: str = EOS
    pad: str = PAD
    unk: str | None = None
    mask: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """`bos_token`, `eos_token` and the like, as tokenizer_config.json names them."""
        names = {
            "bos_token": self.bos,
            "eos_token": self.eos,
            "pad_token": self.pad,
            "unk_token": self.unk,
            "mask_token": self.mask,
        }
        return {name: token for name, token in names.items() if token is not None}

    @property
    def unnamed(self) -> tuple[str, ...]:
        """The others (`additional_special_tokens` in tokenizer_config.json)."""
        named = set(self.named.values())
        return tuple(token for token in self.tokens if token not in named)


def specials_of(config: TokenizerConfig, tuned: bool = False) -> Specials:
    """The special tokens that a configuration asks for.

    GristmillError where two are the same, where one could be a piece of text, where the chat template writes one that
    is missing, refuses a plain chat or would open a reply in another way than the reply is learned, and where they
    leave no room for the bytes. `tuned`: the model will be fine-tuned, so the template must mark what it learns.
    """
    unk = UNK if config.kind in _KINDS_WITH_UNK else None
    usual = [BOS, EOS, PAD, *TEMPLATE_TOKENS.get(config.chat_template, ())]
    usual += [unk] if unk else []
    usual += FILL_IN_THE_MIDDLE if config.fill_in_the_middle else ()
    _check_added(config.special_tokens, usual)
    tokens = (*usual, *config.special_tokens, *(reserved_token(number) for number in range(config.reserved)))
    _check_room(config, len(tokens))

    template = ChatTemplate(
        builtin_template(config.chat_template),
        f"tokenizer.chat_template {config.chat_template}",
        {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD},
        [AddedToken(token, special=True, normalized=False) for token in tokens],
    )
    _check_template(template, config, tokens)
    if tuned and not template.has_generation:
        raise GristmillError(
            f"{template.origin} does not mark what the assistant writes, which is what sft and dpo learn; put "
            f"{{% generation %}} and {{% endgeneration %}} around the reply and the token that ends it"
        )
    return Specials(tokens, unk=unk, mask=MASK if MASK in tokens else None)


def reserved_token(number: int) -> str:
    """The special token kept free as the `number`-th; numbers go on where a vocabulary is padded to a multiple."""
    return f"<|reserved_{number}|>"


def _check_room(config: TokenizerConfig, specials: int) -> None:
    """What is known before any text is read; the letters that occur need room besides (not kind bpe)."""
    kept, what = (0, "") if config.kind == "wordpiece" else (256, " and the 256 bytes")
    if config.vocab_size < specials + kept:
        raise GristmillError(
            f"tokenizer.vocab_size is {config.vocab_size}, but {specials} special tokens{what} are {specials + kept} "
            f"tokens; raise it"
        )


def _check_added(added: Sequence[str], usual: Sequence[str]) -> None:
    seen = set(usual)
    for index, token in enumerate(added):
        field = f"tokenizer.special_tokens[{index}]"
        if token == "":
            raise GristmillError(f"{field} is empty; take it out")
        if _SURROGATE.search(token):
            raise GristmillError(f"{field} {token!r} holds half a surrogate pair, which UTF-8 cannot write; mend it")
        if token in added[:index]:
            raise GristmillError(f"{field} {token!r} stands there twice; take one out")
        if token in seen:
            raise GristmillError(f"{field} {token!r} is there already without being named; take it out")
        if _RESERVED.fullmatch(token):
            raise GristmillError(f"{field} {token!r} is the name of a reserved token; set tokenizer.reserved instead")
        if _BYTE.fullmatch(token):
            raise GristmillError(f"{field} {token!r} is the name of a byte's token; take another one")
        if not _BRACKETED.fullmatch(token):
            raise GristmillError(
                f"{field} {token!r} could be a piece of plain text; put a name between <| and |>, < and >, or [ and ]"
            )


def _check_template(template: ChatTemplate, config: TokenizerConfig, tokens: Sequence[str]) -> None:
    written = {match for literal in template.literals for match in _LITERAL.findall(literal)}
    missing = sorted(written.difference(tokens))
    if missing:
        raise GristmillError(
            f"{template.origin} writes {', '.join(missing)}, which would be plain letters; "
            f"name them in tokenizer.special_tokens"
        )
    question = {"role": "user", "content": "Q"}
    prompt = template.render([question], add_generation_prompt=True).text
    chat = template.render([question, {"role": "assistant", "content": "A"}]).text
    if not chat.startswith(prompt):
        raise GristmillError(
            f"{template.origin} asks for a reply by {prompt!r}, but a chat with the reply is {chat!r}: the model would "
            f"be asked in another way than it learned; let add_generation_prompt write what a reply begins with"
        )
    like_gpt2 = config.kind == "bpe" and Pattern(config.pretokenizer, config.digits).like_gpt2
    if like_gpt2 and re.search(r"\s\s\Z", prompt):
        raise GristmillError(
            f"{template.origin} ends a prompt in two characters of white space, which tokenizer.pretokenizer "
            f"{config.pretokenizer} cuts differently once the reply follows; take gpt4, llama3 or qwen2"
        )
