"""Stage 08, smaller weights: the method (`int8`) and the stage that saves, reloads and measures (`stage`)."""
