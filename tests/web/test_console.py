"""The console, as a person has it: real pages in Chromium, of a real `onward dev`, whose parts die meanwhile."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect
from tests.e2e.developing import Dev, developing
from tests.web.browser import browsing, needs_chromium, page_of
from tests.web.workflows import AFTER, BEFORE

from onward import Client
from onward.client import RunHandle
from onward_cli.children import Child
from onward_gateway.access import Scope, line_of, new_key

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("console")]

WORKFLOWS = Path(__file__).with_name("workflows.py")

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"</pre><b id=hacked>'

STATE = ".run-head .state"
"""Where a run's page says its state."""

CONTENT = ".row:not(.head), table, form.start, .facts, .panel-body .value, .empty"
"""What a page shows when it has been told something."""

TOO_WIDE = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dev(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    """Everything on this machine."""
    folder = tmp_path_factory.mktemp("dev")
    async with developing(folder, str(WORKFLOWS), "--no-reload") as dev:
        yield dev


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all."""
    async with browsing() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def client(dev: Dev) -> AsyncIterator[Client]:
    """Starts runs where no form is needed."""
    async with dev.client() as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, dev: Dev) -> AsyncIterator[Page]:
    """A page of the door."""
    async with page_of(browser, dev.addresses["http"]) as page:
        yield page


async def see(page: Page, run: RunHandle, path: str = "") -> None:
    """Go to a run's page."""
    await page.goto(f"/console/runs/{run.run_id}{path}")


async def test_a_run_is_started_from_the_form_of_its_schema(page: Page) -> None:
    """What the door finds wrong is shown at the fields; then it starts, with what was entered."""
    await page.goto("/console/workflows/fields")
    form = page.get_by_role("form", name="Start fields")
    await form.get_by_label("topic").fill("ab")
    await form.get_by_label("name", exact=True).fill("Ann")
    await form.get_by_role("button", name="Start", exact=True).click()
    await expect(form.get_by_label("topic")).to_have_attribute("aria-invalid", "true")
    await expect(form.locator("#field-topic-wrong")).to_contain_text("shorter")
    await expect(form.locator("#field-pages-wrong")).to_have_text("required")
    await expect(form.get_by_label("topic")).to_be_focused()

    await form.get_by_label("topic").fill("tea")
    await form.get_by_label("pages").fill("7")
    await form.get_by_label("ratio").fill("0.25")
    await form.get_by_label("draft").uncheck()
    await form.get_by_label("tone").select_option("warm")
    for tag in ("green", "black"):
        await form.get_by_role("button", name="Add to tags").click()
        await form.get_by_label(re.compile("^tags [12]$")).last.fill(tag)
    await form.get_by_role("button", name="Add to authors").click()
    await form.get_by_role("group", name="authors 1").get_by_label("name").fill("Bob")
    await form.get_by_label(re.compile("^note optional")).select_option(index=1)
    await form.get_by_label(re.compile(r"^note \(")).fill("a note")
    await form.get_by_label("counts").fill('{"a": 1')
    await expect(form.get_by_role("button", name="Start", exact=True)).to_be_disabled()
    await form.get_by_label("counts").fill('{"a": 1}')
    await form.get_by_label(re.compile("^pet optional")).select_option("Dog")
    await form.get_by_role("button", name="Start", exact=True).click()
    await expect(page.locator(STATE)).to_contain_text("succeeded")
    run_id = page.url.rpartition("/")[2]
    response = await page.request.get(f"/v1/runs/{run_id}")
    assert (await response.json())["input"] == {
        "topic": "tea",
        "pages": 7,
        "author": {"name": "Ann"},
        "ratio": 0.25,
        "draft": False,
        "tone": "warm",
        "tags": ["green", "black"],
        "authors": [{"name": "Bob"}],
        "note": "a note",
        "counts": {"a": 1},
        "pet": {"kind": "dog"},
    }


async def test_the_input_of_a_run_is_taken_over_and_edited_as_json(page: Page, client: Client) -> None:
    """From a run back to its form, with its values; the same values as JSON."""
    run = await client.start("story", {"gate": "/", "pages": 5})
    await see(page, run)
    await page.get_by_role("link", name="Same input").click()
    await expect(page.get_by_label("pages")).to_have_value("5")
    await page.get_by_role("button", name="Edit as JSON").click()
    await page.get_by_label("input JSON").fill('{"gate": "/", "pages": 4}')
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect(page.locator(STATE)).to_contain_text("succeeded")
    assert run.run_id not in page.url
    await page.get_by_role("tab", name="Run", exact=True).click()
    await expect(page.get_by_role("tabpanel")).to_contain_text("pages: 4")


async def test_a_run_is_seen_live_through_a_refresh_and_the_death_of_its_executor(
    page: Page, client: Client, tmp_path: Path
) -> None:
    """The text is whole and comes once, whatever happens to page and executor; the waterfall tells what happened."""
    gate = tmp_path / "gate"
    run = await client.start("story", {"gate": str(gate)})
    await see(page, run)
    prose = page.get_by_role("tabpanel").locator(".prose")
    await expect(prose).to_have_text(BEFORE)
    await expect(page.locator(".connection")).to_have_text("live")
    await expect(page.get_by_role("progressbar")).to_have_attribute("value", "1")

    await page.reload()
    await expect(prose).to_have_text(BEFORE)
    await page.get_by_role("tab", name="State").click()
    await expect(page.get_by_role("tabpanel")).to_contain_text("Ann")
    await page.reload()
    await expect(page.get_by_role("tab", name="State")).to_have_attribute("aria-selected", "true")
    await page.get_by_role("tab", name="Output").click()

    told = await page.locator(".status").inner_text()
    os.kill(int(re.search(r"pid (\d+)", told)[1]), signal.SIGKILL)  # type: ignore[index]
    await expect(page.locator(".run-facts")).to_contain_text(re.compile(r"attempt\s*2"))
    await expect(prose).to_have_text(BEFORE)
    gate.touch()
    await expect(prose).to_have_text(BEFORE + AFTER)
    await expect(page.locator(STATE)).to_contain_text("succeeded")
    await expect(page.get_by_role("tabpanel").locator(".result")).to_contain_text(BEFORE + AFTER)

    rows = page.get_by_role("treegrid").get_by_role("row")
    await expect(rows).to_have_count(5)  # the head, the workflow, two pages, the teller
    await expect(rows.nth(4)).to_contain_text("lost in attempt 1, ok in attempt 2")
    await expect(rows.nth(2)).to_contain_text("ok in attempt 1")
    await page.get_by_role("tab", name="Run", exact=True).click()
    await expect(page.get_by_role("tabpanel")).to_contain_text("executor lost")
    await expect(page.get_by_role("tabpanel")).to_contain_text("attempt lost: tell")


async def test_text_that_turns_out_void_is_taken_back_where_it_stands(
    page: Page, client: Client, tmp_path: Path
) -> None:
    """A later attempt says something else: what both say stays, the rest is replaced while it is looked at."""
    gate = tmp_path / "gate"
    run = await client.start("unsure", {"gate": str(gate)})
    await see(page, run)
    prose = page.get_by_role("tabpanel").locator(".prose").first
    await expect(prose).to_have_text(re.compile(r"^This is certain\. Process \d+ says so\. $"))
    process = int(re.search(r"\d+", await prose.inner_text())[0])  # type: ignore[index]
    os.kill(process, signal.SIGKILL)
    await expect(page.locator(".run-facts")).to_contain_text(re.compile(r"attempt\s*2"))
    gate.touch()
    await expect(page.locator(STATE)).to_contain_text("succeeded")
    await expect(prose).to_have_text(re.compile(r"^This is certain\. Process \d+ says so\. The end\.$"))
    await expect(prose).not_to_contain_text(str(process))


async def test_the_waterfall_is_read_with_the_keyboard(page: Page, client: Client) -> None:
    """Tab leads into it, arrows through it, and what a failed try had said is told."""
    run = await client.start("retried")
    await run.result()
    await see(page, run)
    tree = page.get_by_role("treegrid")
    await expect(tree.get_by_role("row")).to_have_count(4)
    await tree.focus()
    selected = tree.locator('[aria-selected="true"]')
    await expect(selected).to_contain_text("retried")
    await page.keyboard.press("ArrowDown")
    await expect(selected).to_contain_text("around")
    await page.keyboard.press("ArrowRight")
    await expect(selected).to_contain_text("shaky")
    await expect(selected).to_contain_text("retried in attempt 1, retried in attempt 1, ok in attempt 1")
    panel = page.get_by_role("tabpanel")
    await expect(panel).to_contain_text("cut off in try")
    await panel.get_by_text("What it had said").first.click()
    await expect(panel.locator(".void-text").first).to_have_text(re.compile("^try [0-9]+ $"))
    await expect(panel.locator(".part .prose")).to_have_text(re.compile("^try [0-9]+ $"))

    await page.keyboard.press("Shift+Tab")
    await tree.focus()
    await page.keyboard.press("ArrowLeft")
    await expect(selected).to_contain_text("around")
    await page.keyboard.press("ArrowLeft")
    await expect(selected).to_have_attribute("aria-expanded", "false")
    await expect(tree.get_by_role("row")).to_have_count(3)
    await page.keyboard.press("Home")
    await expect(selected).to_contain_text("retried")
    assert await page.evaluate("() => document.activeElement.getAttribute('role')") == "treegrid"


async def test_the_bare_address_leads_to_the_console(page: Page) -> None:
    """Whoever types what the ready line says, sees something."""
    await page.goto("/")
    await expect(page).to_have_url(re.compile("/console"))
    await expect(page.get_by_text("Start a run")).to_be_visible()


async def test_a_link_to_an_instance_shows_it(page: Page, client: Client) -> None:
    """The address holds what is shown: sent to somebody else it shows them the same."""
    run = await client.start("retried")
    await run.result()
    await see(page, run)
    await page.get_by_role("row", name=re.compile("shaky")).click()
    await expect(page).to_have_url(re.compile("component="))
    await page.goto(page.url)
    await expect(page.get_by_role("tab", name="shaky")).to_have_attribute("aria-selected", "true")
    await expect(page.get_by_role("tabpanel")).to_contain_text("Failed tries")


async def test_a_run_goes_again_from_a_component(page: Page, client: Client) -> None:
    """As a new run, whose page says where it comes from; what came before the component is not done again."""
    run = await client.start("story", {"gate": "/", "pages": 2})
    await run.result()
    await see(page, run)
    await page.get_by_role("row", name=re.compile("tell")).click()
    await page.get_by_role("button", name="Run again from here").click()
    await expect(page).not_to_have_url(re.compile(run.run_id))
    await expect(page.locator(STATE)).to_contain_text("succeeded")
    await page.get_by_role("tab", name="Run", exact=True).click()
    await expect(page.get_by_role("link", name=run.run_id)).to_be_visible()


async def test_a_run_that_goes_on_as_another_leads_there(page: Page, client: Client) -> None:
    """And that one back."""
    run = await client.start("chain")
    await see(page, run)
    await page.get_by_text("It goes on as").get_by_role("link").click()
    await expect(page).not_to_have_url(re.compile(run.run_id))
    await expect(page.locator(".result")).to_contain_text("0")
    await page.get_by_role("tab", name="Run", exact=True).click()
    await page.get_by_role("link", name=run.run_id).click()
    await expect(page).to_have_url(re.compile(run.run_id))


async def test_a_run_is_cancelled_after_a_question(page: Page, client: Client, tmp_path: Path) -> None:
    """One click does not end a run."""
    run = await client.start("story", {"gate": str(tmp_path / "never")})
    await see(page, run)
    await page.get_by_role("button", name="Cancel").click()
    await page.get_by_role("button", name="No", exact=True).click()
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.get_by_role("button", name="Yes, cancel")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator(STATE)).to_contain_text("cancelled")
    reasons = [event.run_state_changed.reason async for event in run.follow()]
    assert "cancelled in the console" in reasons


async def test_a_parked_run_is_answered_with_the_form_of_its_question(page: Page, client: Client) -> None:
    """What does not fit the asked schema is told at its field; what fits wakes the run. A bare signal is sent, too."""
    run = await client.start("asking", {"text": HOSTILE})
    await see(page, run)
    question = page.get_by_role("form", name="Answer decision")
    await expect(question).to_contain_text(f"Shall {HOSTILE} be published?")
    await expect(page.locator(STATE)).to_contain_text("waiting")
    await question.get_by_label("publish").check()
    await question.get_by_label("comment").fill("ok")
    await question.get_by_role("button", name="Send").click()
    await expect(question.locator(".violation").first).to_contain_text("shorter")
    await page.reload()
    await question.get_by_label("publish").check()
    await question.get_by_label("comment").fill("well done")
    await question.get_by_role("button", name="Send").click()

    bare = page.get_by_role("form", name="Answer word")
    await bare.get_by_label("word").fill('"onward"')
    await bare.get_by_role("button", name="Send").click()
    await expect(page.locator(STATE)).to_contain_text("succeeded")
    assert await run.result() == ["True well done", "onward"]
    await expect(page.get_by_role("form")).to_have_count(0)
    await page.get_by_role("tab", name="Run", exact=True).click()
    await expect(page.get_by_role("tabpanel")).to_contain_text("parked")


async def test_the_list_of_runs_is_live_and_filtered(page: Page, client: Client) -> None:
    """New runs and new states appear by themselves; filters are in the address."""
    mark = uuid.uuid4().hex
    await page.goto(f"/console/runs?label=mark:{mark}")
    await expect(page.get_by_text("No run fits")).to_be_visible()
    run = await client.start("failing", {"text": "no"}, labels={"mark": mark})
    await client.start("retried", labels={"mark": mark})
    rows = page.get_by_role("grid", name="Runs").get_by_role("row")
    await expect(rows).to_have_count(3)
    await expect(rows.filter(has_text="failing")).to_contain_text("failed")
    await expect(rows.filter(has_text="retried")).to_contain_text("succeeded")
    await page.get_by_label("State").select_option("failed")
    await expect(rows).to_have_count(2)
    await expect(page).to_have_url(re.compile("state=FAILED"))
    await page.reload()
    await expect(rows).to_have_count(2)
    await page.get_by_role("grid").focus()
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(re.compile(run.run_id))
    await page.go_back()
    await page.get_by_role("button", name=re.compile("Remove the filter")).click()
    await expect(page).not_to_have_url(re.compile(mark))


async def test_a_long_list_holds_few_rows_and_all_runs(page: Page, client: Client) -> None:
    """What is not seen is not drawn; the end of the list is the first run."""
    mark = uuid.uuid4().hex
    runs = [await client.start("retried", labels={"mark": mark}) for _ in range(1)]
    runs += await asyncio.gather(*(client.start("retried", labels={"mark": mark}) for _ in range(149)))
    await page.goto(f"/console/runs?label=mark:{mark}")
    grid = page.get_by_role("grid")
    await expect(page.get_by_text("100+ runs")).to_be_visible()
    await grid.focus()
    await page.keyboard.press("End")
    await expect(page.get_by_text("150 runs")).to_be_visible()
    await page.keyboard.press("End")
    await expect(grid).to_contain_text(runs[0].run_id)
    assert await grid.get_by_role("row").count() < 60


async def test_whatever_a_workflow_says_is_shown_as_text(page: Page, client: Client) -> None:
    """Markup and scripts in inputs, statuses, text, published values, errors and names stay text, on every page."""
    run = await client.start("failing", {"text": HOSTILE}, labels={"<b>": HOSTILE})
    await client.wait_for(run.run_id)
    await see(page, run)
    await expect(page.locator(".failure").first).to_contain_text(HOSTILE)
    for tab in ("Output", "State", "Run", "Log"):
        await page.get_by_role("tab", name=tab, exact=True).click()
        await expect(page.get_by_role("tabpanel")).to_contain_text("<img src=x")
    await page.get_by_role("row", name=re.compile("echo")).first.click()
    await expect(page.get_by_role("tabpanel")).to_contain_text(HOSTILE)
    await page.goto("/console/runs?workflow=failing")
    await expect(page.get_by_role("grid")).to_contain_text("<img src=x")
    await page.goto(f"/console/workflows/failing?from={run.run_id}")
    await expect(page.get_by_role("region", name="From elsewhere")).to_contain_text("<img src=x")
    await expect(page.locator(".lead")).to_contain_text("<b>these</b>")
    assert await page.evaluate("() => [window.hacked, document.querySelector('#hacked, img')]") == [None, None]


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1280, True)], ids=["narrow and light", "wide and dark"])
async def test_pages_are_accessible_and_fit(browser: Browser, dev: Dev, client: Client, width: int, dark: bool) -> None:
    """axe finds nothing on any page, and nothing is cut off at the width of a phone."""
    run = await client.start("retried", labels={"team": "blue"})
    await run.result()
    failed = await client.start("failing", {"text": "no"})
    await client.wait_for(failed.run_id)
    paths = [
        "/console/runs",
        "/console/executors",
        "/console/workflows/fields",
        f"/console/runs/{failed.run_id}?tab=log",
        f"/console/runs/{failed.run_id}",
        f"/console/runs/{run.run_id}?tab=run",
        f"/console/runs/{run.run_id}?tab=log",
        f"/console/runs/{run.run_id}?tab=state",
        "/console/runs/no-such-run",
    ]
    shaky = next(one for one in (await run.view()).components.values() if one.name == "shaky")
    paths.append(f"/console/runs/{run.run_id}?component={shaky.id}")
    async with page_of(browser, dev.addresses["http"], width=width, dark=dark, script=Axe().axe_script) as page:
        for path in paths:
            await page.goto(path)
            await expect(page.locator(CONTENT).first).to_be_visible()
            found = await page.evaluate("() => axe.run({ resultTypes: ['violations'] })")
            told = [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in found["violations"]]
            assert told == [], path
            assert await page.evaluate(TOO_WIDE) == 0, f"{path} is wider than {width} pixels"


async def test_the_theme_follows_the_system_until_somebody_chooses(browser: Browser, dev: Dev) -> None:
    """A choice is kept over reloads, from the first paint."""
    background = "() => getComputedStyle(document.body).backgroundColor"
    async with page_of(browser, dev.addresses["http"], dark=True) as page:
        await page.goto("/console/executors")
        dark = await page.evaluate(background)
        await page.get_by_role("button", name=re.compile("system")).click()
        light = await page.evaluate(background)
        assert light != dark
        await page.reload()
        assert await page.evaluate(background) == light
        await page.get_by_role("button", name=re.compile("light")).click()
        assert await page.evaluate(background) == dark


async def test_the_executors_are_told(page: Page, dev: Dev) -> None:
    """Who is there, with which code and how much to do."""
    await page.goto("/console/executors")
    row = page.get_by_role("row").filter(has_text=dev.deployment)
    await expect(row.first).to_contain_text("retried")
    await expect(row.first).to_contain_text("/ 100")


@pytest.mark.parametrize("language", ["Python", "curl"])
async def test_the_snippets_run_as_they_are_shown(page: Page, dev: Dev, tmp_path: Path, language: str) -> None:
    """Copied into a file they start the workflow."""
    await page.goto("/console/workflows/retried")
    await page.get_by_role("button", name=language).click()
    text = await page.locator(".snippets pre").inner_text()
    name = "snippet.py" if language == "Python" else "snippet.sh"
    (tmp_path / name).write_text(text.split("\n\n# follow")[0])
    process = await asyncio.create_subprocess_exec(
        *((sys.executable, name) if language == "Python" else ("bash", name)),
        cwd=tmp_path,
        env={**os.environ, "ONWARD_GATEWAY": dev.addresses["grpc"]},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert ("SUCCEEDED" if language == "Python" else '"workflow":"retried"') in out.decode()


async def test_a_dead_gateway_is_waited_for(browser: Browser, dev: Dev, client: Client, tmp_path: Path) -> None:
    """The page says that it reconnects, and goes on at its cursor: nothing is lost and nothing comes twice."""
    store = next(line.split()[1] for line in dev.lines if line.startswith("  store "))
    arguments = ["gateway", f"--redis={store}", f"--scheduler={dev.scheduler}", "--grpc=127.0.0.1:0"]
    gate = tmp_path / "gate"
    run = await client.start("story", {"gate": str(gate)})
    gateway = await Child.start([*arguments, "--http=127.0.0.1:0"])
    try:
        assert await gateway.ready()
        http = gateway.addresses["http"]
        async with page_of(browser, http) as page:
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url) if "/events" in request.url else None)
            await see(page, run)
            await expect(page.locator(".prose")).to_have_text(BEFORE)
            os.kill(gateway.pid, signal.SIGKILL)
            await gateway.ended()
            await expect(page.locator(".connection")).to_have_text("reconnecting")
            await expect(page.locator(".prose")).to_have_text(BEFORE)
            gate.touch()
            await run.result()
            gateway = await Child.start([*arguments, f"--http={http}"])
            assert await gateway.ready()
            await expect(page.locator(".prose")).to_have_text(BEFORE + AFTER)
            await expect(page.locator(STATE)).to_contain_text("succeeded")
            assert "after=" not in asked[0]
            assert "after=" in asked[-1], "what is known is not read again"
    finally:
        await gateway.stop(5.0)


async def test_a_key_is_asked_for_once_and_kept_in_the_tab(
    browser: Browser, dev: Dev, client: Client, tmp_path: Path
) -> None:
    """Where the door asks for a key the console asks its user; a wrong one is asked for again."""
    key = new_key()
    (tmp_path / "keys").write_text(line_of(key, "default", frozenset({Scope.READ, Scope.WRITE}), "test") + "\n")
    store = next(line.split()[1] for line in dev.lines if line.startswith("  store "))
    run = await client.start("retried")
    options = [f"--redis={store}", f"--scheduler={dev.scheduler}", f"--keys={tmp_path / 'keys'}"]
    gateway = await Child.start(["gateway", *options, "--grpc=127.0.0.1:0", "--http=127.0.0.1:0"])
    try:
        assert await gateway.ready()
        async with page_of(browser, gateway.addresses["http"]) as page:
            await see(page, run)
            dialog = page.get_by_role("dialog", name="API key")
            await dialog.get_by_label("Key").fill("onward_wrong")
            await dialog.get_by_role("button", name="Go on").click()
            await expect(dialog).to_contain_text("does not take that key")
            await dialog.get_by_label("Key").fill(key)
            await page.keyboard.press("Enter")
            await expect(page.locator(STATE)).to_contain_text("succeeded")
            await page.reload()
            await expect(page.locator(STATE)).to_contain_text("succeeded")
            await expect(dialog).to_have_count(0)
            assert key not in page.url
            await page.goto("/console/executors")
            await expect(page.get_by_role("alert")).to_contain_text("scope")
    finally:
        await gateway.stop(5.0)
