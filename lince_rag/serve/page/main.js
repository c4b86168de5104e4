// The page of `lince-rag serve`: what starts its parts, the collection, the key and the settings.

import { forgetKey, getJson, hasKey, onKeyNeeded } from "./api.js";
import { downloadVotes } from "./answer.js";
import { startChat } from "./chat.js";
import { startDocuments } from "./documents.js";
import { addIcons, byId, element, showProblem } from "./dom.js";
import { startPanels } from "./panels.js";
import { openAddress, openPassage, startPassage } from "./passage.js";
import { session } from "./session.js";
import { LANGUAGES, currentLanguage, loadWording, say, switchLanguage, withThousands } from "./wording.js";

const MOST_PASSAGES = 20;

/** Ask for the key; return it, or "" if the reader gives none. */
function askKey(wasRefused) {
  const dialog = byId("key-dialog");
  const problem = byId("key-problem");
  showProblem(problem, null);
  if (wasRefused) {
    problem.hidden = false;
    say(problem, "key_wrong");
  }
  byId("key").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    let given = "";
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      given = byId("key").value.trim();
      dialog.close();
    };
    dialog.addEventListener("close", () => resolve(given), { once: true });
  });
}

function showCollections() {
  const choice = byId("collection");
  choice.replaceChildren(
    ...session.collections.map(({ name }) => element("option", "", { value: name, textContent: name })),
  );
  choice.value = session.name;
  choice.disabled = session.collections.length < 2;
}

function showFacts() {
  const found = session.collection;
  const facts = byId("facts");
  facts.replaceChildren();
  const add = (key, value) => facts.append(say(element("dt"), key), value);
  if (found) {
    add("model", element("dd", "", { textContent: found.model }));
    add("size", say(element("dd"), "size_value", { documents: found.documents, passages: found.passages }));
    if (found.waiting) {
      add("waiting", element("dd", "", { textContent: withThousands(found.waiting) }));
    }
  }
  byId("download-votes").hidden = !session.canWrite;
  byId("forget-key").hidden = !hasKey();
}

/** Show which models this machine has the memory for; only who may write can do anything about it. */
async function showMachine() {
  byId("machine").hidden = true;
  if (session.canWrite) {
    const { models } = await getJson("v1/machine");
    const names = models.map(({ name, languages, formats }) =>
      element("li", "", { textContent: `${name} (${formats[0]}; ${languages.join(", ")})` }),
    );
    byId("fitting").replaceChildren(...(names.length ? names : [say(element("li"), "fitting_none")]));
    byId("machine").hidden = false;
  }
}

function startSettings() {
  const language = byId("language");
  for (const [value, textContent] of Object.entries(LANGUAGES)) {
    language.append(element("option", "", { value, textContent, lang: value }));
  }
  language.value = currentLanguage();
  language.addEventListener("change", () => switchLanguage(language.value));
  const passages = byId("passages");
  passages.append(say(element("option", "", { value: "" }), "passages_default"));
  for (let count = 1; count <= MOST_PASSAGES; count += 1) {
    passages.append(element("option", "", { value: count, textContent: count }));
  }
  passages.addEventListener("change", () => (session.passages = passages.value ? Number(passages.value) : null));
  byId("show-settings").addEventListener("click", () => {
    showFacts();
    showMachine().catch(() => {});
    byId("settings").showModal();
  });
  byId("download-votes").addEventListener("click", () => downloadVotes().catch(showStartProblem));
  byId("forget-key").addEventListener("click", () => {
    forgetKey();
    location.reload();
  });
}

function showStartProblem(error) {
  const problem = element("p", "problem");
  problem.setAttribute("role", "alert");
  showProblem(problem, error);
  byId("conversation").append(problem);
}

async function start() {
  addIcons();
  await loadWording();
  onKeyNeeded(askKey);
  startPanels();
  startSettings();
  startPassage();
  startChat(openPassage);
  startDocuments();
  session.addEventListener("collection", () => {
    showCollections();
    showFacts();
  });
  byId("collection").addEventListener("change", (event) => session.choose(event.target.value));
  try {
    await session.refresh();
  } catch (error) {
    showStartProblem(error);
    return;
  }
  byId("question").focus();
  openAddress();
}

start();
