"""The compiled kernel of the tokenizer: cutting text into pre-tokens, counting them, merging them into tokens.

Importing this package is cheap: numba and the compiled passes are loaded with the modules that hold them.
`reference.py` says in plain Python what they do; the cutting itself is held to the `tokenizers` library.
"""
