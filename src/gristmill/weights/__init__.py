"""Weights in and out: Hugging Face (`load.load_model`, `hf.save_model`), INT8 (`compressed`), `gguf`, `importing`."""
