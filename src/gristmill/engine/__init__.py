"""The engine room: cache, scheduler, sampler and the loop over them; `llm.LLM` is the way in."""
