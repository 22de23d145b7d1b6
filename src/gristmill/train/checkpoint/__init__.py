"""Checkpoints from which a training run goes on exactly, on as many processes as one likes.

    directory/
      step-00000400-0007/             one checkpoint: the step it was saved after, and the number of the save
        shard-00001.safetensors       what the first process wrote; one file per process that had anything to write
        state.json                    the step, what the caller added, sha256 and size of each shard, its own hash
      step-00000350-0008-golden/      saved later: the run had gone back
      .step-00000450-0009.writing/    a save that is under way, or was killed

torch's distributed checkpointing (`torch.distributed.checkpoint`) plans who writes and who reads what, so tensors may
be whole in every process (written once, the work shared out), whole in one, or DTensors; and what was saved in one
layout is read in any other. The files are our own, since torch's default writer and reader pickle: safetensors whose
headers say where each chunk lies in its tensor, in the words of torch's `HuggingFaceStorageWriter`, so that its
`HuggingFaceStorageReader` reads them too. (That writer builds each file a second time in memory, and hashes nothing.)

What makes a checkpoint safe is the order: all processes write and sync their shards in a hidden directory, the first
one then writes `state.json`, syncs the directory, and renames it; older ones are removed after that alone. A name
is never used twice, even where a run that went back passes the same step again, and the newest checkpoint is the
one with the highest number of the save, whatever its step.
"""

from .checkpoints import Checkpoints

__all__ = ["Checkpoints"]
