"""Stage 03, the tokenizer: training (`train`), use (`tokenizer`), packing text into token files (`pack`, `store`)."""
