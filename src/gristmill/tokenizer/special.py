"""The special tokens of every tokenizer trained here. Their ids are fixed: a token's id is its place in the tuple."""

from __future__ import annotations

BOS, EOS, PAD, IM_START, IM_END = "<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, IM_START, IM_END)

# What ends a text or a turn in tokenizers made elsewhere: GPT-2 and ChatML (SmolLM, Qwen), and Llama 3.
FOREIGN_STOPS = ("<|endoftext|>", "<|eot_id|>")
