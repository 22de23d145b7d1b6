"""What a benchmark is: which file, how an item becomes text, which of the figures is quoted."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

Normalization = Literal["raw", "bytes", "characters", "tokens"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)


class Layout(BaseModel):
    """What all kinds of benchmark have in common.

    An item becomes `prefix + question + delimiter + answer`. Spaces at the end of the delimiter belong to the answer,
    as tokenizers cut text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[^/\\]+$", description="Name in the report.")
    file: str = Field(min_length=1, description="JSON lines, plain or gzipped; relative to the description's file.")
    instruction: str = Field(default="", description="What stands before all examples and the question.")
    prefix: str = Field(default="", description="What stands before each question.")
    delimiter: str = Field(default=" ", description="What stands between a question and its answer.")
    example_delimiter: str = Field(default="\n\n", description="What stands after each solved example.")
    num_fewshot: int = Field(default=0, ge=0, description="Solved examples before the question.")
    fewshot_file: str | None = Field(
        default=None, description="Where examples are drawn from; without it the benchmark's other items."
    )
    average: str | None = Field(default=None, description="Benchmarks with the same label are averaged under it.")


class MultipleChoice(Layout):
    """Items with `query`, `choices`, `gold`: the choice of the highest log-likelihood after the query counts."""

    kind: Literal["multiple_choice"] = "multiple_choice"
    metric: Normalization = Field(default="bytes", description="The accuracy that is quoted and averaged.")


class Schema(Layout):
    """Items with `context_options`, `continuation`, `gold`: the context after which the continuation is likeliest
    counts (Trinh and Le 2018, partial scoring)."""

    kind: Literal["schema"] = "schema"


class LastWord(Layout):
    """Items with `context`, `continuation`: is the continuation what greedy decoding writes, and how likely is it
    (Paperno et al. 2016)."""

    kind: Literal["last_word"] = "last_word"


class Generation(Layout):
    """Items with a question and an answer: what the model writes greedily is compared with the answer."""

    kind: Literal["generation"] = "generation"
    question_field: str = Field(default="context", description="The item's field that holds the question.")
    answer_field: str = Field(default="answer", description="The field that holds the answer to compare with.")
    example_field: str | None = Field(
        default=None, description="The field with the answer as examples show it; answer_field unless given."
    )
    extract: Literal["line", "number", "last_number", "marked"] = Field(
        default="line",
        description="What of a reply counts: its first line, its first or last number, or the number after ####.",
    )
    max_tokens: int = Field(default=64, gt=0, description="Longest reply in tokens.")
    stop: tuple[str, ...] = Field(default=("\n\n",), description="A reply ends before the first of these.")

    @field_validator("stop")
    @classmethod
    def _stops_are_text(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if not all(stop):
            raise ValueError("holds an empty text, which would end every reply at once")
        return stop


Benchmark = Annotated[MultipleChoice | Schema | LastWord | Generation, Field(discriminator="kind")]


class BenchmarkFile(BaseModel):
    """A YAML file of descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmarks: tuple[Benchmark, ...] = Field(min_length=1, description="The benchmarks, in the report's order.")
