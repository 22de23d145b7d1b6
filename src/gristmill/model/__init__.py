"""Stage 04, the model: its shape (`config`), its attention interface (`attention`), the decoder itself (`decoder`)."""
