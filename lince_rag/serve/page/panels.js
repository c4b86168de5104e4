// The panels beside the conversation: columns of a wide window, dialogs over a narrow one.

import { byId } from "./dom.js";

// The windows that have room for each as a column.
const ROOM = {
  documents: matchMedia("(min-width: 80rem)"),
  passage: matchMedia("(min-width: 60rem)"),
};

/** Whether the window has room for a panel beside the conversation. */
export function hasRoom(name) {
  return ROOM[name].matches;
}

export function openPanel(name) {
  const panel = byId(name);
  if (panel.open) {
    panel.querySelector("h2").focus();
  } else if (hasRoom(name)) {
    panel.show();
  } else {
    panel.showModal();
  }
}

export function startPanels() {
  for (const button of document.querySelectorAll("dialog [data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  for (const [name, room] of Object.entries(ROOM)) {
    room.addEventListener("change", () => {
      const panel = byId(name);
      if (panel.open && panel.matches(":modal") === room.matches) {
        panel.dataset.moving = "";
        panel.close();
        openPanel(name);
      }
    });
  }
  // Escape closes a dialog by itself, but not a column.
  document.addEventListener("keydown", (event) => {
    const passage = byId("passage");
    if (event.key === "Escape" && passage.open && !document.querySelector("dialog:modal")) {
      passage.close();
    }
  });
}

/** Call a function when the reader closes a panel, not when it only turns from a column into a dialog. */
export function onClosed(name, closed) {
  byId(name).addEventListener("close", () => {
    const panel = byId(name);
    if ("moving" in panel.dataset) {
      delete panel.dataset.moving;
    } else {
      closed();
    }
  });
}
