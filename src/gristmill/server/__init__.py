"""The server room: an engine behind an OpenAI-compatible HTTP API; `serve.serve` is the way in."""
