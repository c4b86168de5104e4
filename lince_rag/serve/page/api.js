// The HTTP API: keys, JSON, streams, uploads and errors.

const STORED = "lince-key";

let key = sessionStorage.getItem(STORED) ?? "";
let askForKey = async () => "";
let asking = null;

/** What the API, or the way to it, refuses; `code` is what programs know the reason by. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Say how to ask the reader for a key: a function that gets whether one was refused, and returns one or "". */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export function hasKey() {
  return key !== "";
}

export function forgetKey() {
  key = "";
  sessionStorage.removeItem(STORED);
}

export function address(path, query = {}) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") {
      url.searchParams.set(name, value);
    }
  }
  return url;
}

export async function getJson(path, query) {
  return (await call("GET", path, { query })).json();
}

export async function getBlob(path, query) {
  const response = await call("GET", path, { query });
  return { blob: await response.blob(), headers: response.headers };
}

export async function postJson(path, { query, body } = {}) {
  const response = await call("POST", path, { query, body });
  return response.status === 204 ? null : response.json();
}

export async function remove(path, query) {
  await call("DELETE", path, { query });
}

/** Yield the events of a stream, as {name, data}. */
export async function* stream(path, body, signal) {
  const response = await call("POST", path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const lines = event.split("\n");
        const name = lines.find((line) => line.startsWith("event: "))?.slice(7) ?? "message";
        const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
        yield { name, data: JSON.parse(data.join("\n")) };
      }
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, "network", String(error));
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function call(method, path, { query, body, signal } = {}) {
  const used = key;
  const headers = { ...(used && { authorization: `Bearer ${used}` }) };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
  }
  let response;
  try {
    const sent = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(address(path, query), { method, headers, body: sent, signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, "network", String(error));
  }
  if (response.ok) {
    return response;
  }
  const error = errorOf(response.status, await response.text());
  if (response.status === 401 && (await renewKey(used))) {
    return call(method, path, { query, body, signal });
  }
  throw error;
}

/** Ask for a key, once for all requests that need it; return whether there is another one than was used. */
async function renewKey(used) {
  if (key === used) {
    asking ??= askForKey(used !== "").finally(() => (asking = null));
    const given = await asking;
    if (!given) {
      return false;
    }
    key = given;
    sessionStorage.setItem(STORED, key);
  }
  return true;
}

function errorOf(status, body) {
  try {
    const { code, message } = JSON.parse(body).error;
    return new ApiError(status, code, message);
  } catch {
    return new ApiError(status, "unknown", `HTTP ${status}`);
  }
}

/** Send files, telling how much of them is sent; fetch cannot tell. */
export function upload(files, query, onProgress) {
  const form = new FormData();
  for (const file of files) {
    form.append("files", file, file.name);
  }
  const request = new XMLHttpRequest();
  return new Promise((resolve, reject) => {
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded, event.total));
    request.addEventListener("load", () => {
      if (request.status === 202) {
        resolve(JSON.parse(request.responseText));
      } else {
        reject(errorOf(request.status, request.responseText));
      }
    });
    // A server that refuses a long body closes the connection before the browser has read why.
    request.addEventListener("error", () => reject(new ApiError(0, "upload", "")));
    request.open("POST", address("v1/documents", query));
    if (key) {
      request.setRequestHeader("authorization", `Bearer ${key}`);
    }
    request.send(form);
  });
}
