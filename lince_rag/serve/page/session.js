// What the parts of the page share: the collection, the documents that are asked, the number of passages.

import { getJson } from "./api.js";

/** Tells with the events "collection" (another one, or its facts have changed) and "ticked" what has changed. */
class Session extends EventTarget {
  collections = [];
  name = "";
  passages = null;
  // The names of the documents that alone are asked, by id; none stand for all.
  ticked = new Map();

  get collection() {
    return this.collections.find((each) => each.name === this.name) ?? null;
  }

  get canWrite() {
    return this.collection?.right === "write";
  }

  /** Fetch the collections again; the current one stays, if it is still there. */
  async refresh() {
    this.collections = await getJson("v1/collections");
    if (this.collection === null) {
      this.choose(this.collections[0]?.name ?? "");
    } else {
      this.tell("collection");
    }
  }

  choose(name) {
    this.name = name;
    this.ticked.clear();
    this.tell("collection");
    this.tell("ticked");
  }

  tick(document, isTicked) {
    if (isTicked) {
      this.ticked.set(document.id, document.title || document.name);
    } else {
      this.ticked.delete(document.id);
    }
    this.tell("ticked");
  }

  untickAll() {
    this.ticked.clear();
    this.tell("ticked");
  }

  tell(event) {
    this.dispatchEvent(new Event(event));
  }
}

export const session = new Session();
