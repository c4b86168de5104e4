// The panel that shows a passage in its document: as text, and the page of a PDF as a picture.

import { getBlob, getJson } from "./api.js";
import { byId, characters, element, placeText, showProblem } from "./dom.js";
import { onClosed, openPanel } from "./panels.js";
import { session } from "./session.js";
import { label, say, text } from "./wording.js";

// Characters that are shown around a passage, and with each click on "more".
const AROUND = 4_000;
const MORE = 20_000;

// What is shown: {collection, document, start, end, name, title, page, heading, hasPages}, and the page in view.
let shown = null;
let pageInView = 1;
let prefersPicture = false;

// The numbers of the last requests: an older answer that comes later is dropped.
let opened = 0;
let drawn = 0;

export function startPassage() {
  byId("as-text").addEventListener("click", () => choose(false));
  byId("as-picture").addEventListener("click", () => choose(true));
  byId("previous-page").addEventListener("click", () => draw(pageInView - 1));
  byId("next-page").addEventListener("click", () => draw(pageInView + 1));
  byId("zoom").addEventListener("click", (event) => {
    const isLarge = byId("passage-picture").classList.toggle("large");
    event.currentTarget.setAttribute("aria-pressed", String(isLarge));
  });
  onClosed("passage", () => {
    opened += 1;
    shown = null;
    history.replaceState(null, "", location.pathname + location.search);
  });
  addEventListener("hashchange", openAddress);
}

/** Open the passage that the address names: #collection=…&document=…&start=…&end=…. */
export function openAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const wanted = { collection: given.get("collection") ?? session.name, document: given.get("document") };
  wanted.start = Number(given.get("start") ?? 0);
  wanted.end = Number(given.get("end") ?? 0);
  const isShown = shown && Object.keys(wanted).every((name) => shown[name] === wanted[name]);
  if (wanted.document && Number.isInteger(wanted.start) && Number.isInteger(wanted.end) && !isShown) {
    openPassage(wanted);
  }
}

/** Show a span of a document; without an end, its beginning. */
export async function openPassage({ collection = session.name, document, start = 0, end = 0, title = "" }) {
  opened += 1;
  const own = opened;
  shown = { collection, document, start, end };
  const address = new URLSearchParams(shown);
  history.replaceState(null, "", `#${address}`);
  reset(title);
  openPanel("passage");
  try {
    const [place, part] = await Promise.all([
      getJson(`v1/documents/${encodeURIComponent(document)}/place`, { collection, start }),
      fetchText(Math.max(0, start - AROUND), Math.max(end, start) + AROUND),
    ]);
    if (own === opened) {
      shown = { ...shown, ...place, name: part.name, title: part.title };
      showPlace();
      showText(part);
      choose(prefersPicture && place.has_pages && end > 0);
    }
  } catch (error) {
    if (own === opened) {
      byId("passage-text").replaceChildren();
      showProblem(byId("passage-problem"), error);
    }
  }
}

function reset(title) {
  byId("passage-title").textContent = title || text("passage");
  byId("passage-place").textContent = "";
  byId("passage-views").hidden = true;
  byId("passage-picture").hidden = true;
  byId("passage-text").hidden = false;
  byId("passage-text").replaceChildren(say(element("p", "note"), "loading"));
  showProblem(byId("passage-problem"), null);
}

function showPlace() {
  byId("passage-title").textContent = shown.title || shown.name;
  const where = shown.end > 0 ? placeText(shown.page, shown.heading) : "";
  byId("passage-place").textContent = [shown.title === shown.name ? "" : shown.name, where].filter(Boolean).join(" · ");
  byId("passage-views").hidden = !shown.has_pages;
}

function fetchText(start, end) {
  const { collection, document } = shown;
  return getJson(`v1/documents/${encodeURIComponent(document)}/text`, { collection, start, end });
}

function showText(part) {
  const place = byId("passage-text");
  const letters = characters(part.text);
  if (part.start > 0) {
    // It begins with a whole paragraph, if one begins before the passage.
    const before = letters.slice(0, shown.start - part.start + 1);
    const cut = Math.max(0, before.findIndex((each, index) => each !== "\n" && before[index - 1] === "\n"));
    letters.splice(0, cut);
    part.start += cut;
  }
  const [from, to] = [shown.start - part.start, shown.end - part.start];
  const words = element("p", "words", { lang: part.language });
  const mark = element("mark", "", { textContent: letters.slice(from, to).join("") });
  if (shown.end > shown.start) {
    words.append(letters.slice(0, from).join(""), mark, letters.slice(to).join(""));
  } else {
    words.append(letters.join(""));
  }
  place.replaceChildren(words);
  if (part.start > 0) {
    place.prepend(more("text_before", () => addText(words, part, true)));
  }
  if (part.end < part.characters) {
    place.append(more("text_after", () => addText(words, part, false)));
  }
  place.scrollTop = 0;
  if (mark.isConnected) {
    mark.scrollIntoView({ block: "center" });
  }
}

function more(key, add) {
  const button = say(element("button", "quiet", { type: "button" }), key);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const isAll = await add();
      if (isAll) {
        button.remove();
        byId("passage-text").focus();
      }
      showProblem(byId("passage-problem"), null);
    } catch (error) {
      showProblem(byId("passage-problem"), error);
    }
    button.disabled = false;
  });
  return button;
}

/** Add the text before or after what is shown; return whether that was all. */
async function addText(words, part, isBefore) {
  const [start, end] = isBefore ? [Math.max(0, part.start - MORE), part.start] : [part.end, part.end + MORE];
  const added = await fetchText(start, end);
  const place = byId("passage-text");
  const height = place.scrollHeight;
  if (isBefore) {
    words.prepend(added.text);
    // What the reader was looking at stays where it was.
    place.scrollTop += place.scrollHeight - height;
    part.start = added.start;
    return part.start === 0;
  }
  words.append(added.text);
  part.end = added.end;
  return part.end >= part.characters;
}

/** Show the text or the picture of the page. */
function choose(isPicture) {
  // What a document is opened with says nothing about what the reader prefers.
  if (shown?.has_pages) {
    prefersPicture = isPicture;
  }
  byId("as-text").setAttribute("aria-pressed", String(!isPicture));
  byId("as-picture").setAttribute("aria-pressed", String(isPicture));
  byId("passage-text").hidden = isPicture;
  byId("passage-picture").hidden = !isPicture;
  byId("picture-tools").hidden = !isPicture;
  showProblem(byId("passage-problem"), null);
  if (isPicture) {
    draw(shown.page ?? 1);
  } else {
    byId("passage-text").querySelector("mark")?.scrollIntoView({ block: "center" });
  }
}

async function draw(page) {
  drawn += 1;
  const own = drawn;
  const { collection, document, start, end, name } = shown;
  const place = byId("passage-picture");
  pageInView = page;
  place.replaceChildren(say(element("p", "note"), "loading"));
  showProblem(byId("passage-problem"), null);
  try {
    const path = `v1/documents/${encodeURIComponent(document)}/pages/${page}`;
    const { blob, headers } = await getBlob(path, { collection, start, end });
    if (own !== drawn || !shown) {
      return;
    }
    const pages = Number(headers.get("x-pages"));
    showPicture(place, blob, page, name);
    say(byId("page-number"), "page_of", { page, pages });
    byId("previous-page").disabled = page <= 1;
    byId("next-page").disabled = page >= pages;
    if (page === shown.page && end > start && headers.get("x-boxes") === "0") {
      place.prepend(say(element("p", "note"), "not_boxed"));
    }
  } catch (error) {
    if (own === drawn) {
      place.replaceChildren();
      showProblem(byId("passage-problem"), error);
    }
  }
}

function showPicture(place, blob, page, name) {
  const image = element("img");
  image.alt = text("picture_of", { page, name });
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  image.src = URL.createObjectURL(blob);
  label(place, "picture_of", { page, name });
  place.replaceChildren(image);
}

