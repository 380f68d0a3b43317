# SPDX-License-Identifier: Apache-2.0
"""The playground in headless Chromium against a real server."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from open_autoglm.bundle import BundleManifest, write_bundle
from open_autoglm.bundle.huggingface import write_tokenizer
from open_autoglm.models.checkpoint import save_model
from tests.engine.tiny_bundle import DIALOGUE, make_config, make_model, make_tokenizer
from tests.serve.chromium_page import Page, one_page
from tests.serve.conftest import Running, serving

LONG = 30_000
KEY = "secret-key-of-the-page"
AUTHORIZATION = {"Authorization": f"Bearer {KEY}"}
HOSTILE = "<img src=x onerror=\"window.hacked='img'\"><script>window.hacked='script'</script>"
SHELL_TEXT = "It's \"$HOME\" `id` $(id) \\n \\ !! %s {x} 你好 \u202e \t'; exit 3\nend"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    yield from one_page(tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def rambler(browser: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Has a context so long that an answer is never over before it is stopped, and asks for a key."""
    del browser  # without one there is no need for the bundle
    folder = tmp_path_factory.mktemp("rambler")
    staging = folder / "staging"
    staging.mkdir()
    tokenizer = make_tokenizer()
    config = make_config(tokenizer, max_position_embeddings=32_768)
    save_model(make_model(config), staging)
    write_tokenizer(tokenizer, staging, max_length=config.max_position_embeddings)
    manifest = BundleManifest(
        name="rambler", task=DIALOGUE.to_dict(), architecture=config.architecture, parameters=config.num_parameters()
    )
    write_bundle(folder / "bundle", staging, manifest)
    with serving(folder / "bundle", api_key=KEY) as running:
        yield running


def open_with_key(page: Page, running: Running) -> None:
    page.open(running.url)
    page.fill("#api-key", KEY)
    page.until(lambda: page.find("#model").get_attribute("value") == "rambler")
    page.faults()  # of the first try, which the server refused


def steps_of(running: Running) -> int:
    return running.model.stats.num_steps


def answer_text(page: Page) -> str:
    return page.script("return [...document.querySelectorAll('.assistant .content')].at(-1)?.textContent ?? ''")


def free_text(page: Page, max_tokens: int) -> None:
    """Let the random model write exactly so many tokens, the likeliest ones."""
    page.fill("#parameter-temperature", "0")
    page.fill("#parameter-max_tokens", str(max_tokens))
    page.fill("#extra", '{"ignore_eos": true}')


def test_the_page_loads_in_silence_and_asks_nobody_else(browser: Page, talker: Running) -> None:
    browser.requested()
    page = browser.open(talker.url)
    asked = page.requested()
    assert f"{talker.url}/v1/models" in asked
    assert all(url.startswith((f"{talker.url}/", "data:", "about:")) for url in asked), asked
    assert page.faults() == []
    assert page.driver.title == "Open-AutoGLM playground"
    assert page.find("#model").get_attribute("value") == "talker"
    assert "256 tokens" in page.text("#model-note")
    assert page.script("return document.activeElement.id") == "draft"


def test_an_answer_is_the_servers_with_its_usage_and_speed(browser: Page, talker: Running) -> None:
    page = browser.open(talker.url)
    free_text(page, 60)
    page.fill("#system", "be brief")
    page.click(".switch:has(#logprobs)")
    page.fill("#draft", "hello")
    page.find("#draft").send_keys("\ue007")
    page.until_idle()
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 60, "ignore_eos": True}
    expected = talker.post(body).json()
    page.click("[aria-label='Show as plain text']")
    assert answer_text(page) == expected["choices"][0]["message"]["content"]
    statistics = page.text(".assistant .statistics")
    assert re.search(r"[\d,.]+ m?s to first token", statistics)
    assert re.search(r"[\d,.]+ tokens/s", statistics)
    assert f"{expected['usage']['prompt_tokens']} + 60 tokens" in statistics
    assert "cut off" in statistics
    page.click(".assistant [aria-label='Token probabilities']")
    assert len(page.find_all(".token")) > 30
    page.click(".token")
    assert len(page.find_all(".token-detail li")) in (5, 6)
    assert page.find("#draft").get_attribute("value") == ""
    assert page.faults() == []


def test_stopping_ends_the_work_within_a_step(browser: Page, rambler: Running) -> None:
    page = browser
    open_with_key(page, rambler)
    free_text(page, LONG)
    for press in (lambda: page.click("#send.stops"), lambda: page.press("\ue00c")):
        before = steps_of(rambler)
        page.fill("#draft", "talk")
        page.click("#send")
        page.until(lambda: page.is_busy and answer_text(page).strip())  # text is there while the model still writes
        press()
        page.until_idle()
        rambler.wait_until_idle()
        assert steps_of(rambler) - before < LONG
        assert "stopped" in page.text(".assistant:last-child .statistics")
        assert answer_text(page).strip()
        page.click("[aria-label='Delete message']")
    assert page.faults() == []


def test_the_key_stays_in_the_tab_and_out_of_addresses(browser: Page, rambler: Running) -> None:
    browser.requested()
    page = browser.open(rambler.url)
    assert page.script("return document.activeElement.id") == "api-key", "a server that asks for a key leads to its box"
    assert "API key" in page.text("#model-note")
    page.fill("#api-key", KEY)
    page.until(lambda: page.find("#model").get_attribute("value") == "rambler")
    page.fill("#parameter-max_tokens", "5")
    page.say("hello")
    assert KEY in page.script("return JSON.stringify(sessionStorage)")
    assert KEY not in page.script("return JSON.stringify(localStorage) + location.href + document.body.innerText")
    page.click("#tab-code")
    assert KEY not in page.text("#page-code")
    assert all(KEY not in url for url in page.requested())
    page.reload()
    assert page.find("#model").get_attribute("value") == "rambler", "the tab still has it"


@pytest.mark.parametrize("stream", [True, False])
def test_the_code_shown_runs_and_says_the_same(browser: Page, rambler: Running, stream: bool, tmp_path: Path) -> None:
    page = browser
    open_with_key(page, rambler)
    free_text(page, 40)
    page.fill("#system", SHELL_TEXT)
    page.fill("#parameter-stop", 'it\'s "$"\\n')
    if not stream:
        page.click(".switch:has(#stream)")
    page.say(SHELL_TEXT)
    page.click("[aria-label='Show as plain text']")
    shown = answer_text(page)
    assert shown
    page.click("#tab-code")
    environment = {**os.environ, "OPEN_AUTOGLM_API_KEY": KEY, "no_proxy": "127.0.0.1"}
    options: dict[str, Any] = {"capture_output": True, "env": environment, "timeout": 60}
    curl = page.text("#curl pre")
    done = subprocess.run(["/bin/sh", "-c", curl], cwd=tmp_path, check=False, **options)
    assert done.returncode == 0, done.stderr
    if stream:
        events = [line[6:] for line in done.stdout.decode().split("\n") if line.startswith("data: {")]
        deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == shown
    else:
        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == shown
    program = tmp_path / "program.py"
    program.write_text(page.text("#python pre"), encoding="utf-8")
    environment["PYTHONIOENCODING"] = "utf-8"
    done = subprocess.run([sys.executable, str(program)], cwd=tmp_path, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == shown + "\n"


def test_markup_in_texts_stays_text(browser: Page, rambler: Running) -> None:
    page = browser
    open_with_key(page, rambler)
    link = "[x](javascript:window.hacked=1) **bold** [y](https://example.org/)"
    page.fill("#extra", json.dumps({"guided_choice": [f"{HOSTILE} {link}"]}))
    page.fill("#system", HOSTILE)
    page.say(HOSTILE)
    page.click("#tab-code")
    assert HOSTILE in page.text(".user .bubble")
    assert HOSTILE in answer_text(page)
    assert "onerror" in page.text("#curl")
    assert [link.get_attribute("href") for link in page.find_all(".assistant a")] == ["https://example.org/"]
    assert page.find(".assistant a").get_attribute("rel").split()[:2] == ["noopener", "noreferrer"]
    assert page.text(".assistant strong") == "bold"
    assert page.find_all("main .message img, main .message script") == []
    page.reload()
    assert HOSTILE in answer_text(page), "the conversation is still there"
    assert page.script("return window.hacked ?? null") is None
    assert page.faults() == []


def test_faults_are_shown_as_the_server_tells_them(browser: Page, talker: Running) -> None:
    page = browser.open(talker.url)
    page.fill("#extra", '{"no_such_field": 1}')
    page.say("hello")
    told = talker.post({"messages": [{"role": "user", "content": "x"}], "no_such_field": 1}).json()["error"]["message"]
    assert page.text(".assistant .fault") == f"400: {told}"
    page.fill("#extra", "{")
    page.fill("#draft", "again")
    page.click("#send")
    assert page.text("#notice").startswith("extra: Not valid JSON at line 1, column 2")
    assert page.find("#draft").get_attribute("value") == "again", "what could not be sent is not lost"
    page.fill("#extra", "")
    page.fill("#thinking", "off")
    page.click(".user [aria-label='Have it answered'], .assistant [aria-label='Answer again']")
    page.until_idle()
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    is_lacking = talker.post({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **kwargs}).is_error
    assert bool(page.find_all("[data-field=chat_template_kwargs] .lacking-mark")) is is_lacking
    page.click(".assistant [aria-label='Answer again']")
    page.until_idle()
    assert page.find_all(".assistant .fault") == [], "a field that the server lacks is not sent again"


def test_themes_and_languages(browser: Page, talker: Running) -> None:
    page = browser.open(talker.url)

    def ground() -> str:
        return page.script("return getComputedStyle(document.body).backgroundColor")

    def prefer(theme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": theme}
        page.command("Emulation.setEmulatedMedia", {"features": [feature]})

    prefer("light")
    light = ground()
    prefer("dark")
    dark = ground()
    assert light != dark
    page.click("#theme")
    assert ground() == light
    page.reload()
    assert ground() == light, "the choice is kept"
    page.click("#theme")
    prefer("light")
    assert ground() == dark
    page.click("#theme")
    assert ground() == light
    assert page.text("#tab-settings") == "Settings"
    page.click("#language")
    assert page.text("#tab-settings") == "设置"
    assert page.script("return document.documentElement.lang") == "zh-CN"
    texts = page.script("return document.body.innerText")
    assert "输入消息" in page.find("#draft").get_attribute("placeholder")
    assert "Write a message" not in texts
    page.reload()
    assert page.driver.title == "Open-AutoGLM 试验场"
    page.script("localStorage.clear()")
    agent = page.script("return navigator.userAgent")
    page.command("Network.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": "zh-CN"})
    page.reload()
    assert page.text("#tab-settings") == "设置", "the browser's language is the first choice"
    page.command("Network.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": "en-US"})
    assert page.faults() == []


@pytest.mark.parametrize("language", ["en", pytest.param("zh", marks=pytest.mark.thorough)])
def test_a_phone_has_room_for_everything(browser: Page, rambler: Running, language: str) -> None:
    page = browser
    open_with_key(page, rambler)
    page.fill(
        "#extra",
        json.dumps({"guided_choice": ["```\n" + "code " * 40 + "\n```\n" + "w" * 90 + "\n| a | b |\n|-|-|\n"]}),
    )
    if language == "zh":
        page.click("#language")
    page.resize(390, 844, mobile=True)
    page.reload()

    def overflow() -> int:
        return page.script("return document.documentElement.scrollWidth - window.innerWidth")

    assert overflow() <= 0
    assert page.find("#panel").is_displayed() is False
    page.say("w" * 100)
    assert overflow() <= 0
    page.click("#panel-toggle")
    for tab in ("settings", "tools", "format", "code"):
        page.click(f"#tab-{tab}")
        if tab == "format":
            page.fill("#format", "json_schema")
        assert overflow() <= 0
        assert page.script("return document.querySelector('#panel').scrollWidth") <= 390
    page.press("\ue00c")
    assert page.find("#panel").is_displayed() is False
    small = page.script(
        "return [...document.querySelectorAll('.top button, #send')].filter((b) => b.offsetParent)"
        ".filter((b) => Math.min(b.offsetWidth, b.offsetHeight) < 24).map((b) => b.id)"
    )
    assert small == [], "targets are at least 24 px, as WCAG 2.2 asks"


def test_messages_are_edited_and_answered_again(browser: Page, talker: Running) -> None:
    page = browser.open(talker.url)
    free_text(page, 8)
    page.say("first")
    before = answer_text(page)
    page.say("second")
    assert len(page.find_all(".message")) == 4
    page.click(".user [aria-label='Edit']")
    page.fill(".edit-box", "another question")
    page.click(".edit-form .primary")
    page.until_idle()
    assert [found.text for found in page.find_all(".user .bubble")] == ["another question"]
    assert len(page.find_all(".assistant")) == 1
    page.fill("#parameter-max_tokens", "4")
    page.click(".assistant [aria-label='Answer again']")
    page.until_idle()
    assert "+ 4 tokens" in page.text(".assistant .statistics")
    page.click(".assistant [aria-label='Edit']")
    page.fill(".edit-box", "**mine**")
    page.click(".edit-form .primary")
    assert page.text(".assistant strong") == "mine"
    assert before != "mine"
    page.find("#draft").send_keys("\ue013")
    assert page.script("return document.activeElement.className") == "edit-box", "arrow up edits the last message"
    page.press("\ue00c")
    assert page.find_all(".edit-box") == []


def test_a_conversation_goes_out_and_comes_back(browser: Page, talker: Running) -> None:
    page = browser.open(talker.url)
    free_text(page, 6)
    page.fill("#system", "be brief")
    page.say("keep this")
    shown = answer_text(page)
    page.click("#export")
    file = page.until(lambda: next(iter(page.downloads.glob("conversation-*.json")), None))
    exported = json.loads(file.read_text(encoding="utf-8"))
    assert exported["messages"][0] == {"role": "user", "content": "keep this"}
    page.script("window.confirm = () => true")
    page.click("#new")
    page.fill("#system", "")
    assert page.find("#welcome").is_displayed()
    page.find("#import-file").send_keys(str(file))
    page.until(lambda: page.find_all(".assistant"))
    assert answer_text(page) == shown
    assert page.find("#system").get_attribute("value") == "be brief"
    broken = page.downloads / "broken.json"
    broken.write_text('{"messages": [{"role": "robot"}]}')
    page.find("#import-file").send_keys(str(broken))
    page.until(lambda: "Message 1" in page.text("#notice"))
    assert answer_text(page) == shown, "a file that is none changes nothing"


def test_tool_calls_are_cards_that_take_results(browser: Page, rambler: Running) -> None:
    page = browser
    open_with_key(page, rambler)
    free_text(page, 6)
    names = ("get_weather", "find_order")
    calls = [
        {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": '{"city": "<b>北京"}'}}
        for name in names
    ]
    messages = [{"role": "user", "content": "weather?"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    file = page.downloads / "calls.json"
    file.write_text(json.dumps(messages), encoding="utf-8")
    page.find("#import-file").send_keys(str(file))
    page.until(lambda: len(page.find_all(".tool-card")) == 2)
    assert '"city": "<b>北京"' in page.text(".tool-card pre")
    page.click(".tool-cards .primary")
    assert page.script("return document.activeElement.tagName") == "TEXTAREA", "an empty result is asked for"
    for box, result in zip(page.find_all(".tool-card textarea"), ('{"sky": "clear"}', "none"), strict=True):
        box.send_keys(result)
    page.click(".tool-cards .primary")
    page.until_idle()
    assert page.find_all(".tool-card textarea") == []
    assert '"sky": "clear"' in page.text(".tool-card")
    kept = page.script("return JSON.parse(localStorage.getItem('open-autoglm.conversation'))")
    assert [message["role"] for message in kept][:4] == ["user", "assistant", "tool", "tool"]
    assert [message.get("tool_call_id") for message in kept[2:4]] == ["call_get_weather", "call_find_order"]
    sent = [{key: value for key, value in message.items() if key != "meta"} for message in kept[:4]]
    body = {"messages": sent, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    told = rambler.post(body, headers=AUTHORIZATION)
    page.click("[aria-label='Show as plain text']") if told.is_success else None
    shown = answer_text(page) if told.is_success else page.text(".fault")
    expected = told.json()
    assert shown == (
        expected["choices"][0]["message"]["content"] if told.is_success else f"400: {expected['error']['message']}"
    )


def test_an_extraction_is_shown_as_json(browser: Page, extractor: Running) -> None:
    page = browser.open(extractor.url)
    page.say("play the song yesterday")
    shown = page.text(".assistant .code-block pre")
    answer = extractor.post({"messages": [{"role": "user", "content": "play the song yesterday"}]}).json()
    content = json.loads(answer["choices"][0]["message"]["content"])
    assert json.loads(shown) == content
    assert shown.count("\n") >= 3
    assert page.find_all(".json-name")


def test_labels_have_probabilities_where_the_server_tells_them(browser: Page, classifier: Running) -> None:
    page = browser.open(classifier.url)
    page.say("x")
    told = httpx.post(f"{classifier.url}/v1/classify", json={"model": classifier.llm.name, "input": "x"})
    if not page.find_all(".labels, .fault"):
        page.click("[aria-label='Label probabilities']")
    page.until(lambda: page.find_all(".labels, .fault"))
    if told.is_success:
        assert len(page.find_all(".labels li")) == len(classifier.llm.task.labels)
    else:
        assert page.text(".fault") == f"{told.status_code}: {told.json()['error']['message']}"


def test_everything_has_a_name_and_is_reached_by_keys(browser: Page, talker: Running) -> None:
    page = browser.open(talker.url)
    free_text(page, 6)
    page.fill("#format", "json_schema")
    page.fill("#format", "")
    page.say("hello")
    spoken = page.text("#live")
    assert "The model answers." in spoken
    assert "End of the answer." in spoken
    roles = {"button", "textbox", "combobox", "switch", "slider", "tab", "checkbox", "link", "searchbox", "spinbutton"}
    for tab in ("settings", "tools", "format", "code"):
        page.click(f"#tab-{tab}")
        nodes = page.command("Accessibility.getFullAXTree", {})["nodes"]
        controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
        assert len(controls) > 15
        assert [node for node in controls if not node.get("name", {}).get("value", "").strip()] == []
    page.find("#tab-code").send_keys("\ue012")
    assert page.find("#tab-format").get_attribute("aria-selected") == "true"
    page.script("document.activeElement.blur()")
    page.press("/")
    assert page.script("return document.activeElement.id") == "draft"
    assert page.find("#draft").get_attribute("value") == ""
    page.find("#draft").send_keys("a", "\ue008\ue007\ue000", "b")
    assert page.find("#draft").get_attribute("value") == "a\nb", "Shift+Enter begins a line"
