// The conversation: questions, answers as they are written, and what was said before.

import { stream } from "./api.js";
import { showAnswer, showSearching, unwrapped } from "./answer.js";
import { announce, byId, characters, element, showProblem } from "./dom.js";
import { session } from "./session.js";
import { label, say } from "./wording.js";

// What the API takes.
const MOST_TURNS = 40;
const TURN_CHARACTERS = 20_000;
const MOST_DOCUMENTS = 200;

let turns = [];
let running = null;
let openCitation = () => {};

/** Start the conversation; `open` shows a citation in its document. */
export function startChat(open) {
  openCitation = open;
  const question = byId("question");
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  question.addEventListener("input", fit);
  byId("stop").addEventListener("click", () => running?.abort());
  byId("new-conversation").addEventListener("click", () => {
    begin();
    question.focus();
  });
  byId("ask-all").addEventListener("click", () => session.untickAll());
  session.addEventListener("ticked", showTicked);
  let last = session.name;
  session.addEventListener("collection", () => {
    if (session.name !== last) {
      last = session.name;
      begin();
    }
    welcome();
  });
}

function fit() {
  const question = byId("question");
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

/** Begin a new conversation. */
function begin() {
  running?.abort();
  turns = [];
  byId("conversation").replaceChildren(byId("welcome"));
  byId("welcome").hidden = false;
}

function welcome() {
  const isEmpty = session.collection?.documents === 0;
  say(byId("welcome-how"), isEmpty ? (session.canWrite ? "welcome_empty" : "welcome_empty_read") : "welcome_how");
}

function showTicked() {
  const names = [...session.ticked.values()];
  byId("only").hidden = names.length === 0;
  say(byId("only-names"), "only_in", { count: names.length, names: names.join(", ") });
}

function send() {
  const field = byId("question");
  const question = field.value.trim();
  if (question && !running) {
    field.value = "";
    fit();
    ask(question);
  }
}

async function ask(question) {
  byId("welcome").hidden = true;
  const asked = element("article", "turn asked", {}, element("p", "said", { textContent: question }));
  const place = element("div", "answer-body");
  const answered = element("article", "turn answered", {}, place);
  label(asked, "you");
  label(answered, "answer");
  byId("conversation").append(asked, answered);
  showSearching(place);
  asked.scrollIntoView({ block: "start" });
  await answer(question, answered, place);
}

async function answer(question, answered, place) {
  const history = turns.slice(-MOST_TURNS);
  const streamed = element("p", "said streamed");
  running = new AbortController();
  setRunning(true);
  answered.setAttribute("aria-busy", "true");
  announce("searching");
  let whole = null;
  let written = "";
  try {
    for await (const { name, data } of stream("v1/ask", request(question, history), running.signal)) {
      if (name === "text") {
        written += data.text;
        streamed.textContent = unwrapped(written);
        if (!streamed.isConnected) {
          place.replaceChildren(streamed);
        }
        follow();
      } else if (name === "done") {
        whole = data;
      } else if (name === "error") {
        throw data;
      }
    }
    if (!whole) {
      throw { code: "network", message: "" };
    }
    showAnswer(place, whole, question, history, openCitation);
    turns.push({ role: "user", content: question }, { role: "assistant", content: cut(whole.text) });
    announce("complete");
  } catch (error) {
    fail(error, question, answered, place, streamed);
  } finally {
    answered.removeAttribute("aria-busy");
    running = null;
    setRunning(false);
    follow();
  }
}

function request(question, history) {
  return {
    question,
    collection: session.name,
    documents: [...session.ticked.keys()].slice(0, MOST_DOCUMENTS),
    k: session.passages,
    history,
    stream: true,
  };
}

function cut(text) {
  return characters(text).slice(0, TURN_CHARACTERS).join("");
}

/** Show that an answer was stopped, or why there is none; what is unfinished is no part of the conversation. */
function fail(error, question, answered, place, streamed) {
  const kept = streamed.isConnected ? [streamed] : [];
  if (error.name === "AbortError") {
    place.replaceChildren(...kept, say(element("p", "badge"), "stopped"));
    announce("stopped");
    return;
  }
  if (!("code" in error)) {
    console.error(error);
  }
  const problem = element("p", "problem");
  problem.setAttribute("role", "alert");
  showProblem(problem, error);
  const again = say(element("button", "quiet", { type: "button" }), "try_again");
  again.addEventListener("click", () => {
    if (!running) {
      showSearching(place);
      answer(question, answered, place);
    }
  });
  place.replaceChildren(...kept, problem, again);
}

function setRunning(isRunning) {
  const hadFocus = [byId("send"), byId("stop")].includes(document.activeElement);
  byId("send").hidden = isRunning;
  byId("stop").hidden = !isRunning;
  if (hadFocus) {
    byId(isRunning ? "stop" : "question").focus();
  }
}

/** Keep the end of the conversation in view, unless the reader has scrolled up. */
function follow() {
  const log = byId("conversation");
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 200) {
    log.lastElementChild.scrollIntoView({ block: "nearest" });
  }
}
