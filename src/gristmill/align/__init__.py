"""Stage 06, alignment: instruction tuning (`sft`) and direct preference optimization (`dpo`)."""
