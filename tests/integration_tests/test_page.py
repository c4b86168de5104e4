"""The page of ``lince-rag serve`` in a browser: headless Chromium, a real server, an index of hashed words."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Response, expect, sync_playwright

from lince_rag.serve.state import ServerState
from tests.server_models import KIND
from tests.servers import Pause, Reply, completion, event, lince_server, stub_server
from tests.unit_tests.file_samples import pdf_bytes

# A busy machine takes longer than the default of five seconds to open an index.
expect.set_options(timeout=30_000)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.slow

PDF = "manual-lavadora.pdf"
PAGES = [
    "Manual de la lavadora Aurora.\n\nLa lavadora pesa setenta kilos y se instala sobre un suelo firme.",
    "Mantenimiento.\n\nEl filtro de la lavadora se limpia cada tres meses con agua templada.\n\n"
    "La garantía de la lavadora dura cinco años desde la compra.",
]
FILTER = "El filtro de la lavadora se limpia cada tres meses con agua templada."
LIBRARY = "Regulamento.\n\nA multa por atraso na devolução de livros da biblioteca é de dois reais por dia.\n"
# What a page would run if it took the text or the name of a document for HTML. 𝔁 is two units of UTF-16.
ATTACK = "<img src=x onerror=\"window.hacked='texto'\"><script>window.hacked='guion'</script>"
ATTACK_NAME = "<img src=x onerror=window.hacked='nombre'> & 'acta'.txt"
ATTACK_TEXT = (
    f"Acta 𝔁𝔁𝔁 {ATTACK} de la reunión.\n\nEl huerto vecinal se riega los martes {ATTACK} con 𝔁 regaderas.\n"
)

DESKTOP = {"width": 1360, "height": 850}
PHONE = {"width": 360, "height": 740}

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "casa"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with lince_server(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: to be looked at by people."""
    wanted = os.environ.get("LINCE_ARTIFACTS")
    place = Path(wanted) if wanted else tmp_path_factory.mktemp("pictures")
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.fixture
def open_page(browser: Browser, server: str) -> Iterator[OpenPage]:
    """Opens the page; whatever it asks of another machine, or complains about, is a failure at the end."""
    problems: list[str] = []
    expected: list[str] = []
    contexts = []

    def opened(path: str = "/", *, address: str = server, refusals: str = "", **options: Any) -> Page:
        options = {"viewport": DESKTOP, "locale": "es-ES", **options}
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        expected.extend(filter(None, [refusals]))

        def request(url: str) -> None:
            if not url.startswith((f"{address}/", f"blob:{address}/")):
                problems.append(f"request to {url}")

        page.on("request", lambda each: request(each.url))
        page.on("console", lambda each: problems.append(f"{each.type}: {each.text} {each.location}"))
        page.on("pageerror", lambda each: problems.append(f"error: {each}"))
        page.goto(address + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    unexpected = [each for each in problems if not any(re.search(one, each) for one in expected)]
    assert not unexpected


def upload(page: Page, *files: tuple[str, bytes]) -> None:
    """Add files as a reader does, and wait until they are read."""
    given = [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files]
    # Its buttons work when it knows the collections.
    expect(page.locator("#collection option").first).to_be_attached()
    if not page.locator("#documents").is_visible():
        page.locator("#show-documents").click()
    before = page.locator("#jobs .job").count()
    with page.expect_file_chooser() as chooser:
        page.locator("#add-files").click()
    chooser.value.set_files(given)  # type: ignore[arg-type]
    row = page.locator("#jobs .job").nth(before)
    expect(row.locator(".title")).to_contain_text(re.compile(r"1 nuevo,|1 novo,|1 new,"), timeout=20_000)


def ask(page: Page, question: str) -> Any:
    """Ask, wait for the whole answer, and return its article."""
    answers = page.locator("article.answered")
    count = answers.count()
    page.get_by_role("textbox", name=re.compile("pregunta|pergunta|question")).fill(question)
    page.keyboard.press("Enter")
    expect(answers.nth(count).locator(".answer-tools")).to_be_visible(timeout=20_000)
    return answers.nth(count)


# What a browser does when a reader drags a file over the page and lets it go.
DROP = """([name, text]) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([text], name));
  const options = { bubbles: true, cancelable: true, dataTransfer };
  for (const kind of ["dragenter", "dragover"]) document.body.dispatchEvent(new DragEvent(kind, options));
  if (document.getElementById("drop").hidden) throw new Error("The page does not say that files can be dropped.");
  document.body.dispatchEvent(new DragEvent("drop", options));
}"""


def present(server: str) -> dict[str, str]:
    """The ids of the documents, by name."""
    listed = httpx.get(f"{server}/v1/documents").json()["documents"]
    return {each["name"]: each["id"] for each in listed}


@pytest.fixture(scope="module")
def documents(server: str) -> dict[str, str]:
    """The three documents of the tests, sent over the API; their ids, by name."""
    files = {PDF: pdf_bytes(PAGES), "biblioteca.md": LIBRARY.encode(), ATTACK_NAME: ATTACK_TEXT.encode()}
    answer = httpx.post(f"{server}/v1/documents", files=[("files", each) for each in files.items()])
    job = answer.raise_for_status().json()["id"]
    while httpx.get(f"{server}/v1/jobs/{job}").json()["status"] != "done":
        pass
    return present(server)


def test_pages_are_pictures_of_pdfs_only(server: str, documents: dict[str, str]) -> None:
    def get(name: str, path: str, **query: Any) -> httpx.Response:
        return httpx.get(f"{server}/v1/documents/{documents.get(name, name)}/{path}", params=query)

    assert get(PDF, "place", start=0).json() == {"page": 1, "heading": "", "has_pages": True}
    assert not get("biblioteca.md", "place", start=0).json()["has_pages"]
    assert get(PDF, "pages/2").content.startswith(b"\x89PNG")
    refused = {
        (PDF, "pages/3"): (404, "no_page"),
        (PDF, "pages/0"): (404, "no_page"),
        (PDF, "pages/x"): (422, "invalid"),
        ("biblioteca.md", "pages/1"): (404, "no_picture"),
        ("nada", "pages/1"): (404, "no_document"),
        ("nada", "place"): (404, "no_document"),
    }
    found = {each: get(*each) for each in refused}
    assert {each: (one.status_code, one.json()["error"]["code"]) for each, one in found.items()} == refused


def test_a_document_from_its_upload_to_its_deletion(open_page: OpenPage, documents: dict[str, str]) -> None:
    page = open_page()
    upload(
        page, ("garaje.pdf", pdf_bytes(["El garaje.", "Eufrasio aparca la furgoneta en el garaje de la esquina."]))
    )
    expect(page.locator("#document-list")).to_contain_text("garaje.pdf")
    question = "¿Dónde aparca Eufrasio la furgoneta?"
    found = ask(page, question)
    expect(found.locator(".said")).to_contain_text("garaje de la esquina")
    # One that cannot be read says why; this one is dropped on the page.
    page.evaluate(DROP, ["roto.pdf", "%PDF-1.7 no"])
    expect(page.locator("#jobs")).to_contain_text("roto.pdf: damaged or truncated PDF")
    # Deleting asks first; Escape is a no.
    erase = page.get_by_role("button", name="Borrar garaje")
    erase.click()
    expect(page.locator("#confirm")).to_contain_text("¿Borrar «garaje»")
    page.keyboard.press("Escape")
    expect(page.locator("#document-list")).to_contain_text("garaje.pdf")
    erase.click()
    page.locator("#confirm-yes").click()
    expect(page.locator("#document-list")).not_to_contain_text("garaje.pdf")
    page.locator("#new-conversation").click()
    gone = ask(page, question)
    expect(gone.locator(".badge")).to_have_text("Sin respuesta en los documentos")
    expect(gone.locator(".marker")).to_have_count(0)


def test_a_streamed_answer_and_its_citation(
    open_page: OpenPage, documents: dict[str, str], pictures: Path
) -> None:
    page = open_page()
    expect(page.locator("#question")).to_be_focused()
    # What the reader sees while the answer is written.
    page.evaluate(
        """() => {
          window.steps = [];
          new MutationObserver(() => {
            const found = document.querySelector(".streamed");
            if (found && found.textContent !== window.steps.at(-1)) window.steps.push(found.textContent);
          }).observe(document.body, { subtree: true, childList: true, characterData: true });
        }"""
    )
    found = ask(page, "¿Cada cuánto se limpia el filtro de la lavadora?")
    steps = page.evaluate("window.steps")
    assert len(steps) > 3
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(steps))
    expect(found.locator("strong")).to_have_text("tres meses")
    marker = found.locator(".sentence", has_text="tres meses").locator(".marker").first
    marker.click()
    expect(page.locator("#passage mark")).to_have_text(FILTER)
    expect(page.locator("#passage mark")).to_be_in_viewport()
    expect(page.locator("#passage-place")).to_contain_text("pág. 2")
    expect(page.locator("#passage-title")).to_be_focused()
    # The page of the PDF, with the passage in a box.
    with page.expect_response(re.compile("/pages/2")) as drawn:
        page.get_by_role("button", name="Página", exact=True).click()
    check_picture(page, drawn.value)
    page.screenshot(path=pictures / "picture.png")
    # Another page of it has no box.
    with page.expect_response(re.compile("/pages/1")) as other:
        page.get_by_role("button", name="Página anterior").click()
    assert other.value.headers["x-boxes"] == "0"
    expect(page.locator("#previous-page")).to_be_disabled()
    # Escape goes back to where the reader was.
    page.keyboard.press("Escape")
    expect(page.locator("#passage")).to_be_hidden()


def check_picture(page: Page, drawn: Response) -> None:
    assert drawn.headers["content-type"] == "image/png"
    assert (drawn.headers["x-boxes"], drawn.headers["x-pages"]) == ("1", "2")
    image = page.locator("#passage-picture img")
    expect(image).to_be_visible()
    tinted = """(image) => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
      let count = 0;
      for (let i = 0; i < data.length; i += 4) {
        count += data[i] === 255 && data[i + 1] === 236 && data[i + 2] === 130;
      }
      return count;
    }"""
    assert image.evaluate(tinted) > 1_000


def test_a_follow_up_in_portuguese_on_a_portuguese_page(open_page: OpenPage, documents: dict[str, str]) -> None:
    page = open_page(locale="pt-BR")
    expect(page.locator("html")).to_have_attribute("lang", "pt")
    found = ask(page, "Qual é a multa por atraso na devolução de livros da biblioteca?")
    expect(found.locator(".said")).to_have_attribute("lang", "pt")
    expect(found.locator(".said")).to_contain_text("dois reais")
    with page.expect_request("**/v1/ask") as asked:
        ask(page, "E por dia?")
    history = json.loads(asked.value.post_data or "")["history"]
    assert [each["role"] for each in history] == ["user", "assistant"]
    # The switch changes what is there already, too.
    page.get_by_role("button", name="Ajustes").click()
    page.locator("#language").select_option("en")
    page.keyboard.press("Escape")
    expect(found).to_have_attribute("aria-label", "Answer")
    expect(page.locator("#documents-title")).to_have_text("Documents")


def test_what_documents_say_is_never_html(open_page: OpenPage, documents: dict[str, str]) -> None:
    page = open_page()
    expect(page.locator("#document-list")).to_contain_text(ATTACK_NAME)
    found = ask(page, "¿Cuándo se riega el huerto vecinal?")
    expect(found.locator(".said")).to_contain_text(ATTACK)
    found.locator(".marker").first.click()
    expect(page.locator("#passage mark")).to_contain_text("El huerto vecinal se riega los martes")
    # Offsets count characters, not units of UTF-16.
    text = page.locator("#passage-text .words").text_content() or ""
    assert text.strip() == ATTACK_TEXT.strip()
    expect(page.locator("#passage-title")).to_contain_text("<img src=x")
    expect(found.locator(".sources")).to_contain_text("<img src=x")
    page.get_by_role("checkbox", name=re.compile("<img src=x")).check()
    expect(page.locator("#only-names")).to_contain_text("<img src=x")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0


def test_a_long_text_is_shown_around_the_passage(open_page: OpenPage, server: str, folder: Path) -> None:
    rules = [f"Artículo {each}. 𝔁 La terraza {each} puede tener {each + 2} mesas.\n\n" for each in range(400)]
    page = open_page()
    upload(page, ("terrazas.txt", "".join(rules).encode()))
    document = present(server)["terrazas.txt"]
    whole = httpx.get(f"{server}/v1/documents/{document}/text").json()["text"]
    wanted = "La terraza 200 puede tener 202 mesas."
    start = whole.index(wanted)
    page.evaluate(f"location.hash = '#document={document}&start={start}&end={start + len(wanted)}'")
    expect(page.locator("#passage mark")).to_have_text(wanted)
    words = page.locator("#passage-text .words")
    shown = words.text_content() or ""
    assert shown in whole
    assert shown.startswith("Artículo")
    assert len(shown) < len(whole)
    top = page.locator("mark").bounding_box()
    for key in ("anterior", "siguiente"):
        more = page.get_by_role("button", name=f"Mostrar el texto {key}")
        more.evaluate("(each) => each.click()")
        expect(more).to_have_count(0)
    assert words.text_content() == whole
    # What the reader was looking at has stayed where it was.
    after = page.locator("mark").bounding_box()
    assert top is not None
    assert after is not None
    assert abs(top["y"] - after["y"]) < 60
    httpx.delete(f"{server}/v1/documents/{document}")


def test_only_ticked_documents_are_asked(open_page: OpenPage, documents: dict[str, str]) -> None:
    page = open_page()
    page.locator("#find-document").fill("nada")
    expect(page.locator("#document-list")).to_have_text("Ningún documento se llama así.")
    page.locator("#find-document").fill("biblio")
    expect(page.locator("#document-list .document")).to_have_count(1)
    page.get_by_role("checkbox").check()
    with page.expect_request("**/v1/ask") as asked:
        expect(ask(page, "¿Cada cuánto se limpia el filtro de la lavadora?")).not_to_contain_text("tres meses")
    assert json.loads(asked.value.post_data or "")["documents"] == [documents["biblioteca.md"]]
    page.get_by_role("button", name="Preguntar a todos").click()
    expect(page.get_by_role("checkbox")).not_to_be_checked()
    expect(ask(page, "¿Cada cuánto se limpia el filtro de la lavadora?")).to_contain_text("tres meses")


def test_an_address_opens_a_passage(open_page: OpenPage, server: str, documents: dict[str, str]) -> None:
    text = httpx.get(f"{server}/v1/documents/{documents[PDF]}/text").json()["text"]
    start = text.index(FILTER)
    where = f"collection=casa&document={documents[PDF]}&start={start}&end={start + len(FILTER)}"
    page = open_page(f"/#{where}", refusals="404")
    expect(page.locator("#passage mark")).to_have_text(FILTER)
    expect(page.locator("#passage-place")).to_contain_text("pág. 2")
    page.evaluate("location.hash = '#collection=casa&document=nada&start=0&end=3'")
    expect(page.locator("#passage-problem")).to_have_text("Ese documento ya no está.")
    page.evaluate(f"location.hash = '#{where}'")
    expect(page.locator("#passage mark")).to_have_text(FILTER)


def test_votes_become_questions_of_an_evaluation(open_page: OpenPage, documents: dict[str, str]) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    question = "¿Cuánto dura la garantía de la lavadora?"
    found = ask(page, question)
    found.get_by_role("button", name="Copiar").click()
    expect(page.locator("#status")).to_have_text("Copiado")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("La garantía de la lavadora dura cinco años")
    assert copied.endswith("[1] manual-lavadora, pág. 2")
    found.get_by_role("button", name="Buena respuesta").click()
    expect(found.get_by_role("button", name="Buena respuesta")).to_have_attribute("aria-pressed", "true")
    expect(found.get_by_role("button", name="Mala respuesta")).to_be_disabled()
    page.get_by_role("button", name="Ajustes").click()
    expect(page.locator("#facts")).to_contain_text("extractive")
    expect(page.locator("#fitting li")).not_to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("Descargar los votos")).click()
    lines = [json.loads(line) for line in download.value.path().read_text(encoding="utf-8").splitlines()]
    assert [(each["question"], each["vote"]) for each in lines][-1] == (question, 1)
    assert "cinco años" in lines[-1]["answers"][0]


def test_the_key_is_asked_for_and_may_only_read(
    open_page: OpenPage, server: str, folder: Path, documents: dict[str, str]
) -> None:
    state = ServerState(folder.with_name("casa.serve"))
    key = state.add_key("lectora", {"casa": "read"})
    try:
        page = open_page(refusals="401")
        dialog = page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        page.locator("#key").fill("lince_0_falsa")
        page.keyboard.press("Enter")
        expect(page.locator("#key-problem")).to_have_text("El servidor no acepta esa clave.")
        page.locator("#key").fill(key)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator("#document-list")).to_contain_text(PDF)
        expect(page.locator("#add-files")).to_be_hidden()
        expect(page.get_by_role("button", name=re.compile("^Borrar"))).to_have_count(0)
        expect(page.locator("#read-only")).to_have_text("Esta clave solo puede leer.")
        ask(page, "¿Cuánto pesa la lavadora?")
        page.get_by_role("button", name="Ajustes").click()
        expect(page.locator("#facts")).to_contain_text("extractive")
        expect(page.locator("#machine")).to_be_hidden()
        assert httpx.get(f"{server}/v1/machine", headers={"authorization": f"Bearer {key}"}).status_code == 403
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
        page.reload()
        expect(page.locator("#document-list")).to_contain_text(PDF)
    finally:
        state.remove_key("lectora")


def test_the_phone(open_page: OpenPage, documents: dict[str, str], pictures: Path) -> None:
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2, color_scheme="dark")

    def check(name: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.screenshot(path=pictures / f"phone-{name}.png")
        assert serious(page) == []

    check("empty")
    found = ask(page, "¿Cada cuánto se limpia el filtro de la lavadora?")
    ask(page, "¿Cuándo se riega el huerto vecinal?")
    check("answers")
    marker = found.locator(".marker").first
    marker.tap()
    expect(page.locator("#passage mark")).to_be_in_viewport()
    assert page.locator("#passage").evaluate("(each) => each.matches(':modal')")
    check("passage")
    page.get_by_role("button", name="Página", exact=True).tap()
    expect(page.locator("#passage-picture img")).to_be_visible()
    check("picture")
    page.keyboard.press("Escape")
    expect(marker).to_be_focused()
    page.locator("#show-documents").tap()
    expect(page.locator("#documents")).to_be_visible()
    check("documents")
    page.locator("#documents [data-close]").tap()
    # The picture is what this reader prefers; and on a wider window, the panel becomes a column.
    marker.tap()
    page.set_viewport_size(DESKTOP)
    expect(page.locator("#passage-picture img")).to_be_visible()
    assert not page.locator("#passage").evaluate("(each) => each.matches(':modal')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    scheme: Any, open_page: OpenPage, documents: dict[str, str], pictures: Path
) -> None:
    page = open_page(color_scheme=scheme)
    expect(page.locator("#document-list")).to_contain_text(PDF)
    assert serious(page) == []
    found = ask(page, "¿Cada cuánto se limpia el filtro de la lavadora?")
    ask(page, "¿Quién ganó la liga de 1998?")
    found.locator(".marker").first.click()
    expect(page.locator("#passage mark")).to_be_visible()
    found.locator(".marker").first.hover()
    assert serious(page) == []
    page.screenshot(path=pictures / f"{scheme}.png")
    page.get_by_role("button", name="Ajustes").click()
    page.locator("#machine summary").click()
    assert serious(page) == []
    page.screenshot(path=pictures / f"{scheme}-settings.png")


def serious(page: Page) -> list[str]:
    """What axe-core finds that is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def test_the_keyboard_is_enough(open_page: OpenPage, documents: dict[str, str]) -> None:
    page = open_page()
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("¿Cuánto dura la garantía")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("de la lavadora?")
    assert page.locator("#question").input_value().count("\n") == 1
    page.keyboard.press("Enter")
    expect(page.locator(".answer-tools")).to_be_visible()
    expect(page.locator("#question")).to_be_focused()
    # Backwards from the question: the tools of the answer, its sources, its markers.
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        outlined = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outlined) == "solid"
        if page.evaluate("document.activeElement.className") == "marker":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#passage mark")).to_be_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "marker"


def test_an_answer_can_be_stopped(open_page: OpenPage, tmp_path: Path) -> None:
    # The language of an answer is known after its first words; only then are they sent on.
    slow = Reply([event(f"{FILTER} "), event(f"{FILTER} "), *[Pause(0.2), event(" y más")] * 100])
    with (
        # First the server tries whether the model answers.
        stub_server(lambda number, _: slow if number else completion("Sí.")) as stub,
        lince_server(tmp_path / "otra", "--model", KIND, "--base-url", stub.base_url) as at,
    ):
        httpx.post(f"{at}/v1/documents", files={"files": ("lavadora.md", f"{FILTER}\n".encode())})
        page = open_page(address=at)
        expect(page.locator("#document-list .document")).to_have_count(1)
        page.locator("#question").fill("¿Cada cuánto se limpia el filtro de la lavadora?")
        page.keyboard.press("Enter")
        expect(page.locator(".streamed")).to_contain_text("cada tres meses")
        assert page.locator("article.answered").get_attribute("aria-busy") == "true"
        page.get_by_role("button", name="Parar").click()
        expect(page.locator("article .badge")).to_have_text("Respuesta detenida.")
        expect(page.locator("#question")).to_be_focused()
        # The model is told, too, and the next question goes through.
        assert stub.abandoned.wait(10)
