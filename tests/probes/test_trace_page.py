"""The page of a trace: its data, and in a browser that shows it, uses it by mouse and keys, and asks nothing."""

import json
import re
import shutil
import time

import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tiny_models import tiny_model

from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.probes.page import ROWS, page_data, page_items, render_page
from mosaic_cli.probes.reading import read_text
from mosaic_cli.probes.report import Wording, report
from mosaic_cli.probes.trace import trace

BYTES = Tokenizer.of_bytes()
HOSTILE = "<script>alert(1)</script> & </script><!-- \u2028\u2029\x00\x1b[1m\u202eabc\u200f\t\n\"'`${x}{{ x }}"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1300,1000"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def _traced(text, kind="mosaic", position=-1, target=101, versus=None):
    model = tiny_model(kind, vocab_size=BYTES.vocab_size, context_length=600)
    reading = read_text(model, [BYTES.end_of_text, *BYTES.encode(text)])
    return reading, Wording(reading, BYTES), trace(reading, position, target, versus)


def _effects(found):
    """What losing each pair would change, drawn at random; for tokens 4 and 5 only."""
    shape = (len(found.parts.pairs), *found.parts.pairs[0].weights.shape)
    generator = torch.Generator().manual_seed(found.position)
    return torch.randn(shape, generator=generator, dtype=torch.float64) if found.position in (3, 4) else None


def _data(text, **options):
    traced = _traced(text, **options)
    return page_data(*traced, list(page_items(*traced, unread_of=_effects)), name="<b>a & b</b>")


def _packed(path):
    """A path of the report as the page has it, without its numbers."""
    pushes = [path["pushes"]] if path["kind"] == "slot" else []
    return [path["id"], path["position"], [_packed(child) for child in path["children"]], *pushes]


def _without_numbers(path):
    id, position, _, _, children, *pushes = path
    return [id, position, [_without_numbers(child) for child in children], *pushes]


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_the_numbers_are_those_of_the_report(kind):
    reading, wording, chosen = _traced("the cat sat", kind, position=4, versus=ord("a"))
    data = page_data(reading, wording, chosen, list(page_items(reading, wording, chosen, 0.1, _effects)), name="")
    assert data["chosen"] == 5 and data["items"][0] is None and len(data["items"]) == 13
    for position in range(12):
        following = [*reading.tokens, int(reading.logits[-1].argmax())][position + 1]
        found = chosen if position == 4 else trace(reading, position, following)
        effects = _effects(found)
        none = torch.zeros(len(reading.layers), *found.parts.pairs[0].weights.shape)
        unread = none if effects is None else effects
        expected, item = report(reading, found, wording, 0.1, ROWS, unread), data["items"][position + 1]
        assert [row["id"] for row in item["costliest"]] == [row["id"] for row in expected["costliest"]]
        for row, full in zip(item["costliest"], expected["costliest"], strict=True):
            assert row["unread"] == pytest.approx(full["unread"], rel=1e-5)
        assert list(map(_without_numbers, item["paths"])) == list(map(_packed, expected["paths"]))
        assert sum(path[2] for path in item["paths"]) + item["paths_rest"] == pytest.approx(item["logit"], abs=1e-4)
        for key in ("target", "versus"):
            assert item[key] == expected[key]
        for key in ("logit", "probability", "rank", "loss"):
            assert item[key] == pytest.approx(expected[key], rel=1e-5)
        assert item["error"] < 1e-4
        assert sum(amount for _, _, amount in item["sums"]) == pytest.approx(item["logit"], abs=1e-4)
        assert sum(row["contribution"] for row in item["rows"]) + item["rest"] == pytest.approx(item["logit"], abs=1e-4)
        assert [row["id"] for row in item["rows"]] == [row["id"] for row in expected["contributions"][:ROWS]]
        for row, full in zip(item["rows"], expected["contributions"], strict=False):
            for key in ("position", "value_text", "pushes"):
                assert row[key] == full[key]
            assert ("unread" in row) == (effects is not None and row["kind"] == "ctx")
            assert row.get("unread") == (pytest.approx(full["unread"], rel=1e-5) if "unread" in row else None)
            if row["weight"] is not None:
                assert row["weight"] == pytest.approx(full["weight"], rel=1e-5)
                assert row["leave_one_out"] == pytest.approx(full["leave_one_out"], rel=1e-5)


def test_a_long_text_is_below_two_megabytes():
    page = render_page(_data(("the old hat, " * 40)[:511]))
    assert len(page.encode()) < 2_000_000 and page.count('"probability":') == 512


def test_no_text_can_leave_its_place():
    page = render_page(_data(HOSTILE))
    assert page.count("<script") == page.count("</script>") == 2 and "<!--" not in page
    assert "alert(1)" not in page.partition("<main>")[0]
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert not set("<>&\u2028\u2029\x00\x1b\u202e") & set(inside)
    shown = "".join(json.loads(inside)["tokens"][1:])
    assert shown.startswith("<script>alert(1)</script> & ") and "\\x00\\x1b[1m" in shown and "⇥↵" in shown
    assert "<title>Trace: &lt;b&gt;a &amp; b&lt;/b&gt;</title>" in page


def test_nothing_is_asked_of_the_network():
    page = render_page(_data("the cat"))
    assert "//" not in re.sub(r"^\s*//.*$|\s// .*$", "", page, flags=re.MULTILINE) and "@import" not in page
    assert "default-src 'none'" in page and "src=" not in page and not re.search(r"url\(|fetch\(|XMLHttp", page)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on the PATH: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def open_page(browser, tmp_path):
    """open_page(data, hash) -> the browser, showing it. Afterwards: nothing on its console, nothing asked."""

    def call(data, hash=""):
        path = tmp_path / "trace.html"
        path.write_text(render_page(data), encoding="utf-8")
        browser.get("about:blank")
        browser.get_log("performance")
        browser.get(path.as_uri() + hash)
        return browser

    yield call
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file:", "data:", "about:")) for url in asked)


READ = """
    const texts = (selector) => [...document.querySelectorAll(selector)].map((element) => element.innerText);
    const tokens = [...document.querySelectorAll(".token")];
    return {
      chosen: tokens.map((token, i) => token.ariaSelected === "true" ? i : -1).filter((i) => i >= 0),
      focused: tokens.indexOf(document.activeElement),
      facts: [...document.querySelectorAll("[data-fact]")].map((fact) => [fact.dataset.fact, fact.innerText]),
      ids: [...document.querySelectorAll("#memories tr[data-id]")].map((row) => row.dataset.id),
      cells: texts("#memories tr[data-id] td:nth-child(n + 3)"),
      costliest: [...document.querySelectorAll("#costliest tr[data-id]")].map((row) => row.dataset.id),
      unread: texts("#costliest tr[data-id] td:last-child"),
      paths: [...document.querySelectorAll("#paths > li[data-path]")].map((path) => path.dataset.path),
      sums: texts("#layers td:last-child"),
    };
"""


def _number(text):
    return float(text.replace("−", "-")) if text else None


def _check(browser, data, index):
    """The page shows item `index`, with its numbers; returns what it shows."""
    deadline = time.monotonic() + 5  # the page follows its address, whose change is an event of its own
    while (shown := browser.execute_script(READ))["chosen"] != [index] and time.monotonic() < deadline:
        time.sleep(0.01)
    item = data["items"][index]
    facts = {name: _number(text) for name, text in shown["facts"]}
    assert shown["chosen"] == [index] and facts["token"] == index
    assert facts["logit" if item["versus"] is None else "lead"] == pytest.approx(item["logit"], abs=1e-4)
    assert facts["probability"] == pytest.approx(item["probability"], rel=1e-2)
    assert facts["rank"] == item["rank"] and facts["loss"] == pytest.approx(item["loss"], abs=1e-3)
    assert facts["completeness error"] == pytest.approx(item["error"], rel=0.1)
    assert shown["ids"] == [row["id"] for row in item["rows"]]
    columns = ("contribution", "weight", "leave_one_out", *(["unread"] if item["costliest"] else []))
    numbers = [row.get(key) for row in item["rows"] for key in columns]
    for text, number in zip(shown["cells"], numbers, strict=True):
        assert _number(text) == (None if number is None else pytest.approx(number, abs=1e-3))
    assert shown["costliest"] == [row["id"] for row in item["costliest"]]
    unread = [row["unread"] for row in item["costliest"]]
    assert list(map(_number, shown["unread"])) == pytest.approx(unread, abs=1e-3)
    assert shown["paths"] == [path[0] for path in item["paths"]]
    sums = [_number(text) for text in shown["sums"]]
    assert sums[-1] == pytest.approx(item["logit"], abs=1e-3) and sum(sums[:-1]) == pytest.approx(sums[-1], abs=5e-3)
    return shown


def test_it_opens_on_what_was_asked_and_follows_clicks_and_keys(open_page):
    data = _data("the cat sat")
    browser = open_page(data)
    _check(browser, data, 12)
    tokens = browser.find_elements(By.CSS_SELECTOR, ".token")
    tokens[5].click()
    _check(browser, data, 5)
    assert browser.find_element(By.CSS_SELECTOR, "#said b").text == "c"
    for key, index in (
        (Keys.ARROW_RIGHT, 6),
        (Keys.ARROW_LEFT, 5),
        (Keys.ARROW_LEFT, 4),
        (Keys.HOME, 1),
        (Keys.ARROW_LEFT, 1),
        (Keys.END, 12),
        (Keys.ARROW_RIGHT, 12),
    ):
        browser.switch_to.active_element.send_keys(key)
        assert _check(browser, data, index)["focused"] == index  # so that the next key finds it
    browser.back()
    _check(browser, data, 12)  # keys leave no history, the click did: back is where the page began


def test_a_memory_leads_to_its_place_in_the_text(open_page):
    data = _data("the cat sat on the mat")
    browser = open_page(data, "#t12")
    row = next(row for row in data["items"][12]["rows"] if row["kind"] == "ctx")
    line = browser.find_element(By.CSS_SELECTOR, f'[data-id="{row["id"]}"]')
    tokens = browser.find_elements(By.CSS_SELECTOR, ".token")
    stored = tokens[row["position"] + 1]
    assert float(stored.get_attribute("style").split("--strength:")[1].strip(" ;")) > 0
    assert "value" not in stored.get_attribute("class")
    ActionChains(browser).move_to_element(line).perform()
    assert "value" in stored.get_attribute("class") and "key" in tokens[row["position"]].get_attribute("class")
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    assert not browser.find_elements(By.CSS_SELECTOR, ".token.value, .token.key")
    browser.execute_script("arguments[0].focus()", line.find_element(By.TAG_NAME, "button"))
    assert "value" in stored.get_attribute("class")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    _check(browser, data, row["position"] + 1)
    assert not browser.find_elements(By.CSS_SELECTOR, ".token.value, .token.key")


def test_a_path_opens_down_to_its_tokens(open_page):
    data = _data("the cat sat on the mat")
    browser = open_page(data, "#t12")
    place = next(i for i, path in enumerate(data["items"][12]["paths"]) if path[4])
    _, _, amount, rest, children, *_ = data["items"][12]["paths"][place]
    path = browser.find_elements(By.CSS_SELECTOR, "#paths > li")[place]
    inside = path.find_elements(By.CSS_SELECTOR, "details > ul > li")
    assert not inside[0].is_displayed()
    path.find_element(By.TAG_NAME, "summary").click()
    assert inside[0].is_displayed() and len(inside) == len(children) + 1
    shown = [_number(line.find_element(By.CLASS_NAME, "amount").text) for line in inside]
    assert shown == pytest.approx([*(child[2] for child in children), rest], abs=1e-3)
    assert sum(shown) == pytest.approx(amount, abs=2e-3 * len(shown))
    for line, child in zip(inside, children, strict=False):
        assert f"{child[0]} at token {child[1]}" in line.text


def test_hostile_text_is_shown_as_text(open_page):
    data = _data(HOSTILE)
    browser = open_page(data)
    shown = browser.find_element(By.ID, "text").get_attribute("textContent")
    assert "<script>alert(1)</script> & </script><!--" in shown and "\\x00\\x1b[1m" in shown
    assert browser.title == "Trace: <b>a & b</b>" and len(browser.find_elements(By.TAG_NAME, "script")) == 2
    assert not browser.find_elements(By.CSS_SELECTOR, "main b b, #text *:not(.token)")


def test_a_transformer_s_page_has_no_peek_and_no_matches(open_page):
    data = _data("the cat sat", kind="transformer", position=5, versus=ord("a"))
    browser = open_page(data)
    _check(browser, data, 6)
    assert not browser.find_elements(By.CLASS_NAME, "match")
    assert "the text goes on with" in browser.find_element(By.ID, "detail").text
