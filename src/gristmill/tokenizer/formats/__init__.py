"""Tokenizers in the files of other programs: read into a directory of ours and written from it (`exchange`).

`huggingface` is the directory itself; `tiktoken` ranks files, `tekken` Mistral's JSON of the same, `sentencepiece`
`.model` files (written by `sentencepiece_writer`), `gguf` the tokenizer inside a GGUF file (`gguf_metadata` its head,
`gguf_pieces` scores for merges).
"""

from .exchange import export_tokenizer, import_tokenizer

__all__ = ["export_tokenizer", "import_tokenizer"]
