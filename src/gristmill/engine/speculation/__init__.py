"""Speculative decoding: cheap guesses at the next tokens, checked by the model several in one step (Leviathan et al.,
2023, arXiv 2211.17192). `ngram` and `draft` guess, `proposal` says what a guess is and what cuts it, `control` decides
when guessing pays."""
