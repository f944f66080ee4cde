"""Reading a website with manners: which hosts are called, what a page says, and what is kept of it."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import product_site
from product_site import Answer, ProductSite
from website.addresses import is_public, is_site, normal, resolve, same_host, site_of
from website.errors import Refused, Unreachable
from website.fetching import Fetched, Manners, Web, unpacked
from website.finding import Robots, find
from website.index import Fact, Index, Page
from website.reading import LINE_CHARS_MAX, PASSAGE_CHARS_MAX, Passage, read
from website.visiting import visit

ALL = Robots()


@pytest.fixture
async def site() -> AsyncIterator[ProductSite]:
    """The product's website, served."""
    async with product_site.serving() as site:
        yield site


@pytest.fixture
async def web(site: ProductSite) -> AsyncIterator[Web]:
    """Connections that may go there, in a hurry."""
    async with Web(Manners(delay_s=0, page_s=5, private=[site.host])) as web:
        yield web


# Addresses


@pytest.mark.parametrize(
    ("written", "one"),
    [
        ("HTTP://Example.COM:80/a b#part", "http://example.com/a%20b"),
        ("https://example.com", "https://example.com/"),
        ("https://example.com:8443/?utm_source=x&page=2&gclid=1", "https://example.com:8443/?page=2"),
        ("https://example.com/?q=a%20b", "https://example.com/?q=a%20b"),
        ("https://bücher.example/ü", "https://xn--bcher-kva.example/%C3%BC"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
    ],
)
def test_a_page_has_one_url(written: str, one: str) -> None:
    """However it is written, and a second time it stays."""
    assert normal(written) == one
    assert normal(one) == one


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://example.com", "//", "http://", "javascript:void 0", "not a url", "http://[::1"),
        *("http://user:secret@example.com/", "http://example.com:99999/", "https://example.com/" + "x" * 3000),
    ],
)
def test_what_no_page_can_be_fetched_from_is_refused(url: str) -> None:
    """No file, no password, no nonsense."""
    with pytest.raises(Refused):
        normal(url)


def test_a_site_is_named_by_its_host() -> None:
    """Without www, and never a path that leads out of a folder."""
    assert site_of("https://www.example.com/a/b?c") == "example.com"
    assert site_of("http://127.0.0.1:8080/") == "127.0.0.1_8080"
    assert is_site(site_of("http://[::1]:80/"))
    assert same_host("http://example.com/a", "https://www.example.com/b")
    assert not same_host("http://example.com/a", "http://example.org/a")
    assert not same_host("http://example.com:1/a", "http://example.com:2/a")
    for name in ("..", "../x", "a/b", "", "a" * 300, "A", "a\n", "a_b", "/etc/x"):
        assert not is_site(name)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::"),
    ],
)
def test_what_only_our_server_can_reach_is_not_public(address: str) -> None:
    """Loopback, local networks, cloud metadata, groups; also where they hide in another kind of address."""
    assert not is_public(address)


def test_public_addresses_are() -> None:
    """Of both kinds."""
    assert is_public("93.184.215.14")
    assert is_public("2606:4700::1111")


async def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it resolves to counts, and the connection goes to what was checked."""
    found = ["93.184.215.14"]

    async def resolved(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved, raising=False)
    assert await resolve("example.com", 80) == "93.184.215.14"
    found.append("10.0.0.1")
    with pytest.raises(Refused, match="not on the public network"):
        await resolve("example.com", 80)
    assert await resolve("example.com", 80, ["example.com:80"]) == "93.184.215.14"
    with pytest.raises(Refused):
        await resolve("example.com", 81, ["example.com:80"])


async def test_a_private_server_is_not_called_unless_told(site: ProductSite) -> None:
    """Not even once."""
    async with Web(Manners(delay_s=0)) as web:
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1"):
            url = f"http://{host}:{site.host.split(':')[1]}/"
            with pytest.raises((Refused, Unreachable)):
                await web.fetch(url)
    assert not site.requests


# Fetching


async def test_a_page_is_fetched_once_and_then_asked_about(site: ProductSite, web: Web) -> None:
    """With its version, which costs the site nothing."""
    got = await web.fetch(f"{site.url}/pricing")
    assert "Plans and prices" in got.text
    again = await web.fetch(f"{site.url}/pricing", etag=got.etag)
    assert again.unchanged
    assert (site.requests["/pricing"], site.sent["/pricing"]) == (2, 1)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/missing", "HTTP status 404"),
        ("/brochure", "application/pdf"),
        ("/huge", "larger than"),
        ("/circle", "circle"),
        ("/inside", "not on the public network"),
    ],
)
async def test_what_is_no_page_for_us_is_refused(site: ProductSite, web: Web, path: str, why: str) -> None:
    """At once, and no more is read of it than is needed to know."""
    with pytest.raises(Refused, match=why):
        await web.fetch(f"{site.url}{path}")


async def test_a_page_that_hangs_is_given_up(site: ProductSite) -> None:
    """In the time that a page has."""
    async with Web(Manners(delay_s=0, page_s=0.2, private=[site.host])) as web:
        with pytest.raises(Unreachable, match="no answer within"):
            await web.fetch(f"{site.url}/slow")


async def test_a_site_that_is_busy_says_when_to_come_back(site: ProductSite, web: Web) -> None:
    """And a policy waits for that."""
    site.extra["/"] = Answer(status=429, headers={"retry-after": "7"})
    with pytest.raises(Unreachable) as error:
        await web.fetch(site.url + "/")
    assert error.value.retry_after_s == 7
    with pytest.raises(Unreachable, match="500"):
        await web.fetch(f"{site.url}/broken")


async def test_nobody_there_is_told_in_words(site: ProductSite) -> None:
    """A refused connection is no crash."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with Web(Manners(private=[f"127.0.0.1:{port}"])) as web:
        with pytest.raises(Unreachable):
            await web.fetch(f"http://127.0.0.1:{port}/")


async def test_a_bomb_is_unpacked_no_further_than_allowed(site: ProductSite, web: Web) -> None:
    """A small answer that is large when unpacked."""
    bomb = gzip.compress(b"<p>x</p>" * 10_000_000)
    site.extra["/bomb"] = Answer(bomb, headers={"content-encoding": "gzip"})
    with pytest.raises(Refused, match="unpacked it is larger"):
        await web.fetch(f"{site.url}/bomb")
    assert unpacked(gzip.compress(b"text"), 4) == b"text"
    for broken in (b"no gzip", gzip.compress(b"hello")[:3] + b"\xff" * 20):
        with pytest.raises(Refused):
            unpacked(broken, 100)


async def test_a_host_is_asked_in_turn_and_not_too_often(site: ProductSite) -> None:
    """Beginnings lie apart, whoever asks; another host does not wait."""
    came: list[float] = []

    async def one(web: Web) -> None:
        await web.fetch(f"{site.url}/pricing")
        came.append(time.monotonic())

    manners = Manners(delay_s=0.05, private=[site.host])
    async with Web(manners) as first, Web(manners) as second:
        began = time.monotonic()
        await asyncio.gather(*(one(web) for web in (first, second) for _ in range(3)))
    assert max(came) - began >= 5 * 0.05


@pytest.mark.parametrize(
    ("body", "charset", "text"),
    [
        ("Köln".encode("latin-1"), "ISO-8859-1", "Köln"),
        ("Köln".encode("cp1252"), "", "Köln"),
        ("Köln".encode(), "", "Köln"),
        ("Köln".encode("utf-16"), "utf-8", "Köln"),
        (b"\xef\xbb\xbfKo", "latin-1", "Ko"),
        ('<meta charset="shift_jis">東京'.encode("shift_jis"), "", '<meta charset="shift_jis">東京'),
        ("Köln".encode(), "no-such-charset", "Köln"),
        ("Köln".encode(), "zip", "Köln"),
        (b"abc", "punycode", "abc"),
    ],
)
def test_text_is_read_in_its_own_encoding(body: bytes, charset: str, text: str) -> None:
    """As the page or its header says; a name of something else is no encoding."""
    assert Fetched("http://x/", body=body, charset=charset).text == text


# Finding


async def no_links(_: str, __: Robots) -> list[str]:
    raise AssertionError("there is a sitemap")


async def test_pages_are_found_by_sitemaps(site: ProductSite, web: Web) -> None:
    """Through an index of packed ones; what robots.txt excludes is not among them."""
    found = await find(web, site.url, no_links, at_most=500)
    assert found.by == "sitemap"
    paths = {page.removeprefix(site.url) for page in found.pages}
    assert set(product_site.pages()) <= paths
    assert not any(path.startswith("/internal") for path in paths)
    assert found.excluded == 1
    assert len((await find(web, site.url, no_links, at_most=10)).pages) == 10


async def test_pages_are_found_by_links_where_there_is_no_sitemap(tmp_path: Path) -> None:
    """Within the site, and what was looked through for links is not fetched again to be read."""
    index = Index(tmp_path, "site")
    async with (
        product_site.serving(sitemap=False) as site,
        Web(Manners(delay_s=0, page_s=0.3, private=[site.host])) as web,
    ):

        async def links(url: str, robots: Robots) -> list[str]:
            return (await visit(web, index, url, robots, max_age_s=60)).links

        found = await find(web, site.url, links, at_most=500)
        assert found.by == "links"
        assert {f"{site.url}{path}" for path in product_site.pages()} <= set(found.pages)
        assert all(page.startswith(site.url) for page in found.pages)
        assert "/internal/salaries" not in site.requests
        await visit(web, index, f"{site.url}/limits", ALL, max_age_s=60)
        assert site.requests["/limits"] == 1


async def test_a_site_that_wants_no_robots_is_left_alone(site: ProductSite, web: Web) -> None:
    """And one whose robots.txt cannot be had just now is not read as if it had none."""
    site.extra["/robots.txt"] = Answer(b"User-agent: *\nDisallow: /", "text/plain")
    with pytest.raises(Refused, match="stay away"):
        await find(web, site.url, no_links, at_most=5)
    site.extra["/robots.txt"] = Answer(status=503)
    with pytest.raises(Unreachable):
        await find(web, site.url, no_links, at_most=5)
    assert set(site.requests) == {"/robots.txt"}


def test_robots_may_ask_for_time_but_not_for_ever() -> None:
    """A delay is kept, up to a limit."""
    assert Robots("User-agent: *\nCrawl-delay: 3").delay_s == 3
    assert Robots("User-agent: *\nCrawl-delay: 1e9").delay_s == 10
    assert ALL.delay_s == 0


# Reading


def test_a_page_is_read_as_people_see_it() -> None:
    """Lines in order, tables by row; no menu, no script, nothing hidden."""
    page = """<html><head><title>T</title></head><body><nav><a href="/x">menu</a></nav><main><h1>Plans &amp; more</h1>
      <p>The <b>Team</b> plan costs 12 €. It has <a href="lim?utm_source=a#x">limits</a>.</p>
      <table><tr><th>Plan<th>Price</tr><tr><td>Solo</td><td>0 €</td></table>
      <p style="display:none">hidden</p><span hidden>hidden</span><!-- hidden --><script>hidden</script>
      <h2>Then</h2><ul><li>One</li><li><p>Two</p></li></ul>bare<div>deep</div></main></body></html>"""
    found = read(page, "http://h/a/b")
    assert found.title == "Plans & more"
    assert found.passages == [
        Passage(
            "Plans & more",
            ["Plans & more", "The Team plan costs 12 €.", "It has limits.", "Plan | Price", "Solo | 0 €"],
        ),
        Passage("Plans & more", ["Then", "One", "Two", "bare", "deep"]),
    ]
    assert found.links == ["http://h/x", "http://h/a/lim"]


def test_passages_and_lines_have_a_size() -> None:
    """However long a page is, and a sentence without an end."""
    found = read(f"<h1>Long</h1><p>{'word ' * 40_000}</p>", "http://h/")
    assert len(found.passages) == 40
    for passage in found.passages:
        assert sum(map(len, passage.lines)) <= PASSAGE_CHARS_MAX
        assert all(0 < len(line) <= LINE_CHARS_MAX and "\n" not in line for line in passage.lines)


def test_a_page_that_is_hard_to_parse_is_not_parsed() -> None:
    """Parsing costs the square of the depth, and holds up everything else."""
    began = time.monotonic()
    for tag in ("div", "b", "svg"):
        with pytest.raises(Refused, match="too deep"):
            read(f"<{tag}>" * 300_000, "http://h/")
    assert read("<p>one<li>two" * 10_000, "http://h/").passages
    assert time.monotonic() - began < 20


def test_a_page_may_ask_not_to_be_read() -> None:
    """By its own robots line."""
    with pytest.raises(Refused):
        read('<meta name="ROBOTS" content="NOINDEX, follow">x', "http://h/")
    assert read('<meta name="robots" content="nofollow"><a href="/x">x</a>', "http://h/").links == []


@pytest.mark.parametrize("page", ["", "<", "\0", "<main>", "<html><body></body></html>", "\x1b[2J<p>\x07</p>"])
def test_nothing_is_read_from_nothing(page: str) -> None:
    """No page breaks the reader."""
    assert all("\x1b" not in line for passage in read(page, "http://h/").passages for line in passage.lines)


# The index


def a_page(url: str, *lines: str) -> Page:
    return Page(url, "Title", [Passage("Title", [line]) for line in lines], [])


def test_a_page_is_found_when_it_is_admitted_and_better_when_learned(tmp_path: Path) -> None:
    """Its text at once, its facts when they come."""
    index = Index(tmp_path, "site")
    index.begin("")
    index.want(2)
    page = a_page("http://h/1", "Rootcam is asked every 15 minutes.", "Other words.")
    index.put(page)
    assert index.search("How often is Rootcam asked?", 5) == []
    assert index.admit(page) == ("", page.passages)
    assert [source.lines for source in index.search("rootcam", 5)] == [["Rootcam is asked every 15 minutes."]]
    index.learn(page.url, page.passages[0], [Fact("limit", "polling", "Rootcam is asked every 15 minutes.")])
    assert index.search("polling", 5)[0].facts == [Fact("limit", "polling", "Rootcam is asked every 15 minutes.")]
    assert vars(index.coverage()) == {"pages": 1, "learned": 0, "wanted": 2}
    assert index.admit(page) == ("", page.passages[1:])
    index.learn(page.url, page.passages[1], [])
    assert index.admit(page) == ("", [])
    assert index.coverage().learned == 1


def test_a_page_that_changed_keeps_what_it_still_says(tmp_path: Path) -> None:
    """Only what is new is to be learned, and what it no longer says is not found."""
    index = Index(tmp_path, "site")
    first = a_page("http://h/1", "alpha stays", "beta goes")
    index.put(first)
    index.admit(first)
    for passage in first.passages:
        index.learn(first.url, passage, [])
    second = a_page("http://h/1", "alpha stays", "gamma comes")
    index.put(second)
    assert index.admit(second) == ("", second.passages[1:])
    assert index.search("beta", 5) == []
    assert len(index.search("alpha gamma", 5)) == 2
    index.forget(second.url)
    assert index.search("alpha gamma", 5) == []
    assert index.page(second.url) is None


def test_the_same_text_is_learned_once(tmp_path: Path) -> None:
    """A second page that says the same stands behind the first, whichever it was."""
    index = Index(tmp_path, "site")
    for url in ("http://h/1", "http://h/2"):
        index.put(a_page(url, "alpha"))
    assert index.admit(a_page("http://h/2", "alpha"))[0] == ""
    assert index.admit(a_page("http://h/1", "alpha")) == ("http://h/2", [])
    assert index.admit(a_page("http://h/2", "alpha"))[0] == ""
    assert [source.url for source in index.search("alpha", 5)] == ["http://h/2"]


@pytest.mark.parametrize(
    "question", ["", "?", '"', "NEAR(a b)", "title:x OR", "* ^ - ( )", "'; DROP TABLE pages; --", "a" * 5000]
)
def test_a_question_is_words_and_nothing_else(tmp_path: Path, question: str) -> None:
    """Nobody can speak the search's own language, or SQL."""
    index = Index(tmp_path, "site")
    page = a_page("http://h/1", "alpha drop table pages")
    index.put(page)
    index.admit(page)
    index.search(question, 5)
    assert index.search("alpha", 5)


def test_a_site_that_nobody_read_is_unknown_and_stays_so(tmp_path: Path) -> None:
    """Asking leaves no file behind, and a name is no path."""
    index = Index(tmp_path, "example.com")
    assert index.search("alpha", 5) == []
    assert index.coverage().pages == 0
    assert not list(tmp_path.iterdir())
    for name in ("../x", "/tmp/x", ""):
        with pytest.raises(ValueError, match="no site's name"):
            Index(tmp_path, name)


def test_many_may_write_at_once(tmp_path: Path) -> None:
    """The first ones race for an empty file, and all get in."""
    index = Index(tmp_path, "site")

    def write(number: int) -> None:
        page = a_page(f"http://h/{number}", f"word{number} shared")
        index.put(page)
        index.admit(page)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(40)))
    assert index.coverage().pages == 40


# Visiting


async def test_a_known_page_is_not_asked_for_again(site: ProductSite, web: Web, tmp_path: Path) -> None:
    """Within the age that it may have; then only for what is new."""
    index = Index(tmp_path, "site")
    url = f"{site.url}/limits"
    first = await visit(web, index, url, ALL, max_age_s=60)
    assert (await visit(web, index, url, ALL, max_age_s=60)).passages == first.passages
    assert site.requests["/limits"] == 1
    assert (await visit(web, index, url, ALL, max_age_s=0)).passages == first.passages
    assert (site.requests["/limits"], site.sent["/limits"]) == (2, 1)
    site.extra["/limits"] = Answer(b"<h1>New limits</h1>")
    assert (await visit(web, index, url, ALL, max_age_s=0)).title == "New limits"


async def test_a_refusal_is_remembered_and_a_failure_is_not(site: ProductSite, web: Web, tmp_path: Path) -> None:
    """What will not change is not asked again; what was away may be back."""
    index = Index(tmp_path, "site")
    for _ in range(2):
        with pytest.raises(Refused, match="application/pdf"):
            await visit(web, index, f"{site.url}/brochure", ALL, max_age_s=60)
        with pytest.raises(Unreachable):
            await visit(web, index, f"{site.url}/broken", ALL, max_age_s=60)
    assert (site.requests["/brochure"], site.requests["/broken"]) == (1, 2)


async def test_a_page_that_is_gone_is_forgotten(site: ProductSite, web: Web, tmp_path: Path) -> None:
    """Nobody is answered from it any more."""
    index = Index(tmp_path, "site")
    url = f"{site.url}/limits"
    index.admit(await visit(web, index, url, ALL, max_age_s=60))
    assert index.search("megabytes", 5)
    site.extra["/limits"] = Answer(status=410)
    with pytest.raises(Refused):
        await visit(web, index, url, ALL, max_age_s=0)
    assert index.search("megabytes", 5) == []


async def test_a_redirect_does_not_lead_around_robots(site: ProductSite, web: Web, tmp_path: Path) -> None:
    """Not to what is excluded, and not to another site."""
    robots = Robots("User-agent: *\nDisallow: /internal/")
    for place in ("/internal/salaries", "https://example.org/"):
        site.extra["/moved"] = Answer(status=302, headers={"location": place})
        with pytest.raises(Refused, match="not to be read"):
            await visit(web, Index(tmp_path, "site"), f"{site.url}/moved", robots, max_age_s=0)
    assert "/internal/salaries" not in site.requests
