"""Templates that grow a value step by step, or go on without end, are stopped: what each trick would make passes any
machine's memory or patience, and the error names the template."""

from __future__ import annotations

import tracemalloc

import pytest
from chat_rooms import TEMPLATES, TOOLS, call, calls
from tokenizer_rooms import turn
from tokenizers import AddedToken

from gristmill.errors import GristmillError
from gristmill.tokenizer.chat import ChatTemplate, meter
from gristmill.tokenizer.templates import builtin_template

SMALL = 1 << 17
SPENT = r"^the template cannot render these messages: a template may make values of [\d,]+ characters in all"
START = "{% set ns = namespace(x='ab', y='ab', l=[1, 2]) %}"
# Each doubles `ns.x`, or what it says when it is written out, every time.
DOUBLING = {
    "plus": "{% set ns.x = ns.x + ns.x %}",
    "times": "{% set ns.x = ns.x * 2 %}",
    "tilde": "{% set ns.x = ns.x ~ ns.x %}",
    "percent": "{% set ns.x = '%s%s' % (ns.x, ns.x) %}",
    "percent, named": "{% set ns.x = '%(a)s%(a)s' % {'a': ns.x} %}",
    "filter format": "{% set ns.x = '%s%s' | format(ns.x, ns.x) %}",
    "filter join": "{% set ns.x = [ns.x, ns.x] | join %}",
    "method join": "{% set ns.x = ns.x.join(['', ns.x]) %}",
    "separator": "{% set ns.x = ['', '', ''] | join(ns.x) %}",
    "filter replace": "{% set ns.x = ns.x | replace('a', 'aa') %}",
    "method replace": "{% set ns.x = ns.x.replace('a', 'aa') %}",
    "block": "{% set block %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = block %}",
    "filter block": "{% set block %}{% filter replace('a', 'aa') %}{{ ns.x }}{% endfilter %}{% endset %}"
    "{% set ns.x = block %}",
    "macro": "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns.x = twice(ns.x) %}",
    "caller": "{% macro twice() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    "{% set block %}{% call twice() %}{{ ns.x }}{% endcall %}{% endset %}{% set ns.x = block %}",
    "list": "{% set ns.x = [ns.x, ns.x] %}{{ ns.x | string | length }}",
    "list, printed": "{% set ns.x = [ns.x, ns.x] %}{{ ns.x }}",
    "tuple": "{% set ns.x = (ns.x, ns.x) %}{{ ns.x ~ '' }}",
    "object": "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{{ ns.x | tojson }}",
    "namespace": "{% set ns.x = namespace(a=ns.x, b=ns.x) %}{{ ns.x }}",
    "view": "{% set ns.x = {'a': ns.x, 'b': ns.x}.items() %}{{ ns.x }}",
    "compared": "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{{ ns.x == ns.y }}",
    "tested": "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{{ ns.x is eq(ns.y) }}",
    "sought": "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{{ ns.x in [ns.y] }}",
    "hashed": "{% set ns.x = (ns.x, ns.x) %}{{ {}[ns.x] }}",
    "changed": "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}"
    "{{ loop.changed(ns.x if loop.index is odd else ns.y) }}",
    "raised": "{% set ns.x = [ns.x, ns.x] %}{% if loop.last %}{{ raise_exception(ns.x) }}{% endif %}",
    "list plus": "{% set ns.l = ns.l + ns.l %}",
    "list times": "{% set ns.l = ns.l * 2 %}",
    "sorted": "{% set ns.l = (ns.l + ns.l) | sort %}",
    "output": "{% set ns.x = ns.x + ns.x %}{{ ns.x }}",
}
# Each makes the product of two large values at once.
PRODUCTS = {
    "replace": "{{ big | replace('a', big) }}",
    "method replace": "{{ big.replace('a', big) }}",
    "join": "{{ big | join(big) }}",
    "method join": "{{ big.join(big) }}",
    "indent": "{{ ('a\n' * 10000) | indent(1000000) }}",
    "indent by text": "{{ ('a\n' * 10000) | indent(big) }}",
    "indent of other lines": "{{ ('\r' * 10000) | indent(10000, blank=true) }}",
    "percent": "{{ ('%(a)s' * 10000) % {'a': big} }}",
    "separators": "{{ ([1] * 1000) | tojson(separators=(big, big)) }}",
    "escaped": "{{ ('é' * 100000) | tojson(ensure_ascii=true) }}",
    "mapped": "{{ ([big] * 10000) | map('upper') | list | length }}",
    "chained": "{{ big" + " | replace('a', 'aaaaaaaaaa')" * 12 + " }}",
    "split": "{{ big.split('a') | length }}",
    "words": "{{ (' a' * 50000).split() | length }}",
    "lines": "{{ ('\n' * 50000).splitlines() | length }}",
    "letters": "{{ big | list | length }}",
    "titles": "{{ (' a' * 50000) | title | length }}",
}
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops of none": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "filtered": "{% for a in range(99999) %}{{ range(99999) | select('string') | list | length }}{% endfor %}",
    "constants": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "long constants": "{% for a in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
    "recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 90 }}{% endfor %}",
    "slices": "{% set x = 'ab' * 1000000 %}{% for a in range(99999) %}{% set y = x[1:] %}{% endfor %}",
    "splits": "{% set x = 'ab' * 1000000 %}{% for a in range(99999) %}{% set y = x.split('a') %}{% endfor %}",
    "searches": "{% set x = 'ab' * 1000000 %}{% for a in range(99999) %}{{ 'c' in x }}{% endfor %}",
    "attributes": "{% set ns = namespace() %}{% set ns.a = ns %}{% for a in range(99999) %}"
    "{% for b in range(99999) %}{{ ns.a is none }}{% endfor %}{% endfor %}",
    "big numbers": "{% set n = 2 ** 8000 %}{% for a in range(99999) %}{% set m = n * n // 7 %}{% endfor %}",
}
GROWING = "{% for i in range(300) %}{% set ns.x = STEP %}{% endfor %}"
# Each goes into a value three hundred deep; hashing one of four hundred thousand was the end of the process.
DEEP = {
    "key": "{{ {ns.x: 1} }}",
    "unique": "{{ [ns.x] | unique | list }}",
    "pairs": "{{ dict([(ns.x, 1)]) }}",
    "item": "{{ {}[ns.x] }}",
    "get": "{{ {}.get(ns.x) }}",
    "in": "{{ ns.x in {} }}",
    "equal": "{{ ns.x == ns.x }}",
    "test": "{{ ns.x is eq(1) }}",
    "written": "{{ ns.x }}",
}
COLLIDING = "range(0, 2305843009213693951 * 9, 2305843009213693951)"  # multiples of 2^61 - 1 all have the hash 0
KEYS = {
    "unique": COLLIDING + " | unique | list",
    "pairs": "dict([(2305843009213693951, 1)])",
    "key": "{2305843009213693951: 1}",
    "float": "{2.0 ** 61: 1}",
    "tuple": "{(1, 2): 1}",
    "tuples": "[(1, 2)] | unique | list",
}


def template(source: str) -> ChatTemplate:
    tokens = [AddedToken("<|end|>", special=True, normalized=False)]
    return ChatTemplate(source, "the template", {"bos_token": "<|end|>"}, tokens)


def render(source: str) -> str:
    return template(source).render([turn("user", "q")]).text


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that is spent soon."""
    monkeypatch.setattr(meter, "BUDGET", SMALL)


def refused(source: str, match: str = SPENT) -> None:
    """It is refused before it has taken much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(GristmillError, match=match):
            render(source)
        assert tracemalloc.get_traced_memory()[1] < 32 * SMALL
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("step", DOUBLING.values(), ids=DOUBLING)
def test_doubling_is_stopped(step: str) -> None:
    refused(START + "{% for i in range(45) %}" + step + "{% endfor %}")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["plus", "tilde", "filter join", "block", "list, printed"])
def test_doubling_line_by_line_is_stopped(name: str) -> None:
    refused(START + DOUBLING[name] * 45)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("source", PRODUCTS.values(), ids=PRODUCTS)
def test_products_are_stopped(source: str) -> None:
    refused("{% set big = 'a' * 100000 %}" + source)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_going_on_without_end_is_stopped(source: str) -> None:
    with pytest.raises(GristmillError, match=SPENT + "|maximum recursion depth"):
        render(source)


@pytest.mark.parametrize(
    "expression",
    ["10 ** (10**9)", "2 ** 9999 * 2 ** 9999", "(2 ** 16384) | string", "('0x' ~ 'f' * 9999) | int(base=16)"],
)
def test_whole_numbers_are_bounded(expression: str) -> None:
    refused("{{ " + expression + " }}", r"the template cannot .* no whole number of more than 16,384 bits")


@pytest.mark.parametrize("step", ["(ns.x,)", "[ns.x]", "{'a': ns.x}", "namespace(a=ns.x)"])
@pytest.mark.parametrize("use", DEEP.values(), ids=DEEP)
def test_nesting_is_bounded(step: str, use: str) -> None:
    refusal = "the template cannot .* nest lists and objects 200 deep|text and numbers as keys"
    with pytest.raises(GristmillError, match=refusal):
        render("{% set ns = namespace(x=1) %}" + GROWING.replace("STEP", step) + use)


@pytest.mark.parametrize("expression", KEYS.values(), ids=KEYS)
def test_keys_are_text_and_small_numbers(expression: str) -> None:
    refused("{{ " + expression + " }}", "more than 60 bits as a key|may use text and numbers as keys, not a tuple")


def test_keys_that_are_allowed() -> None:
    source = "{{ {'a': 1, 2: 3, 1.5: none, none: 4, true: 5} }} {{ ['b', 'a', 'b', 2, 2] | unique | list }}"
    assert render(source) == "{'a': 1, 2: 3, 1.5: None, None: 4, True: 5} ['b', 'a', 2]"
    with pytest.raises(GristmillError, match="unique takes no attribute"):
        render("{{ messages | unique(attribute='role') | list }}")
    assert render("{{ messages | map(attribute='role') | unique | list }}") == "['user']"


@pytest.mark.parametrize("strip", [".strip(big)", ".lstrip(big)", ".rstrip(big)", " | trim(big)"])
def test_few_characters_are_stripped(strip: str) -> None:
    refused("{% set big = 'a' * 65 %}{{ 'a'" + strip + " }}", "may strip at most 64 different characters")
    assert render("{% set big = 'a' * 64 %}{{ 'a'" + strip + " }}") == ""


def test_a_linked_list_is_stopped_before_it_is_long() -> None:
    """Small objects cost what they take: with the whole budget, fewer than half a million of them."""
    made = 0

    def count(value: object) -> None:
        nonlocal made
        made += 1

    with meter.metered(0), pytest.raises(meter.TooCostly):
        while True:
            count(meter.made(object()))
    assert made < 500_000


def test_one_budget_for_all_renderings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat of a thousand messages that is refused at its end is rendered again to find the place, but the budget is
    not given again."""
    loops = "{% for m in messages %}{% for i in range(20) %}{% endfor %}{% endfor %}"
    source = loops + "{{ raise_exception('no') if messages | length > 900 }}"
    chat = [turn("user", "q")] * 1000
    with pytest.raises(GristmillError, match=r"messages\[900\]: no$"):
        template(source).render(chat)
    monkeypatch.setattr(meter, "BUDGET", 1000)
    monkeypatch.setattr(meter, "BUDGET_PER_INPUT", 20)
    with pytest.raises(GristmillError, match=r"these messages: no$"):
        template(source).render(chat)


def test_a_macro_that_calls_itself_for_ever() -> None:
    with pytest.raises(GristmillError, match="the template cannot render these messages: maximum recursion depth"):
        render("{% macro m(x) %}{{ m(x ~ x) if false else m(x) }}{% endmacro %}{{ m('a') }}")


def test_sums_of_lists() -> None:
    assert render("{{ [1, 2] | sum }} {{ [{'a': 1}] | sum('a', 5) }}") == "3 6"
    with pytest.raises(GristmillError, match="sum adds numbers"):
        render("{{ ([[1]] * 1000) | sum(start=[]) | length }}")


def test_what_is_left_to_templates() -> None:
    """Loops keep their length and filters their meaning, wherever the charges stand."""
    source = (
        "{% for x in 'abc' %}{{ loop.index }}/{{ loop.length }}{{ '!' if loop.last }} {% endfor %}"
        "{% for x in [1, 2, 3] if x > 1 %}{{ x }}{{ loop.revindex }} {% endfor %}"
        "{% for a, b in {'k': 1}.items() %}{{ a ~ b }}{% else %}none{% endfor %}"
        "{% for x in [[1], [[2]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
        "{% for x in missing %}{% else %} none{% endfor %} "
        "{{ 'a' ~ 1 ~ [1, 'b'] ~ none }} {{ [1, 2][::-1] }} {{ (1, 2)[0] }} {{ 1 < 2 < 3 }} {{ 'a' in 'ba' }} "
        "{{ [3, 1] | sort | join('-') }} {{ ['b', 'a'] | map('upper') | list }} {{ [{'r': 1}] | groupby('r') }} "
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ missing is defined }} "
        "{{ [1, 1] | unique | list }} {{ {'b': 1, 'a': [2]} | tojson(indent=1) }} {{ 1.5 | round | int }}"
    )
    expected = (
        "1/3 2/3 3/3! 22 31 k112 none a1[1, 'b']None [2, 1] 1 True True 1-3 ['B', 'A'] [(1, [{'r': 1}])] 1 False "
        '[1] {\n "b": 1,\n "a": [\n  2\n ]\n} 2'
    )
    assert render(source) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_long_chats_are_within_the_budget(name: str) -> None:
    """Three thousand turns with tools, and one message of two million characters."""
    exchange = [turn("user", "What is it? " * 20), calls("", call("f", {"a": [1, 2]})), turn("tool", "x" * 50)]
    chat = [turn("system", "s"), *exchange * 1000, turn("user", "long " * 400_000), turn("assistant", "yes")]
    tokens = [AddedToken("<|im_end|>", special=True, normalized=False)]
    made = ChatTemplate(builtin_template(name), "the template", {"bos_token": "B", "eos_token": "E"}, tokens)
    assert len(made.render(chat, tools=TOOLS).text) > 2_000_000
