"""The planner in a headless Chromium: every question, errors beside their inputs, keyboard, address, widths."""

import shutil

import pytest
from page_browser import Browser
from page_server import serving

from gristmill.page.app import make_app
from gristmill.page.planner_questions import QUESTIONS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"),
]
READY = "document.documentElement?.dataset.ready === 'true'"
ANSWERED = "document.querySelector('#planner-body').dataset.answered"


@pytest.fixture
def browser():
    with Browser(CHROMIUM) as browser:
        yield browser


@pytest.fixture(scope="module")
def address():
    with serving(make_app(None)) as address:
        yield address


def typed(name: str, text: str) -> str:
    """The JavaScript that types into an input."""
    return (
        f"(() => {{ const box = document.querySelector('#input-{name}'); box.value = {text!r}; "
        "box.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def unexpected(browser: Browser) -> list[str]:
    """Errors but the browser's own notes that an answer was a 400, which is how an input is refused."""
    return [error for error in browser.errors if "400 (Bad Request)" not in error]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_every_question_answers_with_rows_and_fits_the_window(browser, address, width, scheme):
    browser.size(width, 900)
    browser.prefer(prefers_color_scheme=scheme)
    browser.open(f"{address}/#plan/model?requests=40")  # of the fleet, whose form takes it up
    browser.wait_for(READY)
    for question in QUESTIONS:
        browser.wait_for(f"document.querySelector('#question-{question}')")
        browser.evaluate(f"document.querySelector('#question-{question}').click()")
        browser.wait_for(f"{ANSWERED} === {question!r}")
        assert browser.evaluate("document.querySelectorAll('.answer .quantity, .answer tbody tr').length") > 3, question
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, question
        assert browser.evaluate("[...document.querySelectorAll('.error')].every(node => node.hidden)")
    assert browser.errors == []
    assert all(url.startswith((f"{address}/", "about:", "chrome:")) for url in browser.requests)


def test_an_error_stands_beside_its_input_and_goes_when_it_is_mended(browser, address):
    browser.open(f"{address}/#plan/model?model=lama-3-8b")
    error = "document.querySelector('#input-model-error')"
    browser.wait_for(f"{error} && !{error}.hidden")
    assert "did you mean 'llama-3-8b'?" in browser.evaluate(f"{error}.textContent")
    described = browser.evaluate("document.querySelector('#input-model').getAttribute('aria-describedby')")
    assert "input-model-error" in described.split()
    assert browser.evaluate("document.querySelector('#input-model').getAttribute('aria-invalid')") == "true"
    browser.evaluate(typed("model", "llama-3-8b"))
    browser.wait_for(f"{ANSWERED} === 'model' && {error}.hidden")
    browser.evaluate(typed("seq_len", "0"))
    browser.wait_for("!document.querySelector('#input-seq_len-error').hidden")
    assert browser.evaluate("document.querySelector('.question').classList.contains('stale')") is True
    assert unexpected(browser) == []


def test_an_answer_can_be_linked_and_the_plot_and_its_table_follow_the_input(browser, address):
    browser.open(f"{address}/#plan/model?model=qwen3-8b&seq_len=3000")
    browser.wait_for(f"{ANSWERED} === 'model'")
    value = "document.querySelector('[data-id=\"kv_cache.sequence\"] .value').textContent"
    assert browser.evaluate(value) == "442.4 MB = 421.9 MiB"  # 36 layers, 8 heads of 128, K and V, 2 bytes
    assert browser.evaluate("document.querySelector('.command code').textContent") == (
        "gristmill plan model qwen3-8b --seq-len 3000"
    )
    chart = "document.querySelector('[data-id=plots] .chart')"
    summary = browser.evaluate(f"{chart}.querySelector('svg').ariaLabel")
    assert "442.4 MB = 421.9 MiB at sequence length 3,000 tokens" in summary
    readout = f"{chart}.querySelector('.readout').textContent"
    assert browser.evaluate(readout).startswith("sequence length 3,000 tokens: whole 442.4 MB")  # where it rests
    key = "new KeyboardEvent('keydown', { key: 'End', bubbles: true })"
    browser.evaluate(f"{chart}.querySelector('svg').dispatchEvent({key})")
    assert browser.evaluate(readout).startswith("sequence length 1,048,576 tokens: whole 154.6 GB")
    browser.evaluate(f"{chart}.querySelector('details').open = true")
    browser.wait_for(f"{chart}.querySelector('tbody').textContent.includes('3,000 tokens')")
    browser.evaluate(typed("seq_len", "6000"))
    browser.wait_for("location.hash === '#plan/model?model=qwen3-8b&seq_len=6000'")
    browser.wait_for(f"{chart}.querySelector('details').open && {chart}.textContent.includes('6,000 tokens')")
    browser.evaluate("document.querySelector('#question-memory').click()")
    browser.wait_for(f"{ANSWERED} === 'memory'")
    assert browser.evaluate("document.querySelector('#input-model').value") == "qwen3-8b"  # goes on to the next form
    assert browser.evaluate("location.hash") == "#plan/memory?model=qwen3-8b&seq_len=6000"
    assert browser.errors == []


def test_the_planner_works_by_keyboard_alone(browser, finished_run):
    with serving(make_app(finished_run)) as address:
        browser.open(address)
        browser.wait_for(READY)
        for _ in range(3):  # the skip link, the pause button, the planner
            browser.press("Tab")
        assert browser.evaluate("document.activeElement.id") == "planner-toggle"
        browser.press("Enter")
        browser.wait_for(f"{ANSWERED} === 'model'")
        assert browser.evaluate("document.querySelector('#input-model').value") == "run"
        browser.press("Tab")
        assert browser.evaluate("document.activeElement.id") == "question-model"
        browser.press("ArrowRight")
        browser.wait_for(f"{ANSWERED} === 'memory'")
        assert browser.evaluate("document.activeElement.id") == "question-memory"
        browser.press("Tab")
        assert browser.evaluate("document.activeElement.id") == "input-model"
        browser.command("Input.insertText", text="gpt2-xl")  # what was there is selected
        browser.wait_for("location.hash === '#plan/memory?model=gpt2-xl'")
        browser.wait_for(f"{ANSWERED} && document.querySelector('.command code').textContent.includes('gpt2-xl')")
        browser.evaluate("document.querySelector('#planner-toggle').focus()")
        browser.press("Enter")
        assert browser.evaluate("document.querySelector('#planner-body').hidden") is True
        assert browser.evaluate("location.hash") == ""
        assert browser.errors == []
