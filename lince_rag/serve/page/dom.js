// Small helpers for elements. Whatever comes from documents goes through textContent, and never becomes HTML.

import { isKnown, label, say, text } from "./wording.js";

const SVG = "http://www.w3.org/2000/svg";

// Strokes of 24 × 24.
const ICONS = {
  add: "M12 5v14M5 12h14",
  back: "M15 5l-7 7 7 7",
  bad: "M17 4v10M7 4h8l2 2v8l-4 6c-2 0-2-2-2-3l1-3H6c-1 0-2-1-2-2l1-6c0-1 1-2 2-2z",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v11H9zM5 15V4h10",
  delete: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  documents: "M6 3h8l4 4v14H6zM14 3v4h4M9 12h6M9 16h6",
  forward: "M9 5l7 7-7 7",
  good: "M7 20V10M17 20H9l-2-2v-8l4-6c2 0 2 2 2 3l-1 3h6c1 0 2 1 2 2l-1 6c0 1-1 2-2 2z",
  new: "M4 5h16v11H10l-4 4v-4H4zM12 8v5M9.500 10.500h5",
  read: "M19 8A8 8 0 1 0 20 13M19 3v5h-5",
  send: "M4 12h15M13 6l6 6-6 6",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  stop: "M7 7h10v10H7z",
  zoom: "M10 4a6 6 0 1 0 .1 0M15 15l5 5M10 7v6M7 10h6",
};

export function byId(id) {
  return document.getElementById(id);
}

/** Make an element with a class, properties and children; texts become text nodes. */
export function element(tag, className = "", properties = {}, ...children) {
  const made = document.createElement(tag);
  if (className) {
    made.className = className;
  }
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Put the icons of the page's own buttons into them. */
export function addIcons() {
  for (const button of document.querySelectorAll("[data-icon]")) {
    const words = element("span", "words", {}, ...button.childNodes);
    button.append(icon(button.dataset.icon), ...(button.dataset.text ? [words] : []));
  }
}

/** Make a button that shows only an icon. */
export function iconButton(name, key, values, onClick) {
  const button = element("button", "plain", { type: "button" }, icon(name));
  label(button, key, values);
  button.addEventListener("click", onClick);
  return button;
}

/** Tell those who do not see the page what has happened. */
export function announce(key, values = {}) {
  say(byId("status"), key, values);
}

/** Show why something failed, or, without an error, nothing. */
export function showProblem(place, error) {
  place.hidden = !error;
  delete place.dataset.text;
  if (error) {
    const key = `error_${error.code}`;
    if (isKnown(key)) {
      // What the server names after its sentence, as the files that it does not read.
      say(place, key, { detail: error.message.split(": ").slice(1).join(": ") });
    } else {
      place.textContent = error.message;
    }
  }
}

/** Ask for a confirmation; return whether it was given. */
export function confirm(key, values) {
  const dialog = byId("confirm");
  say(byId("confirm-text"), key, values);
  return new Promise((resolve) => {
    const yes = () => {
      resolve(true);
      dialog.close();
    };
    byId("confirm-yes").addEventListener("click", yes);
    dialog.addEventListener(
      "close",
      () => {
        byId("confirm-yes").removeEventListener("click", yes);
        resolve(false);
      },
      { once: true },
    );
    dialog.showModal();
  });
}

export async function copyText(copied) {
  try {
    await navigator.clipboard.writeText(copied);
  } catch {
    // Without HTTPS, browsers have the old way only.
    const area = element("textarea", "unseen", { value: copied });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

/** Save what was fetched as a file. */
export function save(blob, name) {
  const link = element("a", "", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Return a text by characters: the API's offsets count characters, JavaScript's strings UTF-16 units. */
export function characters(string) {
  return Array.from(string);
}

/** Return where a passage is, for people: its page and heading. */
export function placeText(page, heading) {
  return [page ? text("page", { page }) : "", heading].filter(Boolean).join(" · ");
}
