"""The page in a headless Chromium: real panels, live growth, resumption, untrusted text, keyboard, widths."""

import shutil

import pytest
from page_browser import Browser
from page_run import make_run
from page_server import model_server, serving

from gristmill.events import EventLog
from gristmill.page.app import make_app
from gristmill.page.panels import PANELS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"),
]
READY = "document.documentElement?.dataset.ready === 'true'"
ALL = "#" + ",".join(PANELS)


@pytest.fixture
def browser():
    with Browser(CHROMIUM) as browser:
        yield browser


def foreign(browser: Browser, *addresses: str) -> list[str]:
    """Requests to anything but the given servers."""
    own = (*(f"{address}/" for address in addresses), "about:", "chrome:")
    return [url for url in browser.requests if not url.startswith(own)]


def test_every_panel_shows_real_rows_and_nothing_untrusted_runs(browser, finished_run):
    app, _ = model_server([])
    with serving(app) as server, serving(make_app(finished_run, server_url=server)) as address:
        browser.size(1280, 900)
        browser.open(f"{address}/{ALL}")
        browser.wait_for(READY)
        for key in PANELS:
            browser.wait_for(f"document.querySelectorAll('#panel-{key} .section').length > 1")
            assert browser.evaluate(f"document.querySelector('#stage-{key}').getAttribute('aria-expanded')") == "true"
        assert browser.evaluate("document.querySelectorAll('.section.kind-empty').length") == 0
        assert browser.evaluate("document.querySelectorAll('[data-id=sources] tbody tr').length") == 4
        assert "onerror" in browser.evaluate("document.querySelector('#panel-data pre').textContent")
        assert browser.evaluate("document.querySelectorAll('[data-id=values] svg.histogram .cut').length") == 1
        assert browser.evaluate("document.querySelectorAll('[data-id=removed-samples] .group details').length") == 10
        assert "onerror" in browser.evaluate("document.querySelector('[data-id=problems]').textContent")
        assert browser.evaluate("document.querySelectorAll('img').length") == 1  # the attention picture, no other
        browser.wait_for("document.querySelector('#panel-artifacts img').naturalWidth === 160")
        assert browser.evaluate("document.title") == "quickstart · finished · gristmill"
        browser.wait_for("document.querySelector('.metrics')?.textContent.includes('mean 0.125 of 4')")
        assert browser.errors == []
        assert foreign(browser, address, server) == []


def test_a_chart_has_a_table_twin_and_grows_while_the_run_goes_on(browser, tmp_path):
    directory = make_run(tmp_path / "run", ("collected", "corpus", "tokenizer", "tokens"), finish=False)
    log = EventLog(directory / "events.jsonl")
    log.emit("stage_started", "base", fingerprint="f", resumed=False)
    log.emit("metric", "base", step=5, loss=4.5)
    with serving(make_app(directory)) as address:
        browser.open(f"{address}/#pretraining")
        browser.wait_for(READY)
        twin = "document.querySelector('#panel-pretraining details')"
        browser.evaluate(f"{twin}.open = true")
        browser.wait_for(f"{twin}.querySelectorAll('tbody tr').length === 1")
        for step in range(10, 41, 5):
            log.emit("metric", "base", step=step, loss=4.5 - step / 20)
            log.emit("progress", "base", done=step, total=80, unit="steps")
        browser.wait_for(f"{twin}.querySelectorAll('tbody tr').length === 8")
        assert "2.5 at step 40" in browser.evaluate("document.querySelector('#panel-pretraining .plot svg').ariaLabel")
        browser.wait_for("document.querySelector('#stage-pretraining .left').textContent.startsWith('40 of 80 steps')")
        later = "document.querySelector('#stage-deployment .state').textContent"
        assert browser.evaluate(later) == "waiting"
        log.emit("stage_failed", "base", error="no <b>memory</b>")
        log.emit("run_failed", error="no <b>memory</b>")
        browser.wait_for("document.querySelector('#run-error').textContent === 'The run failed: no <b>memory</b>'")
        browser.wait_for("document.querySelector('#stage-pretraining .state').textContent === 'failed'")
        assert browser.evaluate(later) == "not made"  # nothing will come to it
        assert browser.errors == []


def test_a_run_in_trouble_says_so_at_one_look(browser, tmp_path):
    directory = make_run(tmp_path / "run", ("collected", "corpus", "tokenizer", "tokens"), finish=False)
    log = EventLog(directory / "events.jsonl")
    log.emit("stage_started", "base", fingerprint="f", resumed=False)
    for step in range(5, 501, 5):
        norm = 300.0 if step == 400 else 1.0 + (step % 7) / 50
        more = {"mfu": 0.41} | ({"validation_bits_per_byte": 1.5} if step == 250 else {})
        log.emit("metric", "base", step=step, loss=5 - step / 200, grad_norm=norm, skipped=step == 400, **more)
    with serving(make_app(directory)) as address:
        browser.size(1280, 900)
        browser.open(f"{address}/#pretraining")
        browser.wait_for("document.querySelector('[data-id=health-base] .verdict')")
        verdict = "document.querySelector('[data-id=health-base] .verdict').textContent"
        warning = "document.querySelector('#stage-pretraining .problem')"
        assert browser.evaluate(verdict) == "well: Well: nothing stands out."
        assert browser.evaluate(f"{warning}.hidden") is True
        assert browser.evaluate("document.querySelectorAll('[data-id=curves-base] circle.mark-ring').length") == 2
        charts = "[...document.querySelectorAll('[data-id=curves-base] .chart.third')].map(c => c.textContent)"
        assert any("step 500: MFU 41.0 %" in text for text in browser.evaluate(charts))
        halves = browser.evaluate(charts.replace("third", "half"))
        assert any("step 250: all 1.5" in text for text in halves)  # when it was measured
        for step in range(505, 701, 5):
            log.emit("metric", "base", step=step, loss=2.5 + (step - 500) / 20, grad_norm=1.0, skipped=0)
        browser.wait_for(f"{verdict} === 'in trouble: In trouble: loss.'")
        browser.wait_for(f"!{warning}.hidden && {warning}.textContent === 'In trouble: loss.'")
        assert browser.errors == []


def test_a_dropped_stream_resumes_and_a_pause_holds_it(browser, tmp_path):
    directory = make_run(tmp_path / "run", ("collected",), finish=False)
    log = EventLog(directory / "events.jsonl")
    with serving(make_app(directory)) as address:
        browser.open(address)
        browser.wait_for(READY)
        seq = log.emit("note", "collected", message="one")["seq"]
        browser.wait_for(f"document.documentElement.dataset.seq === '{seq}'")
    seq = log.emit("note", "collected", message="while the page's server was gone")["seq"]
    browser.wait_for("document.documentElement.dataset.connection === 'reconnecting'")
    with serving(make_app(directory), int(address.rsplit(":", 1)[1])):
        browser.wait_for(f"document.documentElement.dataset.seq === '{seq}'")
        browser.evaluate("document.querySelector('#pause').click()")
        browser.wait_for("document.documentElement.dataset.connection === 'paused'")
        last = log.emit("note", "collected", message="while paused")["seq"]
        assert browser.evaluate("document.documentElement.dataset.seq") == str(seq)
        browser.evaluate("document.querySelector('#pause').click()")
        browser.wait_for(f"document.documentElement.dataset.seq === '{last}'")


def test_chat_streams_and_shows_markup_as_text(browser, finished_run):
    app, asked = model_server(["He", "llo <img src=x onerror=document.title='owned'>", " wörld"])
    with serving(app) as server, serving(make_app(finished_run, server_url=server)) as address:
        browser.open(f"{address}/#deployment")
        browser.wait_for(
            "document.querySelector('.chat-box .readout')?.textContent === 'Connected; the model is tiny.'"
        )
        browser.evaluate("document.querySelector('#chat-input').value = 'Say hello'")
        browser.evaluate("document.querySelector('form.say').requestSubmit()")
        browser.wait_for("document.querySelector('.chat-box .readout').textContent === 'Reply finished.'")
        said = browser.evaluate("[...document.querySelectorAll('.said')].map(p => p.textContent)")
        assert said == ["Say hello", "Hello <img src=x onerror=document.title='owned'> wörld"]
        assert asked[0]["messages"] == [{"role": "user", "content": "Say hello"}]
        assert asked[0]["stream"] is True
        assert browser.evaluate("document.title") != "owned"
        assert browser.errors == []


def test_without_a_server_the_chat_says_how_to_start_one(browser, finished_run):
    with serving(make_app(finished_run)) as gone:
        pass
    with serving(make_app(finished_run, server_url=gone)) as address:
        browser.open(f"{address}/#deployment")
        hint = "document.querySelector('.chat-box .readout')"
        browser.wait_for(f"{hint}?.textContent.startsWith('No model server answers')")
        assert browser.evaluate(f"{hint}.querySelector('code').textContent") == f"gristmill serve {finished_run}"


def test_the_tokenizer_colours_what_is_typed(browser, finished_run):
    with serving(make_app(finished_run)) as address:
        browser.open(f"{address}/#tokenization")
        browser.wait_for("document.querySelectorAll('.tokens .token').length > 3")
        browser.evaluate(
            "(() => { const box = document.querySelector('#play-text'); box.value = 'the miller 東'; "
            "box.dispatchEvent(new Event('input')); })()"
        )
        browser.wait_for("document.querySelector('.tokens').textContent === 'the miller 東'")
        browser.wait_for("document.querySelector('.play .readout').textContent.includes('for 14 bytes')")
        browser.evaluate(
            "(() => { const box = document.querySelector('#vocabulary-query'); box.value = 'im_end'; "
            "box.dispatchEvent(new Event('input')); })()"
        )
        browser.wait_for("document.querySelectorAll('.vocabulary tbody tr').length === 1")
        assert browser.errors == []


def test_a_piece_shows_how_its_word_was_built(browser, finished_run):
    with serving(make_app(finished_run)) as address:
        browser.size(360, 800)
        browser.open(f"{address}/#tokenization")
        browser.wait_for("document.querySelectorAll('.tokens .token').length > 3")
        assert browser.evaluate("document.querySelector('.built').hidden")
        browser.evaluate("document.querySelectorAll('.tokens .token')[1].click()")
        browser.wait_for("!document.querySelector('.built').hidden")
        assert browser.evaluate("document.querySelectorAll('.tokens [aria-selected=true]').length") == 1
        assert "was built" in browser.evaluate("document.querySelector('.built').textContent")
        assert browser.evaluate("document.querySelectorAll('.built tbody tr').length") > 1
        before = browser.evaluate("document.querySelector('.built h4').textContent")
        browser.evaluate(
            "document.querySelector('.tokens').dispatchEvent(new KeyboardEvent('keydown', {key: 'End', bubbles: true}))"
        )
        browser.wait_for(f"document.querySelector('.built h4').textContent !== {before!r}")
        chosen = "document.querySelector('.tokens').getAttribute('aria-activedescendant')"
        assert browser.evaluate(f"document.getElementById({chosen}) === document.querySelector('.tokens').lastChild")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360
        assert browser.errors == []


def test_the_rail_works_by_keyboard_and_keeps_its_place_in_the_address(browser, finished_run):
    with serving(make_app(finished_run)) as address:
        browser.open(address)
        browser.wait_for(READY)
        for _ in range(4):  # the skip link, the pause button, the planner, the first stage
            browser.press("Tab")
        assert browser.evaluate("document.activeElement.id") == "stage-data"
        browser.press("ArrowDown")
        assert browser.evaluate("document.activeElement.id") == "stage-processing"
        browser.press("Enter")
        browser.wait_for("document.querySelectorAll('#panel-processing .section').length > 1")
        assert browser.evaluate("location.hash") == "#processing"
        browser.press("Enter")
        assert browser.evaluate("document.querySelector('#panel-processing').hidden") is True
        assert browser.evaluate("location.hash") == ""


@pytest.mark.parametrize("width", [360, 800, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window_in_either_scheme(browser, finished_run, width, scheme):
    app, _ = model_server([])
    with serving(app) as server, serving(make_app(finished_run, server_url=server)) as address:
        browser.size(width, 800)
        browser.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        browser.open(f"{address}/{ALL}")
        browser.wait_for(READY)
        browser.wait_for("document.querySelector('.metrics table')")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        background = browser.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        red = int(background.removeprefix("rgb(").split(",")[0])
        assert (red < 64) == (scheme == "dark")
        assert browser.errors == []
