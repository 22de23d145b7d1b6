"""Stage 03, the tokenizer: training it (`train`), using it (`tokenizer`), packing text into token files (`pack`, `store`)."""
