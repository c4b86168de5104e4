// The panel of the documents: the list, uploads, deletions, and which documents are asked.

import { getJson, postJson, remove } from "./api.js";
import { announce, byId, confirm, element, iconButton, showProblem } from "./dom.js";
import { openPassage } from "./passage.js";
import { hasRoom, openPanel } from "./panels.js";
import { session } from "./session.js";
import { followOthers, followReading, sendFiles, startDropping } from "./uploads.js";
import { label, say } from "./wording.js";

const PER_PAGE = 50;
const TYPING_MILLISECONDS = 250;

let offset = 0;
let listed = 0;

export function startDocuments() {
  const panel = byId("documents");
  byId("show-documents").addEventListener("click", () => (panel.open ? panel.close() : open()));
  panel.addEventListener("close", showWhetherOpen);
  byId("add-files").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", (event) => {
    sendFiles([...event.target.files]);
    event.target.value = "";
  });
  let timer;
  byId("find-document").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => list(0), TYPING_MILLISECONDS);
  });
  byId("earlier-documents").addEventListener("click", () => list(offset - PER_PAGE));
  byId("later-documents").addEventListener("click", () => list(offset + PER_PAGE));
  startDropping(() => panel.open || open());
  let last = "";
  session.addEventListener("collection", () => {
    byId("add-files").hidden = !session.canWrite;
    byId("read-only").hidden = session.canWrite || !session.collection;
    const isSame = last === session.name;
    last = session.name;
    list(isSame ? offset : 0);
    if (!isSame) {
      followOthers().catch((error) => showProblem(byId("documents-problem"), error));
    }
  });
  session.addEventListener("ticked", () => {
    for (const box of byId("document-list").querySelectorAll("input")) {
      box.checked = session.ticked.has(box.value);
    }
  });
  if (hasRoom("documents")) {
    open();
  }
}

function open() {
  openPanel("documents");
  showWhetherOpen();
}

function showWhetherOpen() {
  byId("show-documents").setAttribute("aria-expanded", String(byId("documents").open));
}

async function list(from) {
  listed += 1;
  const own = listed;
  if (!session.collection) {
    byId("document-list").replaceChildren();
    return;
  }
  const query = { collection: session.name, offset: Math.max(0, from), limit: PER_PAGE };
  query.name = byId("find-document").value.trim();
  try {
    const found = await getJson("v1/documents", query);
    if (own !== listed) {
      return;
    }
    if (!found.documents.length && found.offset > 0) {
      list(found.offset - PER_PAGE);
      return;
    }
    offset = found.offset;
    showList(found);
    showProblem(byId("documents-problem"), null);
  } catch (error) {
    showProblem(byId("documents-problem"), error);
  }
}

function showList({ documents, total }) {
  const place = byId("document-list");
  place.replaceChildren(...documents.map(row));
  if (!documents.length) {
    place.append(say(element("li", "note"), byId("find-document").value.trim() ? "none_found" : "no_documents"));
  }
  byId("pager").hidden = total <= PER_PAGE;
  say(byId("shown"), "shown", { first: offset + 1, last: offset + documents.length, total });
  byId("earlier-documents").disabled = offset === 0;
  byId("later-documents").disabled = offset + documents.length >= total;
}

function row(found) {
  const name = found.title || found.name;
  const box = element("input", "", { type: "checkbox", value: found.id, checked: session.ticked.has(found.id) });
  label(box, "tick", { name });
  box.addEventListener("change", () => session.tick(found, box.checked));
  const title = element("button", "link", { type: "button", textContent: name });
  label(title, "open_document", { name });
  title.addEventListener("click", () => openPassage({ document: found.id, title: name }));
  const { language, passages } = found;
  const facts = say(element("span", "note"), "facts", { name: found.name, language, passages });
  const made = element("li", "document", {}, box, element("div", "document-name", {}, title, facts));
  if (session.canWrite) {
    const again = iconButton("read", "read_again", { name }, () => readAgain(found, name));
    again.hidden = !found.has_file;
    made.append(again, iconButton("delete", "delete_document", { name }, () => erase(found, name)));
  }
  return made;
}

async function readAgain(found, name) {
  try {
    const query = { collection: session.name };
    const job = await postJson(`v1/documents/${encodeURIComponent(found.id)}/read`, { query });
    showProblem(byId("documents-problem"), null);
    await followReading(job, name);
  } catch (error) {
    showProblem(byId("documents-problem"), error);
  }
}

async function erase(found, name) {
  const collection = session.name;
  if (!(await confirm("delete_sure", { name }))) {
    return;
  }
  try {
    await remove(`v1/documents/${encodeURIComponent(found.id)}`, { collection });
    session.tick(found, false);
    announce("deleted", { name });
    byId("documents-title").focus();
    await session.refresh();
  } catch (error) {
    showProblem(byId("documents-problem"), error);
  }
}
