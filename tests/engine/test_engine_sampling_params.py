"""What parameters are refused, and under which name."""

from __future__ import annotations

import pytest

from gristmill.engine.sampling import RequestError, SamplingParams

REFUSED = [
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": True}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": float("nan")}),
    ("top_p", {"top_p": 0}),
    ("top_p", {"top_p": 1.1}),
    ("top_k", {"top_k": -1}),
    ("min_p", {"min_p": -0.1}),
    ("min_p", {"min_p": 1.5}),
    ("min_p", {"min_p": "0.5"}),
    ("repetition_penalty", {"repetition_penalty": 0}),
    ("repetition_penalty", {"repetition_penalty": float("inf")}),
    ("repetition_penalty", {"repetition_penalty": 1e-40}),
    ("repetition_penalty", {"repetition_penalty": 1e39}),
    ("temperature", {"temperature": 1e39}),
    ("temperature", {"temperature": 10**400}),
    ("presence_penalty", {"presence_penalty": 2.5}),
    ("frequency_penalty", {"frequency_penalty": -3}),
    ("logit_bias", {"logit_bias": [1]}),
    ("logit_bias", {"logit_bias": {"1": 2.0}}),
    ("logit_bias", {"logit_bias": {-1: 2.0}}),
    ("logit_bias", {"logit_bias": {1: 101}}),
    ("logit_bias", {"logit_bias": {1: float("-inf")}}),
    ("logit_bias", {"logit_bias": dict.fromkeys(range(1025), 1.0)}),
    ("seed", {"seed": 1.5}),
    ("stop", {"stop": ["a", ""]}),
    ("stop_token_ids", {"stop_token_ids": 3}),
    ("stop_token_ids", {"stop_token_ids": [-3]}),
    ("min_tokens", {"min_tokens": -1}),
    ("min_tokens", {"min_tokens": 9, "max_tokens": 8}),
    ("n", {"n": 0}),
    ("n", {"n": 65}),
    ("n", {"n": 2, "temperature": 0}),
    ("n", {"n": 4, "beam_width": 3}),
    ("beam_width", {"beam_width": 0}),
    ("beam_width", {"beam_width": 4, "temperature": 0}),
    ("beam_width", {"beam_width": 4, "top_k": 5}),
    ("beam_width", {"beam_width": 4, "top_p": 0.5}),
    ("beam_width", {"beam_width": 4, "min_p": 0.5}),
    ("length_penalty", {"length_penalty": 2.0}),
    ("top_logprobs", {"top_logprobs": 3}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    ("prompt_logprobs", {"prompt_logprobs": -1}),
    ("prompt_logprobs", {"prompt_logprobs": 21}),
    ("regex", {"regex": 3}),
    ("grammar", {"grammar": 3}),
    ("json_schema", {"json_schema": 3}),
    ("choice", {"choice": "yes"}),
    ("choice", {"choice": []}),
    ("choice", {"choice": ["yes", ""]}),
    ("regex", {"json_schema": {}, "regex": "a"}),
    ("choice", {"grammar": "root ::= 1", "choice": ["a"]}),
]


@pytest.mark.parametrize(("field", "params"), REFUSED, ids=lambda value: str(value))
def test_a_refusal_names_the_field(field, params):
    with pytest.raises(RequestError, match=field) as refusal:
        SamplingParams(**params)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"min_p": 1.0, "top_k": 1, "top_p": 1.0, "temperature": 0},
        {"n": 3, "seed": -5},
        {"beam_width": 4, "n": 4, "length_penalty": -0.5, "min_tokens": 3, "logit_bias": {0: -100}},
        {"min_tokens": 64, "stop_token_ids": (1, 2), "stop": "end", "ignore_eos": True},
        {"prompt_logprobs": 0, "repetition_penalty": 1.3, "presence_penalty": -2, "frequency_penalty": 2},
        {"json_schema": {"type": "object"}},
        {"choice": ["yes", "no"]},
    ],
    ids=str,
)
def test_what_may_stand_together(params):
    made = SamplingParams(**params)
    assert made.greedy == (params.get("temperature") == 0)
    assert made.structured == bool({"json_schema", "choice"} & set(params))
    assert made.penalizes == ("repetition_penalty" in params)
    assert not made.cuts


def test_cuts_of_a_drawing_request():
    assert all(SamplingParams(**cut).cuts for cut in ({"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.1}))
