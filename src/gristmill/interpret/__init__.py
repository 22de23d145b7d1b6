"""Stage 07, looking inside: attention patterns, embeddings, logit lens, weights; `stage.inspect` is the stage."""
