// An answer: its sentences with the numbers of their sources, what is to be said about it, and votes.

import { getBlob, postJson } from "./api.js";
import { announce, characters, copyText, element, iconButton, placeText, save, showProblem } from "./dom.js";
import { session } from "./session.js";
import { label, say } from "./wording.js";

const LONGEST_GLUED = 20;

/** Number the passages of an answer: one that supports two sentences has one number. */
function numbered(citations) {
  const numbers = new Map();
  for (const each of citations) {
    const key = `${each.document} ${each.start} ${each.end}`;
    if (!numbers.has(key)) {
      numbers.set(key, { ...each, number: numbers.size + 1 });
    }
  }
  return { all: [...numbers.values()], of: (each) => numbers.get(`${each.document} ${each.start} ${each.end}`) };
}

/** Show an answer in place of the text that was streamed; `open` shows a citation in its document. */
export function showAnswer(place, answer, question, history, open) {
  const sources = numbered(answer.citations);
  const body = element("div", "said", { lang: answer.language });
  fill(body, answer, sources, open);
  place.replaceChildren(body, ...notes(answer, question), ...sourceList(sources.all, open));
  place.classList.toggle("abstained", answer.abstained);
  place.classList.toggle("doubtful", answer.doubtful);
  place.append(tools(answer, sources.all, question, history));
}

function fill(body, answer, sources, open) {
  const letters = characters(unwrapped(answer.text));
  const bold = boldSpan(answer);
  const sentences = Map.groupBy(answer.citations, (each) => `${each.answer_start} ${each.answer_end}`);
  const ordered = [...sentences.values()].sort((one, two) => one[0].answer_start - two[0].answer_start);
  let position = 0;
  const add = (target, end) => {
    for (const [from, to, isBold] of pieces(position, end, bold)) {
      const words = letters.slice(from, to).join("");
      target.append(isBold ? element("strong", "", { textContent: words }) : words);
    }
    position = Math.max(position, end);
  };
  for (const citations of ordered) {
    add(body, citations[0].answer_start);
    const sentence = element("span", "sentence");
    const end = citations[0].answer_end;
    // No line begins with a number: it stays with the last word.
    const glued = element("span", "glued");
    add(sentence, Math.max(position, lastWord(letters, position, end)));
    add(glued, end);
    glued.append(...[...new Set(citations.map(sources.of))].map((found) => marker(found, open)));
    sentence.append(glued);
    body.append(sentence);
  }
  add(body, letters.length);
}

function marker(citation, open) {
  const button = element("button", "marker", { type: "button", textContent: citation.number });
  label(button, "open_citation", { number: citation.number, title: citation.title || citation.name });
  button.addEventListener("click", () => open(citation));
  return element("sup", "", {}, button);
}

/** Return where the last word of a span begins; or its end, if that word is too long for a line. */
function lastWord(letters, start, end) {
  const from = letters.slice(start, end - 1).findLastIndex((each) => /\s/.test(each)) + 1 + start;
  return end - from > LONGEST_GLUED ? end : from;
}

/** Cut a span where the short answer begins and ends. */
function* pieces(start, end, bold) {
  const cuts = [start, ...bold.filter((each) => each > start && each < end), end];
  for (let index = 0; index + 1 < cuts.length; index += 1) {
    if (cuts[index] < cuts[index + 1]) {
      const isBold = bold.length > 0 && cuts[index] >= bold[0] && cuts[index + 1] <= bold[1];
      yield [cuts[index], cuts[index + 1], isBold];
    }
  }
}

function boldSpan(answer) {
  const found = answer.short ? answer.text.indexOf(answer.short) : -1;
  if (found < 0) {
    return [];
  }
  const start = characters(answer.text.slice(0, found)).length;
  return [start, start + characters(answer.short).length];
}

/** Let lines that a text file has broken flow; as long as before, so that offsets stay right. */
export function unwrapped(text) {
  return text.replace(/(?<=\S)\n(?=\p{Ll})/gu, " ");
}

function notes(answer, question) {
  const found = [];
  if (answer.abstained) {
    found.push(say(element("p", "badge"), "abstained"));
  }
  if (answer.doubtful) {
    found.push(say(element("p", "badge"), "doubtful", { percent: Math.round(100 * answer.confidence) }));
  }
  if (!answer.abstained && !answer.grounded && answer.standalone) {
    found.push(say(element("p", "note"), "unsupported"));
  }
  if (answer.standalone && answer.standalone !== question) {
    found.push(say(element("p", "note"), "searched", { question: answer.standalone }));
  }
  return found;
}

/** List where the passages are; those of one page below one heading are one entry. */
function sourceList(citations, open) {
  if (!citations.length) {
    return [];
  }
  const list = element("ol", "sources");
  label(list, "sources");
  const places = Map.groupBy(citations, ({ document, page, heading }) => JSON.stringify([document, page, heading]));
  for (const [each, ...others] of places.values()) {
    const numbers = [each, ...others].map(({ number }) => number).join(" ");
    const title = element("span", "title", { textContent: each.title || each.name });
    const where = element("span", "where", { textContent: placeText(each.page, each.heading) });
    const button = element("button", "source", { type: "button" });
    button.append(element("span", "number", { textContent: numbers }), title, where);
    button.addEventListener("click", () => open(each));
    list.append(element("li", "", {}, button));
  }
  return [list];
}

function tools(answer, sources, question, history) {
  const problem = element("p", "problem", { hidden: true });
  problem.setAttribute("role", "alert");
  const copy = iconButton("copy", "copy", {}, async () => {
    const lines = sources.map((each) => {
      const where = placeText(each.page, each.heading);
      return `[${each.number}] ${each.title || each.name}${where && `, ${where}`}`;
    });
    await copyText([unwrapped(answer.text), "", ...lines].join("\n").trim());
    announce("copied");
    label(copy, "copied");
    setTimeout(() => label(copy, "copy"), 2_000);
  });
  const row = element("div", "answer-tools", {}, copy);
  const votes = [["good", 1], ["bad", -1]].map(([name, vote]) => {
    const button = iconButton(name, `vote_${name}`, {}, async () => {
      try {
        await sendVote(answer, question, history, vote);
      } catch (error) {
        showProblem(problem, error);
        return;
      }
      showProblem(problem, null);
      button.setAttribute("aria-pressed", "true");
      votes.forEach((each) => (each.disabled = true));
      row.append(say(element("span", "note"), "voted"));
      announce("voted");
    });
    button.setAttribute("aria-pressed", "false");
    return button;
  });
  row.append(...votes);
  return element("div", "", {}, row, problem);
}

async function sendVote(answer, question, history, vote) {
  const first = answer.citations[0];
  await postJson("v1/votes", {
    body: {
      collection: session.name,
      question,
      vote,
      history,
      answer: answer.text.slice(0, 20_000),
      quote: first?.quote.slice(0, 20_000) ?? "",
      document: first?.document ?? "",
    },
  });
}

/** Save the votes of the collection as questions of an evaluation. */
export async function downloadVotes() {
  const { blob } = await getBlob("v1/votes", { collection: session.name });
  save(blob, `votes-${session.name}.jsonl`);
}

/** Show that an answer is being looked for. */
export function showSearching(place) {
  const dots = element("span", "dots", {}, element("i"), element("i"), element("i"));
  place.replaceChildren(element("p", "searching", {}, dots, say(element("span"), "searching")));
}

