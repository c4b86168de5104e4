// Uploads: how much of the files is sent, how far the server has read them, and what it could not read.

import { ApiError, getJson, upload } from "./api.js";
import { announce, byId, element, iconButton, showProblem } from "./dom.js";
import { session } from "./session.js";
import { say, text } from "./wording.js";

const POLL_MILLISECONDS = 500;

const followed = new Set();

/** Send files to the current collection, and follow what becomes of them. */
export async function sendFiles(files) {
  if (!files.length || !session.canWrite) {
    return;
  }
  const collection = session.name;
  const name = files.length === 1 ? files[0].name : text("files_count", { count: files.length });
  const row = addRow();
  say(row.title, "sending", { name });
  try {
    const job = await upload(files, { collection }, (sent, total) => {
      row.progress.max = total;
      row.progress.value = sent;
    });
    await follow(job, row, name);
  } catch (error) {
    row.progress.remove();
    showProblem(row.problem, error);
  }
}

/** Let the server read the file of a document again. */
export async function followReading(job, name) {
  await follow(job, addRow(), name);
}

/** Follow what the server is reading already. */
export async function followOthers() {
  const collection = session.name;
  const jobs = await getJson("v1/jobs", { collection });
  for (const job of jobs) {
    // A job without files only tidies up after deletions.
    if (["queued", "running"].includes(job.status) && job.total > 0 && !followed.has(job.id)) {
      follow(job, addRow(), text("files_count", { count: job.total })).catch(() => {});
    }
  }
}

function addRow() {
  const title = element("span", "title");
  const progress = element("progress");
  const problem = element("p", "problem", { hidden: true });
  const close = iconButton("close", "close", {}, () => {
    item.remove();
    byId("jobs").hidden = !byId("jobs").childElementCount;
  });
  const item = element("li", "job", {}, element("div", "job-head", {}, title, close), progress, problem);
  byId("jobs").append(item);
  byId("jobs").hidden = false;
  return { item, title, progress, problem };
}

async function follow(job, row, name) {
  followed.add(job.id);
  say(row.title, "reading_name", { name });
  row.progress.removeAttribute("value");
  for (let now = job; ; now = await getJson(`v1/jobs/${job.id}`)) {
    if (now.status === "failed") {
      row.progress.remove();
      showProblem(row.problem, new ApiError(0, "job", now.error));
      return;
    }
    if (now.status === "done") {
      row.progress.remove();
      showReport(row, now.report);
      await session.refresh();
      return;
    }
    if (now.total > 1) {
      row.progress.max = now.total;
      row.progress.value = now.done;
      say(row.title, "reading", { done: now.done, total: now.total });
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS));
  }
}

function showReport(row, report) {
  const counts = {};
  for (const kind of ["added", "changed", "unchanged", "failed"]) {
    counts[kind] = report[kind]?.length ?? 0;
  }
  say(row.title, "read_done", counts);
  announce("read_done", counts);
  const reasons = [
    ...(report.failed ?? []).map(({ name, reason }) => ["read_failed", { name, reason }]),
    ...pairs(report.left_out).map(([name, reason]) => ["left_out", { name, reason }]),
    ...Object.entries(report.pages_without_text ?? {}).map(([name, pages]) => [
      "pages_without_text",
      { name, pages: pages.join(", ") },
    ]),
  ];
  if (reasons.length) {
    const list = element("ul", "problem");
    list.append(...reasons.map(([key, values]) => say(element("li"), key, values)));
    row.item.append(list);
  }
}

function pairs(reasons = {}) {
  return Object.entries(reasons).flatMap(([name, all]) => all.map((reason) => [name, reason]));
}

/** Let files be dropped anywhere on the page. */
export function startDropping(afterDrop) {
  const cover = byId("drop");
  let depth = 0;
  const hasFiles = (event) => session.canWrite && event.dataTransfer?.types.includes("Files");
  const set = (now) => {
    depth = now;
    cover.hidden = now <= 0;
  };
  addEventListener("dragenter", (event) => {
    if (hasFiles(event)) {
      say(byId("drop-text"), "drop_files", { collection: session.name });
      set(depth + 1);
    }
  });
  addEventListener("dragleave", (event) => hasFiles(event) && set(depth - 1));
  // Without this, a browser opens the file instead of the page, even where it may not be added.
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (hasFiles(event)) {
      set(0);
      afterDrop();
      sendFiles([...event.dataTransfer.files]);
    }
  });
}
