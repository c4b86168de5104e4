// The texts of the page in the reader's language. They are in prompts/page.toml, and nowhere else.

export const LANGUAGES = { es: "Español", pt: "Português", en: "English" };

const STORED = "lince-language";

let table = {};
let language = "en";

/** Fetch the texts and choose the language: the reader's last choice, or the browser's first that there is. */
export async function loadWording() {
  const response = await fetch(new URL("page/wording.json", document.baseURI));
  table = await response.json();
  const wanted = [stored(), ...navigator.languages.map((each) => each.slice(0, 2).toLowerCase())];
  language = wanted.find((each) => each in LANGUAGES) ?? "en";
  translate(document);
}

export function currentLanguage() {
  return language;
}

export function switchLanguage(chosen) {
  language = chosen;
  try {
    localStorage.setItem(STORED, chosen);
  } catch {
    // Without storage, the choice lasts as long as the page.
  }
  translate(document);
}

function stored() {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null;
  }
}

/** Return a text, its {placeholders} filled in; of {count:one|more}, the first word if it is 1, else the second. */
export function text(key, values = {}) {
  const found = table[key]?.[language] ?? key;
  return found.replace(/\{(\w+)(?::([^}]*))?\}/g, (whole, name, form = "") => {
    const [one, more] = form.split("|");
    if (more !== undefined) {
      return values[name] === 1 ? one : more;
    }
    return form === "," ? withThousands(values[name]) : String(values[name] ?? whole);
  });
}

/** Write a number with the language's separators of thousands; English texts have none. */
export function withThousands(number) {
  return language === "en" ? String(number) : number.toLocaleString(language, { useGrouping: "always" });
}

export function isKnown(key) {
  return key in table;
}

/** Let an element show a text in whatever language the page has. */
export function say(element, key, values = {}) {
  mark(element, "text", key, values);
  show(element);
  return element;
}

function show(element) {
  // A button may also have an icon.
  const inner = element.querySelector(":scope > .words") ?? element;
  inner.textContent = text(element.dataset.text, JSON.parse(element.dataset.textValues ?? "{}"));
}

/** Give an element a name that is read aloud, and shown as a tip where nothing else is written. */
export function label(element, key, values = {}) {
  mark(element, "label", key, values);
  name(element);
  return element;
}

function mark(element, kind, key, values) {
  element.dataset[kind] = key;
  element.dataset[`${kind}Values`] = JSON.stringify(values);
}

function name(element) {
  const value = text(element.dataset.label, JSON.parse(element.dataset.labelValues ?? "{}"));
  element.setAttribute("aria-label", value);
  if (element.matches("button")) {
    element.title = value;
  }
}

function translate(root) {
  document.documentElement.lang = language;
  root.querySelectorAll("[data-text]").forEach(show);
  root.querySelectorAll("[data-label]").forEach(name);
  for (const element of root.querySelectorAll("[data-placeholder]")) {
    element.placeholder = text(element.dataset.placeholder);
  }
}
